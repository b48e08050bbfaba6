"""The registry's replicated state: hosts, devices, services and the directory of names.

Owns the keys below and every rule about them. A command is a map with ``op``; ``apply`` is deterministic,
and whatever it refuses changes nothing. Must never hold health: that is volatile, and lives with the
leader (`health.py`).

=========================== ==========================================================================
key                         value
=========================== ==========================================================================
``host/NAME``               labels, address, http
``device/ID``               host, address, capacity, token, count, refused (reason, "" when it is not)
``service/KIND/GROUP/NAME`` address, http, uid (of its metadata group, else "")
``group/GROUP``             uid: which metadata group has this name; others are refused
``name/NAME``               group, kind, id: the metadata group that owns a name, and the volume or bucket;
                            principal, size of a volume that is charged
``access-key/``             who comes by S3 (`keys.py`)
``quota/``, ``charged/``,   what principals may have, and have (`quota.py`)
``charger/``
``count/KIND``              how many hosts, devices, services there are, for their limits
``mount_table/VERSION``     a version of the mount table (`mount_table.py`)
``drain/KIND/NAME``         a host or device that is to be emptied (`drains.py`)
``balance``                 whether replicas may move to even out devices (`balance.py`)
``event/NUMBER``            what has happened (`events.py`)
``noted_health/DEVICE``     of which event it was that told of its health last
=========================== ==========================================================================

A device's identity is its token: each start moves it from the one that the device had to a new one, in
one committed command, so of two copies of a device's directory only one can ever go on. ``count`` is the
greatest heartbeat count that was noted under the token: a start that remembers less is a restored or
cloned copy, which has forgotten promises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from moorage.registry import balance, drains, events, keys, mount_table, quota
from moorage.registry.view import Store, View
from moorage.wire import address
from moorage.wire.errors import IdentityConflict, Invalid, LimitExceeded, NameTaken, NotFound, VersionMismatch

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
TOKEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
# The view of a cluster at these limits fits into one frame (1 MiB), with room for long names and reasons.
HOSTS_MAX = 512
DEVICES_MAX = 1024
SERVICES_MAX = 1024
LABELS_MAX = 8
LABEL_SIZE_MAX = 63
TEXT_MAX = 256
KINDS = ("volume", "bucket")
_MAX = {"host": HOSTS_MAX, "device": DEVICES_MAX, "service": SERVICES_MAX}


class RegistryMachine:
    """See the module. One instance serves one process; it keeps nothing itself."""

    def __init__(self) -> None:
        self._rows: dict[str, Callable[[Store, dict[str, Any]], dict[str, Any]]] = {
            "join_host": _join_host,
            "join_service": _join_service,
            "start_device": _start_device,
            "note_counts": _note_counts,
            "refuse_device": _refuse_device,
            "claim": _claim,
            "claim_charged": _claim_charged,
            "release": _release,
            "charge": quota.charge,
            "settle": quota.settle,
            "set_quota": quota.set_quota,
            "remove_quota": quota.remove_quota,
            "create_key": keys.create_key,
            "revoke_key": keys.revoke_key,
            "set_mount_table": mount_table.set_text,
            "set_drain": drains.set_drain,
            "set_balance": balance.set_balance,
            "forget": _forget,
            "note_events": events.note_events,
            "note_health": events.note_health,
        }

    def apply(self, kv: Store, command: dict[str, Any], index: int) -> Any:
        row = self._rows.get(str(command.get("op")))
        if row is None:
            raise VersionMismatch(
                f"unknown registry command {command.get('op')!r}: this member is too old, upgrade it"
            )
        return row(kv, command)


# -- hosts and services --------------------------------------------------------------------------------


def _join_host(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    name = name_of(command, "host")
    labels = command.get("labels")
    if not isinstance(labels, dict) or len(labels) > LABELS_MAX:
        raise Invalid(f"labels: give a map of at most {LABELS_MAX} KEY=VALUE")
    for text in (*labels.keys(), *labels.values()):
        if not isinstance(text, str) or not 0 < len(text) <= LABEL_SIZE_MAX:
            raise Invalid(f"label {_shown(text)}: use a text of 1 to {LABEL_SIZE_MAX} characters")
    value = {"labels": labels, "address": address_of(command), "http": text_of(command, "http")}
    _put_counted(kv, "host", f"host/{name}", value)
    return {}


def _join_service(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    uid = text_of(command, "uid")
    if command["service"] == "metadata":
        _admit_group(kv, name_of(command, "group"), token_of(command, "uid"))
    key = f"service/{name_of(command, 'service')}/{name_of(command, 'group')}/{name_of(command, 'name')}"
    _put_counted(
        kv, "service", key, {"address": address_of(command), "http": text_of(command, "http"), "uid": uid}
    )
    return {}


def _admit_group(kv: Store, group: str, uid: str) -> None:
    """The first group of a name keeps it. A second one would give out the ids of the first one's replicas
    again, and delete them."""
    found = kv.get(f"group/{group}")
    if found is None:
        kv.put(f"group/{group}", {"uid": uid})
    elif found["uid"] != uid:
        raise IdentityConflict(
            f"this cluster has a metadata group {group} already, and this is another one, founded by itself:"
            " to add a member start it with --join and --peers, to add a group with a --group of its own"
        )


def _put_counted(kv: Store, kind: str, key: str, value: dict[str, Any]) -> None:
    if kv.get(key) is None:
        count = int(kv.get(f"count/{kind}") or 0)
        if count >= _MAX[kind]:
            raise LimitExceeded(f"the cluster has {count} {kind}s, which is the most: see docs/limits.md")
        kv.put(f"count/{kind}", count + 1)
    kv.put(key, value)


# -- devices -------------------------------------------------------------------------------------------


def _start_device(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    device = token_of(command, "device")
    old_token, new_token = text_of(command, "old_token"), token_of(command, "new_token")
    value = {
        "host": name_of(command, "host"),
        "address": address_of(command),
        "capacity": int_of(command, "capacity"),
        "token": new_token,
        "count": int_of(command, "count"),
        "refused": "",
    }
    found = kv.get(f"device/{device}")
    if found is None:
        _refuse_unknown(device, old_token)
    else:
        check_start(device, found, value, old_token)
    _put_counted(kv, "device", f"device/{device}", value)
    return {}


def _refuse_unknown(device: str, old_token: str) -> None:
    if old_token:
        raise IdentityConflict(
            f"device {device} has been in a cluster, but this registry never saw it: check --registry and the"
            " secret file, or start with an empty directory"
        )


def check_start(device: str, found: dict[str, Any], wanted: dict[str, Any], old_token: str) -> None:
    """Whether a known device may start. Raises IdentityConflict; what it refuses stays refused for ever,
    since the registry's token never returns to an earlier one and its count never falls."""
    if found["refused"]:
        raise IdentityConflict(f"device {device} is refused for good: {found['refused']}; {_NEXT_STEP}")
    if wanted["host"] != found["host"]:
        raise IdentityConflict(
            f"device {device} belongs to host {found['host']}, not {wanted['host']}: start it with --name"
            f" {found['host']}, or with an empty directory"
        )
    if found["token"] not in (old_token, wanted["token"]):  # the latter: again, since the answer was lost
        raise IdentityConflict(
            f"device {device} has been started from another copy of its directory since: this copy (restored,"
            f" cloned or wiped) has forgotten what it promised; {_NEXT_STEP}"
        )
    if wanted["count"] < found["count"]:
        raise IdentityConflict(
            f"device {device} remembers {wanted['count']} heartbeats, the registry {found['count']}: its"
            f" directory is an old copy, which has forgotten what it promised; {_NEXT_STEP}"
        )


