"""What a replica has promised is known after a start, or the replica is not offered any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from moorage.node.handlers import Handlers
from moorage.node.log import Log
from moorage.node.memory_disk import MemoryDisk, MemoryFile
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import FRAME_MAGIC
from moorage.node.sessions import Sessions
from moorage.node.store import Store, StoreConfig
from moorage.quorum.lease import GrantedLease
from moorage.quorum.record import BLOCK_SIZE, Kind, Record, block_sums
from moorage.wire.errors import Corrupt, Fenced, NoReplica, Stale

SEGMENT = 256 << 10
CAPACITY = (8 << 20) + 16 * SEGMENT
DATA = b"what was written" * (BLOCK_SIZE // 16)
INFO = ReplicaInfo(1, 1, 0, "sync", 3)
ORDERER: Any = SimpleNamespace(peer=SimpleNamespace(service="metadata"))


class Rig:
    """Replicas 1 and 2 on a store that is opened again without a checkpoint; tampered with meanwhile."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = MemoryDisk()
        self.store: Store
        self.sessions: Sessions

    async def open(self) -> Any:
        config = StoreConfig(self.directory, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9)
        self.store = Store(config, self.disk)
        report = await self.store.open()
        nothing: Any = None
        self.sessions = Sessions(self.store, SimpleNamespace(begin=None, end=lambda _: None))  # type: ignore[arg-type]
        self.sessions.load()
        self.handlers = Handlers(self.store, self.sessions, nothing, nothing, nothing, dict)
        return report

    async def create(self, identity: int) -> Replica:
        done = asyncio.get_running_loop().create_future()
        self.store.create(replace(INFO, replica=identity), done.set_result)
        assert await done is None
        return self.store.replica(identity)

    async def promise(self, identity: int, epoch: int) -> bytes:
        replica = self.store.replica(identity)
        state = replica.state.clone()
        state.epoch, state.writer = epoch, 77
        self.store.note(replica, state.pack(), 1)
        await self.store.flushed()
        return state.pack()

    async def write(self, identity: int) -> None:
        replica = self.store.replica(identity)
        lsn = replica.last_queued + 1
        self.store.append(replica, [Record(1, lsn, Kind.WRITE, 0, lsn, 1, block_sums(DATA), DATA)], lsn)
        self.store.apply(replica, lsn)
        await self.store.flushed()

    async def reopen(self) -> Any:
        await self.store.close(checkpoint=False)
        return await self.open()

    def place(self, needle: bytes) -> tuple[MemoryFile, int]:
        (file,) = [file for file in self.disk.files.values() if needle in file.now]
        return file, file.now.index(needle)

    def offered(self, identity: int) -> bool:
        """And what is withheld says so, for good."""
        state = self.store.replica(identity).state
        assert (identity in self.sessions.members) is not state.promise_lost
        assert state.damaged or not state.promise_lost
        return not state.promise_lost

    async def damaged_note(self) -> None:
        """Replica 1 has promised epoch 7, and that note rots."""
        packed = await self.promise(1, 7)
        await self.write(2)
        file, at = self.place(packed)
        await self.store.close(checkpoint=False)
        file.now[at + 3] ^= 1
        await self.open()


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        Log, "prove_last", lambda _: None
    )  # the last group commit is the one that was last written
    rig = Rig(tmp_path)
    await rig.open()
    await rig.create(1)
    await rig.create(2)
    yield rig
    await rig.store.close(checkpoint=False)


async def test_a_replica_whose_note_is_damaged_is_not_offered_by_itself(rig: Rig) -> None:
    await rig.promise(1, 6)
    await rig.damaged_note()
    for _ in range(3):  # restart after restart, also when the replay does not meet it any more
        assert not rig.offered(1) and rig.offered(2)
        with pytest.raises(NoReplica, match="lost a promise"):
            rig.sessions.find(1)
        await rig.write(2)
        await rig.store.checkpoint()
        await rig.reopen()


async def test_a_withheld_replica_promises_what_metadata_says_and_stays_damaged(rig: Rig) -> None:
    await rig.promise(1, 6)
    await rig.damaged_note()
    rig.sessions.promise_again(INFO, 9, 99)
    core = rig.sessions.find(1).core
    assert (core.state.epoch, core.state.writer) == (9, 99)
    assert core.state.damaged and not core.whole and not core.state.promise_lost
    with pytest.raises(Fenced):
        core.seal(1, 8, 88, 0, GrantedLease())
    with pytest.raises(Fenced):
        core.seal(1, 9, 98, 0, GrantedLease())
    assert core.seal(1, 9, 99, 0, GrantedLease())
    rig.sessions.promise_again(INFO, 9, 99)  # an answer that comes again


