"""What is fuzzed: every parser of bytes that another process, a disk or a person may have made.

Owns one function of bytes for each parser, its seeds (the golden files, mostly) and what it may raise. Import
it behind the instrumentation only (`__main__.py`). The first byte of an input, where a parser has several
entrances or a check guards what is behind it, says which way in, and whether checks are made right.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from moorage.client import mount_table, reads, uri
from moorage.client.backup_stream import BackupReader, check_chain
from moorage.gateway.memory import MemoryDevice
from moorage.gateway.nbd import Limits
from moorage.gateway.nbd import protocol as p
from moorage.gateway.nbd.buffers import BufferPool
from moorage.gateway.nbd.negotiation import Agreement, Negotiation
from moorage.gateway.nbd.transmission import Transmission
from moorage.gateway.table import rendering
from moorage.node import copying, superblock
from moorage.node.checks import Check
from moorage.node.fold import Fold
from moorage.node.index import Index
from moorage.node.memory_disk import MemoryDisk
from moorage.node.recovery import Cursor, Verdict
from moorage.node.replay import Replay, catalogue
from moorage.node.segment import (
    frame_verified,
    parse_entries,
    parse_frame_header,
    parse_segment_header,
    unpack_heads,
    unpack_runs,
)
from moorage.quorum import raft_types
from moorage.quorum.orders import SealAnswer
from moorage.quorum.record import decode_batch, first_bad_block
from moorage.quorum.state import MemberState
from moorage.service import identity
from moorage.wire import address, discovery, frame, log_messages
from moorage.wire.capability import verify
from moorage.wire.connection import Reply
from moorage.wire.errors import Corrupt, InvariantViolation, MoorageError
from moorage.wire.handshake import ClientHandshake, Hello, ServerHandshake
from moorage.wire.receiver import FrameReceiver
from moorage.wire.secret import ClusterSecret

from ..golden import support
from ..golden import values as v
from .connections import connection_targets
from .engine import Target
from .fixing import fix_backup, fix_frames, fix_records, fix_segment
from .gateways import gateway_targets
from .s3 import s3_targets
from .services import service_targets

SECRET = ClusterSecret(v.CLUSTER, v.KEY)
BLOCKS = v.block(21, 2) + v.block(22)
OURS = (InvariantViolation,)  # an error of ours, and a mistake of ours


def _modes(count: int, *seeds: bytes) -> list[bytes]:
    return [bytes([mode]) + seed for seed in seeds for mode in range(count)]


# -- the wire -------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """A stream of frames, cut at any places; each is then read as its receiver would."""
    mode, data = data[:1], data[1:]
    step = (1, 31, 200, 1 << 16)[mode[0] % 4] if mode else 1
    if mode and mode[0] & 4:
        data = fix_frames(data)
    receiver = FrameReceiver(_read_frame, 1 << 16, 1 << 18)
    at = 0
    while at < len(data):
        into = receiver.get_buffer(-1)
        part = data[at : at + min(step, len(into))]
        into[: len(part)] = part
        receiver.buffer_updated(len(part))
        at += len(part)


def _read_frame(
    kind: int,
    op: int,
    flags: int,
    request: int,
    deadline: int,
    body: memoryview,
    payload: memoryview,
    owned: bool,
) -> None:
    if kind == frame.ERROR:
        frame.unpack_error(body)
    elif op in (frame.APPEND, frame.READ, frame.ACK, frame.NACK, frame.HEARTBEAT):
        hot(bytes([op - frame.APPEND]) + body)
    else:
        frame.unpack(body)


def hot(data: bytes) -> None:
    """Bodies of the hot messages; an odd mode above 15 makes the checks of records right."""
    mode, body = data[:1], data[1:]
    match (mode[0] if mode else 0) % 8:
        case 0:
            if mode and mode[0] & 16:
                body = body[:56] + fix_records(body[56:], BLOCKS)
            log_messages.unpack_append(body)
            for record in decode_batch(body[log_messages.APPEND_SIZE :], BLOCKS):
                first_bad_block(record.sums, record.data)
        case 1:
            log_messages.unpack_ack(body)
        case 2:
            log_messages.unpack_nack(body)
        case 3:
            log_messages.unpack_read(body)
        case 4:
            log_messages.unpack_heartbeat(body)
        case 5:
            log_messages.unpack_heartbeat_reply(body)
        case 6:
            log_messages.unpack_read_reply(body)
        case 7:
            frame.unpack_error(body)


HOT_SEEDS = ["append", "ack", "nack", "read", "heartbeat", "heartbeat-reply", "read-reply", "error"]


def handshake(data: bytes) -> None:
    """Each of the four messages, at the end that expects it; an odd 16 begins with a right one."""
    mode, body = (data[0] if data else 0), data[1:]
    if mode % 2:
        client = ClientHandshake(Hello(*v.CLIENT_HELLO), SECRET, v.CLIENT_NONCE)
        client.start()
        if mode & 2:
            client.receive(support.wire("handshake-challenge"))
        client.receive(body)
    else:
        server = ServerHandshake(Hello(*v.SERVER_HELLO), SECRET, v.SERVER_NONCE)
        if mode & 2:
            server.receive(support.wire("handshake-hello"))
        server.receive(body)


def answers(data: bytes) -> None:
    """Messages in msgpack: of Raft, capabilities, and answers that a client or a node gets."""
    mode, body = (data[0] if data else 0), data[1:]
    match mode % 6:
        case 0:
            value = frame.unpack(body)
            raft_types.decode(value[-1] if isinstance(value, list) and value else value)
        case 1:
            raft_types.Config.decode(body)
        case 2:
            verify(SECRET, SECRET.mac("moorage capability 1", body[32:]) + body[32:], 0)
        case 3:
            value = frame.unpack(body)
            with contextlib.suppress(ValueError):
                SealAnswer.unpack(value)
        case 4:
            copying._parse(frame.unpack(body), memoryview(BLOCKS[:8192]))
        case 5:
            _read_reply(body)


def _read_reply(body: bytes) -> None:
    """As a client reads it: the flags and how many blocks were asked for come first, then the body."""
    reply: Any = Reply()
    nobody: Any = None
    flags, count = (body[0], body[1] % 4) if len(body) > 1 else (0, 1)
    reply.flags, reply.body, reply.payload = flags, memoryview(body[2:]), memoryview(BLOCKS[: 4096 * count])
    if flags & log_messages.PREFIX:
        reply.body, _ = log_messages.split_epoch(reply.body, flags)
    if flags & 2:
        reads.Look.check(nobody, reply, memoryview(bytearray(count)))
    else:
        reads.check(reply, memoryview(bytearray(4096 * count)))


def _pull_answer() -> bytes:
    return frame.pack([support.disk("runs"), [4, 14], [1, 7]])


# -- the disk -------------------------------------------------------------------------------------------


def state(data: bytes) -> None:
    MemberState.unpack(data)


def segment(data: bytes) -> None:
    """The parts of a segment, each by itself."""
    mode, body = (data[0] if data else 0), data[1:]
    view = memoryview(body)
    match mode % 4:
        case 0:
            parse_segment_header(fix_segment(body, v.SEED) if mode & 4 else body, v.SEED)
        case 1:
            raw = memoryview(fix_segment(bytes(512) + body, v.SEED)[512:] if mode & 4 else body)
            header = parse_frame_header(raw, None, v.SEED)
            if header is not None and frame_verified(raw, header, v.SEED):
                for entry in parse_entries(raw, header):
                    assert entry.whole in (True, False)
        case 2:
            unpack_heads(view, mode >> 4)
        case 3:
            copying._parse([bytes(body), [1, 1], None], memoryview(b"")) if mode & 4 else unpack_runs(view)


def _no_page(handle: int, number: int) -> None:
    return None


def replay(data: bytes) -> None:
    """A device whose first segment is any bytes, as a start reads it."""
    mode, raw = (data[0] if data else 0), data[1:]
    if mode & 1:
        raw = fix_segment(raw, v.SEED)
    disk = MemoryDisk()
    disk.create("00000001.seg", SEGMENT_SIZE)
    disk.files["00000001.seg"].now[: len(raw)] = raw[:SEGMENT_SIZE]
    found = catalogue(disk, v.DEVICE, v.SEED, {2: "00000001.seg"} if mode & 2 else {}, 0)
    if not found.headers:
        return
    first = min(found.headers)
    fold = Fold(Index(_no_page, 64))
    at = Cursor(first, found.starts[first], found.headers[first].first_group)
    walk = Replay(found, at, SEGMENT_SIZE, v.SEED, at.group if mode & 4 else 0)
    while steps := walk.batch():
        for step in steps:
            if step.verdict in (Verdict.TORN_TAIL, Verdict.DAMAGED_ALL):
                continue
            for entry in step.entries:
                if entry.whole:
                    fold.parsed(entry, (step.at.segment << 32 | step.data_at) + entry.data_offset)
    for each in fold.replicas.values():
        fold.apply(each, 1 << 62)


SEGMENT_SIZE = 16 << 10


def _check() -> bytes:
    made = Check(1, 1, 1_700_000_000_000)
    made.bad = {(0, 5): (4096, 12)}
    return made.pack()


def _segments() -> list[bytes]:
    """Those of the golden device, without the blocks' data: the interesting bytes are few."""
    with tempfile.TemporaryDirectory() as temporary:
        device = support.unpack("device", Path(temporary))
        raw = [path.read_bytes() for path in sorted((device / "segments").iterdir())]
    found = [each for each in raw if each.startswith(b"MOSG")]
    return [each[:7680] for each in found] + [_frames_without_data(each) for each in found]


