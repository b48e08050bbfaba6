"""One replica group of an attachment: the shell around the quorum log's writer
(:mod:`moorage.quorum.writer`).

Owns what the core must not have: connections, control calls, the queue of writes that wait for room in the
window, and one *pump* per loop turn that carries what the core decided (completions, orders, one or few
APPEND frames per member, however many records came). It never decides what is committed or may be read:
the core does.

Invariants:
- Records enter the core in the order of the calls; nothing passes a queued one but a list of snapshots, in
  which what is queued, and so not acknowledged, need not be.
- Nothing is submitted before all groups of the volume are SERVING.
- From ``pause`` on nothing of that epoch is sent, handed out or acknowledged. In the next one (``take_up``)
  what is not in the log that was chosen is issued again, before all else, and reads wait for it.
- After ``fail`` every ``done`` has been called, and the session is silent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from moorage.client.device import Done
from moorage.client.membership import Membership
from moorage.client.nodes import NodeLink, NodePool, UserKey, boot_clock_ms
from moorage.client.outcome import callback_failed
from moorage.client.reads import GroupReader, ReadSweep, Target
from moorage.client.succession import FLUSH, MetadataCall, Queued, Rest
from moorage.quorum.majority import is_majority
from moorage.quorum.member import BAD
from moorage.quorum.orders import ConfigurationReady, CopyOrder, Order, ReadTail, Seal, SealAnswer
from moorage.quorum.record import BLOCK_SIZE, Buffer, Kind, block_sums, decode_batch
from moorage.quorum.writer import NO_SPACE, WAIT, Phase, Status, Writer
from moorage.wire.connection import Connection
from moorage.wire.errors import (
    AttachmentLost,
    Fenced,
    MoorageError,
    NoSpace,
    ProtocolError,
    Unavailable,
)
from moorage.wire.frame import APPEND, ONEWAY
from moorage.wire.log_messages import pack_append

log = logging.getLogger(__name__)

BATCH_BYTES = 2 << 20  # data of one APPEND; a frame may carry 8 MiB, and one record at most 4
QUEUE_BYTES = 8 << 20  # no more is queued towards one device; the window keeps the rest
TAIL_BYTES = 4 << 20
CURRENT_RECORDS = 256
ROOM_S = 30.0  # a discard could make room, but waits behind this: not for ever
MEND_S, MEND_MAX_S = 3.0, 60.0  # between two questions for bad blocks: a node looks once a second
CALL_S = 5.0  # a SEAL may be answered only after the read lease (1 s) of the former holder

_WRITE, _ZERO, _ZERO_CHUNKS = int(Kind.WRITE), int(Kind.ZERO), int(Kind.ZERO_CHUNKS)
_STATES = {
    Status.DOWN: "is connecting",
    Status.SEALING: "is being asked to join",
    Status.REFUSED: "refuses",
    Status.LAGGING: "is behind",
    Status.ORDERED: "is about to be copied to",
    Status.COPYING: "is being copied to",
}


@dataclass
class Shared:
    """What the sessions of one attachment have in common."""

    name: str
    volume: int
    epoch: int
    writer: int
    capability: bytes
    sync: bool
    pool: NodePool
    sweep: ReadSweep
    moved: Callable[[], None]  # a session began to serve, or ended: look at all of them
    wake: Callable[[], None]  # something is going on: tick fast
    suspect: Callable[[Fenced], None]  # a member says that there is a higher epoch
    broken: Callable[[Exception], None]  # a mistake of ours: nothing can go on
    ask: MetadataCall  # about this volume
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class _Now:
    """What is told at once, also while acknowledgements are held back."""

    def __init__(self, done: Done) -> None:
        self._done = done

    def __call__(self, error: BaseException | None) -> None:
        self._done(error)


class Member:
    """One replica of the group, and its device's link. A :class:`~moorage.client.nodes.LinkUser`."""

    def __init__(self, group: GroupSession, row: dict[str, Any]) -> None:
        """``row``: as metadata describes the replica."""
        self.replica: int = row["replica"]
        self.key: UserKey = (self.replica, group.epoch)
        self.host: str = row["host"]
        self.group = group
        self.session = 0  # of the SEAL that was answered on the connection that is up now
        self.sealed_ms = 0  # when it was answered
        self.bad = False  # it says that some of its blocks are bad
        self._mending = False
        self.link: NodeLink = group.shared.pool.link(row["device"], row["host"], row["address"] or "")
        self.target = Target(self.link, self.replica)

    @property
    def conn(self) -> Connection | None:
        return self.link.conn

    def link_up(self, conn: Connection) -> None:
        self.group.writer.connected(self.replica)
        self.group.kick()

    def link_down(self, error: MoorageError) -> None:
        self.session = 0
        self.target.readable = False
        self.group.writer.disconnected(self.replica)
        self.group.lease_changed()
        self.group.kick()

    def acknowledged(self, fields: tuple[int, int, int, int, int, int, int, int]) -> None:
        self.group.writer.ack(*fields)
        self.group.kick()
        self.bad = fields[7] & BAD != 0
        if self.bad and not self._mending:
            self._mending = True
            self.group.shared.spawn(self._mend(), f"mend replica {self.replica:x}")

    async def _mend(self) -> None:
        """Write the blocks again that its scrub has found bad, until it says that there are none."""
        pause_s, left = MEND_S, -1
        try:
            while self.bad and self.session and self in self.group.members and self.group.failed is None:
                bad = await self._ask_for_bad()
                for chunk, block in bad:
                    self.group.repair(chunk, block, 1)
                pause_s = MEND_S if len(bad) != left else min(2 * pause_s, MEND_MAX_S)
                left = len(bad)
                await asyncio.sleep(pause_s)
        finally:
            self._mending = False

    async def _ask_for_bad(self) -> list[tuple[int, int]]:
        if self.conn is None or not self.group.serving:
            return []
        try:
            rows, _ = await self.conn.call("node.bad_blocks", {"replica": self.replica}, timeout=CALL_S)
            return [(int(chunk), int(block)) for chunk, block in rows]
        except (MoorageError, ValueError, TypeError) as error:
            log.warning(
                "%s does not say which blocks of replica %x are bad: %s", self.host, self.replica, error
            )
            return []

    def refused(self, fields: tuple[int, int, int, int, int, int]) -> None:
        self.group.writer.nack(*fields)
        self.group.lease_changed()
        self.group.kick()

    def lease_promised(self, sent_ms: int) -> None:
        # What was sent before the answer to SEAL may have reached the device before the SEAL did: no promise.
        if self.session and sent_ms > self.sealed_ms:
            self.group.writer.lease_renewed(self.replica, self.session, sent_ms)
            self.group.lease_changed()


