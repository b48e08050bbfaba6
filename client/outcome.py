"""Errors on their way to callers: a copy per raise; and those that callers' callbacks raise."""

from __future__ import annotations

import asyncio

from moorage.wire.errors import MoorageError


def fresh(error: BaseException) -> BaseException:
    """A copy per raise: one error ends many operations, and tracebacks must not pile up on it."""
    if isinstance(error, MoorageError):
        return type(error)(error.message, **error.details)
    return error


def callback_failed(error: Exception) -> None:
    """A mistake in one caller's ``done`` must not cost others their answer: it goes to the loop's handler."""
    context = {"message": "callback of an operation failed", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