def _frames_without_data(raw: bytes) -> bytes:
    """Frames with notes and the like, closer together; their numbers are no longer consecutive."""
    kept, at, group = raw[:512], 512, struct.unpack_from("<Q", raw, 16)[0]
    while raw[at : at + 4] == b"MOGC":
        size, _, data_size = struct.unpack_from("<III", raw, at + 24)
        if not data_size:
            part = bytearray(raw[at : at + size])
            struct.pack_into("<Q", part, 16, group)
            kept, group = kept + part, group + 1
        at += size
    return fix_segment(kept, v.SEED)


def index_checks(data: bytes) -> None:
    """The check of a table, as an index holds it: what is none says nothing. All else in an index is sealed
    with a checksum."""
    found = Check.unpack(1, data)
    if found is not None:
        again = Check.unpack(1, found.pack())
        assert again is not None and again.verified_ms == found.verified_ms >= 0


def identities(data: bytes) -> None:
    """Identity files; an odd mode makes the check of a JSON object right."""
    mode, raw = (data[0] if data else 0), data[1:]
    kind = "device" if mode & 2 else "service"
    if mode & 1:
        try:
            value = json.loads(raw)
            body = {key: value[key] for key in ("body", "format", "kind")}
            check = identity.xxhash.xxh3_64_hexdigest(identity._dump(body))
            raw = identity._dump({**body, "check": check}) + b"\n"
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
    found = identity.decode(kind, raw, Path("x"))
    if kind == "device":
        superblock._parse(found, Path("x"))


