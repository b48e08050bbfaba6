"""Frame codec and receiver: whatever arrives, in whatever pieces, frames come out whole or an error does."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moorage.wire import frame
from moorage.wire.errors import (
    Busy,
    Invalid,
    MoorageError,
    NotLeader,
    ProtocolError,
    RemoteError,
    VersionMismatch,
)
from moorage.wire.receiver import DIRECT_SIZE, SCRATCH_SIZE, FrameReceiver

Frame = tuple[int, int, int, int, int, bytes, bytes]


class Collector(FrameReceiver):
    """Copies what it is given: the views are valid only during the call."""

    def __init__(
        self, body_max: int = frame.BODY_SIZE_MAX, payload_max: int = frame.PAYLOAD_SIZE_MAX
    ) -> None:
        super().__init__(self._collect, body_max, payload_max)
        self.frames: list[Frame] = []
        self.owned: list[bool] = []

    def _collect(self, *args: Any) -> None:
        *head, body, payload, owned = args
        self.frames.append((*head, bytes(body), bytes(payload)))
        self.owned.append(owned)

    def feed(self, data: bytes, piece: int) -> None:
        """As a socket does: at most ``piece`` bytes per wake-up, never more than there is room for."""
        at = 0
        while at < len(data):
            room = self.get_buffer(-1)
            assert len(room) > 0
            count = min(piece, len(room), len(data) - at)
            room[:count] = data[at : at + count]
            self.buffer_updated(count)
            at += count


def wire(item: Frame) -> bytes:
    kind, op, flags, request_id, deadline_ms, body, payload = item
    return frame.encode(kind, op, request_id, body, len(payload), flags, deadline_ms) + payload


def sized(sizes: list[int]) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=64), st.sampled_from(sizes).map(lambda size: b"\xa5" * size))


frames = st.tuples(
    st.integers(frame.REQUEST, frame.ONEWAY),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    sized([4096, DIRECT_SIZE - 33, DIRECT_SIZE, DIRECT_SIZE + 1, SCRATCH_SIZE, 300_000]),
    sized([4096, DIRECT_SIZE - 32, DIRECT_SIZE - 31, DIRECT_SIZE, SCRATCH_SIZE - 32, SCRATCH_SIZE, 600_000]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.data_too_large])
@given(st.lists(frames, max_size=5), st.sampled_from([1 << 22, SCRATCH_SIZE, 65536, 5000, 31, 33]))
def test_frames_survive_any_cut(items: list[Frame], piece: int) -> None:
    collector = Collector()
    collector.feed(b"".join(map(wire, items)), piece)
    assert collector.frames == items
    assert not collector.in_frame


@pytest.mark.parametrize("body_size", [0, 1, 100, DIRECT_SIZE + 5])
@pytest.mark.parametrize("payload_size", [0, 1, 4096, DIRECT_SIZE + 5])
def test_byte_by_byte_equals_whole(body_size: int, payload_size: int) -> None:
    items = [(frame.REQUEST, 7, 1, count, 2, b"b" * body_size, b"p" * payload_size) for count in range(2)]
    data = b"".join(map(wire, items))
    whole, bytewise = Collector(), Collector()
    whole.feed(data, len(data))
    bytewise.feed(data, 1)
    assert whole.frames == bytewise.frames == items


def test_two_receivers_share_the_scratch_buffer_without_mixing() -> None:
    one, two = Collector(), Collector()
    items = [(frame.REQUEST, 7, 0, count, 0, bytes([count]) * 50, bytes([count]) * 500) for count in range(9)]
    data = b"".join(map(wire, items))
    for at in range(0, len(data), 37):
        one.feed(data[at : at + 37], 37)
        two.feed(data[at : at + 37], 20)
    assert one.frames == two.frames == items


@settings(max_examples=200)
@given(st.binary(max_size=2000), st.integers(1, 2000))
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3, 7)
@example(b"\0" * 32, 32)
def test_garbage_raises_protocol_error_or_nothing(data: bytes, piece: int) -> None:
    collector = Collector()
    with contextlib.suppress(ProtocolError):
        collector.feed(data, piece)
    assert collector.frames == []


@settings(max_examples=300)
@given(st.data(), st.binary(max_size=40), st.binary(max_size=40))
def test_a_flipped_bit_is_noticed(data: st.DataObject, body: bytes, payload: bytes) -> None:
    raw = bytearray(wire((frame.REQUEST, 7, 1, 2, 3, body, payload)))
    bit = data.draw(st.integers(0, (32 + len(body)) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    collector = Collector()
    with contextlib.suppress(ProtocolError):
        collector.feed(bytes(raw), len(raw))
    assert collector.frames == []  # refused, or still waiting for bytes that were announced


def test_a_flipped_bit_in_the_body_of_a_large_frame_is_noticed() -> None:
    for body_size, payload_size in [(DIRECT_SIZE + 1, 10), (100, DIRECT_SIZE + 1), (DIRECT_SIZE * 9, 0)]:
        raw = bytearray(wire((frame.REQUEST, 7, 1, 2, 3, bytes(body_size), bytes(payload_size))))
        raw[32 + body_size // 2] ^= 1
        with pytest.raises(ProtocolError, match="check is wrong"):
            Collector().feed(bytes(raw), 4096)


@pytest.mark.parametrize(
    ("body_size", "payload_size"),
    [(frame.BODY_SIZE_MAX + 1, 0), (0, frame.PAYLOAD_SIZE_MAX + 1), (0xFFFFFFFF,) * 2],
)
def test_a_hostile_length_ends_it_before_memory_is_taken(body_size: int, payload_size: int) -> None:
    head = struct.pack("<HBBHHIIQII", frame.MAGIC, 1, 1, 1, 0, body_size, payload_size, 1, 0, 0)
    collector = Collector()
    with pytest.raises(ProtocolError, match="announces"):
        collector.feed(head, 32)
    assert len(collector._direct) == 0


def test_limits_are_exact() -> None:
    item = (frame.REQUEST, 7, 0, 1, 0, bytes(frame.BODY_SIZE_MAX), bytes(frame.PAYLOAD_SIZE_MAX))
    collector = Collector()
    collector.feed(wire(item), 1 << 20)
    assert collector.frames == [item]
    assert collector.owned == [True]
    with pytest.raises(Invalid):
        frame.encode(1, 1, 1, bytes(frame.BODY_SIZE_MAX + 1), 0, 0, 0)
    with pytest.raises(Invalid):
        frame.encode(1, 1, 1, b"", frame.PAYLOAD_SIZE_MAX + 1, 0, 0)


def test_a_small_limit_holds_before_the_peer_is_known() -> None:
    collector = Collector(body_max=100, payload_max=0)
    collector.feed(wire((frame.REQUEST, 2, 0, 1, 0, bytes(100), b"")), 1000)
    assert len(collector.frames) == 1
    for item in [(1, 2, 0, 1, 0, bytes(101), b""), (1, 2, 0, 1, 0, b"", b"x")]:
        with pytest.raises(ProtocolError, match="allowed here"):
            Collector(body_max=100, payload_max=0).feed(wire(item), 1000)


def test_another_version_is_named() -> None:
    with pytest.raises(VersionMismatch, match="version 9"):
        Collector().feed(struct.pack("<HBB28x", frame.MAGIC, 9, 1), 32)


def test_after_stop_nothing_is_delivered() -> None:
    class Stopper(Collector):
        def _collect(self, *args: Any) -> None:
            super()._collect(*args)
            self._stopped = True

    stopper = Stopper()
    stopper.feed(wire((1, 7, 0, 1, 0, b"", b"")) * 3, 1000)
    assert len(stopper.frames) == 1


def test_the_header_is_what_the_documentation_says() -> None:
    raw = frame.encode(frame.REPLY, 19, 0x1122334455667788, b"body", 5, 3, 9)
    head = struct.unpack("<HBBHHIIQI", raw[:28])
    assert head == (0x4F4D, 1, 2, 19, 3, 4, 5, 0x1122334455667788, 9)
    assert struct.unpack("<I", raw[28:32])[0] == frame.check_of(raw[:28] + raw[32:]) & 0xFFFFFFFF
    assert raw[:2] == b"MO"


# -- bodies --------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_unpack_raises_only_protocol_error(data: bytes) -> None:
    for read in (frame.unpack, frame.unpack_error):
        with contextlib.suppress(ProtocolError):
            read(data)


def test_unpack_survives_deep_nesting_and_huge_announcements() -> None:
    for data in (
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\x7f\xff\xff\xff",
    ):
        with pytest.raises(ProtocolError):
            frame.unpack(data)


@pytest.mark.parametrize(
    "error",
    [
        Busy("held by host2", holder={"host": "host2", "pid": 7}),
        NotLeader("ask m2", leader={"name": "m2", "address": "127.0.0.1:7"}),
        NotLeader("no leader", leader=None),
        MoorageError("x"),
    ],
)
def test_errors_cross_the_wire(error: MoorageError) -> None:
    back = frame.unpack_error(frame.pack_error(error))
    assert (type(back), back.message, back.details) == (type(error), error.message, error.details)


def test_strange_errors_cross_the_wire() -> None:
    back = frame.unpack_error(frame.pack_error(Busy("x", what=object(), big=1 << 80)))
    assert isinstance(back, Busy)
    assert isinstance(frame.unpack_error(frame.pack([9999, "later", {}])), RemoteError)
    assert frame.unpack_error(frame.pack([11, "x", {"self": 1, "message": 2, "a": 3}])).details == {"a": 3}
