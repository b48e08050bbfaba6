"""Quotas of principals, and what counts for them: the volumes that each has in all metadata groups.

Owns these keys, and the fields ``principal`` and ``size`` of ``name/NAME``:

====================== ====================================================================================
key                    value
====================== ====================================================================================
``quota/PRINCIPAL``    capacity (bytes), volumes: the most that it may have; None: any
``charged/PRINCIPAL``  bytes, volumes: the sum over its names, kept with them in the same command
``charging``           true from the first quota on: nothing of this is used before
``charger/GROUP``      term, count of the charge of that metadata group that came last: no earlier one counts
====================== ====================================================================================

A volume is charged with the claim of its name, which every creation makes before anything is ordered; again
before it grows; and no more when the name is released. So one place, the log of the registry, sees all groups
in one order, and no two of them give the same room away. What a crash between registry and metadata leaves
wrong is put right by ``settle``: each leader of a metadata group tells, as it begins, what its volumes really
are. A bucket counts as a volume without bytes. A name that was claimed without a size (by a metadata service
of before) is not charged. Before the first quota nothing is: a member that knows no charges would stop at
one, and must not before an operator has upgraded all of them and uses quotas.

Who a principal is, is not proved yet: it is the name that a client gives. Part of the replicated state: no
clock and no chance in here.
"""

from __future__ import annotations

import re
from typing import Any

from moorage.registry.view import Store, View
from moorage.service.units import human
from moorage.wire.errors import Invalid, LimitExceeded, NotFound, Stale

PRINCIPAL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
QUOTAS_MAX = 4096
CHARGES_MAX = 500  # of one settle
NOTHING = {"bytes": 0, "volumes": 0}


# -- quotas --------------------------------------------------------------------------------------------


