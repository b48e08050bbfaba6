"""What the entries of the log do to the replicas of a device, once they are durable: the same code for live
operation and for replay.

Owns the map of replicas, their handles, and the meaning of each entry kind. Must never do I/O beyond the
index's look-ups, nor see an entry that is not durable. Entries of a replica that is gone are passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgpack

from moorage.node.index import Index, Table
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import Entry, EntryKind, ParsedEntry, Run, RunKind, unpack_heads, unpack_runs
from moorage.node.tombstones import Range, Tombstones
from moorage.quorum.record import BLOCK_SIZE, CHUNKS_MAX, Kind, Record
from moorage.quorum.state import MemberState
from moorage.wire.errors import Corrupt, VersionMismatch

log = logging.getLogger(__name__)

_KINDS = frozenset(EntryKind)


class Fold:
    def __init__(self, index: Index) -> None:
        self._index = index
        self.replicas: dict[int, Replica] = {}
        self.next_handle = 1
        self.changed: set[int] = set()  # replicas to store with the next checkpoint, and those gone
        self.dead: dict[int, set[int]] = {}  # handles to sweep: page numbers already accounted for
        self.replaying = False
        self.stored_tombstones: dict[int, list[Range]] = {}  # during a start: handle -> what LMDB has
        self.stored_live: dict[int, int] = {}  # during a start: handle -> bytes of blocks in its stored pages
        self.seen: dict[int, int] = {}  # during a start: handle -> greatest LSN that had been in its index
        self.on_damage: Callable[[Replica, str], None] = _ignore
        self.on_table: Callable[[Replica], None] = _ignore_table  # it has begun with nothing, live

    def new_table(self, handle: int) -> Table:
        live = self.stored_live.get(handle, 0)
        stored = [each for each in self.stored_tombstones.get(handle, ()) if each[0] < CHUNKS_MAX]
        table = Table(handle, Tombstones(stored), live)
        table.keep_all = self.replaying
        return table

    def take_handle(self) -> int:
        handle = self.next_handle
        self.next_handle += 1
        return handle

    # -- live: entries as they were built ------------------------------------------------------------

    def entry(self, replica: Replica, entry: Entry, location: int) -> None:
        if entry.barrier:
            replica.barriers -= 1
        identity = replica.info.replica
        if entry.kind == EntryKind.CREATE:
            self.replicas[identity] = replica
            self.on_table(replica)
        elif self.replicas.get(identity) is not replica:
            return
        self.changed.add(identity)
        if entry.kind == EntryKind.DROP:
            self._drop(replica)
            return  # what was to be applied with it would count as live for ever
        try:
            self._entry(replica, entry, location)
        except Corrupt as error:  # a page of the index: what was logged is there
            self.damage(replica, str(error))
        if entry.apply:
            self.apply(replica, entry.apply)

    def _entry(self, replica: Replica, entry: Entry, location: int) -> None:
        match entry.kind:
            case EntryKind.RECORDS:
                replica.fold_records(entry.records, location)
            case EntryKind.STATE | EntryKind.RESET:
                self._note(replica, entry.kind, entry.argument, bytes(entry.bodies[0]))
                if entry.kind == EntryKind.RESET:
                    self.on_table(replica)
            case EntryKind.BLOCKS:
                runs = unpack_runs(memoryview(b"".join(entry.bodies)))
                self._blocks(replica, entry.argument, runs, location)
            case EntryKind.PENDING:
                self._moved(replica, entry.records, location)

    def apply(self, replica: Replica, lsn: int) -> None:
        """Into the index with what is durable up to ``lsn``."""
        try:
            if replica.apply(self._index, lsn):
                self.changed.add(replica.info.replica)
        except Corrupt as error:
            self.damage(replica, str(error))

    def damage(self, replica: Replica, what: str) -> None:
        log.error("replica %d is damaged: %s", replica.info.replica, what)
        replica.damage(what)
        self.changed.add(replica.info.replica)
        self.on_damage(replica, what)

    def lose_promise(self, replica: Replica, what: str) -> None:
        """A note of it is lost, or may be, and with it what it had promised: it must not be offered, unless a
        later note is found. A note is the whole state."""
        self.damage(replica, what)
        replica.state.promise_lost = True

    def end_replay(self) -> None:
        """All is known: what was kept only because it might be shown by a snapshot is let go of."""
        self.replaying = False
        for replica in self.replicas.values():
            table = replica.table
            table.keep_all = False
            table.kept_blindly = table.keep_to > 0  # by a former life, perhaps
            for page in [page for page in table.pages.values() if page.older]:
                self._index.prune(self._index.page(table, page.number))
            table.tombstones.prune(table.keeps)

    def promise_again(self, replica: Replica, info: ReplicaInfo, epoch: int, writer: int) -> None:
        """Metadata knows what was lost of it. Not logged: until a note is, each start asks again."""
        if replica.info.volume and replica.info != info:
            raise Corrupt(f"replica {info.replica}: held is {replica.info}, metadata says {info}")
        if replica.state.promise_lost:
            replica.state.promise_again(epoch, writer)
        replica.info = info
        self.changed.add(info.replica)

    # -- replay: entries as they were read ----------------------------------------------------------

    def parsed(self, entry: ParsedEntry, location: int) -> None:
        head = entry.head
        if head.kind not in _KINDS:
            raise VersionMismatch(
                f"an entry of kind {head.kind}, this version reads 1 to {max(_KINDS)}:"
                " use the one that wrote it"
            )
        replica = self.replicas.get(head.replica)
        if head.kind == EntryKind.CREATE:
            self._create(head.replica, head.argument, entry.body)
            return
        if replica is None:
            return
        self.changed.add(head.replica)
        try:
            self._parsed(replica, entry, location)
        except VersionMismatch:
            raise  # it is no damage: nothing may be written over it
        except (Corrupt, ValueError) as error:
            self.damage(replica, str(error))

    def _parsed(self, replica: Replica, entry: ParsedEntry, location: int) -> None:
        head = entry.head
        match head.kind:
            case EntryKind.DROP:
                self._drop(replica)
            case EntryKind.STATE | EntryKind.RESET:
                self._note(replica, head.kind, head.argument, bytes(entry.body))
            case EntryKind.RECORDS if not replica.found:
                replica.fold_records(unpack_heads(entry.body, head.records), location)
                replica.apply(self._index, head.argument)
            case EntryKind.BLOCKS:
                runs = unpack_runs(entry.body)
                self._blocks(replica, head.argument, runs, location)
                # Compaction moves what was applied; what a copy brings is not newer than its ``until``.
                blocks = [run for run in runs if run.kind != RunKind.SNAPSHOTS]
                self.note_seen(head.argument, max((max(run.lsns) for run in blocks), default=0))
            case EntryKind.PENDING if not replica.found:
                self._moved(replica, unpack_heads(entry.body, head.records), location)

    def note_seen(self, handle: int, lsn: int) -> None:
        self.seen[handle] = max(self.seen.get(handle, 0), lsn)

    def _create(self, identity: int, handle: int, body: memoryview) -> None:
        self.next_handle = max(self.next_handle, handle + 1)
        if identity in self.replicas:
            return
        try:
            info = ReplicaInfo.unpack(identity, msgpack.unpackb(body))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            # As one that is damaged: it is not here, which is not the same as empty.
            log.error("replica %d: what created it makes no sense: %r", identity, error)
            return
        self.replicas[identity] = Replica(info, self.new_table(handle), MemberState(identity))
        self.changed.add(identity)

    # -- kinds ----------------------------------------------------------------------------------------

    def _note(self, replica: Replica, kind: int, handle: int, packed: bytes) -> None:
        if kind == EntryKind.RESET:
            self.next_handle = max(self.next_handle, handle + 1)
            self._bury(replica.table)
            replica.table = self.new_table(handle)
            replica.found = ""
            replica.state.copy = None  # a copy begins, also when the former one had the same base
        # The promise first: it is kept, whatever the rest of the note meets.
        former = replica.state
        former.promise_lost = True  # should it make no sense
        state = MemberState.unpack(packed)
        former.epoch, former.writer, former.promise_lost = state.epoch, state.writer, state.promise_lost
        copies_from = former.base
        replica.fold_note(self._index, packed)
        replica.note_copy(copies_from)

    def _drop(self, replica: Replica) -> None:
        del self.replicas[replica.info.replica]
        self._bury(replica.table)

    def _bury(self, table: Table) -> None:
        self.dead[table.handle] = self._index.forget(table)

    def _blocks(self, replica: Replica, handle: int, runs: Iterable[Run], location: int) -> None:
        table, index = replica.table, self._index
        if table.handle != handle:
            return  # blocks of a table that was given up meanwhile
        for kind, chunk, block, lsns, sums in runs:
            if kind == RunKind.CHUNKS:
                index.zero_chunks(table, chunk, block, lsns[0])
                continue
            if kind == RunKind.SNAPSHOTS:
                index.set_snapshots(table, list(lsns), chunk)
                table.learn_of_snapshots()
                continue
            for at, lsn in enumerate(lsns):
                if kind == RunKind.ZERO:
                    index.merge(table, chunk, block + at, 0, 0, lsn)
                else:
                    index.merge(table, chunk, block + at, location, sums[at], lsn)
                    location += BLOCK_SIZE

    def _moved(self, replica: Replica, records: list[Record], location: int) -> None:
        for record in records:
            held = replica.tail.get(record.lsn)
            if held is not None and held[0].epoch == record.epoch:
                replica.tail[record.lsn] = (held[0], location)
                if record.kind == Kind.WRITE and record.lsn <= replica.state.commit:
                    self._move_applied(replica, record, location)
            if record.kind == Kind.WRITE:
                location += record.count * BLOCK_SIZE

    def _move_applied(self, replica: Replica, record: Record, location: int) -> None:
        sums = memoryview(record.sums).cast("Q")
        for at in range(record.count):
            self._index.merge(
                replica.table,
                record.chunk,
                record.block + at,
                location + at * BLOCK_SIZE,
                sums[at],
                record.lsn,
            )


def _ignore(replica: Replica, what: str) -> None:
    pass


def _ignore_table(replica: Replica) -> None:
    pass
