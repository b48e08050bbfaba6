"""A scheduler that launches a task beside the data of its volume: the part that is about Moorage is short.

    python examples/scheduler.py --master 10.0.0.1:5050 --moorage http://10.0.0.5:7080 --token-file token \
        --secret-file /etc/moorage/secret --volume 'moorage:///db?size=10G' 'wc -c data/table'

It asks `GET /v1/locality` where the data are, waits for an offer of the best agent (after PATIENCE_S,
of the next one, then of any), and launches the command there. `moorage dvdi run` mounts the volume at `data`
in the task's sandbox first; that takes no isolator, but root. It ends as the task does.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp

from moorage.framework.master import Master
from moorage.framework.subscription import Lost, Subscription

Json = dict[str, Any]
PATIENCE_S = 30.0  # for an offer of the best agent; as long again for each next one
ENDED = ("TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_ERROR", "TASK_DROPPED", "TASK_GONE")
NEEDS = {"cpus": 0.1, "mem": 128.0}
FRAMEWORK = {
    "user": "root",
    "name": "example",
    "principal": "example",
    "roles": ["example"],
    "capabilities": [{"type": "MULTI_ROLE"}, {"type": "PARTITION_AWARE"}],
}


async def ask(given: argparse.Namespace) -> tuple[list[Json], str]:
    """The agents that have data of the volume, the best first, none if it is to be made yet; and where the
    registry is."""
    headers = {"Authorization": f"Bearer {given.token_file.read_text().strip()}"}
    async with aiohttp.ClientSession(given.moorage, headers=headers, raise_for_status=True) as session:
        about = {"volume": given.volume}
        async with session.get("/v1/locality", params=about, raise_for_status=False) as answer:
            if answer.status != 404:
                answer.raise_for_status()
            agents: list[Json] = (await answer.json()).get("agents", [])
        async with session.get("/v1/framework.status") as answer:
            return agents, ",".join((await answer.json())["registry"])


def fits(offer: Json) -> bool:
    has = {name: 0.0 for name in NEEDS}
    for row in offer["resources"]:
        if row["name"] in has and not row.get("reservations"):
            has[row["name"]] += row["scalar"]["value"]
    return all(has[name] >= needed for name, needed in NEEDS.items())


def task_of(given: argparse.Namespace, offer: Json, host: str, registry: str) -> Json:
    variables = {
        "MOORAGE_REGISTRY": registry,
        "MOORAGE_SECRET_FILE": given.secret_file,
        "MOORAGE_HOST": host,  # reads prefer the copy that is here
        "DVDI_VOLUME_NAME": given.volume,
        "DVDI_VOLUME_CONTAINERPATH": "data",
    }
    return {
        "name": "beside-its-data",
        "task_id": {"value": str(uuid.uuid4())},
        "agent_id": offer["agent_id"],
        "command": {
            "value": f"exec {given.program} dvdi run -- sh -c {shlex.quote(given.command)}",
            "environment": {"variables": [{"name": k, "value": v} for k, v in variables.items() if v]},
        },
        "resources": [
            {
                "name": name,
                "type": "SCALAR",
                "scalar": {"value": value},
                "allocation_info": {"role": "example"},
            }
            for name, value in NEEDS.items()
        ],
    }


async def schedule(given: argparse.Namespace) -> str:
    """The last state of the task."""
    agents, registry = await ask(given)
    hosts = {each["agent_id"]: each["host"] for each in agents}
    ranks = {each["agent_id"]: rank for rank, each in enumerate(agents)}
    launched, began = "", asyncio.get_running_loop().time()
    async with Master(given.master.split(",")) as master:
        subscription = Subscription(master, FRAMEWORK)
        async for event in subscription:
            if isinstance(event, Lost):
                continue  # it comes back by itself
            if event["type"] == "OFFERS":
                waited = asyncio.get_running_loop().time() - began
                for offer in event["offers"]["offers"]:
                    agent_id, ids = offer["agent_id"]["value"], {"offer_ids": [offer["id"]]}
                    good_enough = ranks.get(agent_id, len(ranks)) <= waited // PATIENCE_S
                    if launched or not good_enough or not fits(offer):
                        await subscription.call("DECLINE", {**ids, "filters": {"refuse_seconds": 1.0}})
                        continue
                    task = task_of(given, offer, hosts.get(agent_id, ""), registry)
                    launched = task["task_id"]["value"]
                    print(f"launched on {offer['hostname']}", flush=True)
                    launch = {"type": "LAUNCH", "launch": {"task_infos": [task]}}
                    await subscription.call("ACCEPT", {**ids, "operations": [launch]})
            elif event["type"] == "UPDATE":
                status = event["update"]["status"]
                if "uuid" in status:
                    names = ("agent_id", "task_id", "uuid")
                    await subscription.call("ACKNOWLEDGE", {name: status[name] for name in names})
                print(status["state"], status.get("message", ""), flush=True)
                if status["state"] in ENDED:
                    await subscription.call("TEARDOWN")
                    subscription.close()
                    return str(status["state"])
    raise AssertionError("the events of a subscription do not end")


def main() -> None:
    parser = argparse.ArgumentParser(description="Launch a command on Mesos beside the data of its volume.")
    parser.add_argument("--master", required=True, help="HOST:PORT of Mesos masters, with commas between")
    parser.add_argument("--moorage", required=True, help="URL of `moorage framework run --http`")
    parser.add_argument("--token-file", required=True, type=Path, help="of that API")
    parser.add_argument("--secret-file", required=True, help="of the cluster, on the agents")
    parser.add_argument("--volume", required=True, help="its name, or a URI")
    parser.add_argument("--program", default="moorage", help="`moorage` on the agents")
    parser.add_argument("command", help="for sh; the volume is at `data`")
    sys.exit(asyncio.run(schedule(parser.parse_args())) != "TASK_FINISHED")


if __name__ == "__main__":
    main()
