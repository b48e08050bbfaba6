"""Whole directories of version 1: opened with the real code, which finds all that was in them; and those of
another version, which are refused as they are."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import pytest
import xxhash

from moorage.metadata import records
from moorage.metadata.invariants import validate
from moorage.metadata.state import StateMachine
from moorage.node.checkpoint import IndexStore
from moorage.node.checks import Check
from moorage.node.config import NodeConfig
from moorage.node.service import NodeService
from moorage.node.store import Store, StoreConfig
from moorage.node.superblock import Superblock
from moorage.quorum.raft_types import Config, Member
from moorage.registry.state import RegistryMachine
from moorage.service.raft_storage import Loaded, RaftStorage
from moorage.service.replicated import Replicated
from moorage.wire.errors import MoorageError, VersionMismatch
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret

from . import support
from . import values as v
from . import values3 as v3
from . import values4 as v4

SECRET = ClusterSecret(v.CLUSTER, v.KEY)


def sealed(key: bytes, payload: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(key + payload).to_bytes(8, "little") + payload


def items(directory: Path, database: str) -> dict[bytes, bytes]:
    """Key and payload of every value, whose seals are checked here by the letter of the documents."""
    found = {}
    with lmdb.open(str(directory), max_dbs=8, readonly=True, lock=False) as env, env.begin() as txn:
        for key, value in txn.cursor(env.open_db(database.encode(), txn=txn, create=False)):
            assert value == sealed(key, value[8:])
            found[key] = value[8:]
    return found


def change(directory: Path, database: str, key: bytes, edit: Callable[[Any], Any]) -> None:
    with lmdb.open(str(directory), max_dbs=8) as env:
        db = env.open_db(database.encode(), create=False)
        with env.begin(write=True, db=db) as txn:
            value = edit(msgpack.unpackb(txn.get(key)[8:]))
            txn.put(key, sealed(key, msgpack.packb(value)))


# -- a device -------------------------------------------------------------------------------------------


def config_of(directory: Path, block: Superblock) -> StoreConfig:
    fields = block.fields
    seed = int(fields.seed, 16)
    return StoreConfig(directory, bytes.fromhex(fields.device), fields.capacity, fields.segment_size, seed)


async def read(store: Store, replica: int, chunk: int, block: int) -> Any:
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.reader.read(store.replica(replica), chunk, block, 1, got.set_result)
    found = await got
    assert not isinstance(found, MoorageError)
    return None if found[1] is None else bytes(found[1])


async def check_device(store: Store) -> None:
    assert sorted(store.replicas) == [1, 2]
    for identity, (epoch, writer, commit, last, history) in v.DEVICE_STATES.items():
        replica = store.replica(identity)
        replica.validate()
        state = replica.state
        assert replica.info.pack() == v.DEVICE_REPLICAS[identity]
        assert (state.epoch, state.writer, state.commit, state.last) == (epoch, writer, commit, last)
        assert state.history == history and not state.damaged and not state.promise_lost
        for (chunk, block), wanted in v.DEVICE_BLOCKS[identity].items():
            assert await read(store, identity, chunk, block) == wanted, (identity, chunk, block)
    copy = store.replica(2).state.copy
    assert store.replica(1).state.copy is None and copy is not None
    assert {key: getattr(copy, key) for key in v.DEVICE_COPY} == v.DEVICE_COPY
    ((pending, _),) = store.replica(1).pending()
    assert (pending.epoch, pending.lsn, pending.chunk) == (2, 13, 8)
    store.apply(store.replica(1), 13)
    assert await read(store, 1, 8, 0) == v.block(106)


async def test_a_device_is_opened(tmp_path: Path) -> None:
    directory = support.unpack("device", tmp_path)
    block = Superblock(directory, None)
    assert {key: getattr(block.fields, key) for key in v.SUPERBLOCK} == v.SUPERBLOCK
    store = Store(config_of(directory, block))
    report = await store.open()
    assert (report.damaged, report.notes, report.fresh) == ({}, [], False) and report.groups > 10
    await check_device(store)
    await store.close()
    again = Store(config_of(directory, block))
    await again.open()
    assert await read(again, 1, 8, 0) == v.block(106)
    await again.close()
    block.close()


def test_the_index_of_a_device(tmp_path: Path) -> None:
    """As docs/node-store.md has it; the checkpoint came behind LSN 8 of replica 1."""
    index = support.unpack("device", tmp_path) / "index"
    version, segment, offset, group, next_handle, segments = msgpack.unpackb(
        items(index, "meta")[b"checkpoint"]
    )
    assert (version, next_handle) == (1, 4)
    assert [segment, group, offset % 512] == [segments[-1][0], 13, 0] and segments[-1][2] == offset
    described = {struct.unpack(">Q", k)[0]: msgpack.unpackb(p) for k, p in items(index, "replicas").items()}
    assert sorted(described) == [1, 2, 3]
    for identity, (description, handle, state, pending) in described.items():
        assert description == v.DEVICE_REPLICAS[identity] and handle == identity and pending == []
        assert msgpack.unpackb(state)[:2] == [1, identity]
    assert msgpack.unpackb(described[1][2]) == [1, 1, 0, 0, [[1, 1]], 8, 8, None, "", False]
    pages = {struct.unpack(">IQ", key): payload for key, payload in items(index, "pages").items()}
    assert set(pages) == {(1, 0), (1, 3 * 32 + 31)}  # what was discarded whole is a range
    cells = struct.unpack("<96Q", pages[1, 0])
    locations, sums, lsns = cells[:32], cells[32:64], cells[64:]
    assert lsns[:4] == (2, 3, 5, 0) and [bool(each) for each in locations[:4]] == [True, True, False, False]
    assert sums[:2] == tuple(xxhash.xxh3_64_intdigest(v.block(each)) for each in (100, 101))
    file = {number: name for number, name, _ in segments}[locations[0] >> 32]
    raw = (index.parent / "segments" / file).read_bytes()
    at = locations[0] & 0xFFFFFFFF
    assert raw[at : at + 4096] == v.block(100)
    tombstones = {struct.unpack(">IQ", k): msgpack.unpackb(p) for k, p in items(index, "tombstones").items()}
    assert tombstones == {(1, 5): [6, 8]}


async def shown(store: Store, snapshot: int, chunk: int, block: int) -> bytes | None:
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.reader.read(store.replica(1), chunk, block, 1, got.set_result, snapshot)
    found = await got
    assert not isinstance(found, MoorageError)
    return None if found[1] is None else bytes(found[1])


async def test_a_device_with_snapshots_is_opened(tmp_path: Path) -> None:
    directory = support.unpack("device", tmp_path, support.V4)
    block = Superblock(directory, None)
    store = Store(config_of(directory, block))
    report = await store.open()
    assert (report.damaged, report.notes) == ({}, [])
    replica = store.replica(1)
    assert (replica.state.commit, replica.state.last) == (v4.APPLIED, 13)
    assert (replica.table.snapshots_lsn, replica.table.snapshots) == (11, [4, 7, 11])
    for snapshot, blocks in v4.SHOWN.items():
        for (chunk, at), number in blocks.items():
            wanted = None if number is None else v.block(number)
            assert await shown(store, snapshot, chunk, at) == wanted, (snapshot, chunk, at)
    chunk, at, _, number = v4.COPIED_VERSION
    assert await shown(store, 4, chunk, at) == v.block(number)
    assert await shown(store, 7, chunk, at) is None
    store.apply(replica, 13)
    assert replica.table.snapshots == v4.RECORDS[-1][-1]
    await store.close()
    again = Store(config_of(directory, block))
    await again.open()
    assert again.replica(1).table.snapshots == [4, 11]
    assert await shown(again, 4, 1, 3) == v.block(201) and await shown(again, 11, 1, 3) is None
    await again.close()
    block.close()


def test_the_index_of_a_device_with_snapshots(tmp_path: Path) -> None:
    """As docs/node-store.md has it, behind LSN 8."""
    index = support.unpack("device", tmp_path, support.V4) / "index"
    version, *_, next_handle, segments = msgpack.unpackb(items(index, "meta")[b"checkpoint"])
    assert (version, next_handle) == (2, 2)
    ((_, packed),) = items(index, "replicas").items()
    description, handle, _, pending, snapshots = msgpack.unpackb(packed)
    assert (description, handle, pending) == (v4.REPLICA_INFO, 1, [])
    assert snapshots == [7, [4, 7], False]
    pages = {struct.unpack(">IQ", key): payload for key, payload in items(index, "pages").items()}
    assert set(pages) == {(1, 0), (1, 32)}
    lsns = struct.unpack("<96Q", pages[1, 0][:768])[64:]
    versions = list(struct.iter_unpack("<BQQQ", pages[1, 0][768:]))
    assert lsns[:2] == (5, 0) and [each[:2] for each in versions] == [(0, 2)]
    assert versions[0][3] == xxhash.xxh3_64_intdigest(v.block(200))
    file = {number: name for number, name, _ in segments}[versions[0][2] >> 32]
    at = versions[0][2] & 0xFFFFFFFF
    assert (index.parent / "segments" / file).read_bytes()[at : at + 4096] == v.block(200)
    kept = [(each[:2], bool(each[2])) for each in struct.iter_unpack("<BQQQ", pages[1, 32][768:])]
    assert kept == [((3, 3), True), ((3, 6), False)]
    tombstones = {struct.unpack(">IQ", k): msgpack.unpackb(p) for k, p in items(index, "tombstones").items()}
    assert tombstones == {(1, 1): [2, 6], (1, 1 << 48): [(1 << 48) + 1, 7]}


def test_what_checkpoints_and_scrubs_leave_in_an_index(tmp_path: Path) -> None:
    """As docs/node-store.md has it: what one that was cut short has reached, and the check of each table."""
    path = support.unpack("index", tmp_path, support.V3)
    checks = {}
    for handle, (*numbers, bad) in v3.INDEX_CHECKS.items():
        rows = [[*block, *place] for block, place in sorted(bad.items())]
        checks[b"scrub" + struct.pack(">I", handle)] = [1, *numbers, rows]
    found = {key: msgpack.unpackb(payload) for key, payload in items(path, "meta").items()}
    assert found == {b"reached": v3.INDEX_REACHED, **checks}
    index = IndexStore(path)
    assert index.reached() == v3.INDEX_REACHED
    for handle, packed in index.checks():
        assert packed is not None
        check = Check.unpack(handle, packed)
        assert check is not None
        read = (check.replica, check.passed_ms, check.began_ms, check.page, check.bad)
        assert read == v3.INDEX_CHECKS[handle] and check.pack() == packed
    assert [handle for handle, _ in index.checks()] == sorted(v3.INDEX_CHECKS)
    index.close()


async def test_a_log_that_ends_before_what_the_index_has_reached(tmp_path: Path) -> None:
    """The golden device with what only an index of its log's end would have."""
    directory = support.unpack("device", tmp_path)
    index = IndexStore(directory / "index")
    index.write_pages([], {}, 1000)
    index.close()
    block = Superblock(directory, None)
    store = Store(config_of(directory, block))
    report = await store.open()
    assert sorted(report.damaged) == [1, 2]
    await store.close()
    block.close()


