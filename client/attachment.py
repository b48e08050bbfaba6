"""An attachment: a volume in this process, from metadata's word to the end.

Owns the epoch, the lease with metadata (renewed every second; it decides only when others may take over
unasked, so an outage of metadata stops no I/O), what metadata says of addresses, the size and the ceilings
(a reader asks for that alone), the sessions of all groups, their clock, and the end: detached, fenced by
another holder, or lost. An epoch serves one process once: one that was fenced by a recovery alone goes on in
a new epoch, in the place of what it was; after the end, attaching again is a new ``Attachment``.

Invariants: no session serves before all of them can; of an epoch that is over nothing is sent but the release
of read leases; after the end every operation fails with the same error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from moorage.client.group import GroupLog
from moorage.client.layers import Layer
from moorage.client.nodes import NodePool, boot_clock_ms
from moorage.client.outcome import fresh
from moorage.client.readonly import ReadOnlyGroup
from moorage.client.reads import ReadSweep
from moorage.client.session import GroupSession, Shared
from moorage.client.snapshotting import READY, SnapshotKeeper
from moorage.client.succession import Lives, MetadataCall, Succession, new_writer
from moorage.client.volume import Volume
from moorage.quorum.record import Position
from moorage.quorum.writer import TICK_MS, Phase
from moorage.wire.errors import (
    AttachmentLost,
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

T = TypeVar("T")
OpenSnapshot = Callable[[str], Awaitable[Volume]]  # VOLUME@SNAPSHOT

RENEW_S = 1.0
RENEW_TIMEOUT_S = 3.0
READER_ROUNDS = 3  # a reader asks every so many RENEW_S, and in the next one when a device is away
IDLE_TICK_S = 0.5  # hundreds of idle volumes must cost little: 64 groups took 1.3 % of a core at 0.2
METADATA_S = 10.0
READ_WAITS_S = 1.0  # a read that waited for so long brings a dead holder's log to an end
RECOVERY_POLL_S = 0.05
LEAD_POLL_S = 0.2
BUSY_POLL_S = 1.2  # more than RENEW_S: a living holder has renewed in between
RENEWAL_SEEN_S = 0.3  # by so much a lease ends later than it would have


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
        self.below: Volume | None = None  # the snapshot that this is a clone of
        self.is_below = False  # it serves a clone alone
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
        snapshot: str = "",
        rollback: str = "",
        open_snapshot: OpenSnapshot,
        is_below: bool = False,
    ) -> Volume:
        """Attach and wait until all groups serve, at most ``timeout`` seconds. ``snapshot``: read that one
        instead of the volume; ``rollback``: to write its contents into the volume; ``open_snapshot``: for
        what a clone was cloned from; ``is_below``: for a clone, whose own ceilings count. Raises Busy,
        Fenced, NotFound, or Unavailable that says whom it waited for."""
        params: dict[str, Any] = {"mode": "ro" if read_only else "rw", "force": force, "holder": holder}
        if succession is not None:
            params |= {"writer": succession.writer, "succeeds": succession.former}
        if snapshot:  # it is there also while the volume is being rolled back
            params["snapshot"] = snapshot
        if rollback:
            params["rollback"] = rollback
        end = asyncio.get_running_loop().time() + timeout
        attached, writer = await _attach(call, params, timeout)
        if not read_only:
            writing = WriterAttachment(call, attached, writer, Lives(call, params, writer, succession))
            try:
                writing.below = await _open_parent(attached, open_snapshot)
            except BaseException:
                await writing.tell_detached()
                raise
            return await writing._serve(nodes, attached, io_timeout, end)
        floors: dict[int, int] = {}
        if not snapshot and attached["epoch"] and not attached["holder_alive"]:
            floors = await _recover(call, nodes, holder, end)
            attached, writer = await _attach(call, params, timeout)  # what has changed meanwhile
        reading = ReadOnlyAttachment(call, attached, writer, snapshot)
        reading.is_below = is_below
        reading.below = await _open_parent(attached, open_snapshot)
        return reading.read(nodes, params, attached, io_timeout, floors)

    async def detach(self, *, keep: bool = False) -> None:
        try:
            await self._detach(keep)
        finally:
            if self.below is not None:
                await self.below.detach()

    async def _detach(self, keep: bool) -> None:
        raise NotImplementedError

    def _layered(self, groups: Sequence[GroupSession | ReadOnlyGroup], fixed: bool) -> list[GroupLog]:
        if self.below is None:
            return list(groups)
        return [
            Layer(group, index, len(groups), self.below, fixed=fixed) for index, group in enumerate(groups)
        ]

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
            self._limit(volume)
        for ours, group in zip(self._groups, groups, strict=True):
            ours.heard(group)

    def _limit(self, volume: dict[str, Any]) -> None:
        if self._volume is not None and not self.is_below:
            self._volume.limit(*_ceilings(volume))

    async def note_fs(self, fs: dict[str, str]) -> None:
        raise ReadOnly(f"volume {self.name!r} is attached read-only")

    async def rolled_back(self) -> None:
        raise ReadOnly(f"volume {self.name!r} is attached read-only")

    def describe(self) -> dict[str, Any]:
        groups = [group.describe() for group in self._groups]
        return {"epoch": self.epoch, "bad_blocks": self._sweep.bad_blocks, "groups": groups}


class WriterAttachment(Attachment):
    """The holder: leads the log of every group. ``lives``: for one that goes on after a recovery."""

    def __init__(
        self, call: MetadataCall, attached: dict[str, Any], writer: int, lives: Lives | None = None
    ) -> None:
        super().__init__(call, attached, writer)
        self._lives = lives
        self._goes_on = False  # in another epoch, which does not serve yet
        self._keeper: SnapshotKeeper | None = None  # of the epoch that serves

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
            volume=self.volume_id,
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
            ask=self._call,
            tasks=self._tasks,
        )
        sessions = [GroupSession(self._shared, group, self._repair) for group in attached["groups"]]
        self._groups = self._sessions = sessions
        self._logs = self._layered(sessions, fixed=True)
        self._volume = volume = Volume(
            self._logs,
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
        self._keep_snapshots(attached)
        return volume

    def _keep_snapshots(self, attached: dict[str, Any]) -> None:
        self._keeper = SnapshotKeeper(self._shared, self._sessions, attached["volume"])
        self._shared.spawn(self._keeper.run(), f"snapshots of {self.name}")

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
            try:
                for session in self._sessions:
                    session.serve()
            except AttachmentLost as lost:
                self._end(lost)
                return
            self._suspecting = self._goes_on = False
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
            self._volume.repair(self._logs[self._sessions.index(session)], chunk, block, count)

    def _broken(self, error: Exception) -> None:
        """A mistake of ours in a core or around it: what it would do next is not to be trusted."""
        context = {"message": f"volume {self.name} epoch {self.epoch}: cannot go on", "exception": error}
        self._loop.call_exception_handler(context)
        if not isinstance(error, MoorageError):
            error = Fatal(f"volume {self.name!r} cannot go on, attach it anew: {error!r}")
        self._end(error)

    # -- fenced --------------------------------------------------------------------------------------

    def _suspect(self, error: Fenced) -> None:
        """A member has promised a higher epoch, or metadata has given it: this one is over."""
        if self.ended is not None:
            return
        if not self._suspecting:
            self._suspecting = True
            self._shared.spawn(self._fenced(error), f"fenced {self.name}")
        elif self._goes_on and not self._serving.done():  # the next epoch is over too
            self._serving.set_exception(error)
            self._serving.exception()  # seen: perhaps nobody waits yet

    async def _fenced(self, error: Fenced) -> None:
        """Ask metadata who it is, but not for long; go on if it only recovers."""
        lives = self._lives
        try:
            if lives is not None and self._serving.done():
                await self._go_on(lives, error)
            else:
                self._end(await self._by_whom(error))
        except MoorageError as final:
            self._end(final)
        except Exception as nonsense:  # also an answer that makes no sense: it is over all the same
            self._end(Fenced(f"volume {self.name!r} was taken over by another attachment ({nonsense!r})"))

    async def _by_whom(self, error: Fenced) -> Fenced:
        try:
            await self._renew(RENEW_S)
        except Fenced as told:
            return told
        except Exception as nonsense:
            return Fenced(f"volume {self.name!r} was taken over by another attachment ({nonsense})")
        return error

    async def _go_on(self, lives: Lives, error: Fenced) -> None:
        """Attach in the place of what this was, until an epoch serves; what waits is issued again there.
        Raises what ends the attachment."""
        for session in self._sessions:
            session.pause("fenced: asking metadata by whom")
        released = [session.release() for session in self._sessions]
        self._shared.spawn(_all_of(released), f"release {self.name}")
        error = await self._by_whom(error)
        holder = error.details.get("holder")
        if holder is not None and not holder["recovers"] and not lives.knows(holder["writer"]):
            raise error
        log.warning("volume %s epoch %d: attaching again: %s", self.name, self.epoch, error)
        while True:
            for session in self._sessions:
                session.pause(f"fenced, attaching again: {error}")
            try:
                attached, writer = await lives.attach(self._say)
            except NotFound:
                raise error from None
            if self.ended is not None:
                return
            self._serving = serving = self._loop.create_future()
            self._take_up(attached, writer)
            try:
                await serving
            except Fenced as again:
                error = again
                continue
            lives.serves()
            self._keep_snapshots(attached)
            log.warning("volume %s epoch %d: goes on", self.name, self.epoch)
            return

    def _say(self, trouble: str) -> None:
        for session in self._sessions:
            session.pause(f"fenced, metadata does not let it attach again: {trouble}")

    def _take_up(self, attached: dict[str, Any], writer: int) -> None:
        if attached["volume"]["id"] != self.volume_id:
            raise Fenced(f"volume {self.name!r} was deleted, and another one has its name")
        self._goes_on = True
        shared = self._shared
        self.epoch, self.writer = attached["epoch"], writer
        shared.epoch, shared.writer, shared.capability = self.epoch, writer, attached["capability"]
        for session, group in zip(self._sessions, attached["groups"], strict=True):
            session.take_up(group)

    # -- the lease -----------------------------------------------------------------------------------

    async def _ask(self) -> None:
        epoch = self.epoch
        try:
            await self._renew(RENEW_TIMEOUT_S)
        except Fenced as error:
            if epoch == self.epoch:  # else it has gone on meanwhile
                self._suspect(error)

    async def _renew(self, timeout: float) -> None:
        epoch = self.epoch
        params = {"volume": self.volume_id, "epoch": epoch, "writer": self.writer}
        renewed = await self._call("metadata.renew", params, timeout)
        if epoch != self.epoch:
            return
        self._shared.capability = renewed.get("capability", self._shared.capability)
        self._heard(renewed, renewed["groups"])
        if self._keeper is not None and "snapshots_version" in renewed:
            self._keeper.renewed(renewed["snapshots_version"])

    async def note_fs(self, fs: dict[str, str]) -> None:
        params = {"epoch": self.epoch, "writer": self.writer, "fs": fs}
        await self._call("metadata.note_fs", params, METADATA_S)

    async def rolled_back(self) -> None:
        params = {"volume": self.volume_id, "epoch": self.epoch, "writer": self.writer}
        await self._call("metadata.rolled_back", params, METADATA_S)
        if self._lives is not None:
            self._lives.rolled_back()

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
        await _all_of([session.release() for session in self._sessions])
        for session in self._sessions:
            session.leave()

    async def _detach(self, keep: bool) -> None:
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
            await self.tell_detached()

    async def tell_detached(self) -> None:
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


async def _open_parent(attached: dict[str, Any], open_snapshot: OpenSnapshot) -> Volume | None:
    """It stays what it is as long as its clone is there."""
    parent = attached["volume"].get("parent")
    return None if parent is None else await open_snapshot(f"{parent['name']}@{parent['snapshot_name']}")


async def _attach(call: MetadataCall, params: dict[str, Any], timeout: float) -> tuple[dict[str, Any], int]:
    """Ask metadata: its word, and the writer id, which serves this one attach."""
    params = {"writer": new_writer(), **params}
    return await call("metadata.attach", params, timeout), params["writer"]


async def _all_of(calls: Sequence[asyncio.Future[Any]]) -> None:
    await asyncio.gather(*calls)


def find_snapshot(volume: dict[str, Any], name: str, identity: int = 0) -> dict[str, Any]:
    """Of a volume as metadata describes it; ``identity``: and no other one of that name. Raises NotFound, or
    Busy when it is being created."""
    found: dict[str, Any] | None = next((s for s in volume.get("snapshots", []) if s["name"] == name), None)
    if found is None or (identity and found["id"] != identity):
        raise NotFound(
            f"volume {volume['name']!r} has no snapshot {name!r}: `moorage snapshot list {volume['name']}`"
            " shows all"
        )
    if found["state"] != READY:
        raise Busy(f"snapshot {volume['name']}@{name} is {found['state']}: try again in some seconds")
    return found


def _ceilings(volume: dict[str, Any]) -> tuple[int, int]:
    """Operations and bytes a second, 0: no limit. A metadata service of an older version knows none."""
    return volume.get("iops", 0), volume.get("bw", 0)


async def after_the_lease(opening: Callable[[], Awaitable[T]], wait: float) -> T:
    """Attach (or whatever raises Busy with ``remaining_ms``); while another holder's lease runs, wait up to
    ``wait`` seconds for its end. One that renews its lease lives, and is not waited for: it is told apart by
    the second time that more of the lease is left than can be (the first may be a new leader of metadata, who
    gives every holder a whole one)."""
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


async def lead(
    call: MetadataCall,
    nodes: NodePool,
    holder: dict[str, Any],
    end: float,
    done: Callable[[], bool],
) -> None:
    """Hold a volume that nobody holds until ``done``, and all members that are connected have all: changes of
    its members are carried out meanwhile, and who is behind catches up. ``end``: loop time at which to give
    up attaching."""
    loop = asyncio.get_running_loop()
    params = {"mode": "recover", "holder": holder}
    taken, writer = await _attach(call, params, max(end - loop.time(), 1.0))
    leading = WriterAttachment(call, taken, writer)
    async with await leading._serve(nodes, taken, 0, end):
        while True:
            await asyncio.sleep(LEAD_POLL_S)
            if leading.ended is not None:
                raise fresh(leading.ended)
            if done() and all(session.in_step for session in leading._sessions):
                return


class ReadOnlyAttachment(Attachment):
    """Beside a writer, or without one: reads a prefix of each group's log that never goes back, or a
    snapshot, which never changes."""

    def __init__(self, call: MetadataCall, attached: dict[str, Any], writer: int, snapshot: str = "") -> None:
        """``snapshot``: its name. Raises NotFound, or Busy when it is being created."""
        super().__init__(call, attached, writer)
        self._snapshot = find_snapshot(attached["volume"], snapshot) if snapshot else None

    def read(
        self,
        nodes: NodePool,
        params: dict[str, Any],
        attached: dict[str, Any],
        io_timeout: float,
        floors: dict[int, int],
    ) -> Volume:
        """``params``: what metadata was asked, and is asked again; ``floors``: the LSN of a group that its
        reads must see. They see what the writer of the epoch that metadata tells began with, in any case."""
        self._nodes = nodes
        self._params = params
        self._sweep = ReadSweep(io_timeout)
        self._readers = [self._reader(group, floors) for group in attached["groups"]]
        self._groups = self._readers
        size = attached["volume"]["size"] if self._snapshot is None else self._snapshot["size"]
        self._volume = Volume(
            self._layered(self._readers, fixed=self._snapshot is not None),
            name=self.name if self._snapshot is None else f"{self.name}@{self._snapshot['name']}",
            size=size,
            durability=attached["volume"]["durability"],
            attached=self,
            io_timeout=io_timeout,
            read_only=True,
        )
        self._limit(attached["volume"])
        self._following = self._loop.create_task(self._follow(), name=f"reader of {self.name}")
        return self._volume

    def _reader(self, group: dict[str, Any], floors: dict[int, int]) -> ReadOnlyGroup:
        index = group["group"]
        if self._snapshot is None:
            return ReadOnlyGroup(self._nodes, self._sweep, group, Position(self.epoch, floors.get(index, 0)))
        # It was committed under that epoch: who has that record has it.
        lsn = self._snapshot["lsns"][index]
        floor = Position(self._snapshot["epoch"], lsn)
        return ReadOnlyGroup(self._nodes, self._sweep, group, floor, snapshot=lsn)

    async def _pause(self) -> None:
        for _ in range(READER_ROUNDS):
            await asyncio.sleep(RENEW_S)
            if any(reader.waiting_for() for reader in self._readers):
                return

    async def _ask(self) -> None:
        attached, _ = await _attach(self._call, self._params, RENEW_TIMEOUT_S)
        if attached["volume"]["id"] != self.volume_id:
            raise NotFound(f"volume {self.name!r} was deleted, and another one has its name")
        if self._snapshot is not None:
            find_snapshot(attached["volume"], self._snapshot["name"], self._snapshot["id"])
            attached["volume"]["size"] = self._snapshot["size"]
        self._heard(attached["volume"], attached["groups"])
        if self._snapshot is None and not attached["holder_alive"] and self._waits():
            await _recover(self._call, self._nodes, self._params["holder"], self._loop.time() + METADATA_S)

    def _waits(self) -> bool:
        """Whether a read finds no member that may answer: perhaps the writer died before it had begun."""
        oldest = next(iter(self._sweep.reads), None)
        return oldest is not None and self._loop.time() - oldest.started > READ_WAITS_S

    async def resize(self, size: int) -> int:
        raise ReadOnly(f"volume {self.name!r} is attached read-only")

    async def _detach(self, keep: bool) -> None:
        if self.ended is None:
            self.ended = ShuttingDown(f"volume {self.name!r} is detached")
            self._sweep.stop(self.ended)
            for reader in self._readers:
                reader.leave()
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