def backups(data: bytes) -> None:
    """A backup from its header to its trailer; an odd mode makes the checks right."""
    mode, raw = (data[0] if data else 0), data[1:]
    reader = BackupReader(io.BytesIO(fix_backup(raw) if mode & 1 else raw))
    at = 0
    while frames := reader.batch():
        for each in frames:
            assert at <= each.offset and each.offset + each.length <= reader.header.size
            assert len(each.data) == (each.length if each.kind == 1 else 0)
            at = each.offset + each.length
    assert reader.totals.stream == len(raw) and (reader.header.base or at == reader.header.size)
    check_chain([reader])


# -- texts ----------------------------------------------------------------------------------------------


def texts(data: bytes) -> None:
    mode, raw = (data[0] if data else 0), data[1:]
    text = raw.decode("utf-8", "surrogateescape" if mode & 16 else "replace")
    match mode % 6:
        case 0:
            found = uri.parse(text)
            if not (mode & 16):
                assert uri.parse(str(found)) == found, "what is written is not what was read"
        case 1:
            uri.parse_size(text)
        case 2:
            again = address.parse(text)
            assert address.parse(str(again)) == again
        case 3:
            if not text.startswith("srv:"):
                _drive(discovery.resolve(text))
        case 4:
            _secret(raw)
        case 5:
            lines, _ = mount_table.parse(text)  # a bad line is a problem with a number, never an error
            for line in lines:
                rendering.command(line)
                assert line.address is None or str(line.address) == line.source


