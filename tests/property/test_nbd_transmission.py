"""The transmission phase against a model: any requests, cut anywhere, answered in any order, at tight
bounds.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.client.device import Done
from moorage.gateway.memory import MemoryDevice
from moorage.gateway.nbd import Limits
from moorage.gateway.nbd import protocol as p
from moorage.gateway.nbd.buffers import BufferPool
from moorage.gateway.nbd.negotiation import Agreement
from moorage.gateway.nbd.transmission import INLINE_SIZE_MAX, Transmission

SIZE = 1 << 18
REQUESTS_MAX = 4
INITIAL = random.Random(5).randbytes(SIZE)

lengths = st.sampled_from([0, 1, 511, 4096, INLINE_SIZE_MAX, INLINE_SIZE_MAX + 1, 70_000, 70_000])
offsets = st.sampled_from([0, 1, 2, 4095, 4096, 100_000, 100_001, SIZE - 4096, SIZE, 1 << 63])
commands = st.sampled_from(
    [p.CMD_READ, p.CMD_READ, p.CMD_WRITE, p.CMD_WRITE, p.CMD_TRIM, p.CMD_WRITE_ZEROES, p.CMD_CACHE, 99]
)
flags = st.sampled_from([0, 0, 0, p.CMD_FLAG_FUA, p.CMD_FLAG_NO_HOLE])
anything = st.tuples(commands, flags, offsets, lengths)
large_reads = st.tuples(st.just(p.CMD_READ), st.just(0), st.integers(0, 9), st.just(70_000))
requests = st.lists(anything | large_reads, min_size=1, max_size=40)


class Shuffling(MemoryDevice):
    """Does each operation at once, and answers a random one of those owed when told to."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(SIZE)
        self._data[:] = INITIAL
        self.owed: list[Callable[[], None]] = []
        self._rng = rng

    def complete(self, done: Done, error: BaseException | None) -> None:
        if self._rng.random() < 0.3:
            done(error)
        else:
            self.owed.append(lambda: done(error))

    def answer_one(self) -> None:
        if self.owed:
            self.owed.pop(self._rng.randrange(len(self.owed)))()


