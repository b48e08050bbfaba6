"""An attachment: one epoch of one volume in this process, from metadata's word to the end.

Owns the epoch, the lease with metadata (renewed every second; it decides only when others may take over
unasked, so an outage of metadata stops no I/O), what metadata says of addresses, the size and the ceilings
(a reader asks for that alone), the sessions of all groups, their clock, and the end: detached, fenced by
another holder, or lost. An epoch serves one process once: attaching again is a new ``Attachment``.

Invariants: no session serves before all of them can; after the end nothing is sent but the release of read
leases, and every operation fails with the same error.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.client.nodes import NodePool, boot_clock_ms
from moorage.client.outcome import fresh
from moorage.client.readonly import ReadOnlyGroup
from moorage.client.reads import ReadSweep
from moorage.client.session import GroupSession, Shared
from moorage.client.volume import Volume
from moorage.quorum.writer import TICK_MS, Phase
from moorage.wire.errors import (
    Busy,
    Fatal,
    Fenced,
    MoorageError,
    NotFound,
    ReadOnly,
    ShuttingDown,
    Unavailable,
)

log = logging.getLogger(__name__)

MetadataCall = Callable[[str, dict[str, Any], float], Awaitable[Any]]

RENEW_S = 1.0
RENEW_TIMEOUT_S = 3.0
READER_ROUNDS = 3  # a reader asks every so many RENEW_S, and in the next one when a device is away
IDLE_TICK_S = 0.5  # hundreds of idle volumes must cost little: 64 groups took 1.3 % of a core at 0.2
METADATA_S = 10.0
RECOVERY_POLL_S = 0.05
BUSY_POLL_S = 1.2  # more than RENEW_S: a living holder has renewed in between
RENEWAL_SEEN_S = 0.3  # by so much a lease ends later than it would have


@dataclass(frozen=True)
class Succession:
    """For a program that goes on where a former life of it ended, with what that one had cached.

    ``writer`` is the id of this life (random, used once, noted durably by the caller *before* it attaches),
    ``former`` those of earlier ones. The attach waits for no lease, and is refused with
    :class:`~moorage.errors.Fenced` when others may have written since.
    """

    writer: int
    former: tuple[int, ...] = ()

    @staticmethod
    def new_writer() -> int:
        return 1 + secrets.randbits(62)


class Attachment:
    """Made by :meth:`open`. ``call(method, params, timeout)`` asks the metadata group that owns the name."""

    def __init__(self, call: MetadataCall, attached: dict[str, Any], writer: int) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self.name: str = attached["volume"]["name"]
        self.volume_id: int = attached["volume"]["id"]
        self.epoch: int = attached["epoch"]
        self.writer = writer
        self.ended: MoorageError | None = None
        self._sweep: ReadSweep  # set when it is opened
        self._groups: Sequence[GroupSession | ReadOnlyGroup] = []
        self._volume: Volume | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls,
        call: MetadataCall,
        nodes: NodePool,
        *,
        name: str,
        read_only: bool,
        force: bool,
        io_timeout: float,
        timeout: float,
        holder: dict[str, Any],
        succession: Succession | None = None,
    ) -> Volume:
        """Attach and wait until all groups serve, at most ``timeout`` seconds. Raises Busy, Fenced,
        NotFound, or Unavailable that says whom it waited for."""
        params: dict[str, Any] = {"mode": "ro" if read_only else "rw", "force": force, "holder": holder}
        if succession is not None:
            params |= {"writer": succession.writer, "succeeds": succession.former}
        end = asyncio.get_running_loop().time() + timeout
        attached, writer = await _attach(call, params, timeout)
        if not read_only:
            return await WriterAttachment(call, attached, writer)._serve(nodes, attached, io_timeout, end)
        floors: dict[int, int] = {}
        if attached["epoch"] and not attached["holder_alive"]:
            floors = await _recover(call, nodes, holder, end)
            attached, writer = await _attach(call, params, timeout)  # what has changed meanwhile
        return ReadOnlyAttachment(call, attached, writer).read(nodes, params, attached, io_timeout, floors)

    async def detach(self, *, keep: bool = False) -> None:
        raise NotImplementedError

    async def resize(self, size: int) -> int:
        """Ask metadata; returns the new size in bytes."""
        changed = await self._call("metadata.resize_volume", {"size": size}, METADATA_S)
        return int(changed["size"])

    # -- what metadata says from time to time ----------------------------------------------------------

    async def _follow(self) -> None:
        warned = False
        while self.ended is None:
            await self._pause()
            try:
                await self._ask()
            except MoorageError as error:
                log.debug("volume %s: metadata does not answer, I/O goes on: %s", self.name, error)
            except Exception as error:  # no answer may end this: others would take the volume over
                text = "volume %s: metadata answered what cannot be understood: %r"
                log.log(logging.DEBUG if warned else logging.WARNING, text, self.name, error)
                warned = True

    async def _pause(self) -> None:
        await asyncio.sleep(RENEW_S)

    async def _ask(self) -> None:
        raise NotImplementedError

    def _heard(self, volume: dict[str, Any], groups: list[dict[str, Any]]) -> None:
        """``volume``: its size and its ceilings."""
        if self._volume is not None:
            self._volume.size = max(self._volume.size, volume["size"])
            self._volume.limit(*_ceilings(volume))
        for ours, group in zip(self._groups, groups, strict=True):
            addresses = {row["replica"]: row["address"] for row in group["members"]}
            for member in ours.members:
                member.link.move(addresses.get(member.replica) or "")

    async def note_fs(self, fs: dict[str, str]) -> None:
        raise ReadOnly(f"volume {self.name!r} is attached read-only")

    def describe(self) -> dict[str, Any]:
        groups = [group.describe() for group in self._groups]
        return {"epoch": self.epoch, "bad_blocks": self._sweep.bad_blocks, "groups": groups}


class WriterAttachment(Attachment):
    """The holder: leads the log of every group."""

    async def _serve(
        self, nodes: NodePool, attached: dict[str, Any], io_timeout: float, end: float
    ) -> Volume:
        """``end``: loop time at which to give up."""
        timeout = max(end - self._loop.time(), 1.0)
        durability = attached["volume"]["durability"]
        self._sweep = ReadSweep(io_timeout)
        self._serving: asyncio.Future[None] = self._loop.create_future()
        self._ticker: asyncio.TimerHandle | None = None
        self._fast = False
        self._suspecting = False
        self._releasing: asyncio.Task[None] | None = None
        self._shared = Shared(
            name=self.name,
            epoch=self.epoch,
            writer=self.writer,
            capability=attached["capability"],
            sync=durability == "sync",
            pool=nodes,
            sweep=self._sweep,
            moved=self._moved,
            wake=self._wake,
            suspect=self._suspect,
            broken=self._broken,
            tasks=self._tasks,
        )
        sessions = [GroupSession(self._shared, group, self._repair) for group in attached["groups"]]
        self._groups = self._sessions = sessions
        self._volume = volume = Volume(
            list(sessions),
            name=self.name,
            size=attached["volume"]["size"],
            durability=durability,
            attached=self,
            io_timeout=io_timeout,
        )
        volume.limit(*_ceilings(attached["volume"]))
        for session in sessions:
            session.start()
        self._wake()
        self._shared.spawn(self._follow(), f"lease of {self.name}")
        try:
            async with asyncio.timeout(timeout):
                await self._serving
        except TimeoutError:
            reason = "; ".join({session.waiting_for() for session in sessions} - {""})
            await self.detach()
            raise Unavailable(
                f"cannot attach {self.name!r}: {reason or 'the members answer too slowly'} "
                f"(gave up after {timeout:g} s)"
            ) from None
        except BaseException:
            await self.detach()
            raise
        return volume

    async def settle(self, end: float) -> dict[int, int]:
        """Wait until readers find all that is committed at a majority; the commit LSN of each group."""
        while not all(session.settled for session in self._sessions):
            if self.ended is not None:
                raise fresh(self.ended)
            if self._loop.time() > end:
                raise Unavailable(
                    f"volume {self.name!r}: the members take too long to apply what is committed"
                )
            await asyncio.sleep(TICK_MS / 1000)
        return {session.index: session.writer.commit for session in self._sessions}

    # -- time ----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._fast and self.ended is None:
            self._fast = True
            if self._ticker is not None:
                self._ticker.cancel()
            self._ticker = self._loop.call_later(TICK_MS / 1000, self._tick)

    def _tick(self) -> None:
        now_ms = boot_clock_ms()
        self._fast = True  # a pump that runs in a tick need not wake anybody
        try:
            busy = [session.tick(now_ms) for session in self._sessions]
        except Exception as error:  # the clock would stand still
            self._broken(error)
            return
        self._fast = any(busy)
        if self.ended is None:
            self._ticker = self._loop.call_later(TICK_MS / 1000 if self._fast else IDLE_TICK_S, self._tick)

    # -- what sessions tell --------------------------------------------------------------------------

    def _moved(self) -> None:
        """A session began to serve or ended."""
        error = next((s.writer.ended for s in self._sessions if s.writer.ended is not None), None)
        if isinstance(error, Fenced):
            self._suspect(error)
        elif error is not None:
            self._end(error)
        elif not self._serving.done() and all(s.writer.phase is Phase.SERVING for s in self._sessions):
            for session in self._sessions:
                session.serving = True
                session.kick()
            self._serving.set_result(None)

    def _repair(self, session: GroupSession, chunk: int, block: int, count: int) -> None:
        log.warning(
            "volume %s group %d chunk %d: a replica holds %d blocks from %d badly, writing them again",
            self.name,
            session.index,
            chunk,
            count,
            block,
        )
        if self._volume is not None:
            self._volume.repair(session, chunk, block, count)

    def _broken(self, error: Exception) -> None:
        """A mistake of ours in a core or around it: what it would do next is not to be trusted."""
        context = {"message": f"volume {self.name} epoch {self.epoch}: cannot go on", "exception": error}
        self._loop.call_exception_handler(context)
        if not isinstance(error, MoorageError):
            error = Fatal(f"volume {self.name!r} cannot go on, attach it anew: {error!r}")
        self._end(error)

    def _suspect(self, error: Fenced) -> None:
        """A member has promised a higher epoch: it is over. Ask metadata who it is, but not for long."""
        if not self._suspecting and self.ended is None:
            self._suspecting = True
            self._shared.spawn(self._fenced(error), f"fenced {self.name}")

    async def _fenced(self, error: Fenced) -> None:
        try:
            await self._renew(RENEW_S)
        except Fenced as told:
            error = told
        except Exception:  # also an answer that makes no sense: it is over all the same
            error = Fenced(f"volume {self.name!r} was taken over by another attachment ({error})")
        self._end(error)

    # -- the lease -----------------------------------------------------------------------------------

    async def _ask(self) -> None:
        try:
            await self._renew(RENEW_TIMEOUT_S)
        except Fenced as error:
            self._end(error)

    async def _renew(self, timeout: float) -> None:
        params = {"volume": self.volume_id, "epoch": self.epoch, "writer": self.writer}
        renewed = await self._call("metadata.renew", params, timeout)
        self._shared.capability = renewed.get("capability", self._shared.capability)
        self._heard(renewed, renewed["groups"])

    async def note_fs(self, fs: dict[str, str]) -> None:
        params = {"epoch": self.epoch, "writer": self.writer, "fs": fs}
        await self._call("metadata.note_fs", params, METADATA_S)

    # -- the end -------------------------------------------------------------------------------------

    def _end(self, error: MoorageError) -> None:
        """Terminal. Every operation fails with ``error`` from here on; the read leases are let go."""
        if self.ended is not None:
            return
        self.ended = error
        log.log(
            logging.INFO if isinstance(error, ShuttingDown) else logging.WARNING,
            "volume %s epoch %d: ended: %s",
            self.name,
            self.epoch,
            error,
        )
        if self._ticker is not None:
            self._ticker.cancel()
        if self._volume is not None:
            self._volume.close(error)
        for session in self._sessions:
            session.fail(error)
        self._sweep.stop(error)
        if not self._serving.done():
            self._serving.set_exception(fresh(error))
            self._serving.exception()  # seen: perhaps nobody waits any more
        self._releasing = self._shared.spawn(self._let_go(), f"release {self.name}")

    async def _let_go(self) -> None:
        await asyncio.gather(*(session.release() for session in self._sessions))
        for session in self._sessions:
            session.leave()

    async def detach(self, *, keep: bool = False) -> None:
        """End, and tell metadata (unless ``keep``), so that others need not wait for the lease."""
        if self.ended is None:  # members hear what is committed before their leases are let go
            if self._ticker is not None:
                self._ticker.cancel()
            self._tick()
            await asyncio.sleep(0)  # a pump that was due already
        fenced = self.ended is not None
        self._end(ShuttingDown(f"volume {self.name!r} is detached"))
        await self._finish_tasks()
        if not fenced and not keep:
            params = {"volume": self.volume_id, "epoch": self.epoch, "writer": self.writer}
            try:
                await self._call("metadata.detach", params, RENEW_TIMEOUT_S)
            except MoorageError as error:  # the lease runs out by itself
                log.warning("volume %s: metadata was not told of the detach: %s", self.name, error)

    async def _finish_tasks(self) -> None:
        """Wait for the release, end all others."""
        tasks = list(self._tasks)
        for task in tasks:
            if task is not self._releasing:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _attach(call: MetadataCall, params: dict[str, Any], timeout: float) -> tuple[dict[str, Any], int]:
    """Ask metadata: its word, and the writer id, which serves this one attach."""
    params = {"writer": Succession.new_writer(), **params}
    return await call("metadata.attach", params, timeout), params["writer"]


def _ceilings(volume: dict[str, Any]) -> tuple[int, int]:
    """Operations and bytes a second, 0: no limit. A metadata service of an older version knows none."""
    return volume.get("iops", 0), volume.get("bw", 0)


async def after_the_lease(opening: Callable[[], Awaitable[Volume]], wait: float) -> Volume:
    """Attach; while another holder's lease runs, wait ``wait`` seconds for its end. One that renews its lease
    lives, and is not waited for: it is told apart by the second time that more of the lease is left than can
    be (the first may be a new leader of metadata, who gives every holder a whole one)."""
    now = asyncio.get_running_loop().time
    end, ends, renewals = now() + wait, float("inf"), 0
    while True:
        try:
            return await opening()
        except Busy as error:
            left = error.details.get("remaining_ms")
            if left is None or now() >= end:
                raise
            renewals += now() + left / 1000 > ends + RENEWAL_SEEN_S
            if renewals == 2:
                raise
            ends = now() + left / 1000
        await asyncio.sleep(max(min(ends - now(), end - now(), BUSY_POLL_S), 0.01))


async def _recover(call: MetadataCall, nodes: NodePool, holder: dict[str, Any], end: float) -> dict[int, int]:
    """Nobody holds the volume: no member may know which of the last writes were acknowledged. Take an epoch
    for a moment to bring the logs to an end, as any writer begins; the LSN of each group to read from."""
    now = asyncio.get_running_loop().time
    while True:
        try:
            taken, writer = await _attach(call, {"mode": "recover", "holder": holder}, max(end - now(), 1.0))
            recovery = WriterAttachment(call, taken, writer)
            async with await recovery._serve(nodes, taken, 0, end):
                return await recovery.settle(end)
        except Fenced:
            return {}  # a writer came: beside a writer a prefix is what a reader gets
        except Busy as error:
            if not error.details["holder"]["recovers"] or now() > end:
                return {}
        await asyncio.sleep(RECOVERY_POLL_S)  # another reader is at it


class ReadOnlyAttachment(Attachment):
    """Beside a writer, or without one: reads a prefix of each group's log that never goes back."""

    def read(
        self,
        nodes: NodePool,
        params: dict[str, Any],
        attached: dict[str, Any],
        io_timeout: float,
        floors: dict[int, int],
    ) -> Volume:
        """``params``: what metadata was asked, and is asked again; ``floors``: the LSN of a group that its
        reads must see."""
        self._params = params
        self._sweep = ReadSweep(io_timeout)
        self._readers = [
            ReadOnlyGroup(nodes, self._sweep, group, floors.get(group["group"], 0))
            for group in attached["groups"]
        ]
        self._groups = self._readers
        self._volume = Volume(
            list(self._readers),
            name=self.name,
            size=attached["volume"]["size"],
            durability=attached["volume"]["durability"],
            attached=self,
            io_timeout=io_timeout,
            read_only=True,
        )
        self._volume.limit(*_ceilings(attached["volume"]))
        self._following = self._loop.create_task(self._follow(), name=f"reader of {self.name}")
        return self._volume

    async def _pause(self) -> None:
        for _ in range(READER_ROUNDS):
            await asyncio.sleep(RENEW_S)
            if any(reader.waiting_for() for reader in self._readers):
                return

    async def _ask(self) -> None:
        attached, _ = await _attach(self._call, self._params, RENEW_TIMEOUT_S)
        if attached["volume"]["id"] != self.volume_id:
            raise NotFound(f"volume {self.name!r} was deleted, and another one has its name")
        self._heard(attached["volume"], attached["groups"])

    async def resize(self, size: int) -> int:
        raise ReadOnly(f"volume {self.name!r} is attached read-only")

    async def detach(self, *, keep: bool = False) -> None:
        if self.ended is None:
            self.ended = ShuttingDown(f"volume {self.name!r} is detached")
            self._sweep.stop(self.ended)
            for reader in self._readers:
                reader.leave()
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
