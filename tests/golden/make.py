"""Make a set of golden files: ``python -m tests.golden.make SET`` from the top of the tree.

Run once for each set, by whoever changes a format or adds to one, and never again: an existing directory
``tests/golden/vSET`` is refused. What is in it was written by the code of its day, and every later version
must read it (or refuse it, and say so). What the files say is in `values.py` for set 1, `values2.py` for
set 2, and so on; tokens that are random by nature are fixed there, so that two runs of the same code differ
only inside of LMDB.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import msgpack

from moorage.client.backup_stream import BackupWriter, Base, Header, Kind
from moorage.client.cluster import VolumeInfo
from moorage.gateway.csi.notes import Held
from moorage.gateway.csi.notes import Notes as CsiNotes
from moorage.gateway.docker.known import Known
from moorage.gateway.docker.ledger import Entry as DockerEntry
from moorage.gateway.docker.notes import Notes as DockerNotes
from moorage.gateway.mount.record import Place, Record, Status
from moorage.gateway.table.notes import Note
from moorage.gateway.table.notes import Notes as TableNotes
from moorage.metadata.state import StateMachine
from moorage.node.checkpoint import IndexStore
from moorage.node.checks import Check
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import (
    Entry,
    EntryKind,
    Run,
    SegmentHeader,
    build_frame,
    pack_head,
    pack_segment_header,
)
from moorage.node.store import Store, StoreConfig
from moorage.quorum.orders import SealAnswer
from moorage.quorum.raft_types import Config, HardState, Member, Snapshot, SnapshotChunk, encode
from moorage.quorum.raft_types import Entry as RaftEntry
from moorage.quorum.record import Kind as RecordKind
from moorage.quorum.record import Position, block_sums, pack_lsns
from moorage.quorum.record import Record as LogRecord
from moorage.quorum.state import CopyState, MemberState
from moorage.registry.state import RegistryMachine
from moorage.service import identity
from moorage.service.raft_storage import Life, Pin, RaftStorage, Work
from moorage.service.replicated import Replicated
from moorage.wire import frame, log_messages
from moorage.wire.capability import Capability, sign
from moorage.wire.errors import Fenced
from moorage.wire.handshake import ClientHandshake, Hello, ServerHandshake
from moorage.wire.secret import ClusterSecret

from . import values as v
from . import values2 as v2
from . import values3 as v3
from . import values4 as v4
from . import values5 as v5
from . import values6 as v6

HERE = Path(__file__).parent
SECRET = ClusterSecret(v.CLUSTER, v.KEY)


def record_of(row: tuple[int, int, int, int, int, int, int]) -> LogRecord:
    epoch, lsn, kind, chunk, block, count, content = row
    data = v.block(content, count) if kind == 2 else b""
    return LogRecord(epoch, lsn, kind, chunk, block, count, block_sums(data), data)


def run_of(row: tuple[int, int, int, tuple[int, ...], int]) -> tuple[Run, bytes]:
    kind, chunk, block, lsns, content = row
    data = v.block(content, len(lsns)) if kind == 1 else b""
    sums = tuple(memoryview(block_sums(data)).cast("Q")) if data else ()
    return Run(kind, chunk, block, lsns, sums), data


def state_of(fields: dict[str, Any], copy: dict[str, Any] | None = None) -> MemberState:
    made = None
    if copy is not None:
        made = CopyState(
            **{k: Position(*each) if isinstance(each, tuple) else each for k, each in copy.items()}
        )
    return MemberState(**{**fields, "history": list(fields["history"])}, copy=made)


# -- files of bytes -------------------------------------------------------------------------------------


def disk_files() -> dict[str, bytes]:
    header = SegmentHeader(*v.SEGMENT_HEADER)
    records = [pack_head(record_of(row)) for row in v.RECORDS]
    return {
        "identity.json": identity.encode("service", v.IDENTITY),
        "superblock": identity.encode("device", v.SUPERBLOCK),
        "secret": v.SECRET_FILE,
        "segment-header": pack_segment_header(header, v.SEED)[:64],
        "frame": frame_of_every_kind(),
        "records": b"".join(records),
        "runs": b"".join(run_of(row)[0].pack() for row in v.RUNS),
        "member-state": state_of(v.STATE).pack(),
        "member-state-copying": state_of(v.COPYING, v.COPY).pack(),
    }


def frame_of_every_kind() -> bytes:
    entries: list[tuple[int, Entry]] = []
    for replica, kind, argument in v.ENTRIES:
        entry = Entry(kind, argument)
        if kind == EntryKind.CREATE:
            entry.add_body(msgpack.packb(v.REPLICA_INFO))
        elif kind == EntryKind.STATE:
            entry.add_body(state_of(v.STATE).pack())
        elif kind == EntryKind.RESET:
            entry.add_body(state_of(v.COPYING, v.COPY).pack())
        elif kind == EntryKind.BLOCKS:
            for row in v.RUNS:
                run, data = run_of(row)
                entry.add_body(run.pack())
                if data:
                    entry.add_data(data)
        elif kind in (EntryKind.RECORDS, EntryKind.PENDING):
            rows = v.RECORDS if kind == EntryKind.RECORDS else v.RECORDS[-1:]
            entry.count = len(rows)
            for record in map(record_of, rows):
                entry.add_body(pack_head(record))
                if record.data:
                    entry.add_data(record.data)
        entries.append((replica, entry))
    built = build_frame(*v.FRAME, 512, entries, v.SEED)
    return b"".join((built.front, *built.data))


def wire_files() -> dict[str, bytes]:
    kind, op, request_id, payload_size, flags, deadline_ms = v.FRAME_HEADER
    records = [record_of(row) for row in v.RECORDS]
    heads = b"".join(map(pack_head, records))
    sums = block_sums(v.block(1)) + bytes(8)
    found = {
        "frame": frame.encode(kind, op, request_id, frame.pack(v.CALL), payload_size, flags, deadline_ms),
        "error": frame.pack_error(Fenced(v.ERROR[1], **v.ERROR[2])),
        "append": log_messages.pack_append(*v.HOT["append"]) + heads,
        "append-payload": b"".join(record.data for record in records),
        "ack": log_messages.pack_ack(*v.HOT["ack"]),
        "nack": log_messages.pack_nack(*v.HOT["nack"]),
        "read": log_messages.pack_read(*v.HOT["read"]),
        "read-reply": log_messages.pack_read_reply(*v.READ_REPLY, sums),
        "heartbeat": log_messages.pack_heartbeat(*v.HOT["heartbeat"]),
        "heartbeat-reply": log_messages.pack_heartbeat_reply(*v.HOT["heartbeat_reply"]),
        "seal-answer": frame.pack(seal_answer().pack()),
        "capability": sign(SECRET, Capability(**v.CAPABILITY)),
    }
    client = ClientHandshake(Hello(*v.CLIENT_HELLO), SECRET, v.CLIENT_NONCE)
    server = ServerHandshake(Hello(*v.SERVER_HELLO), SECRET, v.SERVER_NONCE)
    found["handshake-hello"] = client.start()
    found["handshake-challenge"] = server.receive(found["handshake-hello"])
    found["handshake-proof"] = client.receive(found["handshake-challenge"]) or b""
    found["handshake-ready"] = server.receive(found["handshake-proof"])
    config = Config(Member(*each) for each in v.MEMBERS)
    found["raft-configuration"] = config.encode()
    for code, message in raft_messages().items():
        found[f"raft-{code}"] = frame.pack(["m1", "a", v.RAFT_INSTANCE, 0, None, encode(message)])
    return found


def seal_answer() -> SealAnswer:
    positions = {"vote", "last", "newest", "base"}
    return SealAnswer(**{k: Position(*each) if k in positions else each for k, each in v.SEAL_ANSWER.items()})


def raft_messages() -> dict[int, Any]:
    from moorage.quorum.raft_types import _CODES

    named = {
        "entries": tuple(RaftEntry(*each) for each in v.RAFT_ENTRIES),
        "snapshot": Snapshot(*v.SNAPSHOT, Config(Member(*each) for each in v.MEMBERS)),
    }
    made = {}
    for code, fields in v.RAFT.items():
        full = [named.get(each, each) if isinstance(each, str) else each for each in fields]
        made[code] = _CODES[code](*full)
    return made


# -- directories ----------------------------------------------------------------------------------------


async def make_device(directory: Path) -> None:
    directory.mkdir()
    (directory / "superblock").write_bytes(identity.encode("device", v.SUPERBLOCK))
    capacity, size = v.SUPERBLOCK["capacity"], v.SUPERBLOCK["segment_size"]
    assert isinstance(capacity, int) and isinstance(size, int)
    store = Store(StoreConfig(directory, v.DEVICE, capacity, size, v.SEED))
    await store.open()
    for fields in v.DEVICE_REPLICAS.values():
        done = asyncio.get_running_loop().create_future()
        store.create(ReplicaInfo(*fields), done.set_result)
        await done
    first, second = store.replica(1), store.replica(2)
    for record in (record_of(row) for row in v.DEVICE_RECORDS[:8]):
        await append(store, first, record, apply=True)
    await store.checkpoint()
    await note(store, first, MemberState(1, epoch=2, writer=77, history=[(1, 1)], commit=8, last=8))
    for record in (record_of(row) for row in v.DEVICE_RECORDS[8:]):
        await append(store, first, record, apply=record.lsn < 13)
    run, data = run_of(v.DEVICE_MOVED)
    await merge(store, first, [run], data)
    moved = Entry(EntryKind.PENDING)
    pending = record_of(v.DEVICE_RECORDS[-1])
    moved.add_body(pack_head(pending))
    moved.add_data(pending.data)
    moved.count, moved.records = 1, [pending]
    store.log.put(first, moved)
    await append(store, second, LogRecord(1, 1, 1), apply=True)
    copy = CopyState(
        **{k: Position(*each) if isinstance(each, tuple) else each for k, each in v.DEVICE_COPY.items()}
    )
    epoch, writer, commit, last, history = v.DEVICE_STATES[2]
    state = MemberState(2, epoch=epoch, writer=writer, history=history, commit=commit, last=last, copy=copy)
    await note(store, second, state)
    runs = [run_of(row) for row in v.DEVICE_COPIED]
    await merge(store, second, [each for each, _ in runs], b"".join(each for _, each in runs))
    dropped = asyncio.get_running_loop().create_future()
    store.drop(3, dropped.set_result)
    await dropped
    await store.close(checkpoint=False)


async def append(store: Store, replica: Replica, record: LogRecord, apply: bool) -> None:
    store.append(replica, [record], record.lsn)
    if apply:
        store.apply(replica, record.lsn)
    await store.flushed()


async def note(store: Store, replica: Replica, state: MemberState) -> None:
    store.note(replica, state.pack(), 1)
    await store.flushed()


async def merge(store: Store, replica: Replica, runs: list[Run], data: bytes) -> None:
    done = asyncio.get_running_loop().create_future()
    store.merge(replica, runs, [data], done.set_result)
    await done


async def make_raft(directory: Path) -> None:
    """A member that is behind: a compacted log, pins, half a snapshot."""
    storage = RaftStorage(directory, "m1")
    config = Config(Member(*each) for each in v.MEMBERS)
    await storage.open(v.RAFT_IDENTITY, config)
    entries = [RaftEntry(*each) for each in v.RAFT_ENTRIES]
    older = [RaftEntry(5, index, 0, b"") for index in range(1, 11)]
    kv = {key.encode(): msgpack.packb(value) for key, value in v.RAFT_KV.items()}
    await storage.commit(Work(hard_state=HardState(*v.RAFT_HARD_STATE), entries=[*older, *entries]))
    await storage.commit(
        Work(
            applied=12,
            batch=kv,
            base=Snapshot(*v.SNAPSHOT, config),
            pins={name: Pin(*fields) for name, fields in v.RAFT_PINS.items()},
            life=Life(*v.RAFT_LIFE),
            chunks=[SnapshotChunk(6, Snapshot(20, 6, config), 1, 0, False, msgpack.packb(v.RAFT_STAGED))],
        )
    )

    def fix_instance() -> None:
        with storage.env.begin(write=True) as txn:
            found = storage.read_meta(b"identity", txn)
            storage._put_meta(txn, b"identity", {**found, "instance": v.RAFT_INSTANCE})

    await asyncio.get_running_loop().run_in_executor(storage._worker, fix_instance)
    await storage.close()


async def make_state(
    directory: Path, group: str, machine: Any, commands: list[dict[str, Any]], later: list[dict[str, Any]]
) -> dict[str, Any]:
    """A group of one; ``later`` is in its log only. Returns the state with all of them."""
    hello = Hello("metadata", v.CLUSTER, "a", "e" * 16)
    member = Replicated(
        directory=directory,
        group=group,
        name="a",
        peers={"a": "unix:/nowhere"},
        machine=machine,
        hello=hello,
        secret=SECRET,
    )
    await member.start()
    while not member.is_leader:
        await asyncio.sleep(0.01)
    for command in commands:
        await member.propose(command)
    stored = member.status()["applied_index"]
    while member.status()["stored_index"] < stored:  # with a commit after a while: a later command brings it
        await asyncio.sleep(0.2)
        await member.propose(commands[0])
    copied = directory.with_name(directory.name + ".copy")
    for command in later:
        await member.propose(command)
    # As a kill leaves it: what was acknowledged is in the log, and the state is behind.
    shutil.copytree(directory, copied)
    state = dict(member.kv.scan(""))
    await member.stop()
    shutil.rmtree(directory)
    copied.rename(directory)
    return state


async def make_states(into: Path, top: Path, said: Any) -> None:
    """Of both groups, by the commands of a set's values."""
    commands = {
        "metadata": ("m1", StateMachine("m1"), said.METADATA_COMMANDS, said.METADATA_LATER),
        "registry": ("registry", RegistryMachine(), said.REGISTRY_COMMANDS, said.REGISTRY_LATER),
    }
    for name, (group, machine, now, later) in commands.items():
        state = await make_state(top / name, group, machine, now, later)
        (into / f"{name}.tar.xz").write_bytes(archive(top / name))
        (into / f"{name}.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")