class Wire:
    """A transport that keeps what was sent, and sends some of it later."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.queued: list[bytes | bytearray] = []
        self.reading = True
        self.closed = False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def writelines(self, parts: list[bytes | bytearray]) -> None:
        self.queued += parts  # by reference, as a real transport does: reuse of a buffer too early shows

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.queued))

    def send_some(self, count: int) -> None:
        for _ in range(min(count, len(self.queued))):
            self.sent += self.queued.pop(0)

    def close(self) -> None:
        self.closed = True

    abort = close


Expected = dict[int, tuple[int, bytes]]


def model(script: list[tuple[int, int, int, int]], rng: random.Random) -> tuple[bytes, Expected, bytearray]:
    """The stream of requests, the replies expected, and the content of the device afterwards."""
    content, stream, expected = bytearray(INITIAL), b"", dict[int, tuple[int, bytes]]()
    for cookie, (command, given_flags, offset, length) in enumerate(script):
        payload = rng.randbytes(length) if command == p.CMD_WRITE else b""
        stream += p.REQUEST.pack(p.REQUEST_MAGIC, given_flags, command, cookie, offset, length) + payload
        number = expected_error(command, given_flags, offset, length)
        data = b""
        if not number and length:
            if command == p.CMD_READ:
                data = bytes(content[offset : offset + length])
            elif command == p.CMD_WRITE:
                content[offset : offset + length] = payload
            elif command in (p.CMD_TRIM, p.CMD_WRITE_ZEROES):
                content[offset : offset + length] = bytes(length)
        expected[cookie] = (number, data)
    return stream, expected, content


def expected_error(command: int, given_flags: int, offset: int, length: int) -> int:
    if not length and command == p.CMD_WRITE:
        return 0
    allowed = p.COMMAND_FLAGS.get(command)
    if allowed is None or given_flags & ~allowed:
        return errno.EINVAL
    if offset + length > SIZE:
        return errno.ENOSPC if command in (p.CMD_WRITE, p.CMD_WRITE_ZEROES) else errno.EINVAL
    return 0


def replies(sent: bytes, structured: bool, expected: Expected) -> Expected:
    found: Expected = {}
    at = 0
    while at < len(sent):
        if int.from_bytes(sent[at : at + 4]) == p.SIMPLE_REPLY_MAGIC:
            _, number, cookie = p.SIMPLE_REPLY.unpack_from(sent, at)
            at += 16
            length = 0 if number or structured else len(expected[cookie][1])
            answer = (number, sent[at : at + length])
        else:
            magic, done, kind, cookie, length = p.CHUNK.unpack_from(sent, at)
            assert (magic, done) == (p.STRUCTURED_REPLY_MAGIC, p.REPLY_FLAG_DONE)
            at += 20
            body = sent[at : at + length]
            answer = {
                p.CHUNK_NONE: lambda body: (0, b""),
                p.CHUNK_OFFSET_DATA: lambda body: (0, body[8:]),
                p.CHUNK_OFFSET_HOLE: lambda body: (0, bytes(int.from_bytes(body[8:]))),
                p.CHUNK_ERROR: lambda body: (int.from_bytes(body[:4]), b""),
            }[kind](body)
        at += length
        assert cookie not in found, "answered twice"
        found[cookie] = answer
    return found


@settings(max_examples=150)
@given(requests, st.booleans(), st.integers(0, 1 << 32))
def test_every_request_is_answered_as_the_model_says(
    script: list[tuple[int, int, int, int]], structured: bool, seed: int
) -> None:
    asyncio.run(play(script, structured, random.Random(seed)))


async def play(script: list[tuple[int, int, int, int]], structured: bool, rng: random.Random) -> None:
    stream, expected, content = model(script, rng)
    device, wire, drained = Shuffling(rng), Wire(), list[Transmission]()
    limits = Limits(requests_in_flight_max=REQUESTS_MAX, bytes_in_flight_max=rng.choice([100_000, 1 << 20]))
    pool, sending = BufferPool(1 << 20), rng.choice([0.2, 1.0])
    pausing = rng.choice([0, 0.1])
    agreement = Agreement("v", device, structured, False)
    phase = Transmission(agreement, limits, pool, "test", drained.append)
    transport: Any = wire
    eager = rng.randrange(0, min(len(stream), 1000))
    phase.start(transport, stream[:eager])
    position, writing_paused = eager, False
    for _ in range(100 + 10 * len(script)):
        if wire.reading and position < len(stream):
            position += feed(phase, stream[position : position + rng.choice([1, 27, 5000, 1 << 20])])
        if rng.random() < 0.6:
            device.answer_one()
        wire.send_some(rng.random() < sending)
        assert len(device.owed) <= REQUESTS_MAX
        if rng.random() < pausing:
            writing_paused = not writing_paused
            (phase.pause_writing if writing_paused else phase.resume_writing)()
        await asyncio.sleep(0)
    if writing_paused:
        phase.resume_writing()
    while position < len(stream) or device.owed or wire.queued:
        if wire.reading and position < len(stream):
            position += feed(phase, stream[position:])
        device.answer_one()
        wire.send_some(1)
        for _ in range(3):
            await asyncio.sleep(0)
    assert replies(bytes(wire.sent), structured, expected) == expected
    assert device._data == content
    phase.finish()
    await asyncio.sleep(0)
    assert wire.closed and not drained
    phase.connection_lost(None)
    await asyncio.sleep(0)
    assert drained == [phase]
    device.close()


def feed(phase: Transmission, data: bytes) -> int:
    target = phase.get_buffer(-1)
    taken = min(len(target), len(data))
    assert taken, "a buffer of no bytes would end the connection"
    target[:taken] = data[:taken]
    phase.buffer_updated(taken)
    return taken
