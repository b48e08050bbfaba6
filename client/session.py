"""One replica group of an attachment: the shell around the quorum log's writer
(:mod:`moorage.quorum.writer`).

Owns what the core must not have: connections, control calls, the queue of writes that wait for room in the
window, and one *pump* per loop turn that carries what the core decided (completions, orders, one or few
APPEND frames per member, however many records came). It never decides what is committed or may be read:
the core does.

Invariants:
- Records enter the core in the order of the calls; nothing passes a queued one.
- Nothing is submitted before all groups of the volume are SERVING.
- After ``fail`` every ``done`` has been called, and the session is silent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from moorage.client.device import Done
from moorage.client.nodes import NodeLink, NodePool, UserKey, boot_clock_ms
from moorage.client.outcome import callback_failed
from moorage.client.reads import GroupReader, ReadSweep, Target
from moorage.quorum.majority import is_majority
from moorage.quorum.member import BAD
from moorage.quorum.orders import ConfigurationReady, CopyOrder, Order, ReadTail, Seal, SealAnswer
from moorage.quorum.record import BLOCK_SIZE, Buffer, Kind, block_sums, decode_batch
from moorage.quorum.writer import NO_SPACE, WAIT, Phase, Status, Writer
from moorage.wire.connection import Connection
from moorage.wire.errors import Fenced, MoorageError, NoSpace, ProtocolError, Unavailable, violated
from moorage.wire.frame import APPEND, ONEWAY
from moorage.wire.log_messages import pack_append

log = logging.getLogger(__name__)

BATCH_BYTES = 2 << 20  # data of one APPEND; a frame may carry 8 MiB, and one record at most 4
QUEUE_BYTES = 8 << 20  # no more is queued towards one device; the window keeps the rest
TAIL_BYTES = 4 << 20
CURRENT_RECORDS = 256
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
_Queued = tuple[int, int, int, int, Buffer, Buffer, Done, bool]


@dataclass
class Shared:
    """What the sessions of one attachment have in common."""

    name: str
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
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class Member:
    """One replica of the group, and its device's link. A :class:`~moorage.client.nodes.LinkUser`."""

    def __init__(self, group: GroupSession, replica: int, device: str, host: str, address: str) -> None:
        self.key: UserKey = (replica, group.epoch)
        self.replica = replica
        self.host = host
        self.group = group
        self.session = 0  # of the SEAL that was answered on the connection that is up now
        self.sealed_ms = 0  # when it was answered
        self.bad = False  # it says that some of its blocks are bad
        self._mending = False
        self.link: NodeLink = group.shared.pool.link(device, host, address)
        self.target = Target(self.link, replica)

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
            while self.bad and self.session and self.group.failed is None:
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
        self.epoch = shared.epoch
        self.index: int = group["group"]
        self.failed: MoorageError | None = None
        self.serving = False
        # The core's answer, looked up when it changes: between two events a promise that runs still binds its
        # member, also one that has refused us since (it answers the other writer's SEAL after the promise).
        self.reads_until_ms = 0
        rows = group["members"]
        self.repair: Callable[[int, int, int], None] = lambda chunk, block, count: repair(
            self, chunk, block, count
        )
        self.writer = Writer(
            epoch=shared.epoch,
            writer=shared.writer,
            members=tuple(row["replica"] for row in rows),
            sync=shared.sync,
        )
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Queued] = deque()
        self._kicked = False
        self._busy = True
        self.members = [
            Member(self, row["replica"], row["device"], row["host"], row["address"] or "") for row in rows
        ]
        self._by_replica = {member.replica: member for member in self.members}
        self.reader = GroupReader(
            self,
            [member.target for member in self.members],
            shared.sweep,
            rotation=self.index + self.members[0].replica,
            repair=self.repair,
        )
        self.read, self.look, self.read_from = self.reader.read, self.reader.look, self.reader.read_from

    def start(self) -> None:
        self.writer.tick(boot_clock_ms())
        for member in self.members:
            self.shared.pool.join(member, member.link)
        self.kick()

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
            return
        self.writer.flush(done)
        self.kick()

    def waiting_for(self) -> str:
        troubles = [text for text in map(self._trouble, self.members) if text]
        if not troubles:
            return ""
        return f"waiting for {len(troubles)} of {len(self.members)}: {', '.join(troubles)}"

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
        peers = self.writer.peers.values()
        return is_majority(peer.applied >= self.writer.commit for peer in peers)

    # -- ReadSource ----------------------------------------------------------------------------------

    def read_lsn(self, chunk: int) -> int:
        return self.writer.read_lsn(chunk)

    def lease_changed(self) -> None:
        self.reads_until_ms = 0 if self.failed is not None else self.writer.reads_until_ms()

    def showed(self, applied: int) -> None:
        pass  # a writer's own acknowledgements say what a read must see

    def refused_by(self, error: Fenced) -> None:
        self.shared.suspect(error)

    # -- submitting ----------------------------------------------------------------------------------

    def _submit(self, record: _Queued) -> None:
        if self.failed is not None:
            record[6](self.failed)
        elif self._queue or not self.serving or not self._enter(record):
            self._queue.append(record)
        self.kick()

    def _enter(self, record: _Queued) -> bool:
        """Give it to the core; False when it has to wait."""
        kind, chunk, block, count, sums, data, done, fua = record
        stable_later = fua and not self.shared.sync
        lsn = self.writer.submit(kind, chunk, block, count, sums, data, None if stable_later else done)
        if lsn == WAIT:
            return False
        if lsn == NO_SPACE:
            self._tell(done, NoSpace(self._no_space()))
        elif stable_later:
            self.writer.flush(done, lsn)
        return True

    def _no_space(self) -> str:
        hosts = ", ".join(member.host for member in self.members)
        return (
            f"no room for volume {self.shared.name!r} at a majority of {hosts}: "
            "discard what is not needed, or add space"
        )

    # -- the pump ------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Run the pump in the next loop turn."""
        if not self._kicked:
            self._kicked = True
            self._busy = True
            self._loop.call_soon(self._pump)
            self.shared.wake()

    def _pump(self) -> None:
        if self.failed is not None:
            return
        try:
            self._carry()
        except Exception as error:  # the pump would stand still, and everything would wait for ever
            self.shared.broken(error)

    def _carry(self) -> None:
        writer = self.writer
        for done in writer.take_done():  # what they call submits more: it goes out with this turn
            self._tell(done, None)
        queue = self._queue
        while queue and self.serving and self._enter(queue[0]):
            queue.popleft()
        for order in writer.take_orders():
            self._perform(order)
        for member in self.members:
            self._send(member)
        readable = writer.readable()
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
        if self.failed is not None:
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
                self._control(member, session, "node.seal", self._seal(member, session))
            case ReadTail(replica, session):
                member = self._by_replica[replica]
                self._control(member, session, "node.tail", self._read_tail(member, order))
            case CopyOrder(replica, session):
                member = self._by_replica[replica]
                self._control(member, session, "node.copy", self._copy(member, order))
            case ConfigurationReady():
                violated("a membership change that nobody asked for", group=self.index)

    def _control(self, member: Member, session: int, method: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a control call in a task; its error goes to the core, which asks again later. An answer that
        makes no sense is one more error: a task that ends without a word would leave the member as it is."""

        async def run() -> None:
            try:
                await work
            except MoorageError as error:
                refused(error)
            except Exception as error:
                text = f"{member.host} answered {method} with what cannot be understood: {error!r}"
                log.warning("volume %s group %d: %s", self.shared.name, self.index, text)
                refused(ProtocolError(text, device=member.link.device, replica=member.replica))

        def refused(error: MoorageError) -> None:
            if self.failed is None:
                self.writer.refused(member.replica, session, error)
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
        if conn is not member.conn or self.failed is not None:
            raise Unavailable(f"{member.host}: the connection changed meanwhile")
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

    # -- the end -------------------------------------------------------------------------------------

    def fail(self, error: MoorageError) -> None:
        """End: everything that waits fails with ``error`` (writes that were sent: outcome unknown)."""
        if self.failed is not None:
            return
        self.failed = error
        self.reads_until_ms = 0
        for done in self.writer.take_done():  # these are done: say so
            self._tell(done, None)
        unknown = type(error)(error.message, **{**error.details, "outcome": "unknown"})
        for done in self.writer.take_unfinished():
            self._tell(done, unknown)
        queue, self._queue = self._queue, deque()
        for record in queue:
            self._tell(record[6], error)

    async def release(self) -> None:
        """Let go of the read leases, so that the next writer need not wait for them; then of the links."""
        params = {"epoch": self.epoch, "writer": self.shared.writer}
        calls = [
            member.conn.call("node.release", {"replica": member.replica, **params}, timeout=1.0)
            for member in self.members
            if member.conn is not None and member.session
        ]
        await asyncio.gather(*calls, return_exceptions=True)  # best effort: they run out by themselves

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
                    **self._progress(member),
                }
                for member in self.members
            ],
        }
