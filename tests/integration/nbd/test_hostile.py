"""Peers that break off, send garbage, flood, or do not read: the connection ends, the server lives."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from typing import Any

import pytest

from moorage.client.device import Done
from moorage.gateway.memory import MemoryDevice
from moorage.gateway.nbd import Limits
from moorage.gateway.nbd import protocol as p

from .conftest import Play
from .support import MIB, Bench, HeldDevice

GARBAGE = [b"\0" * 64, b"GET / HTTP/1.0\r\n\r\n" * 4, random.Random(3).randbytes(5000), b"\xff" * 300000]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_the_handshake_ends_that_connection(play: Play, garbage: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        healthy = await bench.client()
        hostile = await bench.connect()
        await hostile.reader.readexactly(18)
        hostile.writer.write(garbage)
        assert await hostile.ended()
        await hostile.close()
        await still_serves(bench, healthy)

    with_device(play, scenario)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_transmission_ends_that_connection(play: Play, garbage: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        healthy, hostile = await bench.client(), await bench.client()
        hostile.send(p.CMD_WRITE, 0, 3, data=b"abc")
        assert await hostile.simple_reply() == (0, 1, b"")
        hostile.writer.write(garbage)
        assert await hostile.ended()
        await hostile.close()
        await still_serves(bench, healthy)

    with_device(play, scenario)


def test_a_handshake_that_takes_too_long_is_ended(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        slow = await bench.connect()
        assert await slow.ended()
        await slow.close()
        await bench.until(lambda: bench.server.connections == 0, "the slow connection is forgotten")

    with_device(play, scenario, Limits(handshake_timeout_s=0.05))


class FullSocket:
    """A server's transport whose socket is full after each write, until its protocol is told otherwise."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.real = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def write(self, data: bytes) -> None:
        self.real.write(data)
        self.real.get_protocol().pause_writing()  # type: ignore[attr-defined]


