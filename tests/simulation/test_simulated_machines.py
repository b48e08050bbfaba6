"""The machines of the simulation behave as real ones: streams, cuts, resets, kills, pauses, clocks, disks."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from moorage.simulation.loop import Process
from moorage.simulation.network import Weather
from moorage.simulation.world import World, world

SERVER, CLIENT = "10.0.0.1", "10.0.0.2"


class Peer(asyncio.Protocol):
    """Keeps what it hears."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.heard = b""
        self.lost: list[BaseException | None] = []
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if self.echo:
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Pair:
    """A server and a client that is connected to it."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.loop = made.loop
        self.server = Process(made.loop, "server", SERVER)
        self.client = Process(made.loop, "client", CLIENT)
        self.theirs: list[Peer] = []
        self.mine = Peer()
        self.server.start(self._serve, "serve")
        self.client.start(self._connect, "connect")
        self.until(lambda: self.mine.transport is not None)

    async def _serve(self) -> None:
        def factory() -> Peer:
            self.theirs.append(Peer(echo=True))
            return self.theirs[-1]

        await asyncio.get_running_loop().create_server(factory, SERVER, 80)

    async def _connect(self) -> None:
        await asyncio.sleep(0.01)
        await asyncio.get_running_loop().create_connection(lambda: self.mine, SERVER, 80)

    def until(self, reached: Callable[[], Any], within_s: float = 5.0) -> bool:
        found = self.loop.run(lambda: bool(reached()), self.loop.now + within_s)
        assert not self.loop.failures
        return found

    def run(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def send(self, data: bytes) -> None:
        self.loop.at(0.0, self.mine.transport.write, data, process=self.client)

    def cut(self, source: str, target: str) -> None:
        self.world.network.set_weather(source, target, Weather(cut=True))


@pytest.fixture
def pair() -> Iterator[Pair]:
    with world(1) as made:
        yield Pair(made)


def test_bytes_come_in_order_and_whole(pair: Pair) -> None:
    data = bytes(range(256)) * 2000
    pair.send(data)
    pair.send(b"end")
    assert pair.until(lambda: len(pair.mine.heard) == len(data) + 3)
    assert pair.mine.heard == data + b"end"


def test_a_cut_link_is_silent_one_way_and_what_was_sent_comes_when_it_heals(pair: Pair) -> None:
    pair.cut(SERVER, CLIENT)
    pair.send(b"hello")
    pair.run(3.0)
    assert pair.theirs[0].heard == b"hello" and pair.mine.heard == b""
    assert pair.mine.lost == [] and pair.theirs[0].lost == []
    pair.world.network.heal()
    assert pair.until(lambda: pair.mine.heard == b"hello")


def test_a_killed_process_resets_its_connections_and_does_nothing_more(pair: Pair) -> None:
    pair.send(b"hello")
    pair.server.kill()
    assert pair.until(lambda: pair.mine.lost)
    assert isinstance(pair.mine.lost[0], ConnectionResetError)
    assert pair.theirs[0].heard == b"" and pair.theirs[0].lost == []


def test_a_host_without_power_says_nothing_until_it_is_back(pair: Pair) -> None:
    pair.world.network.power_off(SERVER)
    pair.server.kill()
    pair.send(b"hello")
    pair.run(3.0)
    assert pair.mine.lost == []
    pair.world.network.power_on(SERVER)
    assert pair.until(lambda: pair.mine.lost)


def test_nobody_listens_and_nobody_answers_differ(pair: Pair) -> None:
    seen: list[Any] = []

    async def connect(host: str) -> None:
        try:
            async with asyncio.timeout(2.0):
                await asyncio.get_running_loop().create_connection(Peer, host, 81)
        except (OSError, TimeoutError) as error:
            seen.append(type(error))

    pair.client.start(lambda: connect(SERVER), "refused")
    assert pair.until(lambda: seen == [ConnectionRefusedError], 0.5)
    pair.cut(CLIENT, SERVER)
    pair.client.start(lambda: connect(SERVER), "silent")
    assert pair.until(lambda: seen[1:] == [TimeoutError], 3.0)


def test_a_paused_process_hears_all_when_it_goes_on(pair: Pair) -> None:
    pair.server.pause()
    pair.send(b"one")
    pair.send(b"two")
    pair.run(2.0)
    assert pair.theirs[0].heard == b""
    pair.server.resume()
    assert pair.until(lambda: pair.mine.heard == b"onetwo")


def test_who_does_not_read_stops_who_writes(pair: Pair) -> None:
    stopped: list[str] = []
    pair.mine.pause_writing = lambda: stopped.append("stop")  # type: ignore[method-assign]
    pair.mine.resume_writing = lambda: stopped.append("go")  # type: ignore[method-assign]
    pair.server.pause()
    pair.send(bytes(1 << 20))
    pair.run(1.0)
    assert stopped == ["stop"]
    pair.server.resume()
    assert pair.until(lambda: stopped == ["stop", "go"])


async def _forever(step: Callable[[], Awaitable[None]]) -> None:
    while True:
        await step()


def test_a_process_dies_in_the_place_of_an_effect_and_its_finally_does_not_run(pair: Pair) -> None:
    trail: list[str] = []

    async def main() -> None:
        try:
            for number in range(10):
                trail.append(f"before {number}")
                pair.mine.transport.write(b"x")
                await asyncio.sleep(0)
        finally:
            trail.append("finally")

    pair.client.dies_at = pair.client.effects + 3
    pair.client.on_death = pair.client.kill
    pair.client.start(main, "main")
    pair.run(1.0)
    assert [each for each in trail if each.startswith("before")] == ["before 0", "before 1", "before 2"]
    assert pair.theirs[0].heard == b"xx" and not pair.client.alive


def test_clocks_differ_and_timers_follow_their_own(pair: Pair) -> None:
    fast = Process(pair.loop, "fast", "10.0.0.3", rate=2.0, wall_s=60.0)
    seen: dict[str, tuple[float, float, float]] = {}

    async def measure(name: str) -> None:
        began, wall, real = time.monotonic(), time.time(), pair.loop.now
        await asyncio.sleep(1.0)
        seen[name] = (time.monotonic() - began, wall, pair.loop.now - real)

    pair.client.start(lambda: measure("client"), "measure")
    fast.start(lambda: measure("fast"), "measure")
    assert pair.until(lambda: len(seen) == 2)
    assert seen["client"][0] == pytest.approx(1.0, abs=0.01) == seen["client"][2]
    assert seen["fast"][0] == pytest.approx(1.0, abs=0.01) and seen["fast"][2] == pytest.approx(0.5, abs=0.01)
    assert seen["fast"][1] - seen["client"][1] == pytest.approx(60.0, abs=0.1)


def test_a_power_loss_keeps_what_was_synced(pair: Pair) -> None:
    device = pair.world.device(SERVER)
    disk = device.open()
    file = disk.create("00000001.seg", 8192)
    file.pwritev([b"a" * 4096], 0)
    file.fdatasync()
    file.pwritev([b"b" * 4096], 4096)
    device.lost_power()
    found = bytearray(8192)
    device.open().open("00000001.seg").preadv([found], 0)
    assert found[:4096] == b"a" * 4096
    assert set(found[4096:]) <= {0, ord("b")}


def test_a_failed_sync_forgets_what_it_was_for(pair: Pair) -> None:
    device = pair.world.device(SERVER)
    file = device.open().create("00000001.seg", 4096)
    file.pwritev([b"a" * 4096], 0)
    device.fails_at = 1
    with pytest.raises(OSError, match="error") as failed:
        file.fdatasync()
    assert failed.value.errno == errno.EIO
    file.fdatasync()  # as a kernel does: it says that all is well
    assert not any(device.disk.files["00000001.seg"].synced)


def test_rot_changes_what_was_synced_but_not_the_newest_commit(pair: Pair) -> None:
    device = pair.world.device(SERVER)
    file = device.open().create("00000001.seg", 64 << 10)
    assert not device.rot(pair.loop.rng), "there is nothing yet"
    file.pwritev([b"a" * 4096], 0)
    file.fdatasync()
    assert not device.rot(pair.loop.rng) and not device.damaged
    file.pwritev([b"b" * 4096], 4096)
    file.fdatasync()
    assert device.rot(pair.loop.rng) and device.damaged
    synced = device.disk.files["00000001.seg"].synced
    assert synced[:4096] != b"a" * 4096 and synced[4096:8192] == b"b" * 4096


def test_a_sector_that_cannot_be_read_can_be_written(pair: Pair) -> None:
    device = pair.world.device(SERVER)
    file = device.open().create("00000001.seg", 64 << 10)
    for at in (0, 4096):  # the newest commit is spared
        file.pwritev([b"a" * 512], at)
        file.fdatasync()
    assert device.lose_sector(pair.loop.rng) and not device.damaged
    found = bytearray(4096)
    for _ in range(2):
        with pytest.raises(OSError, match="error") as failed:
            file.preadv([found], 0)
        assert failed.value.errno == errno.EIO
    file.preadv([found], 512)
    file.pwritev([b"b" * 512], 0)
    file.preadv([found], 0)
    assert found[:512] == b"b" * 512


def test_a_write_that_went_astray_is_missed_when_the_next_commit_is_written(pair: Pair) -> None:
    device = pair.world.device(SERVER)
    file = device.open().create("00000001.seg", 64 << 10)
    device.misdirects_at = 1
    file.pwritev([b"a" * 4096], 0)
    file.fdatasync()
    synced = device.disk.files["00000001.seg"].synced
    assert synced[:4096] == b"a" * 4096 and not device.damaged
    file.pwritev([b"b" * 512], 60 << 10)
    assert device.damaged and synced.count(b"a" * 4096) == 1
    device.lost_power()
    assert device.disk.files["00000001.seg"].synced.count(b"a" * 4096) == 1


def test_nothing_is_left_behind(pair: Pair) -> None:
    with world(2):
        assert time.monotonic() < 1.0
    before = time.monotonic_ns
    with world(3):
        assert time.monotonic_ns is not before
    assert time.monotonic_ns is before
