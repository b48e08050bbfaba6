"""Planted bugs of snapshots, for whole clusters whose programs use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import redirect_stderr
from io import StringIO
from random import Random
from typing import Any

import pytest

from moorage.client import snapshots as client_snapshots
from moorage.client.layers import Layer
from moorage.client.readonly import ReadOnlyGroup
from moorage.client.session import GroupSession, _Now
from moorage.client.snapshotting import CREATING, DELETING, NOT_YET_S, READY, SnapshotKeeper, _settle
from moorage.client.volume import Volume
from moorage.metadata import records
from moorage.metadata.snapshots import Snapshots
from moorage.metadata.state import StateMachine
from moorage.node import copying, index
from moorage.node.handlers import Handlers
from moorage.node.index import Index
from moorage.node.page import Page, Version
from moorage.node.reader import Reader
from moorage.node.replica import Replica
from moorage.node.segment import RunKind
from moorage.node.store import Store
from moorage.simulation.nemesis import draw_strands
from moorage.simulation.run import STORM_S, run_seed
from moorage.wire.log_messages import PREFIX

from .catalogue import planted
from .cluster import verdict as verdict

AIMS = ("storm", "strands", "outages", "strands")


def run(seed: int) -> object:
    """Of four histories one is a storm, one of power losses, two of strands about snapshots."""
    aim = AIMS[seed % len(AIMS)]
    plan = (
        draw_strands(Random(f"{seed} faults"), STORM_S, ["kept", "apart", "apart"])
        if aim == "strands"
        else None
    )
    with redirect_stderr(StringIO()):
        return run_seed(seed, plan, aim=aim, moves=seed % 2 == 0, snapshots=True, objects=False)


# -- who writes them -------------------------------------------------------------------------------------


@planted("snapshots", "one moment", rare=True)
def snapshot_misses_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new snapshot is listed by the first group of a volume only."""
    real = GroupSession.set_snapshots

    def set_snapshots(self: GroupSession, lsns: Any, new: bool, done: Any) -> int:
        return real(self, lsns, new and self.index == 0, done)

    monkeypatch.setattr(GroupSession, "set_snapshots", set_snapshots)


@planted("snapshots", "one moment", rare=True)
def groups_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of a volume's groups are put one after the other, each some turns after the one before is
    committed."""

    async def write_lists(self: SnapshotKeeper, new: bool) -> tuple[list[int], list[asyncio.Future[None]]]:
        lsns, written = [], []
        for session in self._sessions:
            known = sorted({each[session.index] for each in (*self._reported(), *self._waiting())})
            done = asyncio.get_running_loop().create_future()
            while not (lsn := session.set_snapshots(known, new, _settle(done))):
                await asyncio.sleep(NOT_YET_S)
            await done
            await asyncio.sleep(NOT_YET_S)
            lsns.append(lsn)
            written.append(done)
        return lsns, written

    monkeypatch.setattr(SnapshotKeeper, "_write_lists", write_lists)


@planted("snapshots", "one moment", rare=True)
def set_holds_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes to a volume of a set are acknowledged before the other volumes have their records."""
    monkeypatch.setattr(GroupSession, "hold", lambda self: 1)
    monkeypatch.setattr(GroupSession, "holds", lambda self, number: True)


@planted("snapshots", "one moment", rare=True)
def set_lets_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder does not wait for the other volumes of a set."""

    async def wait_for_others(
        self: SnapshotKeeper, in_set: dict[int, int], done: list[asyncio.Future[None]], held: list[int]
    ) -> None:
        await asyncio.wait(done)
        for session in self._sessions:
            session.release_held()
        await self._ask("metadata.snapshots_put", {"ids": sorted(in_set)}, 5.0)

    monkeypatch.setattr(SnapshotKeeper, "_wait_for_others", wait_for_others)


@planted("snapshots", "one moment", rare=True)
def late_ones_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that could not wait for the other volumes of a set reports its snapshot all the same."""
    real = SnapshotKeeper._wait_for_others

    async def wait_for_others(self: SnapshotKeeper, *args: Any) -> None:
        await real(self, *args)
        self._late.clear()

    monkeypatch.setattr(SnapshotKeeper, "_wait_for_others", wait_for_others)


@planted("snapshots", "durable", rare=True)
def told_when_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In writeback a snapshot is reported when a majority has its record in memory."""

    def set_snapshots(self: GroupSession, lsns: Any, new: bool, done: Any) -> int:
        if self.failed is not None or self._queue or not self.serving:
            return 0
        lsn = self.writer.set_snapshots(tuple(lsns), new, _Now(done))
        self.kick()
        return max(lsn, 0)

    monkeypatch.setattr(GroupSession, "set_snapshots", set_snapshots)


@planted("snapshots", "durable", rare=True)
def reported_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder reports a snapshot when it has put its records, before they are committed."""

    async def committed(self: SnapshotKeeper, done: list[asyncio.Future[None]]) -> None:
        pass

    monkeypatch.setattr(SnapshotKeeper, "_committed", committed)