_NEXT_STEP = (
    "start with an empty directory, under a new identity: the replicas of this one are placed anew meanwhile"
)


def _note_counts(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    for device, (token, count) in sorted(command["counts"].items()):
        found = kv.get(f"device/{device}")
        if found is not None and found["token"] == token and count > found["count"]:
            kv.put(f"device/{device}", {**found, "count": count})
    return {}


def _refuse_device(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    key = f"device/{token_of(command, 'device')}"
    found = kv.get(key)
    if found is not None and found["token"] == command["token"] and not found["refused"]:
        kv.put(key, {**found, "refused": text_of(command, "reason")})
    return {}


def _forget(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{kind, name}``: a device that is refused for good, a host without devices, or a member that has left
    its group (GROUP/NAME of a service). It may be gone already. A device that is forgotten stays refused: it
    says that it was in a cluster, and this registry knows nothing of it."""
    kind, name = command.get("kind"), text_of(command, "name")
    if kind == "device":
        found = kv.get(f"device/{name}")
        if found is not None and not found["refused"]:
            raise Invalid(f"device {name} is in use: drain it and evict it first")
    elif kind == "host":
        on_it = [device for device, row in table(kv, "device").items() if row["host"] == name]
        if on_it:
            raise Invalid(f"host {name} has devices: {', '.join(on_it[:3])}: evict them first")
    elif kind != "service":
        raise Invalid(f"kind {kind!r}: use one of device, host, service")
    if kv.get(f"{kind}/{name}") is not None:
        kv.delete(f"{kind}/{name}")
        kv.put(f"count/{kind}", int(kv.get(f"count/{kind}") or 0) - 1)
    kv.delete(f"drain/{kind}/{name}")
    kv.delete(f"noted_health/{name}")
    return {}


# -- the directory of names ----------------------------------------------------------------------------


def _claim(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """Sent again, or late by a leader that is none any more: ids of a group rise, the greatest is newest.
    What the volume was charged since then stays."""
    return _claim_as(kv, command, {})


def _claim_charged(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    return _claim_as(kv, command, quota.charged(command))


def _claim_as(kv: Store, command: dict[str, Any], charged: dict[str, Any]) -> dict[str, Any]:
    name, group, kind = name_of(command, "name"), name_of(command, "group"), command.get("kind")
    if kind not in KINDS:
        raise Invalid(f"kind {kind!r}: use one of {', '.join(KINDS)}")
    wanted = {"group": group, "kind": kind, "id": int_of(command, "id")}
    found = kv.get(f"name/{name}")
    if found is not None and ((found["group"], found["kind"]) != (group, kind) or found["id"] > wanted["id"]):
        raise NameTaken(
            f"the name {name!r} is taken by a {found['kind']}: choose another one", name=name, **found
        )
    if found is None or found["id"] != wanted["id"] or "size" not in found:
        quota.put_name(kv, name, wanted | charged, within_quota=True)
    return {"group": group}


def _release(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    name, group, former = name_of(command, "name"), name_of(command, "group"), int_of(command, "id")
    found = kv.get(f"name/{name}")
    if found is not None and found["group"] != group:
        raise NameTaken(
            f"the name {name!r} belongs to group {found['group']}, not {group}", name=name, **found
        )
    if found is not None and found["id"] <= former:  # else: late, the name is in use again
        quota.put_name(kv, name, None, within_quota=False)
    return {}


def locate(kv: View, name: str) -> dict[str, Any]:
    found: dict[str, Any] | None = kv.get(f"name/{name_of({'name': name}, 'name')}")
    if found is None:
        raise NotFound(f"there is no volume or bucket {name!r}", name=name)
    return {key: found[key] for key in ("group", "kind", "id")}


# -- reading whole tables ------------------------------------------------------------------------------


def table(kv: View, kind: str) -> dict[str, dict[str, Any]]:
    """All of one kind ("host", "device") by name, in order."""
    return {key.partition("/")[2]: value for key, value in kv.scan(f"{kind}/")}


def services(kv: View) -> list[dict[str, Any]]:
    found = []
    for key, value in kv.scan("service/"):
        _, kind, group, name = key.split("/")
        where = {"address": value["address"], "http": value["http"]}
        found.append({"service": kind, "group": group, "name": name, **where})
    return found


# -- fields: commands come from the network ------------------------------------------------------------


def text_of(command: dict[str, Any], field: str) -> str:
    value = command.get(field)
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise Invalid(f"{field}: give a text of at most {TEXT_MAX} characters")
    return value


def name_of(command: dict[str, Any], field: str) -> str:
    value = command.get(field)
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Invalid(
            f"bad {field} {_shown(value)}: use 1 to 63 of a-z, 0-9, '.', '_', '-', the first one a letter or"
            " digit"
        )
    return value


def token_of(command: dict[str, Any], field: str) -> str:
    value = command.get(field)
    if not isinstance(value, str) or not TOKEN.fullmatch(value):
        raise Invalid(f"bad {field} {_shown(value)}: use 1 to 64 letters, digits, '.', '_' or '-'")
    return value


def int_of(command: dict[str, Any], field: str) -> int:
    value = command.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Invalid(f"bad {field} {_shown(value)}: use a whole number from 0")
    return value


def optional_int_of(command: dict[str, Any], field: str) -> int | None:
    return None if command.get(field) is None else int_of(command, field)


def address_of(command: dict[str, Any]) -> str:
    return str(address.parse(text_of(command, "address")))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
