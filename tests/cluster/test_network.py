"""A network that is cut, one-way, lossy or slow, between real processes in namespaces of their own.

Through each of these runs a load that checks every block that it reads; then all is healed, and all members
must be current again and every block what it has to be.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moorage.bench.verify import BLOCK, Pattern, judge, read_journal
from moorage.cli.clients import ClientProcess

from ..prerequisites import require
from .netns import FaultyCluster, unusable

BLOCKS = 1024
CATCH_UP_S = 40.0
GAP_MS = 5000.0  # a connection that is cut is given up after 2.5 s of silence; tests run beside others
Awaiting = Callable[..., Awaitable[Any]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def possible() -> None:
    require(unusable())


@pytest.fixture
async def net(possible: None, tmp_path: Path) -> AsyncIterator[FaultyCluster]:
    cluster = FaultyCluster(tmp_path / "cluster")
    try:
        await cluster.start()
        await cluster.command("c2", "volume", "create", "data", "--size", "16M")
        yield cluster
    finally:
        await cluster.close()


def verifying(net: FaultyCluster, *more: str) -> ClientProcess:
    size = ("--depth", "16", "--blocks", str(BLOCKS))
    return net.client("c1", "bench", "verify", "data", "--steps", *size, *more)


async def current(load: ClientProcess, until: Awaiting) -> None:
    async def all_current() -> bool:
        members = (await load.ask("members"))["members"]
        return all(member["state"] == "current" for member in members)

    await until(all_current, "all members are current", timeout=CATCH_UP_S)


def healthy(figures: dict[str, Any], gap_ms: float = GAP_MS) -> None:
    assert figures["mismatches"] == []
    assert figures["errors"] == 0, figures
    assert figures["write_gap_ms"] < gap_ms and figures["read_gap_ms"] < gap_ms, figures
    assert figures["writes"] > 20 and figures["reads"] > 20, figures


@dataclass
class Through:
    """Load before, during and after a fault."""

    net: FaultyCluster
    until: Awaiting
    record_property: Callable[[str, object], None]

    async def __call__(
        self, fault: Callable[[], None], seconds: float, gap_ms: float = GAP_MS
    ) -> dict[str, Any]:
        """Returns the figures of the time with it."""
        net = self.net
        async with verifying(net) as load:
            await asyncio.sleep(1)
            healthy(await load.ask("phase fault"))
            fault()
            await asyncio.sleep(seconds)
            during = await load.ask("phase healed")
            self.record_property("figures", {**during, "dropped": net.network.dropped()})
            net.network.heal()
            healthy(during, gap_ms)
            await current(load, self.until)
            await asyncio.sleep(1)
            figures = await load.ask("verify")
            assert figures["verified"] == BLOCKS
            assert figures["mismatches"] == [] and figures["errors"] == 0, figures
        return during


@pytest.fixture
def through(net: FaultyCluster, until: Awaiting, record_property: Callable[[str, object], None]) -> Through:
    return Through(net, until, record_property)


async def test_a_host_is_cut_off(net: FaultyCluster, through: Through) -> None:
    """One host and everybody else do not hear each other: the majority goes on."""
    await through(lambda: net.network.cut(["h3"], net.network.others("h3")), 6)


@pytest.mark.parametrize("deaf", [True, False], ids=["hears nothing", "is not heard"])
async def test_one_way(net: FaultyCluster, through: Through, deaf: bool) -> None:
    network = net.network

    def fault() -> None:
        for other in network.others("h2"):
            network.deafen(*(("h2", other) if deaf else (other, "h2")))

    await through(fault, 6)


async def test_hosts_do_not_hear_each_other_but_the_client_hears_all(
    net: FaultyCluster, through: Through
) -> None:
    """No leader of anything for a while: the holder goes on, since metadata is not on the path of writes."""
    network = net.network

    def fault() -> None:
        for one in ("h1", "h2", "h3"):
            network.deafen(one, *({"h1", "h2", "h3"} - {one}))

    await through(fault, 8)


async def test_the_client_is_cut_off_for_a_while(net: FaultyCluster, until: Awaiting) -> None:
    """Operations wait and go on: nothing fails within the io timeout."""
    async with verifying(net) as load:
        await asyncio.sleep(1)
        net.network.cut(["c1"], net.network.others("c1"))
        await asyncio.sleep(8)
        net.network.heal()
        began = time.monotonic()
        before = await load.ask("phase healed")
        assert before["errors"] == 0 and before["mismatches"] == []
        await current(load, until)
        await asyncio.sleep(2)
        healed = await load.ask("phase later")
        assert healed["writes"] > 0 and healed["errors"] == 0, healed
        assert time.monotonic() - began < CATCH_UP_S
        figures = await load.ask("verify")
        assert figures["verified"] == BLOCKS and figures["mismatches"] == [] and figures["errors"] == 0


async def test_a_third_of_all_packets_is_lost(net: FaultyCluster, through: Through) -> None:
    during = await through(lambda: net.network.lose(0.3), 12, gap_ms=20_000)
    assert during["errors"] == 0


@pytest.mark.parametrize("slow", ["h1", "c1"])
async def test_a_slow_link(net: FaultyCluster, through: Through, slow: str) -> None:
    await through(lambda: net.network.slow(slow, "4mbit"), 6)


async def test_late_and_stalling_links(net: FaultyCluster, through: Through) -> None:
    """One host answers late, and by very different times; connections stall now and then."""
    for name in ("h2", "h3"):
        relay = await net.relayed(name)
        assert relay.stdin is not None
        relay.stdin.write(b"delay 5 40\nstall 1500\n" if name == "h2" else b"delay 20 20\n")
    await through(lambda: None, 6)


# Takes the volume over, as soon as it may, reads all of it into a file, and then writes what only it writes.
TAKE_OVER = """
import asyncio, json, sys, time, moorage
async def main():
    began = time.monotonic()
    async with await moorage.connect(timeout=30) as cluster:
        async with await cluster.attach("data", force=True) as volume:
            print(json.dumps({"seconds": time.monotonic() - began}), flush=True)
            data = await volume.read(0, int(sys.argv[1]))
            open(sys.argv[2], "wb").write(data)
            await volume.write(0, b"new owner" * 100)
            print(json.dumps({"written": True}), flush=True)
            sys.stdin.readline()
            print(json.dumps({"kept": bytes(await volume.read(0, 900)) == b"new owner" * 100}), flush=True)