@planted("snapshots", "durable", rare=True)
def deletion_reported_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder says that a snapshot is in the logs no more, and takes it out with the next one that it
    writes."""
    real = SnapshotKeeper._carry_out

    async def carry_out(self: SnapshotKeeper) -> None:
        gone = [each["id"] for each in self._listed if each["state"] == DELETING]
        if gone:
            await self._ask("metadata.snapshots_done", {"created": [], "deleted": gone}, 5.0)
            self._listed = [each for each in self._listed if each["id"] not in gone]
        await real(self)

    monkeypatch.setattr(SnapshotKeeper, "_carry_out", carry_out)


@planted("snapshots", "the whole list", rare=True)
def next_holder_lists_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder lists what it has made itself: what metadata knows from a former one is left out."""
    monkeypatch.setattr(SnapshotKeeper, "_reported", lambda self: [])

    def waiting(self: SnapshotKeeper) -> list[list[int]]:
        return [self._put[each["id"]] for each in self._listed if each["id"] in self._put]

    monkeypatch.setattr(SnapshotKeeper, "_waiting", waiting)


@planted("snapshots", "the whole list", rare=True)
def deleted_ones_stay_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list has what is being deleted too."""

    def reported(self: SnapshotKeeper) -> list[list[int]]:
        return [each["lsns"] for each in self._listed if each["lsns"]]

    monkeypatch.setattr(SnapshotKeeper, "_reported", reported)


# -- metadata --------------------------------------------------------------------------------------------


@planted("snapshots", "one moment", rare=True)
def set_is_ready_with_one_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata calls a set ready when the first of its volumes is done."""
    monkeypatch.setattr(Snapshots, "_complete", lambda self, kv, number: self._end_set(kv, number, READY))


@planted("snapshots", "one moment", rare=True)
def given_up_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given up of a set is one volume's: the others go on."""

    def abandon(self: Snapshots, kv: Any, command: Any, index: int) -> None:
        volume = records.volume_by_id(kv, command["volume"])
        for entry in records.snapshots(volume) if volume is not None else ():
            if entry["id"] in command["ids"] and entry["state"] == CREATING:
                entry["state"] = DELETING
        if volume is not None:
            self._changed(kv, volume)

    monkeypatch.setattr(Snapshots, "_abandon", abandon)


@planted("snapshots", "rollback", rare=True)
def others_attach_amid_a_rollback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata lets anybody attach a volume that is half rolled back."""
    real = StateMachine._check_rollback

    def check(self: StateMachine, volume: Any, name: str) -> None:
        if name:
            real(self, volume, name)
        else:
            volume["rollback"] = 0

    monkeypatch.setattr(StateMachine, "_check_rollback", check)


# -- rollbacks -------------------------------------------------------------------------------------------


@planted("snapshots", "rollback", rare=True)
def rolled_back_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata is told that a rollback is complete when it begins."""
    real = client_snapshots.changed_since

    async def changed_since(volume: Volume, *args: Any) -> AsyncIterator[tuple[int, int]]:
        await volume.rolled_back()
        async for each in real(volume, *args):
            yield each

    monkeypatch.setattr(client_snapshots, "changed_since", changed_since)


@planted("snapshots", "rollback", rare=True)
def rollback_leaves_holes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the snapshot has not written is not made a hole again."""

    async def write_back(source: Volume, volume: Volume, offset: int, length: int) -> int:
        at = offset
        for size, is_hole in await source.block_status(offset, length):
            if not is_hole:
                await volume.write(at, await source.read(at, size))
            at += size
        return length

    monkeypatch.setattr(client_snapshots, "_write_back", write_back)


@planted("snapshots", "rollback", rare=True)
def rollback_sees_no_discards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback asks which blocks were written since, and whole chunks that were discarded since are not."""

    def lsns(self: Reader, replica: Replica, chunk: int, block: int, count: int, snapshot: int = 0) -> bytes:
        cells = self._index.find(replica.table, chunk, block, count, snapshot)
        return b"".join((lsn if location else 0).to_bytes(8, "little") for location, _, lsn in cells)

    monkeypatch.setattr(Reader, "lsns", lsns)


# -- nodes -----------------------------------------------------------------------------------------------