# -- a device of another version ------------------------------------------------------------------------


def frames(raw: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(offset, entries) of the frames of a segment."""
    at = 512
    while raw[at : at + 4] == b"MOGC":
        yield at, struct.unpack_from("<I", raw, at + 36)[0]
        at += struct.unpack_from("<I", raw, at + 24)[0]


def fix_frame(raw: bytearray, at: int, count: int) -> None:
    raw[at + 48 : at + 56] = xxhash.xxh3_64_intdigest(bytes(raw[at : at + 48]), v.SEED).to_bytes(8, "little")
    covered = bytes(raw[at : at + 56] + raw[at + 64 : at + 64 + 40 * count])
    raw[at + 56 : at + 64] = xxhash.xxh3_64_intdigest(covered, v.SEED).to_bytes(8, "little")


def used_segments(directory: Path) -> list[Path]:
    """In the order of the log."""
    used = [path for path in (directory / "segments").iterdir() if path.read_bytes()[:4] == b"MOSG"]
    return sorted(used, key=lambda path: int(struct.unpack_from("<Q", path.read_bytes(), 8)[0]))


def edit_segment(directory: Path, edit: Callable[[bytearray], None], which: int = -1) -> None:
    path = used_segments(directory)[which]
    raw = bytearray(path.read_bytes())
    edit(raw)
    path.write_bytes(raw)


def header_of_version_2(directory: Path) -> None:
    def edit(raw: bytearray) -> None:
        raw[4] = 2
        raw[56:64] = xxhash.xxh3_64_intdigest(bytes(raw[:56]), v.SEED).to_bytes(8, "little")

    edit_segment(directory, edit)


def frame_of_version_3(directory: Path, number: int = -1) -> None:
    def edit(raw: bytearray) -> None:
        at, count = list(frames(raw))[number]
        raw[at + 4] = 3
        fix_frame(raw, at, count)

    edit_segment(directory, edit)


def frame_of_version_3_in_a_segment_without_header(directory: Path) -> None:
    frame_of_version_3(directory, 0)
    edit_segment(directory, lambda raw: raw.__setitem__(slice(0, 64), bytes(64)))


def entry_of_kind_8(directory: Path) -> None:
    def edit(raw: bytearray) -> None:
        at, count = list(frames(raw))[-1]
        raw[at + 64 + 28] = 8
        fix_frame(raw, at, count)

    edit_segment(directory, edit)


def note_of_version_2(directory: Path) -> None:
    def edit(raw: bytearray) -> None:
        for at, count in frames(raw):
            head = at + 64
            if count == 1 and raw[head + 28] in (2, 6):
                body = head + 40
                size = struct.unpack_from("<I", raw, head + 16)[0]
                assert raw[body + 1] == 1  # the first field of the list
                raw[body + 1] = 2
                check = xxhash.xxh3_64_intdigest(bytes(raw[body : body + size]))
                raw[head + 32 : head + 40] = check.to_bytes(8, "little")
                fix_frame(raw, at, count)
                return
        raise AssertionError("no note")

    edit_segment(directory, edit, 0)


def index_of_version_3(directory: Path) -> None:
    change(directory / "index", "meta", b"checkpoint", lambda value: [3, "another", "layout"])


def index_of_version_3_with_other_databases(directory: Path) -> None:
    index_of_version_3(directory)
    with lmdb.open(str(directory / "index"), max_dbs=8) as env, env.begin(write=True) as txn:
        txn.drop(env.open_db(b"pages", txn=txn))
        txn.drop(env.open_db(b"tombstones", txn=txn))


def state_of_version_2_in_the_index(directory: Path) -> None:
    def edit(value: Any) -> Any:
        return [value[0], value[1], msgpack.packb([2, "another layout"]), value[3]]

    change(directory / "index", "replicas", struct.pack(">Q", 2), edit)


def superblock_of_version_2(directory: Path) -> None:
    path = directory / "superblock"
    bare = {**json.loads(path.read_bytes()), "format": 2}
    del bare["check"]

    def dump(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    path.write_bytes(dump({**bare, "check": xxhash.xxh3_64_hexdigest(dump(bare))}) + b"\n")


DEVICE_CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (superblock_of_version_2, r"superblock: identity format 2, not 1"),
    (header_of_version_2, r"segments/\d+\.seg: a segment header of version 2, this version reads 1"),
    (frame_of_version_3, r"segments/\d+\.seg: a frame of version 3, this version reads 1 and 2"),
    (
        frame_of_version_3_in_a_segment_without_header,
        r"segments/\d+\.seg: a frame of version 3, this version reads 1 and 2",
    ),
    (entry_of_kind_8, r"segments/\d+\.seg: an entry of kind 8, this version reads 1 to 7"),
    (note_of_version_2, r"segments/\d+\.seg: the state of a replica in version 2, this version reads 1"),
    (index_of_version_3, r"index: an index of version 3, this version reads 1 and 2"),
    (index_of_version_3_with_other_databases, r"index: an index of version 3, this version reads 1 and 2"),
    (
        state_of_version_2_in_the_index,
        r"index, replica 2: the state of a replica in version 2, this version reads 1",
    ),
]


@pytest.mark.parametrize(("edit", "says"), DEVICE_CHANGES, ids=[edit.__name__ for edit, _ in DEVICE_CHANGES])
async def test_a_device_of_another_version_is_refused_as_it_is(
    edit: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    directory = support.unpack("device", tmp_path)
    edit(directory)
    # A file that was begun and has no space yet: a start that succeeds would remove it.
    (directory / "segments" / "00000099.seg").write_bytes(b"")
    before = support.content(directory)
    capacity = 128 << 20  # another one than before, which a start that succeeds would note
    config = NodeConfig(directory, "h1", SECRET, ["127.0.0.1:1"], lambda: "127.0.0.1:2", capacity=capacity)
    service = NodeService(config)
    with pytest.raises(VersionMismatch, match=says):
        await service.start(Router())
    await service.stop()
    assert support.content(directory) == before


# -- a member of a Raft group ---------------------------------------------------------------------------


async def load(directory: Path) -> tuple[RaftStorage, Loaded]:
    storage = RaftStorage(directory, "m1")
    try:
        return storage, await storage.open(v.RAFT_IDENTITY, Config(()))
    except BaseException:
        await storage.close()
        raise


def test_the_databases_of_a_raft_directory(tmp_path: Path) -> None:
    """As docs/raft.md has it."""
    directory = support.unpack("raft", tmp_path)
    meta = {key: msgpack.unpackb(payload) for key, payload in items(directory, "meta").items()}
    pins = {f"pin:{name}".encode(): list(pin) for name, pin in v.RAFT_PINS.items()}
    assert meta == {
        b"identity": {"format": 2, "instance": v.RAFT_INSTANCE, **v.RAFT_IDENTITY},
        b"life": list(v.RAFT_LIFE),
        b"hard_state": list(v.RAFT_HARD_STATE),
        b"base": [*v.SNAPSHOT, msgpack.packb([list(each) for each in v.MEMBERS])],
        b"applied": 12,
        **pins,
    }
    log = {struct.unpack(">Q", key)[0]: msgpack.unpackb(p) for key, p in items(directory, "log").items()}
    assert log == {index: [term, kind, data] for term, index, kind, data in v.RAFT_ENTRIES}
    kv = {key.decode(): msgpack.unpackb(payload) for key, payload in items(directory, "kv").items()}
    assert kv == v.RAFT_KV
    staged = {struct.unpack(">Q", k)[0]: msgpack.unpackb(p) for k, p in items(directory, "staged").items()}
    assert staged == {0: v.RAFT_STAGED}


async def test_a_raft_directory_is_opened(tmp_path: Path) -> None:
    storage, loaded = await load(support.unpack("raft", tmp_path))
    assert loaded.instance == v.RAFT_INSTANCE
    assert tuple(loaded.hard_state) == v.RAFT_HARD_STATE
    assert {name: tuple(pin) for name, pin in loaded.pins.items()} == v.RAFT_PINS
    assert loaded.applied == 12
    log = loaded.log
    assert (log.base_index, log.last_index, log.last_term) == (10, 13, 6)
    assert [tuple(log.entry(index)) for index in (11, 12, 13)] == v.RAFT_ENTRIES
    assert log.config == Config(Member(*each) for each in v.MEMBERS)
    number, token, _, accepted = v.RAFT_LIFE
    assert accepted and (loaded.life.number, loaded.life.former) == (number + 1, token)
    await storage.close()


@pytest.mark.parametrize("version", [1, 3])
async def test_a_raft_directory_of_another_version_is_refused_as_it_is(version: int, tmp_path: Path) -> None:
    directory = support.unpack("raft", tmp_path)
    change(directory, "meta", b"identity", lambda value: {**value, "format": version})
    with lmdb.open(str(directory), max_dbs=8) as env, env.begin(write=True) as txn:
        txn.drop(env.open_db(b"staged", txn=txn))  # one that this version would make
    before = support.content(directory)
    with pytest.raises(VersionMismatch, match=rf"raft has format {version}, this version reads 2") as caught:
        await load(directory)
    assert "remove it from the group" not in str(caught.value)
    assert support.content(directory) == before


@pytest.mark.parametrize("golden", support.STATES, ids=lambda golden: golden.name)
@pytest.mark.parametrize(
    ("name", "group", "machine"),
    [("metadata", "m1", StateMachine("m1")), ("registry", "registry", RegistryMachine())],
)
async def test_a_replicated_state_goes_on(
    name: str, group: str, machine: Any, golden: Path, tmp_path: Path
) -> None:
    """Stored state and the log behind it, by the real member: every key as it was when it was made."""
    directory = support.unpack(name, tmp_path, golden)
    wanted = json.loads((golden / f"{name}.json").read_text())
    stored = {key.decode(): msgpack.unpackb(payload) for key, payload in items(directory, "kv").items()}
    assert stored != wanted
    member = Replicated(
        directory=directory,
        group=group,
        name="a",
        peers={"a": "unix:/nowhere"},
        machine=machine,
        hello=Hello("metadata", v.CLUSTER, "a", "e" * 16),
        secret=SECRET,
    )
    await member.start()
    async with asyncio.timeout(20):
        while not member.is_leader:
            await asyncio.sleep(0.01)
    assert dict(member.kv.scan("")) == wanted
    if name == "metadata":
        validate(member.kv)
        is_bucket = golden == support.V6
        volume = records.volume_by_name(
            member.kv, "photos" if is_bucket else "db", records.BUCKET if is_bucket else records.VOLUME
        )
        size = {support.V1: 128 << 20, support.V6: 0}.get(golden, 64 << 20)
        epoch = {support.V4: 2, support.V6: 0}.get(golden, 1)
        assert (volume["id"], volume["size"], volume["epoch"]) == (v.V1, size, epoch)
    await member.stop()
