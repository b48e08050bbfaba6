"""A client process in simulation: it attaches, runs a workload through a ``Writer``, and lets go, crashes, is
fenced or frozen. Its messages all go to the writer of its present attachment, as in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moorage.quorum.orders import ConfigurationReady, CopyOrder, ReadTail, Seal, SealAnswer
from moorage.quorum.peer import Status
from moorage.quorum.record import Kind, Record
from moorage.quorum.simulation.quorum_checks import Operation
from moorage.quorum.simulation.quorum_store import BLOCKS
from moorage.quorum.writer import NO_SPACE, TICK_MS, WAIT, Phase, Writer
from moorage.wire.errors import DeadlineExceeded, Fenced, NoReplica, Stale

if TYPE_CHECKING:
    from moorage.quorum.simulation.quorum_cluster import Grant, QuorumCluster

Wish = tuple[int, int, int, int]  # kind, chunk, block, count of a record


class SimClient:
    """See the module. ``repairer``: it only recovers, changes the configuration, and runs no workload."""

    def __init__(self, cluster: QuorumCluster, name: str, *, repairer: bool = False) -> None:
        self.cluster = cluster
        self.kernel = cluster.kernel
        self.name = name
        self.repairer = repairer
        self.writer: Writer | None = None
        self.grant: Grant | None = None
        self.depth = self.kernel.rng.choice((1, 3, 8))
        self._open: dict[int, tuple[Operation, Wish]] = {}  # writes that were given an LSN, in order
        self._again: list[tuple[Operation, Wish]] = []  # to be issued again, in order
        self._waiting: list[tuple[Operation, Wish]] = []  # not submitted yet
        self._reads: dict[int, tuple[Operation, int]] = {}  # open reads: (operation, tries)
        self._values: list[tuple[Operation, int]] = []  # read, but no read lease runs
        self._committed = 0
        self._tail: tuple[ReadTail, int] | None = None
        self._adopted = False
        self._astray = False  # it was told of a commit that is lost: what it says counts no more
        self._reissued: set[int] = set()
        self._changing: tuple[int, ...] | None = None
        cluster.network.attach(name, self.on_message)

    # -- life ------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Everything that it had under way has no outcome."""
        self.writer = None
        self._open.clear()
        self._forget()
        self.cluster.network.detach(self.name)

    def _forget(self) -> None:
        self._again.clear()
        self._waiting.clear()
        self._reads.clear()
        self._values.clear()

    def restart(self) -> None:
        if self.writer is None:
            self.cluster.network.attach(self.name, self.on_message)

    def attach(self, *, again: bool = False) -> None:
        """Take a new epoch. ``again``: fenced by a repairer; what was not acknowledged is issued again."""
        if again:
            self._again = [*self._open.values(), *self._again, *self._waiting]
        else:
            self._forget()
        self._open = {}
        self._waiting = []
        self._reads.clear()
        self._values.clear()
        cluster = self.cluster
        self.grant = grant = cluster.metadata.attach(self.name, self.repairer)
        rng = self.kernel.rng
        self.writer = Writer(
            epoch=grant.epoch,
            writer=grant.writer,
            members=grant.members,
            learners=grant.learners,
            sync=cluster.sync,
            window_records=cluster.window_records,
            read_map_chunks=rng.choice((1, 2, 100)),
            lease_ms=cluster.lease_ms,
        )
        self._committed = 0
        self._adopted = False
        self._astray = False
        self._reissued = {operation.number for operation, _ in self._again}
        self._changing = None
        self._tail = None
        self.kernel.note(f"{self.name}: attaches, epoch {grant.epoch} of {grant.members}")
        for replica in sorted(self.writer.peers):
            self.writer.connected(replica)
        if grant.wish is not None:
            self.writer.change(grant.wish)
        life = self.writer
        self._every(TICK_MS * 1000, life, self._tick)
        self._every(cluster.lease_ms * 250, life, self._heartbeat)
        if not self.repairer:
            self._work(life)
        self.turn()

    def _every(self, period_us: int, life: Writer, action: Callable[[], None]) -> None:
        def again() -> None:
            if self.writer is life:
                action()
                self._every(period_us, life, action)

        self.kernel.later(period_us, again, self.name)

    def detach(self) -> None:
        """Let go in an orderly way: finish nothing, hand no read on, release the leases."""
        if self.writer is not None:
            self._release()
            self.writer = None
            self._open.clear()
            self._forget()

    def _release(self) -> None:
        writer = self.writer
        if writer is not None:
            for replica in writer.peers:
                self._send(replica, "release", writer.epoch, writer.writer)

    def _send(self, replica: int, kind: str, *fields: Any) -> None:
        self.cluster.network.send(self.name, f"r{replica}", (kind, replica, *fields))

    # -- messages ----------------------------------------------------------------------------------------

    def on_message(self, source: str, message: tuple[Any, ...]) -> None:
        writer = self.writer
        if writer is not None:
            getattr(self, "_on_" + message[0])(writer, *message[1:])
            self.turn()

    def _on_sealed(self, writer: Writer, replica: int, session: int, answer: SealAnswer) -> None:
        if answer.epoch == writer.epoch:
            writer.sealed(replica, session, answer)

    def _on_fenced(self, writer: Writer, replica: int, session: int, epoch: int, promised: int) -> None:
        if epoch == writer.epoch:
            writer.refused(replica, session, Fenced("fenced", promised=promised))

    def _on_no_replica(self, writer: Writer, replica: int, session: int) -> None:
        writer.refused(replica, session, NoReplica("gone"))

    def _on_ack(self, writer: Writer, *fields: int) -> None:
        writer.ack(*fields)

    def _on_nack(self, writer: Writer, *fields: int) -> None:
        writer.nack(*fields)

    def _on_lost(self, writer: Writer, replica: int, epoch: int, session: int) -> None:
        peer = writer.peers.get(replica)
        if epoch == writer.epoch and peer is not None and peer.answered and session == peer.seal_session:
            writer.connected(replica)

    def _on_tail(
        self, writer: Writer, replica: int, epoch: int, session: int, records: tuple[Record, ...]
    ) -> None:
        if self._tail is None or epoch != writer.epoch:
            return
        order, wanted = self._tail
        if (replica, session) != (order.replica, order.session) or records[0].lsn != wanted:
            return
        writer.tail(replica, session, list(records))
        self._tail = (order, wanted + len(records))
        if wanted + len(records) <= order.to_lsn:
            self._ask_tail()

    def _on_no_tail(self, writer: Writer, replica: int, epoch: int, session: int) -> None:
        if epoch == writer.epoch:
            writer.refused(replica, session, Stale("its tail is gone"))

    def _on_copying(self, writer: Writer, replica: int, epoch: int, session: int) -> None:
        if epoch == writer.epoch:
            writer.copy_started(replica, session)

    def _on_no_copy(self, writer: Writer, replica: int, epoch: int, session: int) -> None:
        if epoch == writer.epoch:
            writer.refused(replica, session, Stale("no copy now"))

    def _on_lease(self, writer: Writer, replica: int, session: int, epoch: int, sent_ms: int) -> None:
        if epoch == writer.epoch:
            writer.lease_renewed(replica, session, sent_ms)

    def _on_behind(self, writer: Writer, replica: int, epoch: int, number: int) -> None:
        pass  # the timer asks another one

    def _on_value(self, writer: Writer, replica: int, epoch: int, number: int, value: int) -> None:
        if epoch != writer.epoch or number not in self._reads:
            return
        operation, _ = self._reads.pop(number)
        self._hand_on(writer, operation, value)

    def _hand_on(self, writer: Writer, operation: Operation, value: int) -> None:
        """A value goes to the application only while a majority's read leases run."""
        if self._astray:
            return
        if writer.reads_until_ms() > self.kernel.now_ms:
            operation.value = value
            self.cluster.observer.end(operation)
            self.cluster.reads += 1
        else:
            self._values.append((operation, value))

    # -- a turn of the loop ----------------------------------------------------------------------------------

    def turn(self) -> None:
        writer = self.writer
        if writer is None:
            return
        writer.validate()
        self._observe(writer)
        for number in writer.take_done():
            self._done(number)
        if writer.ended is not None:
            self._ended(writer)
            return
        for order in writer.take_orders():
            self._order(writer, order)
        for replica in sorted(writer.peers):
            while (batch := writer.take_batch(replica, self.cluster.batch_bytes)) is not None:
                self._send(
                    replica,
                    "append",
                    writer.writer,
                    writer.epoch,
                    batch.session,
                    batch.prev_epoch,
                    batch.prev_lsn,
                    batch.commit,
                    batch.flags,
                    tuple(batch.records),
                )

    def _observe(self, writer: Writer) -> None:
        """Tell the observer what this writer believes, in the order in which it came to believe it."""
        observer, window = self.cluster.observer, writer.window
        if writer.phase < Phase.BARRIER:
            return
        if not self._adopted:
            if not self.cluster.sync and writer.phase is not Phase.SERVING:
                return  # until its barrier is committed another may choose another log, with more or less
            self._adopted = True
            observer.adopts(writer.epoch, writer.barrier, window.history)
            self._committed = max(window.first - 1, min(writer.commit, observer.last_committed))
        for lsn in range(self._committed + 1, writer.commit + 1):
            record = window.entries[lsn]
            if observer.commits(writer.epoch, record):
                self.cluster.check_held(record, writer.configurations)
            else:
                self._astray = True
        self._committed = writer.commit
        current = max(observer.adopted) == writer.epoch
        if current and writer.durable > observer.flushed:
            observer.flushed = min(writer.durable, observer.last_committed)

    def _done(self, number: int) -> None:
        found = self._open.pop(number, None)
        self._reissued.discard(number)
        if found is not None and not self._astray:
            self.cluster.observer.end(found[0])
            self.cluster.writes += 1

    def _ended(self, writer: Writer) -> None:
        self.kernel.note(f"{self.name}: ended: {writer.ended}")
        self._release()
        self.writer = None
        self._reads.clear()
        self._values.clear()
        self.cluster.ended(self, writer)

    def idle(self) -> bool:
        return not (self._open or self._again or self._waiting or self._reads or self._values)

    # -- orders ------------------------------------------------------------------------------------------

    def _order(self, writer: Writer, order: Any) -> None:
        if isinstance(order, Seal):
            self._send(order.replica, "seal", order.session, writer.epoch, writer.writer)
            self._deadline(writer, order.replica, order.session, Status.SEALING)
        elif isinstance(order, ReadTail):
            self._tail = (order, order.from_lsn)
            self._ask_tail()
        elif isinstance(order, CopyOrder):
            fields = (
                order.session,
                writer.epoch,
                writer.writer,
                order.source,
                order.base,
                order.fresh,
                order.history,
                order.floor,
            )
            self._send(order.replica, "copy", *fields)
            self._deadline(writer, order.replica, order.session, Status.ORDERED)
        elif isinstance(order, ConfigurationReady):
            self._changing = order.members
            self._commit_configuration(writer, order.members)

    def _deadline(self, writer: Writer, replica: int, session: int, status: Status) -> None:
        def late() -> None:
            peer = writer.peers.get(replica)
            if (
                self.writer is writer
                and peer is not None
                and (peer.session, peer.status) == (session, status)
            ):
                writer.refused(replica, session, DeadlineExceeded("no answer"))
                self.turn()

        self.kernel.later(self.cluster.call_us, late, self.name)

    def _ask_tail(self) -> None:
        writer = self.writer
        if writer is None or self._tail is None:
            return
        order, wanted = self._tail
        fields = (order.session, writer.epoch, writer.writer, wanted, order.to_lsn)
        self._send(order.replica, "tail", *fields)

        def late() -> None:
            if self.writer is writer and self._tail == (order, wanted):
                self._tail = None
                writer.refused(order.replica, order.session, DeadlineExceeded("no tail"))
                self.turn()

        self.kernel.later(self.cluster.call_us, late, self.name)

    def _commit_configuration(self, writer: Writer, members: tuple[int, ...]) -> None:
        """Compare-and-set at metadata; the answer may be lost: then ask again, and stay joint meanwhile."""
        if self.writer is not writer:
            return
        rng = self.kernel.rng

        def asked() -> None:
            outcome = self.cluster.metadata.commit(writer.epoch, members)
            if rng.random() < 0.3:
                return  # the reply is lost
            self.kernel.later(rng.randint(1_000, 60_000), lambda: told(outcome), self.name)

        def told(outcome: str) -> None:
            if self.writer is not writer or self._changing != members:
                return
            self._changing = None
            if outcome == "committed":
                writer.change_committed(members)
            elif outcome == "cancelled":
                writer.change_refused(members)
            self.turn()

        self.kernel.later(rng.randint(1_000, 60_000), asked)  # outlives the client

        def again() -> None:
            if self._changing == members:
                self._commit_configuration(writer, members)

        self.kernel.later(200_000, again, self.name)

    # -- timers --------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        writer = self.writer
        if writer is None:
            return
        writer.tick(self.kernel.now_ms)
        rng = self.kernel.rng
        if not self.cluster.healed and rng.random() < 0.004:
            replica = rng.choice(sorted(writer.peers))
            writer.disconnected(replica)
            self.kernel.later(rng.randint(0, 300_000), lambda: self._reconnect(writer, replica), self.name)
        for operation, value in self._values[:]:
            self._values.remove((operation, value))
            self._read_again(writer, operation)
        self._submit_waiting(writer)
        self.turn()

    def _reconnect(self, writer: Writer, replica: int) -> None:
        peer = writer.peers.get(replica)
        if self.writer is writer and peer is not None and peer.status is Status.DOWN:
            writer.connected(replica)
            self.turn()

    def reconnect(self) -> None:
        """The network is well again: who did not answer is asked anew."""
        writer = self.writer
        if writer is not None:
            for replica in sorted(writer.peers):
                if writer.peers[replica].status in (Status.DOWN, Status.SEALING, Status.REFUSED):
                    writer.connected(replica)
            self.turn()

    def hears(self, members: tuple[int, ...], wish: tuple[int, ...] | None) -> None:
        """The lease with metadata tells the configuration, and what it should become. A change that is
        neither will not be committed any more (this is never an old message)."""
        writer = self.writer
        if writer is None:
            return
        for change in writer.configurations[1:]:
            if change == members:
                writer.change_committed(change)
            elif change != wish:
                writer.change_refused(change)
        if wish is not None:
            writer.change(wish)
            for replica in wish:
                peer = writer.peers.get(replica)
                if peer is not None and peer.session == 0:
                    writer.connected(replica)
        self.turn()

    def _heartbeat(self) -> None:
        writer = self.writer
        if writer is not None:
            for peer in writer.peers.values():
                if peer.answered:
                    now_ms = self.kernel.now_ms
                    fields = (peer.seal_session, writer.epoch, writer.writer, now_ms)
                    self._send(peer.replica, "heartbeat", *fields)

    # -- the workload --------------------------------------------------------------------------------------

    def _work(self, life: Writer) -> None:
        rng = self.kernel.rng

        def again() -> None:
            if self.writer is life:
                if life.phase is Phase.SERVING and not self.cluster.finished:
                    self._issue(life)
                self._work(life)

        self.kernel.later(rng.randint(500, self.cluster.pace_us), again, self.name)

    def _issue(self, writer: Writer) -> None:
        """One more operation, unless as many reads or writes are under way as the application has at once."""
        if self._again:
            return
        rng = self.kernel.rng
        reads = rng.random() < self.cluster.read_share
        if (
            len(self._reads) + len(self._values) if reads else len(self._open) + len(self._waiting)
        ) >= self.depth:
            return
        if reads:
            block = rng.randrange(self.cluster.chunks) * BLOCKS + rng.randrange(self.cluster.blocks)
            operation = self.cluster.begin("read", (block,))
            self._reads[operation.number] = (operation, 0)
            self._ask_read(writer, operation)
        else:
            wish = self._any_write()
            self._waiting.append((self.cluster.begin("write", blocks_of_wish(wish)), wish))
            self._submit_waiting(writer)
        if not self.cluster.sync and rng.random() < 0.05:
            writer.flush(0)
        self.turn()

    def _any_write(self) -> Wish:
        rng = self.kernel.rng
        kind = rng.choices((Kind.WRITE, Kind.ZERO, Kind.ZERO_CHUNKS), (12, 3, 1))[0]
        chunks, blocks = self.cluster.chunks, self.cluster.blocks
        if kind is Kind.ZERO_CHUNKS:
            chunk = rng.randrange(chunks)
            return int(kind), chunk, 0, rng.randint(1, chunks - chunk)
        block = rng.randrange(blocks)
        count = rng.randint(1, min(2, blocks - block))
        return int(kind), rng.randrange(chunks), block, count

    def _submit_waiting(self, writer: Writer) -> None:
        """In order: first what is issued again, then what is new."""
        for queue in (self._again, self._waiting):
            while queue:
                operation, wish = queue[0]
                code = self._submit(writer, operation, wish)
                if code == WAIT:
                    return
                queue.pop(0)
                if code == NO_SPACE:
                    self.cluster.refusals += 1
                    self._reissued.discard(operation.number)
                    if queue is self._waiting:
                        self.cluster.observer.drop(operation)
                else:
                    self._open[operation.number] = (operation, wish)

    def _submit(self, writer: Writer, operation: Operation, wish: Wish) -> int:
        kind, chunk, block, count = wish
        mark = operation.number.to_bytes(8, "little")
        if kind != Kind.WRITE:
            self.cluster.zeroes.add(operation.number)
        sums, data = (b"", mark) if kind == Kind.WRITE else (mark, b"")
        return writer.submit(kind, chunk, block, count, sums, data, operation.number)

    def _ask_read(self, writer: Writer, operation: Operation) -> None:
        """Ask one readable member; if it is silent, another one."""
        readable = writer.readable()
        number = operation.number
        if number not in self._reads or self.writer is not writer:
            return
        tries = self._reads[number][1] + 1
        self._reads[number] = (operation, tries)
        if readable and not self._reissued:
            block = operation.blocks[0]
            lsn = writer.read_lsn(block // BLOCKS)
            self._send(self.kernel.rng.choice(readable), "read", number, writer.epoch, lsn, block)
        self.kernel.later(self.cluster.read_us, lambda: self._ask_read(writer, operation), self.name)

    def _read_again(self, writer: Writer, operation: Operation) -> None:
        self._reads[operation.number] = (operation, 0)
        self._ask_read(writer, operation)


def blocks_of_wish(wish: Wish) -> tuple[int, ...]:
    kind, chunk, block, count = wish
    if kind == Kind.ZERO_CHUNKS:
        return tuple(range(chunk * BLOCKS, (chunk + count) * BLOCKS))
    first = chunk * BLOCKS + block
    return tuple(range(first, first + count))
