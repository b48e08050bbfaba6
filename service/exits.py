"""Exit codes: one table, the same for every command (docs/launch.md). A scheduler decides by them whether
to restart."""

from __future__ import annotations

from enum import IntEnum

from moorage.wire import errors


class Exit(IntEnum):
    OK = 0  # done, or stopped as asked
    INTERNAL = 1  # our own mistake; the log has the story
    USAGE = 2  # unknown command or option
    CONFIGURATION = 3  # an option's value is missing, wrong, or contradicts another: restarting does not help
    REFUSED = 4  # the cluster does not accept this identity or secret: restarting does not help
    CORRUPT = 5  # state on disk does not check: restarting does not help
    CANNOT_BIND = 6  # an address is in use or not ours
    DEVICE_FAILED = 7  # a write or fsync failed: replace the device
    DRAIN_OVERRUN = 8  # stopped as asked, but not in time; nothing acknowledged is lost
    UNAVAILABLE = 9  # others that are needed did not answer in time, or hold the volume: try again


# First match wins, so the narrow classes stand before the wide ones.
_BY_ERROR: tuple[tuple[type[errors.MoorageError], Exit], ...] = (
    (errors.CannotBind, Exit.CANNOT_BIND),
    (errors.InvariantViolation, Exit.INTERNAL),
    (errors.VersionMismatch, Exit.CORRUPT),
    (errors.Corrupt, Exit.CORRUPT),
    (errors.Denied, Exit.REFUSED),
    (errors.Fenced, Exit.REFUSED),
    (errors.Busy, Exit.UNAVAILABLE),  # passes by itself: the lease ends, the name is free again
    (errors.Invalid, Exit.CONFIGURATION),
    (errors.Fatal, Exit.DEVICE_FAILED),
    (errors.NoSpace, Exit.DEVICE_FAILED),
    (errors.Stale, Exit.UNAVAILABLE),
    (errors.Unavailable, Exit.UNAVAILABLE),
    (errors.Overloaded, Exit.UNAVAILABLE),
)


def exit_code(error: BaseException) -> Exit:
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return Exit.INTERNAL