def test_a_handshake_whose_last_answer_fills_the_socket(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        client = await bench.connect()
        await client.reader.readexactly(18)
        (shaking,) = bench.server._handshakes
        shaking._transport = FullSocket(shaking._transport)  # type: ignore[assignment]
        go = struct.pack(">I", 3) + b"vol" + b"\0\0"
        client.writer.write(struct.pack(">I", 3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, len(go)) + go)
        client.send(p.CMD_READ, 0, 512)
        while not bench.server._transmissions:
            await bench.until(lambda: shaking.writing_paused, "an answer was written")
            shaking.resume_writing()
        (transmission,) = bench.server._transmissions
        await client.reader.readexactly(20 + 12 + 20 + 14 + 20)
        await asyncio.sleep(0.01)
        assert not transmission._count, "nothing is taken while the client does not read"
        transmission.resume_writing()
        assert await asyncio.wait_for(client.simple_reply(512), 5) == (0, 1, bytes(512))
        await client.close()
        await bench.until(lambda: bench.server.connections == 0, "the client has gone")

    with_device(play, scenario)


def test_connections_are_bounded(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        first, second = await bench.client(), await bench.client()
        third = await bench.connect()
        assert await third.ended()
        await third.close()
        await first.close()
        await bench.until(lambda: bench.server.connections == 1, "the first is forgotten")
        await still_serves(bench, second)

    with_device(play, scenario, Limits(connections_max=2))


@pytest.mark.parametrize("sent", [1, 27, 28, 29, 28 + 40000, 28 + 99999])
def test_a_client_that_dies_inside_a_request(play: Play, sent: int) -> None:
    request = p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 0, 100000) + b"x" * 100000

    async def scenario(bench: Bench) -> None:
        healthy, dying = await bench.client(), await bench.client()
        dying.writer.write(request[:sent])
        await dying.writer.drain()
        await dying.close()
        await bench.until(lambda: bench.server.connections == 1, "the dead connection is forgotten")
        assert device.block_is_hole(0)  # half a write reaches no device
        await still_serves(bench, healthy)

    class Watched(MemoryDevice):
        def block_is_hole(self, block: int) -> bool:
            return not self._written[block]

    device = Watched(MIB)
    play(scenario, {"vol": device})
    device.close()


def test_a_client_that_dies_with_requests_in_flight(play: Play) -> None:
    device = HeldDevice(MIB)

    async def scenario(bench: Bench) -> None:
        dying = await bench.client()
        for cookie in range(10):
            dying.send(p.CMD_WRITE, cookie * 4096, 4096, cookie=cookie, data=bytes(4096))
            dying.send(p.CMD_READ, cookie * 4096, 4096, cookie=100 + cookie)
        await bench.until(lambda: len(device.held) == 20, "all requests reach the device")
        dying.writer.transport.abort()
        await asyncio.sleep(0.01)
        assert bench.server.connections == 1  # the device still owes answers
        device.release()
        await bench.until(lambda: bench.server.connections == 0, "the connection is forgotten")

    play(scenario, {"vol": device})
    device.close()


def test_requests_in_flight_are_bounded(play: Play) -> None:
    device = HeldDevice(MIB)

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        for cookie in range(100):
            client.send(p.CMD_READ, 0, 512, cookie=cookie)
        answered: list[int] = []
        while len(answered) < 100:
            expected = min(8, 100 - len(answered))
            await bench.until(lambda n=expected: len(device.held) >= n, "the next requests")  # type: ignore[misc]
            assert len(device.held) == expected
            device.release()
            answered += [(await client.simple_reply(512))[1] for _ in range(expected)]
        assert answered == list(range(100))
        await client.close()

    play(scenario, {"vol": device}, Limits(requests_in_flight_max=8))
    device.close()


def test_bytes_in_flight_are_bounded(play: Play) -> None:
    device = HeldDevice(8 * MIB)

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        for cookie in range(8):
            client.send(p.CMD_WRITE, cookie * MIB, MIB, cookie=cookie, data=bytes(MIB))
        for first in range(0, 8, 2):
            await bench.until(lambda: len(device.held) == 2, "two writes reach the bound")
            device.release()
            assert [(await client.simple_reply())[1] for _ in range(2)] == [first, first + 1]
        await client.close()

    play(scenario, {"vol": device}, Limits(bytes_in_flight_max=2 * MIB))
    device.close()


def test_a_client_that_does_not_read_is_not_read_from(play: Play) -> None:
    """It asks for 4 GiB in all; what the server holds for it stays within its bounds."""
    peak = 0

    class Counting(MemoryDevice):
        def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
            nonlocal peak
            peak += len(into)
            super().read_nowait(offset, into, done)

    device = Counting(8 * MIB)
    device.write_nowait(0, memoryview(b"x" * 8 * MIB), lambda error: None)

    async def scenario(bench: Bench) -> None:
        greedy, healthy = await bench.client(), await bench.client()
        greedy.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for cookie in range(1000):
            greedy.send(p.CMD_READ, 0, 4 * MIB, cookie=cookie)
        await still_serves(bench, healthy)
        assert peak <= 64 * MIB
        await greedy.close()

    play(scenario, {"vol": device}, Limits(bytes_in_flight_max=16 * MIB))
    device.close()


@pytest.mark.parametrize("chunk", [1, 7, 31, 4096])
def test_requests_in_pieces(play: Play, chunk: int) -> None:
    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        stream = b""
        for cookie in range(20):
            data = bytes([cookie]) * 50
            stream += p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, cookie, cookie * 50, 50) + data
        stream += p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 99, 0, 1000)
        for start in range(0, len(stream), chunk):
            client.writer.write(stream[start : start + chunk])
            await asyncio.sleep(0)
        assert [(await client.simple_reply())[:2] for _ in range(20)] == [(0, n) for n in range(20)]
        _, cookie, data = await client.simple_reply(1000)
        assert cookie == 99 and data == b"".join(bytes([n]) * 50 for n in range(20))
        await client.close()

    with_device(play, scenario)