@planted("snapshots", "reading", rare=True)
def reader_is_shown_the_present(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read at a snapshot gets the blocks as they are now."""
    real = Reader._locate

    def locate(self: Reader, replica: Replica, chunk: int, block: int, count: int, snapshot: int) -> Any:
        return real(self, replica, chunk, block, count, 0)

    monkeypatch.setattr(Reader, "_locate", locate)


@planted("snapshots", "reading", rare=True)
def reader_is_shown_what_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node shows what it has of a snapshot that was deleted."""
    real = Handlers._read

    def read(self: Handlers, member: Any, conn: Any, request_id: int, what: Any) -> None:
        table, asked = member.replica.table, what[-1]
        listed = table.snapshots
        if asked and asked <= member.replica.state.commit:
            table.snapshots = sorted({*listed, asked})
        try:
            real(self, member, conn, request_id, what)
        finally:
            table.snapshots = listed

    monkeypatch.setattr(Handlers, "_read", read)


@planted("snapshots", "versions", rare=True)
def first_version_after_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the very next record after a snapshot's replaces is let go of."""
    real = index.is_kept
    monkeypatch.setattr(
        index, "is_kept", lambda snapshots, lsn, following: real(snapshots, lsn, following - 1)
    )


@planted("snapshots", "space", rare=True)
def versions_are_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that no snapshot shows any more stays."""
    monkeypatch.setattr(Index, "prune", lambda self, page: None)


@planted("snapshots", "space", rare=True)
def version_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The space of a block that only snapshots show counts as free."""
    real = Index._put_aside

    def put_aside(self: Index, page: Page, at: int, lsn: int) -> bool:
        location = page.cells[at]
        kept = real(self, page, at, lsn)
        if kept:
            self._release(page.table, location)
        return kept

    monkeypatch.setattr(Index, "_put_aside", put_aside)


@planted("snapshots", "copying", rare=True)
def copy_without_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy brings the blocks as they are, and nothing that only snapshots show."""
    monkeypatch.setattr(Store, "newer_versions", lambda *args: ([], None))


@planted("snapshots", "copying", rare=True)
def copy_without_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy does not say which snapshots there are."""
    real = copying._parse

    def parse(answer: Any, payload: memoryview) -> Any:
        runs, *rest = real(answer, payload)
        return [run for run in runs if run.kind != RunKind.SNAPSHOTS], *rest

    monkeypatch.setattr(copying, "_parse", parse)


@planted("snapshots", "copying", rare=True)
def copy_tells_the_list_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which snapshots there are comes behind the blocks, and until then nothing is kept for them."""
    real = copying._parse

    def parse(answer: Any, payload: memoryview) -> Any:
        runs, position, cursor = real(answer, payload)
        lists = [run for run in runs if run.kind == RunKind.SNAPSHOTS and cursor is None]
        return [*(run for run in runs if run.kind != RunKind.SNAPSHOTS), *lists], position, cursor

    monkeypatch.setattr(copying, "_parse", parse)
    monkeypatch.setattr(Replica, "note_copy", lambda self, before: None)


@planted("snapshots", "versions", rare=True)
def snapshot_shows_the_block_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two versions the one that was written last before a snapshot is passed over."""
    real = Page.shown

    def shown(self: Page, at: int, snapshot: int) -> Version:
        versions = [each for each in self.older.get(at, ()) if each.lsn <= snapshot]
        if len(versions) > 1 and self.cells[64 + at] > snapshot:
            return versions[-2]
        return real(self, at, snapshot)

    monkeypatch.setattr(Page, "shown", shown)


# -- clones ----------------------------------------------------------------------------------------------


@planted("snapshots", "clones", rare=True)
def parent_goes_before_its_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is deleted though volumes were cloned from it: they share what is freed."""
    real = Snapshots._delete

    def delete(self: Snapshots, kv: Any, command: Any, index: int) -> Any:
        volume = records.existing_volume(kv, command["volume"])
        for each in records.snapshots(volume):
            each["children"] = []
        kv.put(records.volume_key(volume["id"]), volume)
        return real(self, kv, command, index)

    monkeypatch.setattr(Snapshots, "_delete", delete)


@planted("snapshots", "clones", rare=True)
def clone_shows_what_it_has_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block that a clone has zeroed or discarded it shows what it was cloned from."""

    def zero(self: Layer, chunk: int, block: int, count: int, done: Any, fua: bool) -> None:
        self._group.zero(chunk, block, count, done, fua)

    monkeypatch.setattr(Layer, "zero", zero)


@planted("snapshots", "clones", rare=True)
def clone_shows_its_parent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a clone is the volume that it was cloned from, and not the snapshot."""
    real = Layer._read_below

    def read_below(self: Layer, chunk: int, block: int, into: Any, done: Any) -> None:
        for each in self._below.groups:
            assert isinstance(each, ReadOnlyGroup)
            each.flags, each.snapshot = PREFIX, 0
        real(self, chunk, block, into, done)

    monkeypatch.setattr(Layer, "_read_below", read_below)
