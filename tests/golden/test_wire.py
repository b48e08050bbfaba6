"""Bytes that version 1 sent: read field by field, and sent the same today."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import asdict
from typing import Any

import pytest
import xxhash

from moorage.quorum.orders import SealAnswer
from moorage.quorum.raft_types import _CODES, Config, decode, encode
from moorage.quorum.record import decode_batch, first_bad_block
from moorage.wire import frame, log_messages
from moorage.wire.capability import verify
from moorage.wire.errors import Denied, Fenced, ProtocolError, VersionMismatch
from moorage.wire.handshake import ClientHandshake, Hello, ServerHandshake
from moorage.wire.receiver import FrameReceiver
from moorage.wire.secret import ClusterSecret

from . import make, support
from . import values as v
from . import values3 as v3
from . import values4 as v4

SECRET = ClusterSecret(v.CLUSTER, v.KEY)


def received(raw: bytes) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    receiver = FrameReceiver(
        lambda *fields: found.append((*fields[:5], bytes(fields[5]), bytes(fields[6]))), 1 << 20, 8 << 20
    )
    while raw:
        into = receiver.get_buffer(-1)
        size = min(len(into), len(raw))
        into[:size] = raw[:size]
        receiver.buffer_updated(size)
        raw = raw[size:]
    return found


@pytest.mark.parametrize("name", sorted(make.wire_files()))
def test_what_is_sent_today_is_what_was_sent(name: str) -> None:
    assert make.wire_files()[name] == support.wire(name)


@pytest.mark.parametrize("name", sorted(make.later_wire_files()))
def test_what_is_sent_today_is_what_later_versions_sent(name: str) -> None:
    assert make.later_wire_files()[name] == support.wire(name, support.V3)


def test_no_file_is_left_out() -> None:
    assert sorted(path.name for path in (support.V1 / "wire").iterdir()) == sorted(make.wire_files())
    assert sorted(path.name for path in (support.V3 / "wire").iterdir()) == sorted(make.later_wire_files())


def test_a_frame() -> None:
    kind, op, request_id, payload_size, flags, deadline_ms = v.FRAME_HEADER
    payload = bytes(payload_size)
    ((*head, body, got),) = received(support.wire("frame") + payload)
    assert head == [kind, op, flags, request_id, deadline_ms]
    assert frame.unpack(body) == v.CALL and got == payload


def with_version(raw: bytes, version: int) -> bytes:
    changed = bytearray(raw)
    changed[2] = version
    check = xxhash.xxh3_64_intdigest(bytes(changed[:28] + changed[32:])) & 0xFFFFFFFF
    changed[28:32] = check.to_bytes(4, "little")
    return bytes(changed)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_frame_of_another_version(version: int) -> None:
    assert with_version(support.wire("frame"), 1) == support.wire("frame")
    with pytest.raises(VersionMismatch, match=rf"frames of version {version}, this side reads 1"):
        received(with_version(support.wire("frame"), version) + bytes(8192))


def test_a_handshake_from_both_ends() -> None:
    server = ServerHandshake(Hello(*v.SERVER_HELLO), SECRET, v.SERVER_NONCE)
    assert server.receive(support.wire("handshake-hello")) == support.wire("handshake-challenge")
    assert server.receive(support.wire("handshake-proof")) == support.wire("handshake-ready")
    assert server.peer == Hello(*v.CLIENT_HELLO)
    client = ClientHandshake(Hello(*v.CLIENT_HELLO), SECRET, v.CLIENT_NONCE)
    assert client.start() == support.wire("handshake-hello")
    assert client.receive(support.wire("handshake-challenge")) == support.wire("handshake-proof")
    assert client.receive(support.wire("handshake-ready")) is None
    assert client.peer == Hello(*v.SERVER_HELLO)


def test_the_fields_of_a_handshake_and_its_proofs() -> None:
    hello, challenge = support.wire("handshake-hello"), support.wire("handshake-challenge")
    assert frame.unpack(hello) == [1, 1, v.CLIENT_NONCE, list(v.CLIENT_HELLO)]
    assert frame.unpack(challenge) == [1, v.SERVER_NONCE, list(v.SERVER_HELLO)]
    transcript = b"%d:%b%d:%b" % (len(hello), hello, len(challenge), challenge)
    for name, label in (("proof", b"moorage client proof"), ("ready", b"moorage server proof")):
        mac = hmac.new(v.KEY, label + b"\0" + transcript, hashlib.sha256).digest()
        assert frame.unpack(support.wire(f"handshake-{name}")) == [mac]


@pytest.mark.parametrize(("low", "high"), [(2, 3), (0, 0)])
def test_a_handshake_without_a_common_version(low: int, high: int) -> None:
    """Its first two fields keep their place; what is behind may be anything in another version."""
    server = ServerHandshake(Hello(*v.SERVER_HELLO), SECRET, v.SERVER_NONCE)
    with pytest.raises(VersionMismatch, match=rf"peer speaks {low} to {high}, this side 1 to 1"):
        server.receive(frame.pack([low, high, {"of": "another layout"}]))
    client = ClientHandshake(Hello(*v.CLIENT_HELLO), SECRET, v.CLIENT_NONCE)
    client.start()
    with pytest.raises(VersionMismatch, match=rf"peer speaks {high} to {high}, this side 1 to 1"):
        client.receive(frame.pack([high, v.SERVER_NONCE, list(v.SERVER_HELLO)]))


def test_a_later_peer_that_still_speaks_version_1() -> None:
    server = ServerHandshake(Hello(*v.SERVER_HELLO), SECRET, v.SERVER_NONCE)
    answer = server.receive(frame.pack([1, 7, v.CLIENT_NONCE, list(v.CLIENT_HELLO)]))
    assert frame.unpack(answer)[0] == 1


def test_an_error() -> None:
    error = frame.unpack_error(support.wire("error"))
    assert isinstance(error, Fenced)
    assert (error.code, error.message, error.details) == v.ERROR


def test_an_append_with_its_records() -> None:
    body = support.wire("append")
    assert log_messages.unpack_append(body) == v.HOT["append"]
    records = decode_batch(body[log_messages.APPEND_SIZE :], support.wire("append-payload"))
    assert len(records) == v.HOT["append"][-1] == len(v.RECORDS)
    for record, (epoch, lsn, kind, chunk, block, count, number) in zip(records, v.RECORDS, strict=True):
        assert (record.epoch, record.lsn, record.kind) == (epoch, lsn, kind)
        assert (record.chunk, record.block, record.count) == (chunk, block, count)
        assert bytes(record.data) == (v.block(number, count) if kind == 2 else b"")
        assert first_bad_block(record.sums, record.data) < 0


def test_the_other_hot_messages() -> None:
    m = log_messages
    assert m.unpack_ack(support.wire("ack")) == v.HOT["ack"]
    assert m.unpack_nack(support.wire("nack")) == v.HOT["nack"]
    assert m.unpack_read(support.wire("read")) == v.HOT["read"]
    assert (m.unpack_heartbeat(support.wire("heartbeat")),) == v.HOT["heartbeat"]
    assert m.unpack_heartbeat_reply(support.wire("heartbeat-reply")) == v.HOT["heartbeat_reply"]
    applied, count, sums = m.unpack_read_reply(support.wire("read-reply"))
    assert (applied, count) == v.READ_REPLY
    assert sums == xxhash.xxh3_64_intdigest(v.block(1)).to_bytes(8, "little") + bytes(8)


def test_reads_of_a_snapshot() -> None:
    for name, asked in (("read-snapshot", v4.AT), ("read-lsns", v4.AT | v4.LSNS)):
        ((kind, op, flags, *_, body, _),) = received(support.wire(name, support.V4))
        assert (kind, op, flags) == (frame.REQUEST, frame.READ, v3.PREFIX | asked)
        short, snapshot = log_messages.split_snapshot(memoryview(body), flags)
        assert (log_messages.unpack_read(short), snapshot) == (v4.READ_OF_A_SNAPSHOT, v4.SNAPSHOT)


def test_a_read_of_a_prefix_and_its_reply() -> None:
    m = log_messages
    ((kind, op, flags, *_, body, _),) = received(support.wire("read-prefix", support.V3))
    assert (kind, op, flags) == (frame.REQUEST, frame.READ, v3.PREFIX)
    assert m.unpack_read(body) == v3.READ_OF_A_PREFIX
    raw = support.wire("read-prefix-reply", support.V3) + bytes(8192)
    ((kind, op, flags, *_, body, _),) = received(raw)
    assert (kind, op, flags) == (frame.REPLY, frame.READ, v3.PREFIX)
    short, epoch = m.split_epoch(memoryview(body), flags)
    applied, count, sums = m.unpack_read_reply(short)
    assert (applied, count, epoch) == v3.READ_REPLY_OF_A_PREFIX
    assert bytes(sums) == xxhash.xxh3_64_intdigest(v.block(1)).to_bytes(8, "little") + bytes(8)


def test_the_answer_to_a_seal() -> None:
    answer = SealAnswer.unpack(frame.unpack(support.wire("seal-answer")))
    assert {key: getattr(answer, key) for key in v.SEAL_ANSWER} == v.SEAL_ANSWER
    assert set(SealAnswer.__slots__) == set(v.SEAL_ANSWER)


def test_a_capability() -> None:
    signed = support.wire("capability")
    assert asdict(verify(SECRET, signed, v.CAPABILITY["expires_ms"])) == v.CAPABILITY
    with pytest.raises(Denied, match="expired"):
        verify(SECRET, signed, v.CAPABILITY["expires_ms"] + 1)


def test_a_capability_of_another_version() -> None:
    """Its label is its version: under another one it is not signed at all; with another layout it says so."""
    body = support.wire("capability")[32:]
    with pytest.raises(Denied, match="not signed by this cluster"):
        verify(SECRET, SECRET.mac("moorage capability 2", body) + body, 0)
    longer = frame.pack([*frame.unpack(body), "more"])
    with pytest.raises(ProtocolError, match="signed by another version"):
        verify(SECRET, SECRET.mac("moorage capability 1", longer) + longer, 0)


def test_a_configuration_of_raft() -> None:
    config = Config.decode(support.wire("raft-configuration"))
    assert [tuple(each) for each in config.members] == v.MEMBERS


@pytest.mark.parametrize("code", sorted(_CODES))
def test_a_message_of_raft(code: int) -> None:
    group, name, instance, since, yours, raw = frame.unpack(support.wire(f"raft-{code}"))
    assert (group, name, instance, since, yours) == ("m1", "a", v.RAFT_INSTANCE, 0, None)
    message: Any = decode(raw)
    assert type(message) is _CODES[code] and raw[0] == code and encode(message) == raw
    for field, wanted in zip(message, v.RAFT[code], strict=True):
        if wanted == "entries":
            assert [tuple(each) for each in field] == v.RAFT_ENTRIES
        elif wanted == "snapshot":
            assert (field.index, field.term) == v.SNAPSHOT
            assert [tuple(each) for each in field.config.members] == v.MEMBERS
        else:
            assert field == wanted and type(field) is type(wanted)
