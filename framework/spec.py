"""What an operator wants the framework to run: one document, checked as a whole before anything is done.

Pure. Every field has a default but those that only the operator can know: where the secret is, and how many
members. A field that is not known is an error: most likely it is misspelt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from moorage.service.options import BY_NAME, parse_name, parse_size
from moorage.wire.errors import Invalid

SOURCES = ("ROOT", "PATH", "MOUNT")
MEMBERS = (1, 3, 5)
MIB = 1 << 20


@dataclass(frozen=True)
class Needs:
    """Of one task: cpus, and MiB of memory."""

    cpus: float
    mem: int


@dataclass(frozen=True)
class Members:
    """A Raft group: how many members begin it, what each needs, and MiB of disk for its state."""

    members: int
    needs: Needs
    disk: int


@dataclass(frozen=True)
class Devices:
    """Which disks become devices: one node task for every disk that fits.

    ``source``: ROOT (of an agent's work directory), PATH or MOUNT. ``size``: MiB to take of a ROOT or PATH
    disk; the least that a MOUNT disk, which is taken whole, has. ``agents``: attributes that they must have.
    """

    source: str
    size: int
    needs: Needs
    agents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """The whole document. ``groups``: the metadata groups' names. ``failure_domain``: the attribute of agents
    that says what fails together, beyond one host; no two members of a group are put into one.
    ``replace_after_s``: how long after an operator has called an agent gone its members are placed anew.
    ``p99_budget``: how many times slower than the slowest other host a host with a new release may be, 0: it
    is not judged by that."""

    name: str
    role: str
    principal: str
    user: str
    command: tuple[str, ...]
    image: str
    secret_file: str
    token_file: str
    failure_domain: str
    failover_timeout_s: float
    replace_after_s: float
    p99_budget: float
    registry: Members
    metadata: Members
    groups: tuple[str, ...]
    devices: tuple[Devices, ...]
    options: Mapping[str, str]


def parse(document: object) -> Spec:
    """From what YAML or JSON gave. Raises Invalid, which names the field and what would be right."""
    top = _Fields(document, "")
    name = top.text("name", "moorage", parse_name)
    groups = top.fields("metadata")
    count = groups.whole("groups", 1, 1, 64)
    spec = Spec(
        name=name,
        role=top.text("role", name),
        principal=top.text("principal", name),
        user=top.text("user", "root"),
        command=top.words("command", ("moorage",)),
        image=top.text("image", ""),
        secret_file=top.text("secret_file"),
        token_file=top.text("token_file", ""),
        failure_domain=top.text("failure_domain", ""),
        failover_timeout_s=float(top.whole("failover_timeout_s", 7 * 86400, 60, 10 * 365 * 86400)),
        replace_after_s=float(top.whole("replace_after_s", 300, 0, 365 * 86400)),
        p99_budget=float(top.whole("p99_budget", 0, 0, 1000)),
        registry=_members(top.fields("registry"), Needs(0.2, 128), 256),
        metadata=_members(groups, Needs(0.5, 512), 2048),
        groups=tuple(f"m{number + 1}" for number in range(count)),
        devices=tuple(_devices(each) for each in top.list("devices")),
        options=_options(top.texts("options")),
    )
    top.end()
    return spec


def document_of(spec: Spec) -> dict[str, Any]:
    """What parse() makes the same spec of, with nothing left to defaults: those of a later release may be
    others."""

    def needs(of: Needs) -> dict[str, Any]:
        return {"cpus": of.cpus, "mem": of.mem * MIB}

    def members(of: Members) -> dict[str, Any]:
        return {"members": of.members, **needs(of.needs), "disk": of.disk * MIB}

    return {
        "name": spec.name,
        "role": spec.role,
        "principal": spec.principal,
        "user": spec.user,
        "command": list(spec.command),
        "image": spec.image,
        "secret_file": spec.secret_file,
        "token_file": spec.token_file,
        "failure_domain": spec.failure_domain,
        "failover_timeout_s": int(spec.failover_timeout_s),
        "replace_after_s": int(spec.replace_after_s),
        "p99_budget": int(spec.p99_budget),
        "registry": members(spec.registry),
        "metadata": {"groups": len(spec.groups), **members(spec.metadata)},
        "devices": [
            {
                "source": each.source,
                "size": each.size * MIB,
                **needs(each.needs),
                "agents": dict(each.agents),
            }
            for each in spec.devices
        ],
        "options": dict(spec.options),
    }


def differences(one: Spec, other: Spec) -> list[str]:
    """The names of the fields in which they differ."""
    return [each.name for each in fields(Spec) if getattr(one, each.name) != getattr(other, each.name)]


# What cannot become another while the cluster runs, and why.
FIXED = {
    "name": "it stands in every reservation",
    "role": "all reservations are of it",
    "principal": "the master takes no other one of a framework",
    "user": "the master takes no other one of a framework",
    "secret_file": "the tasks that run have the former secret, and would not know the new ones",
}


def check_change(old: Spec, new: Spec) -> None:
    """Raises Invalid with the reason when a cluster that runs cannot be changed from one to the other."""
    refused = [
        f"{name} cannot be changed from {getattr(old, name)!r} to {getattr(new, name)!r}: {FIXED[name]}"
        for name in differences(old, new)
        if name in FIXED
    ]
    if refused:
        raise Invalid("; ".join(refused))


# What the framework itself decides for each task.
_OURS = {"name", "data_dir", "secret_file", "token_file", "bind", "advertise", "port", "http_port", "peers"}
_OURS |= {"join", "registry", "group", "capacity", "labels"}


def _options(found: dict[str, str]) -> dict[str, str]:
    """Options of the services (docs/launch.md), for all of those that have them."""
    for name, text in found.items():
        if name not in BY_NAME or name in _OURS:
            known = ", ".join(sorted(set(BY_NAME) - _OURS))
            raise Invalid(f"options: there is no option {name} of a service to be set here: {known}")
        try:
            BY_NAME[name].parse(text)
        except Invalid as error:
            raise Invalid(f"options.{name}: {text!r}: {error}") from None
    return found


def _members(fields: _Fields, needs: Needs, disk: int) -> Members:
    members = fields.whole("members", 3, 1, 5)
    if members not in MEMBERS:
        raise Invalid(f"{fields.at}members: {members} is no size of a Raft group: use 1, 3 or 5")
    found = Members(members, _needs(fields, needs), fields.mib("disk", disk))
    fields.end()
    return found


def _needs(fields: _Fields, default: Needs) -> Needs:
    return Needs(fields.number("cpus", default.cpus), fields.mib("mem", default.mem))


def _devices(fields: _Fields) -> Devices:
    source = fields.text("source", "MOUNT")
    if source not in SOURCES:
        raise Invalid(f"{fields.at}source: {source!r}: use one of {', '.join(SOURCES)}")
    size = fields.mib("size", 1024 if source == "MOUNT" else 0)
    if size == 0:
        raise Invalid(f"{fields.at}size is missing: how much of the {source} disk the device takes, as 200G")
    found = Devices(source, size, _needs(fields, Needs(0.5, 512)), fields.texts("agents"))
    fields.end()
    return found


class _Fields:
    """A mapping of the document, of which each field is taken once."""

    def __init__(self, value: object, at: str) -> None:
        if not isinstance(value, Mapping):
            raise Invalid(f"{at.rstrip('.') or 'the document'}: use fields and their values, as NAME: VALUE")
        self.at = at
        self._left: dict[Any, Any] = dict(value)

    def _take(self, name: str, default: Any) -> Any:
        value = self._left.pop(name, None)
        if value is None and default is None:
            raise Invalid(f"{self.at}{name} is missing")
        return default if value is None else value

    def text(self, name: str, default: str | None = None, check: Callable[[str], str] = str) -> str:
        value = self._take(name, default)
        if not isinstance(value, str):
            raise Invalid(f"{self.at}{name}: {value!r} is not a text")
        try:
            return check(value)
        except Invalid as error:
            raise Invalid(f"{self.at}{name}: {value!r}: {error}") from None

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise Invalid(f"{self.at}{name}: {value!r}: use a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self._take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 10_000:
            raise Invalid(f"{self.at}{name}: {value!r}: use a number above 0")
        return float(value)

    def mib(self, name: str, default: int) -> int:
        """Stands there as bytes or as 200G; Mesos counts in MiB."""
        value = self._take(name, default * MIB)
        size = value if isinstance(value, int) and not isinstance(value, bool) else 0
        if isinstance(value, str):
            try:
                size = parse_size(value)
            except Invalid as error:
                raise Invalid(f"{self.at}{name}: {value!r}: {error}") from None
        if value != 0 and size < MIB:
            raise Invalid(f"{self.at}{name}: {value!r}: use a size of at least 1M, such as 512M or 200G")
        return size // MIB

    def words(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self._take(name, default)
        words = (value,) if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not words or not all(isinstance(w, str) for w in words):
            raise Invalid(f"{self.at}{name}: use a program, or a list of it and its arguments")
        return tuple(words)

    def texts(self, name: str) -> dict[str, str]:
        value = self._take(name, {})
        if not isinstance(value, Mapping) or not all(
            isinstance(key, str) and isinstance(each, str | int) for key, each in value.items()
        ):
            raise Invalid(f"{self.at}{name}: use NAME: TEXT, ...")
        return {key: str(each) for key, each in value.items()}

    def fields(self, name: str) -> _Fields:
        return _Fields(self._take(name, {}), f"{self.at}{name}.")

    def list(self, name: str) -> list[_Fields]:
        value = self._take(name, None)
        if not isinstance(value, list) or not value:
            raise Invalid(f"{self.at}{name}: use a list of at least one")
        return [_Fields(each, f"{self.at}{name}[{at}].") for at, each in enumerate(value)]

    def end(self) -> None:
        if self._left:
            unknown = ", ".join(sorted(map(str, self._left)))
            raise Invalid(f"unknown: {', '.join(self.at + each for each in unknown.split(', '))}")
