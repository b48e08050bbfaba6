"""What a master says of its agents, and what of it is ours. Pure.

Owns the labels: everything reserved for one instance carries the same ones, so that the reservations alone
say what was meant for what, to whoever asks the master. Invariant: two instances never have the same labels,
so Mesos never merges what is reserved for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

from moorage.framework.spec import Spec
from moorage.service.options import SERVICES, name_of

Json = dict[str, Any]
RESERVED = ("cpus", "mem", "ports", "disk")  # the rows of one instance


@dataclass(frozen=True, order=True)
class Instance:
    """One task that is to run: a member of a group on a host, or a device. ``group`` is "" but for metadata,
    ``device`` "" but for nodes. Its data stay where they are, so the instance does."""

    service: str
    group: str
    host: str
    device: str

    def __str__(self) -> str:
        return ".".join(filter(None, (self.service, self.group, self.host, self.device)))


@dataclass(frozen=True)
class Place:
    """Of a member in its group, when it was placed; nothing of it for a node. ``members``: all of them, host
    to HOST:PORT. ``generation``: how often a member had been replaced then; ``replaces``: whom this one.
    ``registry``: the registry's members then, of nodes too: so whatever is to be seen of a cluster says that
    it has a registry, and where."""

    members: Mapping[str, str]
    generation: int = 0
    replaces: str = ""
    registry: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Binding:
    """What is reserved for an instance. ``rows``: the resources, by name; ``disk`` among them is a persistent
    volume once it is created."""

    instance: Instance
    port: int
    place: Place
    rows: Mapping[str, Json]

    @property
    def has_volume(self) -> bool:
        return "persistence" in self.rows.get("disk", {}).get("disk", {})

    @property
    def is_whole(self) -> bool:
        return self.has_volume and all(name in self.rows for name in RESERVED)


@dataclass(frozen=True)
class Agent:
    """``host``: our name of it. ``resources``: all rows; ``free``: those that nobody has reserved, less what
    tasks of others use."""

    id: str
    hostname: str
    host: str
    ip: str
    attributes: Mapping[str, str]
    active: bool
    free: tuple[Json, ...]
    bindings: Mapping[Instance, Binding]


def labels_of(spec: Spec, instance: Instance, port: int, place: Place) -> Json:
    """As a reservation carries them. Never changed afterwards: other labels are another reservation."""
    pairs = {
        "moorage": spec.name,
        "service": instance.service,
        "group": instance.group,
        "host": instance.host,
        "device": instance.device,
        "port": str(port),
        "members": _joined(place.members),
        "registry": _joined(place.registry),
        "generation": str(place.generation),
        "replaces": place.replaces,
    }
    return {"labels": [{"key": key, "value": value} for key, value in pairs.items()]}


def pairs_of(labels: Json) -> dict[str, str]:
    return {each.get("key", ""): each.get("value", "") for each in labels.get("labels", [])}


def instance_of(name: str, labels: Json) -> Instance | None:
    """Whose labels these are; None if they are not those of our cluster ``name``."""
    pairs = pairs_of(labels)
    if pairs.get("moorage") != name or pairs.get("service") not in SERVICES:
        return None
    return Instance(pairs["service"], pairs.get("group", ""), pairs.get("host", ""), pairs.get("device", ""))


def bindings_in(name: str, rows: Iterable[Json]) -> dict[Instance, Binding]:
    """What of these rows is reserved for instances of the cluster ``name``. Of a member that was replaced and
    came to the same host again, the newer one: of the former one its data are still there."""
    found: dict[Instance, Binding] = {}
    for binding in reservations_in(name, rows):
        older = found.get(binding.instance)
        if older is None or older.place.generation < binding.place.generation:
            found[binding.instance] = binding
    return found


def reservations_in(name: str, rows: Iterable[Json]) -> list[Binding]:
    found: dict[tuple[Instance, int], tuple[dict[str, str], dict[str, Json]]] = {}
    for row in rows:
        labels = (row.get("reservations") or [{}])[-1].get("labels", {})
        instance, pairs = instance_of(name, labels), pairs_of(labels)
        if instance is not None:
            key = (instance, _number(pairs.get("generation", "")))
            found.setdefault(key, (pairs, {}))[1][row["name"]] = row
    return [
        Binding(
            instance,
            _number(pairs.get("port", "")),
            Place(
                _split(pairs.get("members", "")),
                generation,
                pairs.get("replaces", ""),
                _split(pairs.get("registry", "")),
            ),
            of_it,
        )
        for (instance, generation), (pairs, of_it) in sorted(found.items())
    ]


def _joined(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(pairs.items()))


def _split(text: str) -> dict[str, str]:
    return dict(each.split("=", 1) for each in text.split(",") if "=" in each)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def agent_from(name: str, found: Json) -> Agent:
    """One agent of GET_AGENTS."""
    info = found["agent_info"]
    rows = found.get("total_resources", [])
    bindings = bindings_in(name, rows)
    hosts = {instance.host for instance in bindings}
    return Agent(
        id=info["id"]["value"],
        hostname=info["hostname"],
        # One that came back with another agent id, or host name, is who it was.
        host=hosts.pop() if len(hosts) == 1 else name_of(info["hostname"]),
        ip=_ip_of(found.get("pid", "")) or info["hostname"],
        attributes={each["name"]: _attribute(each) for each in info.get("attributes", [])},
        active=bool(found.get("active")) and not found.get("deactivated"),
        free=tuple(less(filter(is_free, rows), filter(is_free, found.get("allocated_resources", [])))),
        bindings=bindings,
    )


def _ip_of(pid: str) -> str:
    """Of ``slave(1)@127.0.0.1:5051``."""
    return pid.rpartition("@")[2].rpartition(":")[0].strip("[]")


def _attribute(attribute: Json) -> str:
    if attribute.get("type") == "SCALAR":
        return f"{attribute['scalar']['value']:g}"
    return str(attribute.get("text", {}).get("value", ""))


# -- rows --------------------------------------------------------------------------------------------------


def is_free(row: Json) -> bool:
    """Neither reserved nor a volume."""
    return not row.get("reservations") and row.get("role", "*") == "*" and "shared" not in row


def value_of(row: Json) -> float:
    return float(row.get("scalar", {}).get("value", 0.0))


def source_of(row: Json) -> tuple[str, str]:
    """(kind, root) of a disk; the agent's own work directory is ("ROOT", "")."""
    source = row.get("disk", {}).get("source", {})
    kind = source.get("type", "ROOT")
    return kind, source.get(kind.lower(), {}).get("root", "")


