"""An attached volume: the public, awaitable face over :class:`~moorage.client.front.Front`.

Owns nothing of the data path: each method starts one ``*_nowait`` call and waits for its ``done``. Many
operations may run at once (``asyncio.gather``); between operations in flight together there is no order.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from moorage.client.device import Done
from moorage.client.front import Front, split
from moorage.client.group import GroupLog
from moorage.client.ordering import Holder
from moorage.client.outcome import fresh
from moorage.client.uri import parse_size
from moorage.quorum.record import CHUNK_SIZE, Buffer
from moorage.wire.errors import DeadlineExceeded, Invalid, MoorageError, NoQuorum, ShuttingDown


class Attached(Protocol):
    """What a volume needs of its attachment (:mod:`moorage.client.attachment`)."""

    @property
    def epoch(self) -> int: ...

    async def detach(self, *, keep: bool = False) -> None: ...

    async def resize(self, size: int) -> int: ...

    async def note_fs(self, fs: dict[str, str]) -> None: ...

    async def rolled_back(self) -> None: ...

    def describe(self) -> dict[str, Any]: ...


class Volume(Front):
    """A volume attached by this process. Made by :meth:`moorage.Cluster.attach`; an async context manager
    that detaches at the end.

    Offsets, lengths and sizes are bytes, any value inside the volume is allowed; multiples of 4096 are fast.
    Errors: :class:`~moorage.errors.Invalid` (outside the volume), :class:`~moorage.errors.ReadOnly`,
    :class:`~moorage.errors.NoSpace` (nothing was written), :class:`~moorage.errors.Fenced` (another
    process took the volume over: every later call fails the same way), :class:`~moorage.errors.NoQuorum`
    (no outcome within ``io_timeout``: a write may still take effect, never after a later one to the same
    block).
    """

    def __init__(
        self,
        groups: list[GroupLog],
        *,
        name: str,
        size: int,
        durability: str,
        attached: Attached,
        io_timeout: float = 60.0,
        read_only: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            groups, size, now=loop.time, later=loop.call_later, io_timeout=io_timeout, read_only=read_only
        )
        self.name = name
        self.durability = durability
        self._attached = attached
        self._loop = loop
        self._detaching: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    @property
    def epoch(self) -> int:
        """The fencing token of this attachment."""
        return self._attached.epoch

    @property
    def detached(self) -> bool:
        """Whether :meth:`detach` is over."""
        return self._detaching is not None and self._detaching.done()

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``. Sees every write acknowledged before the call."""
        if not 0 <= length <= self.size and (error := self._refusal(offset, length)) is not None:
            raise fresh(error)  # before so much memory is asked for
        into = bytearray(length)
        await self.readinto(offset, into)
        return bytes(into)

    async def readinto(self, offset: int, into: bytearray | memoryview) -> None:
        """Fill ``into``. It belongs to the volume until the call ends (until the read ends, when
        cancelled)."""
        view = memoryview(into).cast("B")
        await self._wait(lambda done: self.read_nowait(offset, view, done))

    async def read_from(self, host: str, offset: int, length: int) -> bytes:
        """Read whole blocks from the replicas on ``host`` alone, to see whether its copies are good. Raises
        :class:`~moorage.errors.Corrupt` for a bad one (the holder repairs it from the others), Invalid when
        ``host`` has no replica of a group; waits while the one that it has cannot be asked."""
        if (offset | length) % self.block_size:
            raise Invalid(f"{offset}, {length}: use multiples of {self.block_size}")
        if (error := self._refusal(offset, length)) is not None:
            raise fresh(error)
        into = bytearray(length)
        for at, size in split(offset, length):
            chunk = at // CHUNK_SIZE
            group, index = self.groups[chunk % self.group_count], chunk // self.group_count
            block, part = at % CHUNK_SIZE // self.block_size, memoryview(into)[at - offset :][:size]
            await self._wait(functools.partial(group.read_from, host, index, block, part))
        return bytes(into)

    async def stamps(self, offset: int) -> tuple[list[int], int]:
        """When each block of the chunk that begins at ``offset`` was written or discarded last, as LSNs of
        its group's log, 0 for never; and how many bytes that chunk has."""
        chunk = offset // CHUNK_SIZE
        length = min(CHUNK_SIZE, self.size - offset)
        into = memoryview(bytearray(8 * -(-length // self.block_size)))
        group = self.groups[chunk % self.group_count]
        await self._wait(lambda done: group.stamps(chunk // self.group_count, 0, into, done))
        return list(into.cast("Q")), length

    def group_of(self, offset: int) -> int:
        """The number of the replica group that has this byte."""
        return offset // CHUNK_SIZE % self.group_count

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data`` at ``offset``; on return it is at a majority of the replicas: on stable storage in
        ``sync`` mode or with ``fua``, in memory in ``writeback`` mode. Atomic per 4 KiB block, not across.

        ``bytes`` are used in place; other buffers are copied, so they may change as soon as this was called.
        """
        view = memoryview(data)
        if type(view.obj) is not bytes:  # also a read-only view: what is behind it may change
            view = memoryview(bytes(view))
        view = view.cast("B")
        await self._wait_for_room()
        await self._wait(lambda done: self.write_nowait(offset, view, done, fua))

    async def write_zeroes(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Make a range read as zeroes; durable on return as a write is. Sends no data for whole blocks."""
        await self._wait(lambda done: self.zero_nowait(offset, length, done, False, fua))

    async def discard(self, offset: int, length: int) -> None:
        """Give the space of a range back; it reads as zeroes on return, as after :meth:`write_zeroes`."""
        await self._wait(lambda done: self.zero_nowait(offset, length, done, True))

    async def flush(self) -> None:
        """On return every write that had returned before the call is on stable storage at a majority. Raises
        :class:`~moorage.errors.AttachmentLost` when some of them are lost (``writeback`` mode)."""
        await self._wait(self.flush_nowait)

    async def resize(self, size: int | str) -> None:
        """Grow the volume to ``size`` bytes (a multiple of 4096, or text such as "10G"); the new range reads
        as zeroes. Raises Invalid for a smaller size."""
        self.size = max(self.size, await self._attached.resize(parse_size(size)))

    async def note_fs(self, kind: str, state: str) -> None:
        """Note in metadata what is being made of the volume: ``"ext4"`` or ``"xfs"``; ``"new"``,
        ``"formatting"`` or ``"ready"``. The holder's alone; mounts do it by themselves."""
        await self._attached.note_fs({"type": kind, "state": state})

    async def rolled_back(self) -> None:
        """It has the contents of the snapshot for which it was attached: others may attach it again."""
        await self._attached.rolled_back()

    async def detach(self, timeout: float = 10.0, *, keep: bool = False) -> None:
        """Finish what is in flight, flush, and let others attach; calling it again is fine: it waits for the
        first call, which goes on also when its caller is cancelled. After ``timeout`` seconds it gives up
        waiting: the volume is let go all the same, and :class:`~moorage.errors.DeadlineExceeded` says that
        writes in flight have an unknown outcome. ``keep``: others still wait until the lease is over, so
        that a next life of this program can go on (:class:`~moorage.client.succession.Succession`)."""
        if self._detaching is None:
            name = f"detach {self.name}"
            self._detaching = self._loop.create_task(self._detach(timeout, keep), name=name)
        elif self.detached:
            return
        await asyncio.shield(self._detaching)

    async def _detach(self, timeout: float, keep: bool) -> None:
        try:
            if self.failed is None:
                async with asyncio.timeout(timeout):
                    await self._drain()
        except TimeoutError:
            raise DeadlineExceeded(
                f"detached, but not all was on stable storage after {timeout:g} s"
            ) from None
        finally:
            self.close(ShuttingDown(f"volume {self.name!r} is detached"))
            await self._attached.detach(keep=keep)

    async def _drain(self) -> None:
        """Stand behind all writes in flight, then flush. New ones queue behind it, and are refused after. No
        ceiling keeps who lets go."""
        self.lift()
        everything = _Everything(self._loop.create_future())
        self.order.acquire(everything)
        try:
            await everything.future
            await self.flush()
        finally:
            if not self.order.abandon(everything):
                self.order.release(everything)

    def close(self, error: MoorageError) -> None:
        """The attachment is over; whoever waits in :meth:`wait_lost` hears of it."""
        super().close(error)
        self._over.set()

    async def wait_lost(self) -> None:
        """Wait until the attachment is over, then raise why: :class:`~moorage.errors.Fenced`,
        :class:`~moorage.errors.AttachmentLost`, or ShuttingDown after a detach."""
        await self._over.wait()
        assert self.failed is not None
        raise fresh(self.failed)

    def members(self) -> list[dict[str, Any]]:
        """One row for each replica: group, host, device, replica, ``state`` ("current" when it has all that
        is committed, else what keeps it) and ``behind``, the records that it lacks."""
        groups = self._attached.describe()["groups"]
        return [{"group": group["group"], **member} for group in groups for member in group["members"]]

    def describe(self) -> dict[str, Any]:
        """State of the attachment: epoch, members and their health, whom operations wait for, the ceilings
        and how many requests wait for them, and how often a copy was found bad (``bad_blocks``)."""
        iops, bw = self.gate.rates if self.gate is not None else (0, 0)
        return {
            "name": self.name,
            "size": self.size,
            "durability": self.durability,
            "read_only": self.read_only,
            "failed": str(self.failed) if self.failed else None,
            "writes_in_flight": len(self.order.active),
            "iops": iops,
            "bw": bw,
            "waiting_for_ceilings": len(self.gate) if self.gate is not None else 0,
            **self._attached.describe(),
        }

    async def __aenter__(self) -> Volume:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.detach()

    async def _wait(self, start: Callable[[Done], None]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()

        def done(error: BaseException | None) -> None:
            if future.done():
                return  # the waiting task was cancelled
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(fresh(error))

        start(done)
        await future

    async def _wait_for_room(self) -> None:
        if self.has_room():
            return
        try:
            async with asyncio.timeout(self.io_timeout or None):
                while not self.has_room():
                    waiter: asyncio.Future[None] = self._loop.create_future()
                    self.room[waiter] = None
                    await waiter
        except TimeoutError:
            reason = next(filter(None, (group.waiting_for() for group in self.groups)), "others go first")
            raise NoQuorum(f"not begun after {self.io_timeout:g} s: {reason}") from None
        finally:
            self.room.pop(waiter, None)
            self.next_in_room()  # also when cancelled: what woke us must not be lost


class _Everything(Holder):
    """Holds the whole volume: granted when no write is in flight."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.first, self.end, self.exclusive = 0, 1 << 62, True
        self.future = future

    def granted(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
