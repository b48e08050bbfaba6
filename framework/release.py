"""Giving everything back: the one place that destroys volumes, on an operator's explicit word.

By the operator API, which needs no offer. May be repeated: what is gone already is not there any more.
"""

from __future__ import annotations

import asyncio

from moorage.framework.inventory import Json, agent_from, reservations_in
from moorage.framework.master import Master
from moorage.framework.scheduler import find_framework, id_of, look_at_agents
from moorage.framework.spec import Spec
from moorage.wire.errors import Busy, DeadlineExceeded, Invalid

IN_USE_S = 60.0  # for tasks to end: they have their grace period
POLL_S = 0.5


async def release_all(master: Master, spec: Spec) -> dict[str, int]:
    """End the framework, destroy its volumes and unreserve: ``{"volumes", "reservations"}``, how many, and
    ``unreachable``, how many agents keep what they may hold. Raises DeadlineExceeded when a task does not
    end."""
    info = await find_framework(master, spec.name)
    if info is not None:
        await master.query("TEARDOWN", {"framework_id": {"value": id_of(info, spec)}})
    found, unreachable = await look_at_agents(master)
    done = {"volumes": 0, "reservations": 0, "unreachable": unreachable}
    for each in found["get_agents"].get("agents", []):
        agent = agent_from(spec.name, each)
        for binding in reservations_in(spec.name, each.get("total_resources", [])):
            rows = [_bare(row) for row in binding.rows.values()]
            if binding.has_volume:
                disk = _bare(binding.rows["disk"])
                await _until_free(master, "DESTROY_VOLUMES", agent.id, {"volumes": [disk]})
                done["volumes"] += 1
                rows = [row for row in rows if row["name"] != "disk"] + [_without_volume(disk)]
            await _until_free(master, "UNRESERVE_RESOURCES", agent.id, {"resources": rows})
            done["reservations"] += 1
    return done


async def _until_free(master: Master, kind: str, agent_id: str, body: Json) -> None:
    """While a task of it ends, the master says that it is in use."""
    try:
        async with asyncio.timeout(IN_USE_S):
            while True:
                try:
                    await master.query(kind, {"agent_id": {"value": agent_id}, **body})
                    return
                except (Busy, Invalid) as error:
                    if isinstance(error, Invalid) and "in use" not in str(error):
                        raise
                    await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise DeadlineExceeded(
            f"{kind} on agent {agent_id}: in use for {IN_USE_S:g} s though the framework has ended: look at"
            " its tasks, then call this again"
        ) from None


def _bare(row: Json) -> Json:
    return {key: value for key, value in row.items() if key != "allocation_info"}


def _without_volume(disk: Json) -> Json:
    about = {key: value for key, value in disk["disk"].items() if key not in ("persistence", "volume")}
    return {
        **{key: value for key, value in disk.items() if key != "disk"},
        **({"disk": about} if about else {}),
    }
