"""The errors of Moorage: one family tree, one stable code each, the same on the wire and in Python.

A code is never given to another meaning. What a caller may conclude is part of each class:

``retriable``  the same request may succeed later, without any change by the caller.
``refresh``    the caller acted on stale knowledge (configuration, leader, epoch) and must fetch it anew.
``outcome``    ``"not_done"``: it certainly had no effect; ``"unknown"``: it may have had, or may still have.
               One error may know less than its class: the detail ``outcome="unknown"`` says so.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NoReturn

Outcome = Literal["not_done", "unknown"]


class MoorageError(Exception):
    """Base of all errors that Moorage reports. ``details`` is a msgpack-able map (ids, numbers, causes)."""

    code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False
    refresh: ClassVar[bool] = False
    outcome: Outcome = "not_done"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if details.get("outcome") == "unknown":
            self.outcome = "unknown"

    def __str__(self) -> str:
        return self.message


# -- Invalid: the request can never succeed as it is -------------------------------------------------


class Invalid(MoorageError):
    """A bad argument: names it, and says what would be accepted."""

    code = 10


class NameTaken(Invalid):
    code = 11


class NotFound(Invalid):
    code = 12


class LimitExceeded(Invalid):
    """Past a documented limit (docs/limits.md), or a quota: then ``details`` have the principal, what it has
    and what it may have."""

    code = 13


class NotEnoughHosts(Invalid):
    """Fewer distinct hosts than replicas asked for."""

    code = 14


class Busy(Invalid):
    """Held by somebody else: the message says by whom, and what ``--force`` would do."""

    code = 15
    retriable = True


class ReadOnly(Invalid):
    code = 16


class PreconditionFailed(Invalid):
    """What is there is not what the caller made a condition of; ``details`` have its ``etag``, or None."""

    code = 17


class Locked(Invalid):
    """What is retained must stay as it is until its time is over, or its hold is taken away."""

    code = 18


# -- Denied: who asks may not ------------------------------------------------------------------------


class Denied(MoorageError):
    code = 20


class AuthenticationFailed(Denied):
    code = 21


class IdentityConflict(Denied):
    """The same persistent identity twice: a clone, a restored backup, a wiped directory."""

    code = 22


# -- Stale: the caller's knowledge is old ------------------------------------------------------------


class Stale(MoorageError):
    code = 30
    refresh = True


class NotLeader(Stale):
    """``details["leader"]``: {"name", "address"} of the leader, or None when it is not known."""

    code = 31
    retriable = True


class Fenced(Stale):
    """A higher epoch, or another writer in the same one, owns the volume. Terminal for this attachment."""

    code = 32


class StaleConfiguration(Stale):
    code = 33
    retriable = True


class NoReplica(Stale):
    """The device does not have that replica. Counts as dead, never as empty."""

    code = 34


# -- Unavailable: the world is not well now ----------------------------------------------------------


class Unavailable(MoorageError):
    code = 40
    retriable = True


class ConnectionLost(Unavailable):
    """The connection ended after the request may have been sent."""

    code = 41
    outcome = "unknown"


class DeadlineExceeded(Unavailable):
    code = 42
    outcome = "unknown"


class NoQuorum(Unavailable):
    """``details``: needed, got, asked, causes (one line for each member that did not answer)."""

    code = 43
    outcome = "unknown"


class Behind(Unavailable):
    """A member cannot serve the read at the position asked for yet."""

    code = 44


class ShuttingDown(Unavailable):
    code = 45


class CannotConnect(Unavailable):
    """Nothing was sent."""

    code = 46


class CannotBind(Unavailable):
    """An address to listen on is in use, or is not one of this machine."""

    code = 47


# -- Overloaded / no room ----------------------------------------------------------------------------


class Overloaded(MoorageError):
    code = 50
    retriable = True


class NoSpace(MoorageError):
    """The device, or a majority of a group's devices, has no room above its reserve."""

    code = 51


# -- Corrupt -----------------------------------------------------------------------------------------


class Corrupt(MoorageError):
    """Bytes do not match their checksum: the message names the file, the place and the next step."""

    code = 60


class Damaged(Corrupt):
    """A replica that lost acknowledged data: it counts towards no majority until repaired."""

    code = 61


class ProtocolError(Corrupt):
    """A peer sent what the protocol does not allow; the connection ends."""

    code = 62


class VersionMismatch(ProtocolError):
    code = 63


# -- Fatal -------------------------------------------------------------------------------------------


class Fatal(MoorageError):
    """This process, device or attachment cannot go on."""

    code = 70


class DeviceFailed(Fatal):
    """A write or an fsync failed: it is not retried, the device is out until somebody looks."""

    code = 71


class AttachmentLost(Fatal):
    """Acknowledged, unflushed data of a writeback volume is gone: I/O fails until attached anew."""

    code = 72
    outcome = "unknown"


class InvariantViolation(Fatal):
    """Our own mistake, found in time. Nothing may swallow this."""

    code = 73


class RemoteError(MoorageError):
    """An error with a code that this version does not know."""

    code = 79
    outcome = "unknown"


def _tree(cls: type[MoorageError]) -> list[type[MoorageError]]:
    found = [cls]
    for child in cls.__subclasses__():
        found += _tree(child)
    return found


BY_CODE: dict[int, type[MoorageError]] = {cls.code: cls for cls in _tree(MoorageError)}


def from_wire(code: int, message: str, details: dict[str, Any]) -> MoorageError:
    """Build the exception that a peer reported; an unknown code becomes :class:`RemoteError`."""
    cls = BY_CODE.get(code)
    if cls is None:
        return RemoteError(f"unknown error code {code}: {message}", **details)
    return cls(message, **details)


def violated(what: str, **ids: Any) -> NoReturn:
    """Raise :class:`InvariantViolation`; use as ``if not cond: violated("...", lsn=lsn)`` on hot paths."""
    shown = ", ".join(f"{key}={value!r}" for key, value in ids.items())
    raise InvariantViolation(f"invariant violated: {what} ({shown})", **ids)


def invariant(condition: bool, what: str, **ids: Any) -> None:
    """Assert that survives ``-O`` and names the ids involved."""
    if not condition:
        violated(what, **ids)
