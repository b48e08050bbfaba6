"""The interface of a byte-addressable device: what gateways and the benchmark ask of a volume.

This owns the interface only. ``Volume`` implements it over the quorum log; tests implement it over memory.

Rules that both sides rely on:

- Everything runs on one event loop. The ``*_nowait`` calls never block, and start no task per operation.
- ``done`` is called exactly once, on the loop: with ``None``, or with the error. It may be called before the
  ``*_nowait`` call returns, so a caller sets up its own state first. A ``*_nowait`` call does not raise:
  what is wrong with a request (out of bounds, read-only) arrives at ``done`` too.
- ``done(None)`` of a write means that it is as durable as the volume's mode promises (``sync``: on stable
  storage at a majority); with ``fua=True`` it is on stable storage in every mode.
- Any offset and length inside the device is allowed; whole blocks (4 KiB) are the fast path. Operations in
  flight together have no order between them, except that one block is never torn by two writes.
- Operations in flight are bounded by the caller (queue depth), not by the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Done = Callable[[BaseException | None], None]
"""Called once with the outcome. After an error of outcome ``"unknown"`` the write may still take effect."""


class BlockDevice(Protocol):
    """A volume as its gateways see it. Offsets, lengths and sizes are in bytes."""

    @property
    def size(self) -> int:
        """Size now; it may grow while attached."""

    @property
    def read_only(self) -> bool:
        """True when every write, zero and discard is refused with ``ReadOnly``."""

    @property
    def block_size(self) -> int:
        """The unit that is cheap and atomic: 4096."""

    def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
        """Fill ``into`` (writable, C-contiguous bytes) from ``offset``.

        The device may write to ``into`` until ``done``, not afterwards; after an error its content is
        undefined.
        """

    def write_nowait(self, offset: int, data: memoryview, done: Done, fua: bool = False) -> None:
        """Write ``data`` at ``offset``. The caller leaves ``data`` unchanged until ``done``.

        Data of a read-only view must never change again, also later: a device may keep it without a copy.
        """

    def zero_nowait(self, offset: int, length: int, done: Done, discard: bool, fua: bool = False) -> None:
        """Make a range read as zeroes. ``discard`` allows to give its space back (best effort)."""

    def flush_nowait(self, done: Done) -> None:
        """All writes whose ``done`` ran before this call are on stable storage when ``done`` runs."""

    async def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Extents ``(length, is_hole)`` from ``offset`` on, together exactly ``length``.

        A hole reads as zeroes. May be coarse: data may be reported for what is a hole, never the
        other way round.
        """
