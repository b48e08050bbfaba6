"""A byte that rots where nobody reads: scrub finds it, the holder mends it, and `volume show` says so."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster, LocalHost
from tests.cluster.test_corruption import flip

MIB = 1 << 20
NEEDLE = b"a block that rots " * 20
Until = Callable[..., Awaitable[Any]]
Command = Callable[..., Awaitable[tuple[int, str, str]]]


def rot(host: LocalHost) -> None:
    """Wherever it is: also where it was before it was mended."""
    for path in sorted(host.data.rglob("*.seg")):
        data, at = path.read_bytes(), -1
        while (at := data.find(NEEDLE, at + 1)) >= 0:
            flip(path, at + 7)


async def _show(command: Command, environment: dict[str, str]) -> dict[str, Any]:
    code, out, err = await command("volume", "show", "rot", "--json", env=environment)
    assert code == 0, err
    shown: dict[str, Any] = json.loads(out)["redundancy"]
    return shown


@pytest.mark.slow
async def test_scrub_finds_what_rots_and_the_holder_mends_it(
    local: LocalCluster,
    cluster: moorage.Cluster,
    environment: dict[str, str],
    moorage_command: Command,
    until: Until,
) -> None:
    info = await cluster.create_volume("rot", size=16 * MIB, replicas=3)
    devices = [member["device"] for member in info.groups[0]["members"]]

    async def redundancy() -> tuple[int, int]:
        found = await cluster.redundancy(await cluster.show("rot"))
        return found.survives, found.loses_nothing

    async def is_full() -> bool:
        return await redundancy() == (1, 2)

    async with await cluster.attach("rot") as volume:
        content = NEEDLE.ljust(MIB, b".")
        await volume.write(0, content)
        await volume.flush()
        await until(is_full, "all copies are good")
        rot(local.hosts[0])
        code, _, err = await moorage_command("scrub", "rot", env=environment)
        assert code == 0, err
        await until(is_full, "what scrub has found was written again")
        assert await volume.read_from(local.hosts[0].name, 0, MIB) == content
    # Nobody is there to mend: it is known, also after a restart, and the copy does not count.
    victim = local.hosts[1]
    (member,) = [each for each in info.groups[0]["members"] if each["host"] == victim.name]
    rot(victim)
    assert await cluster.scrub(member["device"]) == [member["replica"]]

    async def is_found() -> bool:
        return await redundancy() == (0, 1)

    await until(is_found, "the copy does not count any more")
    await victim.stop()
    await victim.launch()
    await victim.wait_ready()
    shown = await _show(moorage_command, environment)
    assert (shown["survives"], shown["loses_nothing"]) == (0, 1)
    assert [copy["state"] for copy in shown["copies"] if copy["state"] != "good"] == ["has 1 bad blocks"]
    async with await cluster.attach("rot"):
        await until(is_full, "the next holder hears of it and mends it")
    assert (await _show(moorage_command, environment))["never_verified"] == 0
    code, out, _ = await moorage_command("volume", "show", "rot", env=environment)
    assert "survives 1 more host loss now without waiting, 2 more host losses without losing data" in out
    assert devices == [member["device"] for member in info.groups[0]["members"]]


@pytest.mark.slow
async def test_what_a_volume_survives_when_a_host_is_down(
    local: LocalCluster, cluster: moorage.Cluster, until: Until
) -> None:
    await cluster.create_volume("rot", size=16 * MIB, replicas=3)
    async with await cluster.attach("rot") as volume:
        await volume.write(0, b"x" * MIB)
        await local.hosts[2].kill()
        await volume.write(0, b"y" * MIB)

        async def is_less() -> bool:
            found = await cluster.redundancy(await cluster.show("rot"))
            return (found.survives, found.loses_nothing) == (0, 1)

        await until(is_less, "a silent copy does not count")
        await local.hosts[2].launch()
        await local.hosts[2].wait_ready()

        async def is_full() -> bool:
            return (await cluster.redundancy(await cluster.show("rot"))).survives == 1

        await until(is_full, "it counts again once it has all")