def set_quota(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{principal, capacity, volumes}``; None: any. It may be less than there is: then nothing is added."""
    principal = principal_of(command)
    quota = {"capacity": _limit(command, "capacity"), "volumes": _limit(command, "volumes")}
    key = f"quota/{principal}"
    if kv.get(key) is None and sum(1 for _ in kv.scan("quota/")) >= QUOTAS_MAX:
        raise LimitExceeded(f"the cluster has {QUOTAS_MAX} quotas, which is the most: see docs/limits.md")
    kv.put(key, quota)
    if not charging(kv):
        kv.put("charging", True)
    return _row(kv, principal)


def charging(kv: View) -> bool:
    """Whether volumes are charged: there has been a quota."""
    return bool(kv.get("charging"))


def remove_quota(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    principal = principal_of(command)
    if kv.get(f"quota/{principal}") is None:
        raise NotFound(f"principal {principal!r} has no quota: `moorage quota list` shows all")
    kv.delete(f"quota/{principal}")
    return _row(kv, principal)


def rows(kv: View, after: str, limit: int) -> list[dict[str, Any]]:
    """Of every principal behind ``after`` that has a quota or volumes, by name: principal, capacity, volumes,
    used_bytes, used_volumes."""
    keys = (key for prefix in ("quota/", "charged/") for key, _ in kv.scan(prefix))
    names = {key.partition("/")[2] for key in keys}
    return [_row(kv, name) for name in sorted(name for name in names if name > after)[:limit]]


def _row(kv: View, principal: str) -> dict[str, Any]:
    quota = kv.get(f"quota/{principal}") or {"capacity": None, "volumes": None}
    used = kv.get(f"charged/{principal}") or NOTHING
    return {"principal": principal, **quota, "used_bytes": used["bytes"], "used_volumes": used["volumes"]}


# -- charges -------------------------------------------------------------------------------------------


def charged(command: dict[str, Any]) -> dict[str, Any]:
    """What a claim says of the volume, for its row: principal and size, or nothing."""
    if command.get("size") is None:
        return {}
    return {"principal": principal_of(command), "size": _number(command, "size")}


def put_name(kv: Store, name: str, row: dict[str, Any] | None, *, within_quota: bool) -> None:
    """The row of a name, None to delete it, with what it counts. Raises LimitExceeded with the numbers."""
    key = f"name/{name}"
    former = kv.get(key) or {}
    for each, sign in ((former, -1), (row or {}, +1)):
        if "size" in each:
            _add(kv, each["principal"], sign * each["size"], sign)
    if row is None:
        kv.delete(key)
        return
    kv.put(key, row)
    if within_quota and "size" in row:
        same = former.get("principal") == row["principal"]
        _check(kv, name, row["principal"], row["size"] - former["size"] if same else row["size"], not same)


def charge(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{group, term, count, name, id, principal, size}``: the volume is about to have that size."""
    _check_order(kv, command)
    row = _own(kv, command["group"], command.get("name"), command.get("id"))
    if row is None:
        raise NotFound(f"the name {command.get('name')!r} is not that volume's: it was deleted")
    put_name(kv, command["name"], {**row, **charged(command)}, within_quota=True)
    return {}


def settle(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{group, term, count, charges: [[name, id, principal, size]]}``: what volumes of the group are,
    whatever was charged for them. Others have their names meanwhile, or not yet: those are left alone."""
    _check_order(kv, command)
    charges = command.get("charges")
    if not isinstance(charges, list | tuple) or len(charges) > CHARGES_MAX:
        raise Invalid(f"charges: give a list of at most {CHARGES_MAX} of [name, id, principal, size]")
    for each in charges:
        if not isinstance(each, list | tuple) or len(each) != 4:
            raise Invalid("charges: give [name, id, principal, size] of each volume")
        name, number, principal, size = each
        row = _own(kv, command["group"], name, number)
        if row is not None:
            row |= charged({"principal": principal, "size": size})
            put_name(kv, name, row, within_quota=False)
    return {}


def _own(kv: View, group: str, name: Any, number: Any) -> dict[str, Any] | None:
    row = kv.get(f"name/{name}") if isinstance(name, str) and PRINCIPAL.fullmatch(name) else None
    return dict(row) if row is not None and (row["group"], row["id"]) == (group, number) else None


def _check_order(kv: Store, command: dict[str, Any]) -> None:
    """Else one that comes late, of a former leader perhaps, would undo what was charged since. The same one
    may come again."""
    group, turn = principal_of(command, "group"), {key: _number(command, key) for key in ("term", "count")}
    last = kv.get(f"charger/{group}") or {"term": 0, "count": 0}
    if (turn["term"], turn["count"]) < (last["term"], last["count"]):
        raise Stale(f"metadata group {group} has charged since, in term {last['term']}: this comes too late")
    kv.put(f"charger/{group}", turn)


def _add(kv: Store, principal: str, size: int, volumes: int) -> None:
    key = f"charged/{principal}"
    used = kv.get(key) or NOTHING
    used = {"bytes": used["bytes"] + size, "volumes": used["volumes"] + volumes}
    if used["volumes"]:
        kv.put(key, used)
    else:
        kv.delete(key)


def _check(kv: View, name: str, principal: str, more: int, another: bool) -> None:
    """After ``name`` was charged with ``more`` bytes, and ``another`` volume."""
    row = _row(kv, principal)
    volumes, size = row["used_volumes"] - another, row["used_bytes"] - more
    details = {"principal": principal, "used_volumes": volumes, "used_bytes": size}
    details |= {"capacity": row["capacity"], "volumes": row["volumes"]}
    if another and row["volumes"] is not None and row["used_volumes"] > row["volumes"]:
        raise LimitExceeded(
            f"principal {principal!r} has {_count(volumes)}, quota {row['volumes']}; {name!r} would be one"
            " more",
            **details,
        )
    if more > 0 and row["capacity"] is not None and row["used_bytes"] > row["capacity"]:
        raise LimitExceeded(
            f"principal {principal!r} has {_count(volumes)} of {human(size)} in sum, quota"
            f" {human(row['capacity'])}; {name!r} needs {human(more)} more",
            **details,
        )


def _count(volumes: int) -> str:
    return f"{volumes or 'no'} volume{'s' * (volumes != 1)}"


# -- fields --------------------------------------------------------------------------------------------


def principal_of(command: dict[str, Any], field: str = "principal") -> str:
    value = command.get(field)
    if not isinstance(value, str) or not PRINCIPAL.fullmatch(value):
        raise Invalid(
            f"bad {field} {str(value)[:80]!r}: use 1 to 63 of a-z, 0-9, '.', '_', '-', the first one a letter"
            " or digit"
        )
    return value


def _limit(command: dict[str, Any], field: str) -> int | None:
    return None if command.get(field) is None else _number(command, field)


def _number(command: dict[str, Any], field: str) -> int:
    value = command.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Invalid(f"bad {field} {str(value)[:80]!r}: use a whole number from 0")
    return value
