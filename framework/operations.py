"""From decisions to what the v1 API takes: resources to reserve, volumes to create, tasks to launch. Pure.

Rows of resources are repeated field for field as they were offered: anything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from moorage.framework.inventory import (
    Agent,
    Binding,
    Instance,
    Json,
    Place,
    labels_of,
    ranges_of,
    source_of,
    value_of,
)
from moorage.framework.plan import PORTS, Wanted
from moorage.framework.rollout import release_of
from moorage.framework.spec import MIB, Spec
from moorage.service.options import options_of

RELEASE = "release"  # the label of a task
DATA = "data"  # where a task finds its volume, in its sandbox
GRACE_S = 10  # to stop in order: leadership is handed over


def carve(spec: Spec, wanted: Wanted, free: Sequence[Json]) -> list[Json] | str:
    """The rows of ``free`` cut to what is wanted, each with the reservation; or what they lack."""
    ports = (wanted.port, wanted.port + PORTS - 1)
    spans = [span for row in free if row["name"] == "ports" for span in ranges_of(row)]
    disk = [row for row in free if row["name"] == "disk" and source_of(row) == wanted.source]
    if not any(first <= ports[0] and ports[1] <= last for first, last in spans):
        return f"the offer has not the ports {ports[0]} and {ports[1]}"
    for name, amount in (("cpus", wanted.needs.cpus), ("mem", wanted.needs.mem)):
        if sum(value_of(row) for row in free if row["name"] == name) < amount:
            return f"the offer has too little of {name}"
    if not disk or value_of(disk[0]) < wanted.disk:
        return f"the offer has too little of the {wanted.source[0]} disk"
    labels = labels_of(spec, wanted.instance, wanted.port, wanted.place)
    source = {"disk": {"source": disk[0]["disk"]["source"]}} if wanted.source[1] or "disk" in disk[0] else {}
    rows: list[Json] = [
        _scalar("cpus", wanted.needs.cpus),
        _scalar("mem", wanted.needs.mem),
        {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": ports[0], "end": ports[1]}]}},
        {**_scalar("disk", wanted.disk), **source},
    ]
    reservation = {"type": "DYNAMIC", "role": spec.role, "principal": spec.principal, "labels": labels}
    allocation = {"role": spec.role}
    return [{**row, "allocation_info": allocation, "reservations": [reservation]} for row in rows]


def _scalar(name: str, value: float) -> Json:
    return {"name": name, "type": "SCALAR", "scalar": {"value": float(value)}}


def reserve(rows: list[Json], operation_id: str) -> Json:
    return {"type": "RESERVE", "id": {"value": operation_id}, "reserve": {"resources": rows}}


def create(spec: Spec, instance: Instance, place: Place, disk: Json, operation_id: str) -> Json:
    """A persistent volume of the reserved ``disk``. Its id is a function of the instance and its place: a
    repeated attempt is refused instead of making a second one."""
    again = f".{place.generation}" if place.generation else ""
    persistence = {"id": f"{spec.name}.{instance}{again}", "principal": spec.principal}
    at = {"mode": "RW", "container_path": DATA}
    volume = {**disk, "disk": {**disk.get("disk", {}), "persistence": persistence, "volume": at}}
    return {"type": "CREATE", "id": {"value": operation_id}, "create": {"volumes": [volume]}}


def launch(spec: Spec, agent: Agent, binding: Binding, variables: dict[str, str], task_id: str) -> Json:
    instance = binding.instance
    command = [*spec.command, instance.service]
    pairs = {"moorage": spec.name, "service": instance.service, "group": instance.group}
    pairs |= {"host": instance.host, "device": instance.device, RELEASE: release_of(spec)}
    task: Json = {
        "name": str(instance),
        "task_id": {"value": task_id},
        "agent_id": {"value": agent.id},
        "resources": list(binding.rows.values()),
        "command": {
            "shell": False,
            "value": command[0],
            "arguments": command,
            "user": spec.user,
            "environment": {
                "variables": [{"name": key, "value": value} for key, value in sorted(variables.items())]
            },
        },
        "kill_policy": {"grace_period": {"nanoseconds": GRACE_S * 10**9}},
        "labels": {"labels": [{"key": key, "value": value} for key, value in pairs.items()]},
        "discovery": {
            "visibility": "EXTERNAL",
            "name": instance.service,
            "ports": {
                "ports": [
                    {"number": binding.port, "name": "rpc", "protocol": "tcp"},
                    {"number": binding.port + 1, "name": "http", "protocol": "tcp"},
                ]
            },
        },
    }
    if spec.image:
        image = {"type": "DOCKER", "docker": {"name": spec.image}}
        # The image has a root of its own: what tasks read of the agent is put in at the same place.
        files = [
            {"container_path": path, "host_path": path, "mode": "RO"}
            for path in (spec.secret_file, spec.token_file)
            if path
        ]
        task["container"] = {"type": "MESOS", "mesos": {"image": image}, "volumes": files}
    return {"type": "LAUNCH", "launch": {"task_infos": [task]}}


def environment(spec: Spec, agent: Agent, binding: Binding, registry: Sequence[str]) -> dict[str, str]:
    """The launch contract's variables (docs/launch.md). ``registry``: HOST:PORT of its members."""
    instance = binding.instance
    found = {
        "MOORAGE_NAME": instance.host,
        "MOORAGE_DATA_DIR": DATA,
        "MOORAGE_SECRET_FILE": spec.secret_file,
        "MOORAGE_TOKEN_FILE": spec.token_file,
        "MOORAGE_PORT": str(binding.port),
        "MOORAGE_HTTP_PORT": str(binding.port + 1),
        "MOORAGE_PEERS": ",".join(f"{host}={where}" for host, where in sorted(binding.place.members.items())),
        "MOORAGE_JOIN": "yes" if binding.place.replaces else "",
        "MOORAGE_REGISTRY": ",".join(registry),
        "MOORAGE_GROUP": instance.group,
        "MOORAGE_LABELS": "",
    }
    if source_of(binding.rows["disk"])[0] != "MOUNT":
        found["MOORAGE_CAPACITY"] = str(int(value_of(binding.rows["disk"])) * MIB)
    if spec.failure_domain in agent.attributes:
        found["MOORAGE_LABELS"] = f"{spec.failure_domain}={agent.attributes[spec.failure_domain]}"
    own = {option.name: option.variable for option in options_of(instance.service)}
    found |= {own[name]: text for name, text in spec.options.items() if name in own}
    return {variable: found[variable] for variable in own.values() if found.get(variable)}