def _secret(raw: bytes) -> None:
    descriptor = os.memfd_create("secret")
    try:
        os.fchmod(descriptor, 0o600)
        os.pwrite(descriptor, raw, 0)
        ClusterSecret.load(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _drive(work: Any) -> Any:
    """A coroutine up to where it waits: there it ends."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    return None


TEXTS = [
    b"moorage://h1:7000/db/a/b.jpg?size=10G&replicas=3&mode=ro",
    b"moorage:///photos/a%20b?fs=ext4",
    b"moorage:/db",
    b"db",
    b"1.5 TiB",
    b"4096",
    b"[::1]:7000",
    b"h1:7000",
    b"unix:/run/moorage.sock",
    b"h1:1, h2:2,[::]:3",
    v.SECRET_FILE,
    b"# all\nmoorage:///db?size=1G /data ext4 owner=1:2,replicas=3,ro,hosts=a*:b\ns3://m/x /m s3 region=a",
    b"nas:/a\\040b /n nfs4 vers=4.2,name=x,noauto # c\nhdfs://n:1 /h hdfs\nx /y tmpfs size=1M",
]


# -- NBD ------------------------------------------------------------------------------------------------


def negotiation(data: bytes) -> None:
    mode, raw = (data[0] if data else 0), data[1:]
    step = (1, 7, 100, 1 << 16)[mode % 4]
    device = DEVICE_FOR_NBD
    core = Negotiation({"db": device, "x": device} if mode & 4 else {"db": device})
    for at in range(0, len(raw), step):
        core.feed(raw[at : at + step])
        for _ in range(1000):
            if core.step() is None:
                break
    core.rest()


def _option(option: int, data: bytes) -> bytes:
    return p.OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data


def _negotiations() -> list[bytes]:
    name = struct.pack(">I", 2) + b"db"
    go = name + struct.pack(">HHH", 2, p.INFO_NAME, p.INFO_DESCRIPTION)
    query = name + struct.pack(">II", 1, len(p.CONTEXT_ALLOCATION)) + p.CONTEXT_ALLOCATION.encode()
    flags = p.CLIENT_FLAGS.pack(3)
    return [
        flags + _option(p.OPT_LIST, b"") + _option(p.OPT_STARTTLS, b"") + _option(p.OPT_ABORT, b""),
        flags
        + _option(p.OPT_STRUCTURED_REPLY, b"")
        + _option(p.OPT_SET_META_CONTEXT, query)
        + _option(p.OPT_GO, go),
        flags
        + _option(p.OPT_STRUCTURED_REPLY, b"")
        + _option(p.OPT_LIST_META_CONTEXT, query)
        + _option(p.OPT_INFO, go),
        flags + _option(p.OPT_EXPORT_NAME, b"db") + b"more",
    ]


NBD_SIZE = 1 << 16
DEVICE_FOR_NBD: Any = MemoryDevice(NBD_SIZE)


class _Transport:
    """Takes everything; ``closed`` as a real one would be."""

    def __init__(self) -> None:
        self.closed = False
        self.reading = True

    def set_write_buffer_limits(self, high: int) -> None: ...

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def writelines(self, parts: Any) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    abort = close


_caught: list[dict[str, Any]] = []


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: _caught.append(context))
    return loop


def in_loop(work: Callable[[], Any]) -> None:
    """Run it in a loop; what tasks or callbacks raised comes out here."""
    _caught.clear()
    _loop().run_until_complete(work())
    for context in _caught:
        raise context.get("exception") or RuntimeError(context["message"])


def transmission(data: bytes) -> None:
    in_loop(lambda: _transmission(data))


async def _transmission(data: bytes) -> None:
    mode, raw = (data[0] if data else 0), data[1:]
    step = (28, 7, 300, 1 << 16)[mode % 4]
    limits = Limits(requests_in_flight_max=4, bytes_in_flight_max=1 << 17)
    agreement = Agreement("db", DEVICE_FOR_NBD, bool(mode & 4), bool(mode & 8))
    phase, wire = Transmission(agreement, limits, BufferPool(1 << 17), "test", lambda _: None), _Transport()
    phase.start(wire, raw[: mode >> 5])  # type: ignore[arg-type]
    at = mode >> 5
    while at < len(raw) and not wire.closed and wire.reading:
        into = phase.get_buffer(-1)
        part = raw[at : at + min(step, len(into))]
        into[: len(part)] = part
        phase.buffer_updated(len(part))
        at += len(part)
        await asyncio.sleep(0)
    phase.finish()
    phase.connection_lost(None)
    await asyncio.sleep(0)


def _transmissions() -> list[bytes]:
    rows = [
        (p.CMD_READ, 0, 4096, 4096),
        (p.CMD_WRITE, 0, 100, 200),
        (p.CMD_WRITE_ZEROES, p.CMD_FLAG_FUA, 0, 8192),
        (p.CMD_TRIM, 0, 4096, 4096),
        (p.CMD_CACHE, 0, 0, 512),
        (p.CMD_BLOCK_STATUS, 0, 0, 65536),
        (p.CMD_FLUSH, 0, 0, 0),
        (p.CMD_READ, 0, NBD_SIZE, 1),
        (p.CMD_DISC, 0, 0, 0),
    ]
    stream = b""
    for cookie, (command, flags, offset, length) in enumerate(rows):
        stream += p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, cookie, offset, length)
        stream += bytes(length) if command == p.CMD_WRITE else b""
    return [stream, stream[28:], p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 0, 40_000) + bytes(100)]


# -- the table ------------------------------------------------------------------------------------------


def _small(size: int) -> int:
    return (512 << 10) + 64 * size  # msgpack packs into 256 KiB


def core_targets() -> list[Target]:
    wire, disk = support.wire, support.disk
    raft = [wire(f"raft-{code}") for code in v.RAFT]
    calls = [_call_frame(), *(frame.encode(5, op, 0, wire(name), 0, 0, 0) for op, name in _OPS)]
    moorage = (MoorageError,)
    return [
        Target(
            "frames",
            frames,
            [bytes([mode]) + each for mode in (0, 5, 7) for each in calls],
            moorage,
            OURS,
            lambda size: (1 << 20) + 64 * size,
        ),
        Target(
            "hot",
            hot,
            [bytes([at | 16]) + wire(name) for at, name in enumerate(HOT_SEEDS)],
            moorage,
            OURS,
            _small,
        ),
        Target(
            "handshake",
            handshake,
            [
                bytes([mode]) + wire(f"handshake-{name}")
                for mode, name in enumerate(("hello", "challenge", "proof", "ready"))
            ],
            moorage,
            OURS,
            _small,
        ),
        Target(
            "answers",
            answers,
            [
                *(b"\0" + each for each in raft),
                b"\1" + wire("raft-configuration"),
                b"\2" + wire("capability"),
                b"\3" + wire("seal-answer"),
                b"\4" + _pull_answer(),
                b"\5\0\2" + wire("read-reply"),
                b"\5\2\2" + wire("read-reply"),
            ],
            moorage,
            OURS,
            _small,
        ),
        Target(
            "state", state, [disk("member-state"), disk("member-state-copying")], (Corrupt,), OURS, _small
        ),
        Target(
            "segment",
            segment,
            [
                *_modes(8, disk("segment-header"), disk("frame")[:2048]),
                b"\x52" + disk("records"),
                b"\3" + disk("runs"),
                b"\7" + disk("runs"),
            ],
            (MoorageError, ValueError),
            OURS,
        ),
        Target(
            "replay",
            replay,
            _modes(4, *_segments()),
            moorage,
            OURS,
            lambda size: (1 << 20) + 64 * size,
            SEGMENT_SIZE,
        ),
        Target(
            "index-checks",
            index_checks,
            [_check()],
            (),
            (),
            _small,
        ),
        Target(
            "identities",
            identities,
            _modes(4, disk("identity.json"), disk("superblock")),
            moorage,
            OURS,
            _small,
        ),
        Target(
            "backups",
            backups,
            _modes(2, support.backup("full"), support.backup("incremental")),
            moorage,
            OURS,
            lambda size: (1 << 20) + 64 * size,
        ),
        Target("texts", texts, _modes(6, *TEXTS), moorage, OURS, _small),
        Target("nbd-negotiation", negotiation, _modes(8, *_negotiations()), (), (), _small),
        Target(
            "nbd-transmission",
            transmission,
            _modes(16, *_transmissions()),
            (),
            (),
            lambda size: (1 << 20) + 64 * size,
        ),
    ]


_OPS = [
    (frame.APPEND, "append"),
    (frame.ACK, "ack"),
    (frame.NACK, "nack"),
    (frame.READ, "read"),
    (frame.HEARTBEAT, "heartbeat"),
    (frame.RAFT, "raft-3"),
]


def _call_frame() -> bytes:
    return frame.encode(1, 1, 7, frame.pack(v.CALL), 40, 0, 2500) + bytes(40)


def all_targets() -> list[Target]:
    return [
        *core_targets(),
        *connection_targets(in_loop),
        *service_targets(_loop(), in_loop),
        *gateway_targets(in_loop),
        *s3_targets(),
    ]
