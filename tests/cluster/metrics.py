"""What a host counts, as monitoring reads it."""

from __future__ import annotations

import aiohttp

from moorage.cli.local_cluster import LocalHost


async def metric(host: LocalHost, name: str) -> float:
    async with aiohttp.request("GET", f"http://{host.ready['http']}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    return float(line.split()[-1])