def device_name(row: Json) -> str:
    """Of the device that a disk is to be: the same as long as the disk is mounted at the same place."""
    kind, root = source_of(row)
    return kind.lower() if not root else f"{kind.lower()}-{xxhash.xxh3_64_hexdigest(root.encode())[:8]}"


def ranges_of(row: Json) -> list[tuple[int, int]]:
    """First and last of each."""
    return [(each["begin"], each["end"]) for each in row.get("ranges", {}).get("range", [])]


def less(rows: Iterable[Json], taken: Iterable[Json]) -> list[Json]:
    """``rows`` without what is taken of them."""
    left, taken = [], list(taken)
    for row in rows:
        of_it = [each for each in taken if (each["name"], source_of(each)) == (row["name"], source_of(row))]
        if "ranges" in row:
            spans = _cut(ranges_of(row), [span for each in of_it for span in ranges_of(each)])
            row = {**row, "ranges": {"range": [{"begin": first, "end": last} for first, last in spans]}}
        elif of_it:
            value = value_of(row) - sum(map(value_of, of_it))
            row = {**row, "scalar": {"value": round(value, 3)}}  # as Mesos counts
        left.append(row)
    return left


def _cut(spans: list[tuple[int, int]], gone: list[tuple[int, int]]) -> list[tuple[int, int]]:
    for first, last in gone:
        spans = [
            part
            for begin, end in spans
            for part in ((begin, min(end, first - 1)), (max(begin, last + 1), end))
            if part[0] <= part[1]
        ]
    return spans
