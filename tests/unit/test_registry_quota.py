"""Quotas and charges, command by command, and at random against a plain model."""

from __future__ import annotations

import random
from typing import Any

import pytest

from moorage.registry import quota, state
from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV
from moorage.wire.errors import Invalid, LimitExceeded, MoorageError, NameTaken, NotFound, Stale

GIB = 1 << 30


class Registry:
    def __init__(self) -> None:
        self.kv = KV()
        self._machine = RegistryMachine()
        self._count = 0

    def __call__(self, op: str, **fields: Any) -> Any:
        try:
            result = self._machine.apply(self.kv, {"op": op, **fields}, 1)
        except MoorageError:
            self.kv.rollback()
            raise
        self.kv.commit()
        return result

    def claim(self, name: str, number: int, principal: str, size: int, group: str = "m1") -> None:
        about = {"kind": "volume", "group": group, "id": number}
        self("claim_charged", name=name, principal=principal, size=size, **about)

    def charge(self, name: str, number: int, size: int, principal: str = "a", **turn: int) -> None:
        self._count += 1
        about = {"group": "m1", "term": 1, "count": self._count, **turn}
        self("charge", name=name, id=number, principal=principal, size=size, **about)

    def settle(self, *charges: Any, **turn: int) -> None:
        self._count += 1
        self("settle", charges=charges, **{"group": "m1", "term": 1, "count": self._count, **turn})

    def used(self, principal: str = "a") -> tuple[int, int]:
        row = next((row for row in quota.rows(self.kv, "", 500) if row["principal"] == principal), None)
        return (row["used_volumes"], row["used_bytes"]) if row else (0, 0)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_the_refusal_has_the_numbers(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.claim(f"v{number}", number, "team-a", number * 2 * GIB - GIB * (number == 3) * 1)
    registry("set_quota", principal="team-a", capacity=12 * GIB, volumes=4)
    with pytest.raises(LimitExceeded) as refused:
        registry.claim("db", 4, "team-a", 5 * GIB)
    assert str(refused.value) == (
        "principal 'team-a' has 3 volumes of 11 GiB in sum, quota 12 GiB; 'db' needs 5 GiB more"
    )
    assert refused.value.details["used_bytes"] == 11 * GIB
    assert registry.used("team-a") == (3, 11 * GIB)
    with pytest.raises(NotFound):
        state.locate(registry.kv, "db")
    registry.claim("db", 4, "team-a", GIB)
    with pytest.raises(LimitExceeded, match=r"'team-a' has 4 volumes, quota 4; 'fifth' would be one more"):
        registry.claim("fifth", 5, "team-a", 1)
    registry.claim("fifth", 5, "team-b", GIB)
    with pytest.raises(LimitExceeded, match=r"has 4 volumes of 12 GiB in sum, .* 'v1' needs 1 GiB more"):
        registry.charge("v1", 1, 3 * GIB, "team-a")
    registry("release", name="v2", group="m1", id=2)
    registry.charge("v1", 1, 3 * GIB, "team-a")
    assert registry.used("team-a") == (3, 9 * GIB)


def test_a_quota_takes_nothing_away(registry: Registry) -> None:
    registry.claim("v", 1, "a", 4 * GIB)
    row = registry("set_quota", principal="a", capacity=GIB, volumes=None)
    limits = {"capacity": GIB, "volumes": None}
    assert row == {"principal": "a", **limits, "used_bytes": 4 * GIB, "used_volumes": 1}
    registry.claim("v", 1, "a", 4 * GIB)  # sent again
    registry.charge("v", 1, 3 * GIB)  # less is no question
    with pytest.raises(LimitExceeded, match="no volumes of 0 bytes in sum, quota 0 bytes; 'w' needs 1 GiB"):
        registry("set_quota", principal="b", capacity=0, volumes=None)
        registry.claim("w", 2, "b", GIB)
    assert registry("remove_quota", principal="a")["capacity"] is None
    registry.charge("v", 1, 9 * GIB)
    with pytest.raises(NotFound, match="'a' has no quota"):
        registry("remove_quota", principal="a")


def test_sent_again_or_late_counts_once(registry: Registry) -> None:
    registry.claim("v", 1, "a", GIB)
    registry.charge("v", 1, 3 * GIB)
    registry.claim("v", 1, "a", GIB)
    assert registry.used() == (1, 3 * GIB)
    registry.charge("v", 1, 5 * GIB, count=50)
    registry.charge("v", 1, 5 * GIB, count=50)
    with pytest.raises(Stale, match="comes too late"):
        registry.charge("v", 1, 4 * GIB, count=49)
    registry.settle(["v", 1, "a", 2 * GIB], term=2, count=1)
    with pytest.raises(Stale, match="in term 2"):
        registry.charge("v", 1, 9 * GIB, count=51)
    assert registry.used() == (1, 2 * GIB)
    registry("release", name="v", group="m1", id=1)
    registry("release", name="v", group="m1", id=1)
    assert registry.used() == (0, 0) and registry.kv.get("charged/a") is None
    with pytest.raises(NotFound, match="deleted"):
        registry.charge("v", 1, GIB, term=3)


def test_names_of_others_are_left_alone(registry: Registry) -> None:
    registry.claim("v", 5, "a", GIB)
    registry.claim("w", 6, "a", GIB, group="m2")
    registry.settle(["v", 4, "a", 9 * GIB], ["w", 6, "a", 9 * GIB], ["x", 1, "a", 9 * GIB])
    assert registry.used() == (2, 2 * GIB)
    with pytest.raises(NameTaken):
        registry.claim("w", 7, "a", GIB)
    registry.claim("v", 7, "b", 3 * GIB)  # a later volume of the name: its release was overtaken
    assert registry.used() == (1, GIB) and registry.used("b") == (1, 3 * GIB)


def test_what_was_claimed_before_quotas_is_counted_when_it_is_told(registry: Registry) -> None:
    registry("claim", name="old", kind="volume", group="m1", id=1)
    registry("claim", name="photos", kind="bucket", group="m1", id=2)
    assert registry.kv.get("name/old") == {"group": "m1", "kind": "volume", "id": 1}
    registry("set_quota", principal="a", capacity=GIB, volumes=0)
    registry.settle(["old", 1, "a", 2 * GIB])
    assert registry.used() == (1, 2 * GIB)
    assert state.locate(registry.kv, "old") == {"group": "m1", "kind": "volume", "id": 1}


@pytest.mark.parametrize(
    ("op", "fields", "words"),
    [
        ("set_quota", {"principal": "A b"}, "bad principal 'A b'"),
        ("set_quota", {"principal": "a", "capacity": -1}, "bad capacity '-1'"),
        ("set_quota", {"principal": "a", "volumes": True}, "bad volumes"),
        ("set_quota", {"principal": "a", "volumes": "5"}, "bad volumes"),
        ("remove_quota", {}, "bad principal"),
        (
            "claim_charged",
            {"name": "v", "kind": "volume", "group": "m1", "id": 1, "size": 5},
            "bad principal",
        ),
        ("settle", {"group": "m1", "term": 1, "count": 1}, "give a list"),
        ("settle", {"group": "m1", "term": 1, "count": 1, "charges": [["v", 1]]}, "name, id, principal"),
        ("settle", {"group": "m1", "term": None, "count": 1, "charges": []}, "bad term"),
        ("charge", {"group": "m1", "term": 1, "count": "x"}, "bad count"),
    ],
)
def test_what_is_no_command(registry: Registry, op: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        registry(op, **fields)
    assert not list(registry.kv.scan(""))


def test_quotas_are_limited(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "QUOTAS_MAX", 2)
    for name in ("a", "b", "a"):
        registry("set_quota", principal=name, capacity=1, volumes=1)
    with pytest.raises(LimitExceeded, match="which is the most"):
        registry("set_quota", principal="c", capacity=1, volumes=1)
    assert [row["principal"] for row in quota.rows(registry.kv, "", 1)] == ["a"]
    assert [row["principal"] for row in quota.rows(registry.kv, "a", 500)] == ["b"]


@pytest.mark.parametrize("seed", range(12))
def test_sums_are_those_of_the_names_and_no_growth_passes_a_quota(seed: int) -> None:
    rng, registry, identity = random.Random(seed), Registry(), 0
    for _ in range(400):
        before = {row["principal"]: row for row in quota.rows(registry.kv, "", 500)}
        op = rng.choice(["claim"] * 4 + ["release", "release", "charge", "charge", "settle", "set", "old"])
        name, principal = f"v{rng.randint(1, 9)}", rng.choice("abc")
        row = registry.kv.get(f"name/{name}") or {"id": identity}
        identity += rng.random() < 0.7
        number = rng.choice([row["id"], identity])
        size = rng.randint(0, 20)
        try:
            if op == "claim":
                registry.claim(name, number, principal, size, rng.choice(["m1", "m1", "m2"]))
            elif op == "old":
                registry("claim", name=name, kind="volume", group="m1", id=number)
            elif op == "release":
                registry("release", name=name, group="m1", id=number)
            elif op == "charge":
                registry.charge(name, number, size, row.get("principal", principal))
            elif op == "settle":
                registry.settle([name, number, principal, size])
            else:
                limits = {key: rng.choice([None, rng.randint(0, 60)]) for key in ("capacity", "volumes")}
                registry("set_quota", principal=principal, **limits)
        except (LimitExceeded, NotFound, NameTaken):
            assert {row["principal"]: row for row in quota.rows(registry.kv, "", 500)} == before
        _check(registry, before, op)


def _check(registry: Registry, before: dict[str, Any], op: str) -> None:
    rows = [value for _, value in registry.kv.scan("name/") if "size" in value]
    for found in quota.rows(registry.kv, "", 500):
        mine = [row["size"] for row in rows if row["principal"] == found["principal"]]
        assert (found["used_volumes"], found["used_bytes"]) == (len(mine), sum(mine))
        if op in ("claim", "charge"):
            was = before.get(found["principal"], {"used_volumes": 0, "used_bytes": 0})
            for used, limit in (("used_volumes", "volumes"), ("used_bytes", "capacity")):
                assert found[limit] is None or found[used] <= max(found[limit], was[used])