def test_refused_writes_do_not_lose_step(play: Play) -> None:
    """Payloads of refused writes, small, large and over the limit, are thrown away whole."""

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        cases = [
            (0, MIB - 1, 10, errno.ENOSPC),
            (0, 0, 33 * MIB, errno.EINVAL),
            (p.CMD_FLAG_NO_HOLE, 0, 100000, errno.EINVAL),
            (0, 1 << 63, 40000, errno.ENOSPC),
            (0, 5, 0, 0),
        ]
        for cookie, (flags, offset, length, number) in enumerate(cases):
            client.send(p.CMD_WRITE, offset, length, cookie=cookie, flags=flags, data=b"%" * length)
            assert (await client.simple_reply())[:2] == (number, cookie)
        client.send(p.CMD_READ, 0, 512, cookie=77)
        assert await client.simple_reply(512) == (0, 77, bytes(512))
        client.send(p.CMD_READ, 0, 33 * MIB, cookie=78)
        assert (await client.simple_reply())[0] == errno.EINVAL
        await client.close()

    with_device(play, scenario)


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "number"),
    [
        (8, 0, 0, 1, errno.EINVAL),
        (0xFFFF, 0, 0, 0, errno.EINVAL),
        (p.CMD_FLUSH, 0, 1, 0, errno.EINVAL),
        (p.CMD_FLUSH, p.CMD_FLAG_FUA, 0, 0, 0),
        (p.CMD_FLUSH, p.CMD_FLAG_DF, 0, 0, errno.EINVAL),
        (p.CMD_READ, p.CMD_FLAG_DF, 0, 1, errno.EINVAL),  # structured replies were not negotiated
        (p.CMD_READ, p.CMD_FLAG_FUA, 0, 0, 0),
        (p.CMD_BLOCK_STATUS, 0, 0, 1, errno.EINVAL),  # no context was selected
        (p.CMD_TRIM, p.CMD_FLAG_FUA, 0, 0, 0),
        (p.CMD_WRITE_ZEROES, p.CMD_FLAG_NO_HOLE | p.CMD_FLAG_FAST_ZERO, MIB, 0, 0),
        (p.CMD_CACHE, 0, MIB, 1, errno.EINVAL),
        (p.CMD_WRITE_ZEROES, 0, 1, 0xFFFFFFFF, errno.ENOSPC),
    ],
)
def test_odd_requests_are_answered(
    play_uvloop: Play, command: int, flags: int, offset: int, length: int, number: int
) -> None:
    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        client.send(command, offset, length, cookie=(1 << 64) - 1, flags=flags)
        assert (await client.simple_reply())[:2] == (number, (1 << 64) - 1)
        await client.close()

    with_device(play_uvloop, scenario)


