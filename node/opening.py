"""Opening a store: what the checkpoint says, then the log behind it, then a fresh segment.

Owns the order of a start. Must never write before all of it was read (what another version wrote is refused
as it is), nor serve or append before the end: the bytes that a killed process left in
the page cache are synced first (they are about to be called durable), and the new segment's header records
where the old one ended.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from moorage.node.checkpoint import ADVICE, IndexStore, Meta
from moorage.node.disk import Disk
from moorage.node.index import Table
from moorage.node.lane import Lane
from moorage.node.log import Segment
from moorage.node.page import stored_locations, stored_lsn
from moorage.node.recovery import Cursor, Verdict
from moorage.node.replay import Catalogue, Replay, Step, catalogue, naming
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import FIRST_FRAME, OFFSET_BITS, EntryHead, EntryKind
from moorage.node.tombstones import Tombstones
from moorage.quorum.record import BLOCK_SIZE, decode_head
from moorage.quorum.state import MemberState
from moorage.wire.errors import Corrupt, DeviceFailed, VersionMismatch

if TYPE_CHECKING:
    from moorage.node.store import Store

log = logging.getLogger(__name__)

_SCAN_PAGES = 2048


@dataclass
class Report:
    """What a start found, for the log and for tests."""

    groups: int = 0  # group commits replayed
    fresh: bool = False  # there was no checkpoint yet
    damaged: dict[int, str] = field(default_factory=dict)  # replica -> what it lost
    notes: list[str] = field(default_factory=list)  # damage that lost nothing


class Opening:
    def __init__(self, store: Store, disk: Disk, lane: Lane) -> None:
        self._store = store
        self._disk = disk
        self._lane = lane
        self._fold = store.fold
        self._report = Report()
        self._bad_pages: dict[int, int] = {}  # handle -> a page that does not match its checksum

    async def run(self) -> Report:
        store, report = self._store, self._report
        index_store = await store.open_index()
        meta, reached = await self._lane.run(lambda: (index_store.load_meta(), index_store.reached()))
        fresh = report.fresh = meta is None
        if meta is None:
            meta = Meta()
        device, seed = store.config.device, store.config.seed
        known = {number: name for number, name, _ in meta.segments}
        found = await self._lane.run(lambda: catalogue(self._disk, device, seed, known, meta.segment))
        store.all_files = dict(found.files)
        report.notes = found.notes
        await self._load_checkpoint(index_store, meta)
        end = await self._replay(found, meta, fresh, reached)
        self._forget_half_made(found)
        await self._begin_life(found, meta, end)
        report.damaged = {
            identity: replica.damaged for identity, replica in self._fold.replicas.items() if replica.damaged
        }
        for note in report.notes:
            log.warning("%s", note)
        return report

    def _forget_half_made(self, found: Catalogue) -> None:
        """A crash can leave a new file without its space: it never held anything."""
        named = set(found.names.values())
        for name in sorted(found.files):
            if name not in named and self._disk.size(name) < self._store.layout.segment_size:
                self._store.all_files.pop(name)
                found.files.pop(name).close()
                self._disk.unlink(name)

    # -- the checkpoint ------------------------------------------------------------------------------------

    async def _load_checkpoint(self, index_store: IndexStore, meta: Meta) -> None:
        fold = self._fold
        fold.next_handle = meta.next_handle
        fold.replaying = True
        # A crash in the middle of a checkpoint leaves pages and tombstones also of tables whose replicas only
        # the log knows: they are matched after the replay.
        fold.stored_tombstones = await self._lane.run(index_store.tombstones)
        for handle, ranges in fold.stored_tombstones.items():
            fold.note_seen(handle, max(lsn for _, _, lsn in ranges))
        await self._count_live(index_store)
        for identity, packed in await self._lane.run(lambda: list(index_store.replicas())):
            fold.replicas[identity] = self._unpack(identity, packed)

    def _unpack(self, identity: int, packed: Any) -> Replica:
        if packed is None:  # its entry is damaged: all that is known is that it was here
            replica = Replica(
                ReplicaInfo(identity, 0, 0, "sync", 0), Table(0, Tombstones()), MemberState(identity)
            )
            what = f"the index entry of replica {identity} does not match its checksum"
            self._fold.lose_promise(replica, what)
            return replica
        info, handle, packed_state, pending, *snapshots = packed
        try:
            state = MemberState.unpack(packed_state)
        except VersionMismatch as error:
            raise VersionMismatch(f"index, replica {identity}: {error}") from None
        table = self._fold.new_table(handle)
        if snapshots:
            ((table.snapshots_lsn, table.snapshots, table.prune),) = snapshots
        table.keep_to = state.base
        replica = Replica(ReplicaInfo(*info), table, state)
        replica.tail_from = replica.state.commit + 1
        for head, location in pending:
            record, _, _ = decode_head(head)
            replica.tail[record.lsn] = (record, location)
        replica.validate()
        return replica

    async def _count_live(self, index_store: IndexStore) -> None:
        """Read every stored page once: checksums, and how much of each segment is alive."""
        handle = number = 0
        while True:
            pages = await self._lane.run(partial(index_store.pages, handle, number, _SCAN_PAGES, whole=True))
            for page in pages:
                self._fold.note_seen(page.handle, 0)
                if page.packed is None:
                    self._bad_pages[page.handle] = page.number
                else:
                    size = self._count(page.packed)
                    stored = self._fold.stored_live
                    stored[page.handle] = stored.get(page.handle, 0) + size
                    self._fold.note_seen(page.handle, stored_lsn(page.packed))
            if len(pages) < _SCAN_PAGES:
                return
            handle, number = pages[-1].handle, pages[-1].number + 1

    def _count(self, packed: bytes) -> int:
        live, size = self._store.index.live, 0
        for location in stored_locations(packed):
            live[location >> OFFSET_BITS] += BLOCK_SIZE
            size += BLOCK_SIZE
        return size

    # -- the log -------------------------------------------------------------------------------------------

    async def _replay(self, found: Catalogue, meta: Meta, fresh: bool, reached: int) -> Cursor:
        """Walk the log behind the checkpoint; returns its end."""
        at = self._first(found, meta, fresh)
        if at is None:
            self._catch_up()
            return Cursor(0, FIRST_FRAME, max(meta.group, reached + 1))
        replay = Replay(found, at, self._store.layout.segment_size, self._store.config.seed, reached)
        while steps := await self._lane.run(replay.batch):
            for step in steps:
                with naming(found.names[step.at.segment]):
                    self._step(step)
        self._catch_up()
        await self._sync(found, replay.end)
        return replay.end

    def _first(self, found: Catalogue, meta: Meta, fresh: bool) -> Cursor | None:
        if fresh:
            # No checkpoint yet: the log begins with the first segment that was ever written.
            first = min(found.headers, default=None)
            if first is not None and found.headers[first].first_group != 1:
                raise Corrupt(f"the index is missing, but there are segments: {ADVICE}")
            return None if first is None else Cursor(first, found.starts[first], 1)
        if meta.segment not in found.names:
            self._damage_all(f"segment {meta.segment}, where the replay begins, is missing")
            return None
        return Cursor(meta.segment, meta.offset, meta.group)

    def _catch_up(self) -> None:
        """A crash in the middle of a checkpoint leaves pages that are newer than the replicas' states, and a
        replay meets moved blocks before it knows that they are committed. What is in an index had been
        applied: so it is committed, and the log has all of it."""
        fold = self._fold
        fold.stored_tombstones, fold.stored_live = {}, {}
        for replica in fold.replicas.values():
            handle = replica.table.handle
            if handle in self._bad_pages:
                number = self._bad_pages[handle]
                fold.damage(replica, f"index page {number} does not match its checksum")
            seen, copy = fold.seen.get(handle, 0), replica.state.copy
            # What was copied is not newer than ``until``: what is, had been applied in a copying replica too.
            if (copy is None or seen > copy.until.lsn) and not replica.damaged:
                fold.apply(replica, seen)
            replica.settle()
        fold.end_replay()
        known = {replica.table.handle for replica in fold.replicas.values()}
        for handle in fold.seen.keys() - known:
            fold.dead.setdefault(handle, set())
            fold.next_handle = max(fold.next_handle, handle + 1)  # the entry that took it may be damaged
        fold.seen = {}

    def _step(self, step: Step) -> None:
        match step.verdict:
            case Verdict.TORN_TAIL:
                return
            case Verdict.DAMAGED_ALL:
                self._damage_all(f"group commit {step.at.group} in segment {step.at.segment} cannot be read")
                return
        self._report.groups += 1
        base = step.at.segment << OFFSET_BITS | step.data_at
        for entry in step.entries:
            if entry.whole:
                self._fold.parsed(entry, base + entry.data_offset)
            else:
                self._damage_one(entry.head, step)

    def _damage_one(self, head: EntryHead, step: Step) -> None:
        replica = self._fold.replicas.get(head.replica)
        where = f"group commit {step.at.group} in segment {step.at.segment}"
        if replica is None:
            # It was about to be created, or is gone: then it is not here, which is not the same as empty.
            self._report.notes.append(f"{where} has a damaged entry of replica {head.replica}, not held here")
        elif head.kind in (EntryKind.STATE, EntryKind.RESET):
            self._fold.lose_promise(replica, f"{where} has a damaged note of this replica")
        else:
            self._fold.damage(replica, f"{where} has a damaged entry of this replica")

    def _damage_all(self, what: str) -> None:
        for replica in self._fold.replicas.values():
            self._fold.lose_promise(replica, what)

    async def _sync(self, found: Catalogue, end: Cursor) -> None:
        """A killed process may have left its last group in the page cache only: from now on it counts."""
        file = found.files[found.names[end.segment]]
        try:
            await self._lane.run(file.fdatasync)
        except OSError as error:
            raise DeviceFailed(f"fdatasync of {found.names[end.segment]} failed: {error}") from error

    # -- a fresh segment -------------------------------------------------------------------------------------

    async def _begin_life(self, found: Catalogue, meta: Meta, end: Cursor) -> None:
        store = self._store
        in_use = {number: size for number, _, size in meta.segments if number in found.names}
        for number in found.headers:
            if meta.segment <= number <= end.segment:
                in_use[number] = end.offset if number == end.segment else store.layout.segment_size
        for number, size in in_use.items():
            name = found.names[number]
            store.log.segments[number] = Segment(name, found.files[name], number, size)
        used = {segment.name for segment in store.log.segments.values()}
        for name in sorted(found.files):
            if name not in used:
                store.log.add_free(Segment(name, found.files[name]))
        if not store.log.free:
            await self._allocate_first()
        # A number that may be in a torn header is not given again: hence one is left out.
        store.log.begin_life(end.segment, end.offset, found.last_number + 2, end.group - 1)
        store.checkpointer.segment = min(meta.segment, end.segment)
        await store.flushed()
        if store.failed is not None:
            raise store.failed
        try:
            await store.allocate()
        except OSError as error:
            # A full file system costs room, not the device: upkeep tries again.
            log.warning("no segment could be allocated ahead, will try again: %s", error)

    async def _allocate_first(self) -> None:
        """The reserve is for this, and yet: if need be one past the capacity, or nothing would start."""
        size = self._store.layout.segment_size
        try:
            self._store.log.add_free(await self._store.allocate_one())
        except OSError as error:
            raise DeviceFailed(
                f"a start needs a free segment, and no file of {size} bytes can be allocated in"
                f" {self._store.config.directory / 'segments'}: {error}; make room in this file system"
            ) from error
