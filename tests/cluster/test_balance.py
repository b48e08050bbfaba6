"""Devices of real hosts are filled alike after some were added, under a load that verifies; an operator may
pause it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import moorage
from moorage.cli.clients import ClientProcess
from moorage.cli.local_cluster import LocalCluster
from moorage.metadata.balance import WITHIN

from .conftest import MakeCluster
from .test_healing import goes_on, hosts_of, load, verified

__all__ = ["load"]  # a fixture

MIB = 1 << 20
SIZE = 12 * MIB
VOLUMES = [f"v{number}" for number in range(8)]
Command = Callable[..., Awaitable[tuple[int, str, str]]]
Awaiting = Callable[..., Awaitable[Any]]


@pytest.fixture
async def local(make_cluster: MakeCluster) -> LocalCluster:
    return await make_cluster(5, MOORAGE_CAPACITY="256M")


def fills(view: dict[str, Any]) -> dict[str, float]:
    return {row["host"]: row["used"] / row["capacity"] for row in view["devices"].values()}


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_devices_that_are_added_are_filled_like_the_others(
    local: LocalCluster,
    cluster: moorage.Cluster,
    load: ClientProcess,
    environment: dict[str, str],
    moorage_command: Command,
    until: Awaiting,
) -> None:
    (busy,) = await hosts_of(cluster, "busy")
    new = sorted({f"h{number}" for number in range(1, 6)} - busy)
    for host in new:
        await cluster.places.drain("host", host)  # as if it were not there yet
    data = bytes(range(256)) * 4096
    for name in VOLUMES:
        await cluster.create_volume(name, size=SIZE)
        async with await cluster.attach(name) as volume:
            for offset in range(0, SIZE, MIB):
                await volume.write(offset, data)
    code, _, err = await moorage_command("balance", "pause", env=environment)
    assert code == 0, err
    for host in new:
        await cluster.places.undrain("host", host)

    async def waits() -> bool:
        return (await cluster.places.moves()).unevenness == ["paused by " + (await who())]

    async def who() -> str:
        return str((await cluster.status())["balance"]["by"])

    await until(waits, "it is known that devices are filled unequally", timeout=30)
    before = fills(await cluster.status())
    assert [before[host] for host in new] == [0, 0]
    (finding,) = await cluster.why(new[0])
    assert finding.what == "replicas do not move to even devices out"
    code, _, err = await moorage_command("balance", "resume", env=environment)
    assert code == 0, err
    code, out, err = await moorage_command(
        "balance", "show", "--follow", "--json", env=environment, timeout=150
    )
    assert code == 0, err
    *_, last = map(json.loads, out.splitlines())
    found = fills(await cluster.status())
    assert max(found.values()) - min(found.values()) <= WITHIN and all(found[host] > WITHIN for host in new)
    assert not last["moves"] and not last["unevenness"] and not last["paused"]
    await goes_on(load)
    await verified(load)
    for name in VOLUMES:
        (hosts,) = await hosts_of(cluster, name)
        assert len(hosts) == 3
        async with await cluster.attach(name, wait=10) as volume:
            for host in hosts:
                assert await volume.read_from(host, SIZE - MIB, MIB) == data
    events, _ = await cluster.events(after=-500)
    assert any(event["kind"] == "move" and "full, that of" in event["text"] for event in events)