asyncio.run(main())
"""


async def test_a_holder_in_the_minority_is_fenced(net: FaultyCluster, tmp_path: Path) -> None:
    """Two sides: the holder with one host, another client with two. That one takes over, the other never gets
    another acknowledgement, and hears why when it can."""
    journal, dump = tmp_path / "journal", tmp_path / "dump"
    async with verifying(net, "--journal", str(journal), "--run", "77") as load:
        await asyncio.sleep(1)
        await load.ask("phase cut")
        net.network.cut(["h1", "c1"], ["h2", "h3", "c2"])
        successor = await asyncio.create_subprocess_exec(
            *net.network.prefix("c2"),
            sys.executable,
            "-c",
            TAKE_OVER,
            str(BLOCKS * BLOCK),
            str(dump),
            env={**_environment(), **net.environment("c2")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert successor.stdin is not None and successor.stdout is not None
        try:
            taken = json.loads(await asyncio.wait_for(successor.stdout.readline(), 40))
            assert json.loads(await asyncio.wait_for(successor.stdout.readline(), 20)) == {"written": True}
            acked, _ = read_journal(journal)
            wrong, _ = judge(Pattern(77), dump.read_bytes(), 0, acked)
            assert acked and wrong == []
            await asyncio.sleep(3)
            net.network.heal()
            await asyncio.sleep(4)
            assert read_journal(journal)[0] == acked, "acknowledged after the takeover"
            fenced = await load.ask("phase fenced")
            assert fenced["mismatches"] == [] and "Fenced" in fenced["first_error"], fenced
            successor.stdin.write(b"\n")
            assert json.loads(await asyncio.wait_for(successor.stdout.readline(), 20)) == {"kept": True}
            assert taken["seconds"] < 20, taken
        finally:
            if successor.returncode is None:
                successor.kill()
            await successor.wait()
            successor.stdin.close()
            await successor.stdout.read()


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("MOORAGE_")}
