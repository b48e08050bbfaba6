"""What is said of a bucket whose host dies: what it survives, what is lacking, why, and that it is whole
again."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster
from moorage.framework.health import what_is_wrong
from tests.cluster.metrics import metric
from tests.cluster.test_scrub import NEEDLE, rot

OBJECTS = 5


async def test_a_bucket_says_what_it_lacks_and_why(
    local: LocalCluster,
    cluster: moorage.Cluster,
    environment: dict[str, str],
    moorage_command: Callable[..., Awaitable[tuple[int, str, str]]],
    until: Callable[..., Awaitable[Any]],
) -> None:
    async def run(*arguments: str) -> str:
        code, out, err = await moorage_command(*arguments, env=environment)
        assert code == 0, err
        return out

    async def shown() -> dict[str, Any]:
        """By host: what ``bucket show`` says of the copy there; by "", of all."""
        found = json.loads(await run("bucket", "show", "photos", "--json"))["redundancy"]
        return {"": found, **{copy["host"]: copy for copy in found["copies"]}}

    bucket = await cluster.buckets.create("photos")
    await bucket.put("before", b"x" * 5000)
    code, _, err = await moorage_command("volume", "show", "photos", env=environment)
    assert code != 0 and "'photos' is a bucket, not a volume: `moorage bucket show photos` shows it" in err

    async def is_whole() -> bool:
        found = await shown()
        return found[""]["survives"] == 1 and all(found[h]["lacks"] == 0 for h in ("h1", "h2", "h3"))

    await until(is_whole, "all have the first object")
    assert await cluster.why("photos") == [] and await what_is_wrong(cluster) == {}
    assert "survives 1 more host loss now without waiting" in await run("bucket", "show", "photos")
    assert "photos is as it should be" in await run("why", "photos")

    code, _, err = await moorage_command("host", "drain", "h2", env=environment)
    assert code != 0 and "bucket 'photos' group 0: needs a host besides" in err

    await local.host("h2").kill()
    for number in range(OBJECTS):
        await bucket.put(f"k{number}", b"y" * 5000)
    found = await shown()
    assert (found[""]["survives"], found[""]["loses_nothing"]) == (0, 1)
    assert found["h2"]["state"] != "good" and found["h2"]["lacks"] == OBJECTS
    assert [found[host]["state"] for host in ("h1", "h3")] == ["good", "good"]

    async def is_down() -> bool:
        return any(row["health"] == "down" for row in (await cluster.status())["devices"].values())

    await until(is_down, "the registry takes h2 for down")
    (finding,) = json.loads(await run("why", "photos", "--json"))["findings"]
    assert finding["what"] == "bucket photos group 0: the copy on h2 does not count"
    assert " is down: " in finding["because"] and finding["for_ms"] > 0
    assert f"; it gets {OBJECTS} extents then" in finding["doing"]
    (finding,) = await cluster.why("h2")
    assert "its 1 replicas are placed anew" in finding.doing

    await local.host("h2").launch()
    await local.host("h2").wait_ready()
    await until(is_whole, "h2 has all that it lacked")

    async def is_well() -> bool:
        return await cluster.why("photos") == [] and await what_is_wrong(cluster) == {}

    await until(is_well, "nothing is wrong any more")


@pytest.mark.slow
async def test_what_rots_is_found_and_fetched_again(
    local: LocalCluster,
    cluster: moorage.Cluster,
    environment: dict[str, str],
    moorage_command: Callable[..., Awaitable[tuple[int, str, str]]],
    until: Callable[..., Awaitable[Any]],
) -> None:
    """Within a minute, not only when members are asked for all they should have, hours later."""
    bucket = await cluster.buckets.create("photos")
    await bucket.put("k", NEEDLE.ljust(1 << 20, b"."))

    async def is_whole() -> bool:
        copies = (await cluster.bucket_copies("photos")).redundancy.copies
        return {copy.state for copy in copies} == {"good"}

    await until(is_whole, "all have it")
    rot(local.hosts[0])
    code, _, err = await moorage_command("scrub", "photos", "--no-wait", env=environment)
    assert code == 0, err

    async def is_found() -> bool:
        return await metric(local.hosts[0], "moorage_node_scrub_bad_blocks_total") > 0

    await until(is_found, "what rots is found", timeout=60)
    await until(is_whole, "what rots is fetched", timeout=60)
    assert await cluster.why("photos") == []