class GroupSession:
    """A :class:`~moorage.client.group.GroupLog` over the quorum log. ``group``: as metadata describes it."""

    def __init__(
        self, shared: Shared, group: dict[str, Any], repair: Callable[[GroupSession, int, int, int], None]
    ) -> None:
        self.shared = shared
        self.index: int = group["group"]
        self.failed: MoorageError | None = None
        self.serving = False
        self.paused = ""  # the epoch is over; why the next one has not begun
        # The core's answer, looked up when it changes: between two events a promise that runs still binds its
        # member, also one that has refused us since (it answers the other writer's SEAL after the promise).
        self.reads_until_ms = 0
        self.repair: Callable[[int, int, int], None] = lambda chunk, block, count: repair(
            self, chunk, block, count
        )
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Queued] = deque()
        self._rest: Rest | None = None  # of an epoch that is over, until the next one serves
        self._again = 0  # at the head of the queue: what is issued again
        self._again_end = 0  # LSN of the last of it
        self._room_until = 0.0  # loop time until which what was acknowledged waits for room
        self._kicked = False
        self._busy = True
        self._held: list[Done] | None = None  # what was committed and is not acknowledged yet
        self._hold = 0  # which time it is held back
        self._begin(group)
        self.reader = GroupReader(
            self,
            [member.target for member in self.members],
            shared.sweep,
            rotation=self.index + self.members[0].replica,
            repair=self.repair,
        )
        self.read, self.look, self.stamps = self.reader.read, self.reader.look, self.reader.stamps
        self.read_from = self.reader.read_from

    def _begin(self, group: dict[str, Any]) -> None:
        """The epoch, and members of it; nobody is asked yet."""
        rows, shared = group["members"], self.shared
        self.epoch = shared.epoch
        self.writer = Writer(
            epoch=shared.epoch,
            writer=shared.writer,
            members=tuple(row["replica"] for row in rows),
            sync=shared.sync,
        )
        self.members = [Member(self, row) for row in rows]
        self._by_replica = {member.replica: member for member in self.members}
        self.membership = Membership(self, group)

    def start(self) -> None:
        self.writer.tick(boot_clock_ms())
        for member in self.members:
            self.shared.pool.join(member, member.link)
        self.kick()

    # -- members come and go ---------------------------------------------------------------------------

    def add(self, row: dict[str, Any]) -> None:
        """A learner, which the core knows already."""
        member = Member(self, row)
        self._set_members([*self.members, member])
        self.shared.pool.join(member, member.link)

    def keep(self, replicas: Collection[int]) -> None:
        """Let go of all others: the core has."""
        for member in self.members:
            if member.replica not in replicas:
                member.target.readable = False
                self.shared.pool.leave(member, member.link)
        self._set_members([member for member in self.members if member.replica in replicas])
        self.lease_changed()
        self.kick()

    def heard(self, group: dict[str, Any]) -> None:
        """What metadata says of the group."""
        if self.paused:
            return
        self.membership.heard(group)
        rows = {
            row["replica"]: row for row in (*group["members"], *([group["wish"]] if group["wish"] else []))
        }
        for member in self.members:
            if (row := rows.get(member.replica)) is not None:
                member.link.move(row["address"] or "")

    def _set_members(self, members: list[Member]) -> None:
        self.members = members
        self._by_replica = {member.replica: member for member in members}
        self.reader.set_targets([member.target for member in members])

    # -- GroupLog ------------------------------------------------------------------------------------

    def write(self, chunk: int, block: int, data: Buffer, done: Done, fua: bool) -> None:
        self._submit((_WRITE, chunk, block, len(data) // BLOCK_SIZE, block_sums(data), data, done, fua))

    def zero(self, chunk: int, block: int, count: int, done: Done, fua: bool) -> None:
        self._submit((_ZERO, chunk, block, count, b"", b"", done, fua))

    def zero_chunks(self, chunk: int, count: int, done: Done, fua: bool) -> None:
        self._submit((_ZERO_CHUNKS, chunk, 0, count, b"", b"", done, fua))

    def flush(self, done: Done) -> None:
        if self.failed is not None or self.shared.sync:
            done(self.failed)
        elif self.serving and not self._again:
            self.writer.flush(done)
            self.kick()
        else:  # what was acknowledged may be in the queue
            self._submit((FLUSH, 0, 0, 0, b"", b"", done, False))

    def waiting_for(self) -> str:
        if self.paused:
            return self.paused
        counting = [member for member in self.members if self._counts(member)]
        troubles = [text for text in map(self._trouble, counting) if text]
        if not troubles:
            return ""
        return f"waiting for {len(troubles)} of {len(counting)}: {', '.join(troubles)}"

    def _counts(self, member: Member) -> bool:
        """Whether it is in a configuration that is in force: a learner is waited for by nobody."""
        return any(member.replica in members for members in self.writer.configurations)

    def _trouble(self, member: Member) -> str:
        """What keeps this member from counting, as in "host2 silent for 14 s"; "" when nothing does."""
        peer = self.writer.peers[member.replica]
        if trouble := member.link.trouble():
            return trouble
        if peer.status in (Status.SEALED, Status.STREAMING):
            return ""
        return f"{member.host} {_STATES[peer.status]}" + (f" ({peer.reason})" if peer.reason else "")

    @property
    def settled(self) -> bool:
        """Whether a majority has applied all that is committed: it shows that to readers without a writer."""
        peers, commit = self.writer.peers, self.writer.commit
        return all(
            is_majority(peers[replica].applied >= commit for replica in members)
            for members in self.writer.configurations
        )

    @property
    def in_step(self) -> bool:
        """Whether every member that is connected has all, has applied it, and knows of no bad block."""
        peers, commit = self.writer.peers, self.writer.commit
        return all(
            peers[member.replica].status is Status.STREAMING
            and peers[member.replica].applied >= commit
            and not member.bad
            for member in self.members
            if member.conn is not None
        )

    # -- ReadSource ----------------------------------------------------------------------------------

    flags = snapshot = 0

    def read_lsn(self, chunk: int) -> int:
        return self.writer.read_lsn(chunk)

    def lease_changed(self) -> None:
        self.reads_until_ms = self.writer.reads_until_ms() if self._may_read else 0

    @property
    def _may_read(self) -> bool:
        """Before all groups serve, and what a former epoch had acknowledged is there again, a read would miss
        some of it. While acknowledgements are held back, it would show what was not acknowledged."""
        return (
            self.serving and not self._again and self._held is None and self.writer.commit >= self._again_end
        )

    def showed(self, epoch: int, applied: int) -> None:
        pass  # a writer's own acknowledgements say what a read must see

    def refused_by(self, error: Fenced) -> None:
        self.shared.suspect(error)

    # -- submitting ----------------------------------------------------------------------------------

    def _submit(self, record: Queued) -> None:
        if self.failed is not None:
            self._tell(record[6], self.failed)
        elif self._queue or not self.serving or not self._enter(record):
            self._queue.append(record)
        self.kick()

    def _enter(self, record: Queued) -> bool:
        """Give it to the core; False when it has to wait."""
        kind, chunk, block, count, sums, data, done, fua = record
        if kind == FLUSH:
            self.writer.flush(done, self.writer.window.last)
            return True
        stable_later = fua and not self.shared.sync
        lsn = self.writer.submit(kind, chunk, block, count, sums, data, None if stable_later else done)
        if lsn == WAIT:
            return False
        if lsn == NO_SPACE:
            return self._refused(done)
        if stable_later:
            self.writer.flush(done, lsn)
        return True

    def _refused(self, done: Done | None) -> bool:
        """There is no room for a record; False when it waits for room all the same."""
        error = NoSpace(self._no_space())
        if done is not None:
            self._tell(done, error)
            return True
        # It was acknowledged in a former epoch. Devices that have just started may have room again soon.
        if self._loop.time() < self._room_until:
            return False
        self.writer.ended = AttachmentLost(f"what was acknowledged cannot be issued again: {error}")
        return True

    def _no_space(self) -> str:
        hosts = ", ".join(member.host for member in self.members)
        return (
            f"no room for volume {self.shared.name!r} at a majority of {hosts}: "
            "discard what is not needed, or add space"
        )

    # -- snapshots ------------------------------------------------------------------------------------

    def set_snapshots(self, lsns: Collection[int], new: bool, done: Done) -> int:
        """Have the log say which snapshots of the group there are, ``new``: and one of what was written so
        far. Its LSN, or 0: not now. ``done`` is called when that is committed and durable, and never if the
        epoch ends before."""
        if self.failed is not None or not self.serving or self._again:  # what was acknowledged is to be in it
            return 0
        told = _Now(done)
        lsn = self.writer.set_snapshots(tuple(lsns), new, told if self.shared.sync else None)
        if lsn > 0 and not self.shared.sync:
            self.writer.flush(told, lsn)
        self.kick()
        return max(lsn, 0)

    def hold(self) -> int:
        """From now on nothing is acknowledged, and no read is answered. The number of this time."""
        self.release_held()
        self._held = []
        self._hold += 1
        self.lease_changed()
        return self._hold

    def holds(self, number: int) -> bool:
        """Whether nothing was acknowledged since."""
        return self._held is not None and self._hold == number

    def release_held(self, number: int = 0) -> None:
        """``number``: only if it is that time yet."""
        if number and number != self._hold:
            return
        held, self._held = self._held, None
        for done in held or ():
            self._tell(done, None)
        if held is not None:
            self.kick()

    def _committed(self, done: Done) -> None:
        if isinstance(done, _Now) or self._held is None:
            self._tell(done, None)
        else:
            self._held.append(done)

    # -- the pump ------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Run the pump in the next loop turn."""
        if not self._kicked:
            self._kicked = True
            self._busy = True
            self._loop.call_soon(self._pump)
            self.shared.wake()

    def _pump(self) -> None:
        if self.failed is not None or self.paused:
            self._kicked = False
            return
        try:
            self._carry()
        except Exception as error:  # the pump would stand still, and everything would wait for ever
            self.shared.broken(error)

    def _carry(self) -> None:
        writer = self.writer
        for done in writer.take_done():  # what they call submits more: it goes out with this turn
            self._committed(done)
        queue = self._queue
        while queue and self.serving and self._enter(queue[0]):
            queue.popleft()
            if self._again:
                self._again -= 1
                self._again_end = writer.window.last
        for order in writer.take_orders():
            self._perform(order)
        for member in self.members:
            self._send(member)
        readable = writer.readable() if self._may_read else ()
        for member in self.members:
            member.target.readable = member.replica in readable
        self.lease_changed()
        self._kicked = False
        if writer.ended is not None or (not self.serving and writer.phase is Phase.SERVING):
            self.shared.moved()

    def _send(self, member: Member) -> None:
        conn = member.conn
        if conn is None:
            return
        take, replica = self.writer.take_batch, member.replica
        while conn.write_queue_size < QUEUE_BYTES:  # else: with the next acknowledgement or tick
            batch = take(replica, BATCH_BYTES)
            if batch is None:
                return
            head = pack_append(
                replica,
                self.shared.writer,
                self.epoch,
                batch.prev_epoch,
                batch.prev_lsn,
                batch.commit,
                batch.session,
                batch.count,
            )
            conn.send(ONEWAY, APPEND, 0, head + batch.heads, batch.buffers, batch.flags)

    def tick(self, now_ms: int) -> bool:
        """Time passes; True while something is going on (tick again soon)."""
        if self.failed is not None or self.paused:
            return False
        busy, self._busy = self._busy or bool(self._queue), False
        self.writer.tick(now_ms)
        if not self._kicked:
            self._kicked = True
            self._pump()
        return busy or not self.serving

    # -- orders --------------------------------------------------------------------------------------

    def _perform(self, order: Order) -> None:
        match order:
            case Seal(replica, session):
                member = self._by_replica[replica]
                self._control(member, session, "node.seal", partial(self._seal, member, session))
            case ReadTail(replica, session):
                member = self._by_replica[replica]
                self._control(member, session, "node.tail", partial(self._read_tail, member, order))
            case CopyOrder(replica, session):
                member = self._by_replica[replica]
                self._control(member, session, "node.copy", partial(self._copy, member, order))
            case ConfigurationReady():
                self.membership.ready()

    def _control(
        self, member: Member, session: int, method: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Run a control call in a task; its error goes to the core, which asks again later. An answer that
        makes no sense is one more error: a task that ends without a word would leave the member as it is."""

        async def run() -> None:
            try:
                await work()
            except MoorageError as error:
                refused(error)
            except Exception as error:
                text = f"{member.host} answered {method} with what cannot be understood: {error!r}"
                log.warning("volume %s group %d: %s", self.shared.name, self.index, text)
                refused(ProtocolError(text, device=member.link.device, replica=member.replica))

        writer = self.writer

        def refused(error: MoorageError) -> None:
            if self.failed is None and not self.paused and writer is self.writer:
                writer.refused(member.replica, session, error)
                self.kick()

        self.shared.spawn(run(), f"{self.shared.name} group {self.index} replica {member.replica:x}")

    async def _call(
        self, member: Member, session: int, method: str, params: dict[str, Any]
    ) -> tuple[Any, memoryview]:
        conn = member.conn
        if conn is None:
            raise Unavailable(f"{member.host} is not connected")
        common = {
            "replica": member.replica,
            "epoch": self.epoch,
            "writer": self.shared.writer,
            "session": session,
        }
        answer = await conn.call(method, common | params, timeout=CALL_S)
        if conn is not member.conn or self.failed is not None or self.paused or member not in self.members:
            raise Unavailable(f"{member.host}: the connection or the epoch changed meanwhile")
        return answer

    async def _seal(self, member: Member, session: int) -> None:
        answer, _ = await self._call(member, session, "node.seal", {"capability": self.shared.capability})
        self.writer.sealed(member.replica, session, SealAnswer.unpack(answer))
        member.session, member.sealed_ms = session, boot_clock_ms()
        member.link.beat_soon()
        self.kick()

    async def _read_tail(self, member: Member, order: ReadTail) -> None:
        lsn = order.from_lsn
        while lsn <= order.to_lsn:
            params = {"from_lsn": lsn, "to_lsn": order.to_lsn, "max_bytes": TAIL_BYTES}
            heads, data = await self._call(member, order.session, "node.tail", params)
            records = decode_batch(heads, data)
            if not records:
                raise Unavailable(f"{member.host} gave no record of {lsn} to {order.to_lsn}")
            lsn = records[-1].lsn + 1
            self.writer.tail(member.replica, order.session, records)
            self.kick()

    async def _copy(self, member: Member, order: CopyOrder) -> None:
        source = self._by_replica[order.source]
        where = {
            "address": source.link.channel.address,
            "device": source.link.device,
            "replica": source.replica,
        }
        params = {
            "base": list(order.base),
            "history": order.history,
            "floor": list(order.floor),
            "fresh": order.fresh,
            "source": where,
        }
        await self._call(member, order.session, "node.copy", params)
        self.writer.copy_started(order.replica, order.session)
        self.kick()

    # -- the end of an epoch -------------------------------------------------------------------------

    def pause(self, why: str) -> None:
        """The epoch is over, the attachment perhaps is not: what comes waits for the next one."""
        if not self.paused:
            self._stop()
        self.paused = why

    def take_up(self, group: dict[str, Any]) -> None:
        """Another epoch, which ``shared`` has: seal, and recover what the log has."""
        former = self.members
        self._begin(group)
        self.paused = ""
        self._again_end = 0
        self.reader.ask_others([member.target for member in self.members])
        self.start()  # first: a link that both use stays
        for member in former:
            self.shared.pool.leave(member, member.link)

    def serve(self) -> None:
        """All groups can. Raises AttachmentLost when it cannot be known what of a former epoch is there."""
        there: list[Done | None] = []
        if self._rest is not None:
            there, again = self._rest.divide(self.writer)
            self._queue.extendleft(reversed(again))
            self._again += len(again)
            self._room_until = self._loop.time() + ROOM_S
            self._rest = None
        self.serving = True
        for done in there:
            self._tell(done, None)
        self.kick()

    def _stop(self) -> None:
        """Nothing more is sent or handed out; what was sent, and has no end, is left over."""
        self.release_held()
        for done in self.writer.take_done():  # these are done: say so
            self._tell(done, None)
        if self.serving:  # else nothing of this epoch was sent, and what a former one left is there yet
            self._rest = Rest(self.writer)
        self.serving = False
        self.reads_until_ms = 0
        for member in self.members:
            member.target.readable = False

    def fail(self, error: MoorageError) -> None:
        """End: everything that waits fails with ``error`` (writes that were sent: outcome unknown)."""
        if self.failed is not None:
            return
        if not self.paused:
            self._stop()
        self.failed = error
        unknown = type(error)(error.message, **{**error.details, "outcome": "unknown"})
        for _, record in self._rest.records if self._rest is not None else ():
            self._tell(record[6], unknown)
        queue, self._queue = self._queue, deque()
        for record in queue:
            self._tell(record[6], error)

    def release(self) -> asyncio.Future[Any]:
        """Let go of the read leases, so that the next writer need not wait for them; to be waited for before
        the links are left."""
        params = {"epoch": self.epoch, "writer": self.shared.writer}
        calls = [
            member.conn.call("node.release", {"replica": member.replica, **params}, timeout=1.0)
            for member in self.members
            if member.conn is not None and member.session
        ]
        return asyncio.gather(*calls, return_exceptions=True)  # best effort: they run out by themselves

    def leave(self) -> None:
        for member in self.members:
            self.shared.pool.leave(member, member.link)

    def _progress(self, member: Member) -> dict[str, Any]:
        behind = max(0, self.writer.commit - self.writer.peers[member.replica].received)
        # Fewer records than a few messages carry are on their way: that is not being behind.
        text = self._trouble(member) or ("current" if behind < CURRENT_RECORDS else "catches up")
        return {"state": text, "behind": behind}

    def _tell(self, done: Done | None, error: BaseException | None) -> None:
        if done is None:
            return
        try:
            done(error)
        except Exception as exc:
            callback_failed(exc)

    def describe(self) -> dict[str, Any]:
        return {
            "group": self.index,
            "phase": self.writer.phase.name.lower(),
            "commit": self.writer.commit,
            "waiting_for": self.waiting_for(),
            "queued": len(self._queue),
            "members": [
                {
                    "host": member.host,
                    "device": member.link.device,
                    "replica": member.replica,
                    "learner": not self._counts(member),
                    **self._progress(member),
                }
                for member in self.members
            ],
        }
