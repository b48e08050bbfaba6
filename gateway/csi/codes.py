"""Errors as gRPC status codes: one table. The calls add what only they know (:class:`Refused`)."""

from __future__ import annotations

from grpc import StatusCode

from moorage.wire import errors


class Refused(Exception):
    """A call ends with this code; ``message`` says what would be accepted."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def invalid(message: str) -> Refused:
    return Refused(StatusCode.INVALID_ARGUMENT, message)


def precondition(message: str) -> Refused:
    return Refused(StatusCode.FAILED_PRECONDITION, message)


# First match wins, so the narrow classes stand before the wide ones.
_BY_ERROR: tuple[tuple[type[errors.MoorageError], StatusCode], ...] = (
    (errors.NameTaken, StatusCode.ALREADY_EXISTS),
    (errors.NotFound, StatusCode.NOT_FOUND),
    (errors.LimitExceeded, StatusCode.RESOURCE_EXHAUSTED),  # sizes and counts are checked before
    (errors.NotEnoughHosts, StatusCode.RESOURCE_EXHAUSTED),
    (errors.Busy, StatusCode.FAILED_PRECONDITION),
    (errors.Invalid, StatusCode.INVALID_ARGUMENT),
    (errors.AuthenticationFailed, StatusCode.UNAUTHENTICATED),
    (errors.Denied, StatusCode.PERMISSION_DENIED),
    (errors.Fenced, StatusCode.FAILED_PRECONDITION),
    (errors.DeadlineExceeded, StatusCode.DEADLINE_EXCEEDED),
    (errors.Unavailable, StatusCode.UNAVAILABLE),
    (errors.Stale, StatusCode.UNAVAILABLE),
    (errors.Overloaded, StatusCode.UNAVAILABLE),
    (errors.NoSpace, StatusCode.RESOURCE_EXHAUSTED),
    (errors.Corrupt, StatusCode.DATA_LOSS),
)


def code_of(error: BaseException) -> StatusCode:
    if isinstance(error, Refused):
        return error.code
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), StatusCode.INTERNAL)