def test_structured_replies(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        client = await bench.client(structured=True)
        client.send(p.CMD_WRITE, 4096, 5, data=b"hello")
        assert (await client.simple_reply())[0] == 0
        client.send(p.CMD_READ, 4096, 5, cookie=2, flags=p.CMD_FLAG_DF)
        assert await client.chunk() == (1, p.CHUNK_OFFSET_DATA, 2, struct.pack(">Q", 4096) + b"hello")
        client.send(p.CMD_READ, 8192, 65536, cookie=3)
        assert await client.chunk() == (1, p.CHUNK_OFFSET_HOLE, 3, struct.pack(">QI", 8192, 65536))
        client.send(p.CMD_READ, 4097, 4096, cookie=4)  # ends in zeroes, but is no hole
        flags, kind, _, payload = await client.chunk()
        assert (flags, kind, payload[8:12], len(payload)) == (1, p.CHUNK_OFFSET_DATA, b"ello", 8 + 4096)
        client.send(p.CMD_READ, 0, 0, cookie=5)
        assert await client.chunk() == (1, p.CHUNK_NONE, 5, b"")
        client.send(p.CMD_READ, MIB, 1, cookie=6)
        _, kind, _, payload = await client.chunk()
        number, size = struct.unpack_from(">IH", payload)
        assert (kind, number, size) == (p.CHUNK_ERROR, errno.EINVAL, len(payload) - 6)
        assert b"beyond the end" in payload
        await client.close()

    with_device(play, scenario)


def test_data_stays_as_it_was_until_the_device_is_done(play: Play) -> None:
    """A device may look at its data as late as right before ``done``; more requests have come by then."""
    seen: list[tuple[int, memoryview]] = []

    class Late(HeldDevice):
        def write_nowait(self, offset: int, data: memoryview, done: Done, fua: bool = False) -> None:
            seen.append((offset, data))
            self.complete(done, None)

    device = Late(8 * MIB)
    sizes = [512, 4096, 32768, 32769, 100000, 5]

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        for cookie in range(120):
            length = sizes[cookie % len(sizes)]
            client.send(p.CMD_WRITE, cookie, length, cookie=cookie, data=bytes([cookie]) * length)
        await bench.until(lambda: len(device.held) == 120, "all writes reach the device")
        assert all(data == bytes([offset]) * len(data) for offset, data in seen)
        assert all(data.readonly for _, data in seen)  # so the device need not copy it
        assert [len(data) for _, data in seen] == [sizes[n % len(sizes)] for n in range(120)]
        device.release()
        assert [(await client.simple_reply())[1] for _ in range(120)] == list(range(120))
        await client.close()

    play(scenario, {"vol": device})
    seen.clear()
    device.close()


def test_flags_reach_the_device(play_uvloop: Play) -> None:
    calls: list[tuple[str, int, bool, bool]] = []

    class Recording(MemoryDevice):
        def write_nowait(self, offset: int, data: memoryview, done: Done, fua: bool = False) -> None:
            calls.append(("write", len(data), False, fua))
            done(None)

        def zero_nowait(self, offset: int, length: int, done: Done, discard: bool, fua: bool = False) -> None:
            calls.append(("zero", length, discard, fua))
            done(None)

        def flush_nowait(self, done: Done) -> None:
            calls.append(("flush", 0, False, False))
            done(None)

    device = Recording(MIB)
    fua, no_hole, fast = p.CMD_FLAG_FUA, p.CMD_FLAG_NO_HOLE, p.CMD_FLAG_FAST_ZERO

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        for flags in (0, fua):
            client.send(p.CMD_WRITE, 0, 7, flags=flags, data=b"1234567")
            client.send(p.CMD_WRITE, 0, 70000, flags=flags, data=bytes(70000))
            client.send(p.CMD_TRIM, 0, 1, flags=flags)
            client.send(p.CMD_WRITE_ZEROES, 0, 2, flags=flags | fast)
            client.send(p.CMD_WRITE_ZEROES, 0, 3, flags=flags | no_hole)
        client.send(p.CMD_FLUSH, 0, 0)
        for _ in range(11):
            assert (await client.simple_reply())[0] == 0
        await client.close()

    play_uvloop(scenario, {"vol": device})
    device.close()
    shapes = [("write", 7, False), ("write", 70000, False), ("zero", 1, True), ("zero", 2, True)]
    shapes.append(("zero", 3, False))
    assert calls == [(*shape, fua) for fua in (False, True) for shape in shapes] + [
        ("flush", 0, False, False)
    ]


def test_the_largest_request_and_one_byte_more(play_uvloop: Play) -> None:
    device = MemoryDevice(33 * MIB)
    largest = p.PAYLOAD_SIZE_MAX

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        client.send(p.CMD_WRITE, 1, largest, data=b"L" * largest)
        assert await client.simple_reply() == (0, 1, b"")
        client.send(p.CMD_READ, 1, largest)
        assert await client.simple_reply(largest) == (0, 1, b"L" * largest)
        client.send(p.CMD_WRITE, 0, largest + 1, data=bytes(largest + 1))
        client.send(p.CMD_READ, 0, largest + 1, cookie=2)
        assert [await client.simple_reply() for _ in range(2)] == [(errno.EINVAL, n, b"") for n in (1, 2)]
        await client.close()

    play_uvloop(scenario, {"vol": device})
    device.close()


def test_disconnect_answers_what_is_in_flight(play: Play) -> None:
    device = HeldDevice(MIB)

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        client.send(p.CMD_WRITE, 0, 3, cookie=1, data=b"abc")
        client.send(p.CMD_DISC, 0, 0)
        client.send(p.CMD_WRITE, 0, 3, cookie=2, data=b"xyz")  # must not be sent; is not looked at
        await bench.until(lambda: len(device.held) == 1, "the write reaches the device")
        device.release()
        assert await client.simple_reply() == (0, 1, b"")
        assert await client.ended()
        assert not device.held
        await client.close()

    play(scenario, {"vol": device})
    device.close()


def test_half_closed_client_gets_its_answers(play: Play) -> None:
    device = HeldDevice(MIB)

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        client.send(p.CMD_READ, 0, 100, cookie=1)
        client.writer.write_eof()
        await bench.until(lambda: len(device.held) == 1, "the read reaches the device")
        device.release()
        assert await client.simple_reply(100) == (0, 1, bytes(100))
        assert await client.ended()
        await client.close()

    play(scenario, {"vol": device})
    device.close()


def test_stop_finishes_requests_in_flight(play: Play) -> None:
    device = HeldDevice(MIB)

    async def scenario(bench: Bench) -> None:
        client, waiting = await bench.client(), await bench.connect()
        client.send(p.CMD_READ, 0, 100, cookie=1)
        await bench.until(lambda: len(device.held) == 1, "the read reaches the device")
        stopping = asyncio.create_task(bench.server.stop())
        assert await waiting.ended()  # still in its handshake: nothing to finish
        assert not stopping.done()
        device.release()
        assert await client.simple_reply(100) == (0, 1, bytes(100))
        assert await client.ended()
        await stopping
        await client.close()
        await waiting.close()

    play(scenario, {"vol": device})
    device.close()


def test_stop_does_not_wait_for_ever(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    device = HeldDevice(MIB)

    async def scenario(bench: Bench) -> None:
        client = await bench.client()
        client.send(p.CMD_READ, 0, 100, cookie=1)
        await bench.until(lambda: len(device.held) == 1, "the read reaches the device")
        await bench.server.stop(timeout=0.05)
        assert await client.ended()
        device.release()
        await bench.until(lambda: bench.server.connections == 0, "the connection is forgotten")
        await client.close()

    play(scenario, {"vol": device})
    device.close()


def test_first_request_right_behind_the_handshake(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        client = await bench.connect()
        go = struct.pack(">I", 3) + b"vol\0\0"
        client.writer.write(struct.pack(">I", 3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, len(go)) + go)
        client.send(p.CMD_WRITE, 0, 100000, cookie=1, data=b"q" * 100000)
        client.send(p.CMD_READ, 99999, 2, cookie=2)
        await client.reader.readexactly(18 + 20 + 12 + 20 + 14 + 20)
        assert await client.simple_reply() == (0, 1, b"")
        assert await client.simple_reply(2) == (0, 2, b"q\0")
        await client.close()

    with_device(play, scenario)


def with_device(play: Play, scenario: object, limits: Limits | None = None) -> None:
    device = MemoryDevice(MIB)
    play(scenario, {"vol": device}, limits)
    device.close()


async def still_serves(bench: Bench, healthy: object) -> None:
    """A connection from before, and a new one, both work."""
    for client in (healthy, await bench.client()):
        client.send(p.CMD_READ, 4096, 16, cookie=5)  # type: ignore[attr-defined]
        assert (await client.simple_reply(16))[:2] == (0, 5)  # type: ignore[attr-defined]
        await client.close()  # type: ignore[attr-defined]