def archive(directory: Path) -> bytes:
    """A tar of regular files, without owner and time; what a process makes while it runs is left out."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:xz", preset=9) as tar:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and path.name not in ("lock.mdb", "device.lock"):
                info = tarfile.TarInfo(str(path.relative_to(directory)))
                info.size, info.mode = path.stat().st_size, 0o644
                tar.addfile(info, io.BytesIO(path.read_bytes()))
    return raw.getvalue()


# -- notes ----------------------------------------------------------------------------------------------


def note_files() -> dict[str, bytes]:
    """As their owners write them."""
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        for path, _, _ in v2.NOTES.values():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
        fields = {name: content for name, (_, _, content) in v2.NOTES.items()}
        place = Place(top / Path(v2.NOTES["mount-record"][0]).parent)
        record = fields["mount-record"]
        place.save(Record(**{**record, "owner": tuple(record["owner"])}))
        place.save_status(Status(**fields["mount-status"]))
        TableNotes(top).write(Note(**fields["table"]))
        docker = fields["docker-volume"]
        DockerNotes(top).save("db", DockerEntry(**{**docker, "users": frozenset(docker["users"])}))
        rows = fields["docker-known"]["volumes"].items()
        Known(DockerNotes(top)).replace(
            [VolumeInfo.from_wire({"name": name, "size": row[0], "created_ms": row[1]}) for name, row in rows]
        )
        CsiNotes(top).save(Held.load(fields["csi"]))
        return {name: (top / path).read_bytes() for name, (path, _, _) in v2.NOTES.items()}


async def make_2(into: Path) -> None:
    (into / "notes").mkdir(parents=True)
    for name, content in note_files().items():
        (into / "notes" / name).write_bytes(content)


# -- what came after set 1 ------------------------------------------------------------------------------


def make_index(path: Path) -> None:
    """What a checkpoint that was cut short and a scrub leave in an index."""
    index = IndexStore(path)
    index.write_pages([], {}, v3.INDEX_REACHED)
    checks: dict[int, bytes | None] = {}
    for handle, (replica, passed_ms, began_ms, page, bad) in v3.INDEX_CHECKS.items():
        check = Check(replica, handle, passed_ms)
        check.began_ms, check.page, check.bad = began_ms, page, bad
        checks[handle] = check.pack()
    index.write_checks(checks)
    index.close()


def later_wire_files() -> dict[str, bytes]:
    """Whole frames, since a flag of theirs says what is in the body."""
    applied, count, epoch = v3.READ_REPLY_OF_A_PREFIX
    sums = block_sums(v.block(1)) + bytes(8)
    reply = log_messages.pack_read_reply(applied, count, sums) + epoch.to_bytes(8, "little")
    body, flags = log_messages.pack_read(*v3.READ_OF_A_PREFIX), log_messages.PREFIX
    return {
        "read-prefix": frame.encode(frame.REQUEST, frame.READ, 7, body, 0, flags, 50),
        "read-prefix-reply": frame.encode(frame.REPLY, frame.READ, 7, reply, 8192, flags, 0),
    }


async def make_3(into: Path) -> None:
    (into / "wire").mkdir(parents=True)
    for name, content in later_wire_files().items():
        (into / "wire" / name).write_bytes(content)
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        make_index(top / "index")
        (into / "index.tar.xz").write_bytes(archive(top / "index"))
        await make_states(into, top, v3)


# -- snapshots ------------------------------------------------------------------------------------------


def snapshot_record_of(row: tuple[int, int, int, int, int, int, Any]) -> LogRecord:
    epoch, lsn, kind, chunk, block, count, content = row
    if kind == RecordKind.SNAPSHOTS:
        return LogRecord(epoch, lsn, kind, chunk, block, count, pack_lsns(content))
    return record_of(row)


async def make_device_with_snapshots(directory: Path) -> None:
    """Versions and older discards in the index, and a log behind it that has more of them."""
    directory.mkdir()
    (directory / "superblock").write_bytes(identity.encode("device", v.SUPERBLOCK))
    capacity, size = v.SUPERBLOCK["capacity"], v.SUPERBLOCK["segment_size"]
    assert isinstance(capacity, int) and isinstance(size, int)
    store = Store(StoreConfig(directory, v.DEVICE, capacity, size, v.SEED))
    await store.open()
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(*v4.REPLICA_INFO), done.set_result)  # type: ignore[arg-type]
    await done
    replica = store.replica(1)
    for record in map(snapshot_record_of, v4.RECORDS):
        await append(store, replica, record, apply=record.lsn <= v4.APPLIED)
        if record.lsn == v4.CHECKPOINT_BEHIND:
            await store.checkpoint()
    lsn, listed = v4.COPIED_LIST
    chunk, block, written, content = v4.COPIED_VERSION
    run, data = run_of((1, chunk, block, (written,), content))
    tombstone = Run(2, chunk, block, (written + 2,), ())
    await merge(store, replica, [Run(4, lsn, 0, listed, ()), tombstone, run], data)
    await store.close(checkpoint=False)


async def make_4(into: Path) -> None:
    (into / "wire").mkdir(parents=True)
    body = log_messages.pack_read(*v4.READ_OF_A_SNAPSHOT)
    lsn, prefix = v4.SNAPSHOT.to_bytes(8, "little"), log_messages.PREFIX
    for name, flags in (("read-snapshot", v4.AT | prefix), ("read-lsns", v4.LSNS | v4.AT | prefix)):
        raw = frame.encode(frame.REQUEST, frame.READ, 7, body + lsn, 0, flags, 50)
        (into / "wire" / name).write_bytes(raw)
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        await make_device_with_snapshots(top / "device")
        (into / "device.tar.xz").write_bytes(archive(top / "device"))
        await make_states(into, top, v4)


def backups() -> dict[str, bytes]:
    return {name: backup(fields, frames) for name, (fields, frames) in v5.BACKUPS.items()}


def backup(fields: dict[str, Any], frames: v5.Rows) -> bytes:
    stream = io.BytesIO()
    writer = BackupWriter(stream, Header(**{**fields, "base": fields["base"] and Base(**fields["base"])}))
    for kind, offset, length, number in frames:
        if kind == Kind.DATA:
            writer.data(offset, v.block(number, length // v.BLOCK_SIZE))
        else:
            writer.hole(offset, length)
    writer.end()
    return stream.getvalue()


async def make_5(into: Path) -> None:
    """Backups."""
    (into / "backups").mkdir(parents=True)
    for name, content in backups().items():
        (into / "backups" / name).write_bytes(content)


async def make_1(into: Path) -> None:
    for folder, files in (("disk", disk_files()), ("wire", wire_files())):
        (into / folder).mkdir(parents=True)
        for name, content in files.items():
            (into / folder / name).write_bytes(content)
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        await make_device(top / "device")
        await make_raft(top / "raft")
        await make_states(into, top, v)
        for name in ("device", "raft"):
            (into / f"{name}.tar.xz").write_bytes(archive(top / name))


async def make_6(into: Path) -> None:
    """Objects of a bucket, in metadata."""
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        await make_states(into, Path(temporary), v6)


MAKE = {1: make_1, 2: make_2, 3: make_3, 4: make_4, 5: make_5, 6: make_6}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("set", type=int, choices=MAKE)
    number = parser.parse_args(arguments).set
    into = HERE / f"v{number}"
    if into.exists():
        raise SystemExit(f"{into.name} exists: golden files are never made again; begin the next set")
    with tempfile.TemporaryDirectory(dir=HERE) as beside:
        asyncio.run(MAKE[number](Path(beside) / "made"))
        (Path(beside) / "made").rename(into)


if __name__ == "__main__":
    main(sys.argv[1:])