async def test_a_new_promise_outlives_a_checkpoint_and_is_asked_for_again_before(rig: Rig) -> None:
    await rig.damaged_note()
    rig.sessions.promise_again(INFO, 9, 99)
    await rig.reopen()
    assert not rig.offered(1), "nothing durable says so yet"
    rig.sessions.promise_again(INFO, 9, 99)
    await rig.store.checkpoint()
    await rig.reopen()
    assert rig.offered(1) and rig.sessions.find(1).core.state.epoch == 9


async def test_metadata_that_has_forgotten_epochs_is_not_believed(rig: Rig) -> None:
    await rig.promise(1, 6)
    await rig.store.checkpoint()
    await rig.damaged_note()
    for epoch, writer in ((5, 77), (6, 78)):
        with pytest.raises(Corrupt, match="metadata lost"):
            rig.sessions.promise_again(INFO, epoch, writer)
    with pytest.raises(Corrupt, match="metadata says"):
        rig.sessions.promise_again(ReplicaInfo(1, 2, 0, "sync", 3), 9, 99)
    assert not rig.offered(1)


async def test_a_replica_that_was_dropped_meanwhile_stays_gone(rig: Rig) -> None:
    await rig.damaged_note()
    order = {"metadata": "m1", "term": 1, "replica": 1, "volume": 1}
    await rig.handlers.drop_replica(ORDERER, order)
    rig.sessions.promise_again(INFO, 9, 99)
    with pytest.raises(NoReplica, match="has no replica"):
        rig.sessions.find(1)


async def test_a_withheld_replica_that_metadata_has_taken_away_goes(rig: Rig) -> None:
    """The note of its drop rots: it is here again, and no order to drop it comes a second time."""
    order = {"metadata": "m1", "term": 1, "replica": 1, "volume": 1}
    await rig.promise(1, 7)
    await rig.damaged_note()
    rig.handlers.drop_withheld(2)  # it is offered: nothing that it asked metadata about
    rig.handlers.drop_withheld(1)
    rig.handlers.drop_withheld(1)
    assert not rig.sessions.withheld
    await rig.handlers.drop_replica(ORDERER, order)  # one that was on its way all the same
    await rig.reopen()
    assert list(rig.store.replicas) == [2]


async def test_a_replica_that_is_not_offered_is_shown_and_can_be_dropped_only(rig: Rig) -> None:
    await rig.damaged_note()
    rows = await rig.handlers.list_replicas(ORDERER, {})
    assert [(row["replica"], row["offered"], row["whole"]) for row in rows] == [
        (1, False, False),
        (2, True, True),
    ]
    assert "note" in rows[0]["damaged"]
    order = {"metadata": "m1", "term": 1, "replica": 1, "volume": 1, "group": 0, "members": 3}
    with pytest.raises(NoReplica, match="lost a promise"):
        await rig.handlers.create_replica(ORDERER, order)  # it would begin with a promise of nothing
    await rig.handlers.drop_replica(ORDERER, order)
    assert list(rig.store.replicas) == [2]
    with pytest.raises(NoReplica, match="has no replica"):
        await rig.handlers.drop_replica(ORDERER, order)
    with pytest.raises(Stale, match="an order to create it comes late"):
        await rig.handlers.create_replica(ORDERER, order)  # no id is given twice
    await rig.reopen()
    assert list(rig.store.replicas) == [2]


async def test_a_replica_that_lost_records_alone_is_offered(rig: Rig) -> None:
    await rig.promise(1, 7)
    await rig.write(1)
    await rig.write(2)
    file, at = rig.place(DATA)
    await rig.store.close(checkpoint=False)
    file.now[at] ^= 1
    report = await rig.open()
    assert list(report.damaged) == [1]
    assert rig.offered(1) and rig.sessions.find(1).core.state.epoch == 7


async def test_a_later_note_brings_the_promise_back(rig: Rig) -> None:
    packed = await rig.promise(1, 7)
    await rig.write(1)
    await rig.promise(1, 8)
    file, at = rig.place(packed)
    await rig.store.close(checkpoint=False)
    file.now[at + 3] ^= 1
    report = await rig.open()
    assert list(report.damaged) == [1]
    assert rig.offered(1) and rig.sessions.find(1).core.state.epoch == 8


async def test_a_note_behind_lost_records_brings_the_promise_too(rig: Rig) -> None:
    await rig.write(1)
    await rig.promise(1, 7)
    await rig.write(2)
    file, at = rig.place(DATA)
    await rig.store.close(checkpoint=False)
    file.now[at] ^= 1
    report = await rig.open()
    assert list(report.damaged) == [1]
    assert rig.offered(1) and rig.sessions.find(1).core.state.epoch == 7


async def test_a_group_commit_that_cannot_be_read_may_have_held_any_promise(rig: Rig) -> None:
    packed = await rig.promise(1, 7)
    await rig.promise(2, 8)
    file, at = rig.place(packed)
    await rig.store.close(checkpoint=False)
    file.now[file.now.rindex(FRAME_MAGIC, 0, at) + 20] ^= 1
    report = await rig.open()
    assert sorted(report.damaged) == [1, 2]
    assert not rig.offered(1)
    assert rig.offered(2) and rig.sessions.find(2).core.state.epoch == 8, "what came later is known"


