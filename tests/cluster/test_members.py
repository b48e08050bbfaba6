"""Members of the registry and of metadata are replaced while volumes are used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster, LocalHost, _free_ports

Command = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def fourth(local: LocalCluster, tmp_path: Path) -> AsyncIterator[LocalHost]:
    """A host that is to be added to the groups of three."""
    port, http = _free_ports(2)
    like = local.hosts[0].environment
    host = LocalHost(
        "h4",
        tmp_path / "h4",
        like
        | {
            "MOORAGE_NAME": "h4",
            "MOORAGE_DATA_DIR": str(tmp_path / "h4" / "data"),
            "MOORAGE_PORT": str(port),
            "MOORAGE_HTTP_PORT": str(http),
            "MOORAGE_JOIN": "yes",
        },
    )
    await host.launch()
    yield host
    await host.kill()


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_member_takes_the_place_of_one_that_is_gone(
    local: LocalCluster,
    cluster: moorage.Cluster,
    fourth: LocalHost,
    environment: dict[str, str],
    moorage_command: Command,
) -> None:
    await cluster.create_volume("db", size=1 << 20)
    gone = local.hosts[0]
    await gone.kill()
    new = f"h4=127.0.0.1:{fourth.environment['MOORAGE_PORT']}"

    async def told(*arguments: str) -> Any:
        code, out, err = await moorage_command("member", *arguments, "--json", env=environment)
        assert code == 0, err
        return json.loads(out)

    for group in ("registry", "m1"):
        assert await told("replace", group, "h1", new) == {"group": group, "added": "h4", "removed": "h1"}
        assert await told("replace", group, "h1", new) == {"group": group, "added": "h4", "removed": "h1"}
    await fourth.wait_ready()
    rows = await told("list")
    for group in ("registry", "m1"):
        names = [row["name"] for row in rows if row["group"] == group]
        assert names == ["h2", "h3", "h4"] and all(row["voter"] for row in rows if row["group"] == group)
    assert not any(row["trouble"] for row in rows)
    await local.hosts[1].kill()  # the new one is a majority with the third
    assert (await cluster.resize("db", 2 << 20)).size == 2 << 20
    code, _, err = await moorage_command("member", "remove", "m1", "h4", env=environment)
    assert code != 0 and "1 of 2 voters of m1 answer, which is no majority" in err
    code, _, err = await moorage_command("member", "list", "--registry", local.registry, env=environment)
    assert code == 0