async def test_a_damaged_entry_of_the_index_loses_the_promise(rig: Rig) -> None:
    await rig.promise(1, 7)
    await rig.write(2)
    await rig.store.close()
    env = lmdb.open(str(rig.directory / "index"), max_dbs=8)
    with env.begin(write=True, db=env.open_db(b"replicas")) as txn:
        value = bytearray(txn.get((1).to_bytes(8, "big")))
        value[-5] ^= 1
        txn.put((1).to_bytes(8, "big"), bytes(value))
    env.close()
    await rig.open()
    for _ in range(2):
        assert not rig.offered(1) and rig.offered(2)
        await rig.reopen()
    rig.sessions.promise_again(INFO, 7, 77)
    await rig.store.checkpoint()
    await rig.reopen()
    assert rig.store.replica(1).info == INFO, "and what it is a replica of"
    assert rig.offered(1) and rig.sessions.find(1).core.state.epoch == 7


async def test_a_damaged_creation_is_a_replica_that_is_not_there(rig: Rig) -> None:
    await rig.create(3)
    await rig.write(2)
    file, at = rig.place(bytes([0x95, 3, 1, 0, 0xA4]) + b"sync")
    await rig.store.close(checkpoint=False)
    file.now[at + 6] ^= 1
    report = await rig.open()
    assert not report.damaged and "replica 3" in report.notes[0]
    assert rig.offered(1) and rig.offered(2)
    with pytest.raises(NoReplica):
        rig.sessions.find(3)


def _interrupt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint writes ahead of its last transaction is there, and that one never is."""

    def fail(*_: object) -> None:
        raise OSError(5, "the power is gone")

    monkeypatch.setattr(rig.store.index_store, "finish", fail)


def _rot_last_group(rig: Rig) -> None:
    current = rig.store.log.current
    assert current is not None
    file = rig.disk.files[current.name]
    file.now[file.now.rindex(FRAME_MAGIC) + 20] ^= 1


async def test_a_last_group_commit_that_the_index_refers_to_is_no_torn_tail(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index would be ahead of the log, and the promise be forgotten."""
    await rig.promise(1, 7)
    await rig.write(1)
    _interrupt(rig, monkeypatch)
    with pytest.raises(OSError, match="the power is gone"):
        await rig.store.checkpoint()
    _rot_last_group(rig)
    group = rig.store.log.group
    for start in range(3):  # two of them die before they have made a checkpoint of their own
        with monkeypatch.context() as patch:
            if start < 2:
                patch.setattr(Store, "checkpoint", _nothing)
            await rig.store.close(checkpoint=False)
            report = await rig.open()
        assert sorted(report.damaged) == [1, 2]
        assert not rig.offered(1) and not rig.offered(2)
        assert rig.store.log.group == group + start + 1, "no number is given twice"
    await rig.store.close(checkpoint=False)
    assert not (await rig.open()).notes
    await rig.store.close()


async def _nothing(store: Store) -> None:
    pass


async def test_a_lost_order_to_drop_whose_table_was_swept_already(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is here again, and all that it held reads as zeroes: so it has to say that it is damaged."""
    await rig.write(1)
    await rig.store.checkpoint()
    dropped = asyncio.get_running_loop().create_future()
    rig.store.drop(1, dropped.set_result)
    assert await dropped is None
    _interrupt(rig, monkeypatch)
    with pytest.raises(OSError, match="the power is gone"):
        await rig.store.checkpoint()
    _rot_last_group(rig)
    await rig.store.close(checkpoint=False)
    report = await rig.open()
    assert sorted(report.damaged) == [1, 2]
    await rig.store.close()


async def test_a_torn_tail_behind_what_the_index_refers_to_is_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.write(1)
    _interrupt(rig, monkeypatch)
    with pytest.raises(OSError, match="the power is gone"):
        await rig.store.checkpoint()
    await rig.write(1)
    _rot_last_group(rig)
    await rig.store.close(checkpoint=False)
    report = await rig.open()
    assert not report.damaged and rig.store.replica(1).state.last == 1
    await rig.store.close()


async def test_the_last_group_commit_is_soon_proved_to_have_been_synced(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is damage when it rots, and no torn tail: nobody counts on a copy that has lost its end."""
    await rig.write(1)
    _rot_last_group(rig)
    monkeypatch.undo()
    log = rig.store.log
    async with asyncio.timeout(20):
        while not (log._proved and log.idle):
            await asyncio.sleep(0.01)
    written = log.written_bytes
    log.prove_last()
    log.prove_last()
    assert log.idle and log.written_bytes == written, "once is enough"
    await rig.store.close(checkpoint=False)
    report = await rig.open()
    assert sorted(report.damaged) == [1, 2]
