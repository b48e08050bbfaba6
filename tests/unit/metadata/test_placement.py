"""Placement: the rules, their order, and what a refusal says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from moorage.metadata.placement import (
    ROOM_MIN,
    Choice,
    Cluster,
    cluster_from_view,
    groups_default,
    place,
    place_replacement,
    replica_share,
)
from moorage.wire.errors import NoSpace, NotEnoughHosts

GIB = 1 << 30
MIB = 1 << 20


def view(count: int = 3, **hosts: dict[str, Any]) -> dict[str, Any]:
    """host1..hostN, one device each; keyword ``host2={...}`` changes host and device alike."""
    result: dict[str, Any] = {"hosts": {}, "devices": {}, "services": [], "groups": ["m1"]}
    for number in range(1, count + 1):
        name = f"host{number}"
        change = hosts.get(name, {})
        health = {"health": "up", "reason": "", "since_ms": 0}
        host = {"labels": {}, "address": "a:1", "http": ""} | health
        device = {"host": name, "address": "a:1", "capacity": 100 * GIB, "used": 0, "token": "t"} | health
        result["hosts"][name] = {**host, **{key: change[key] for key in change.keys() & host.keys()}}
        result["devices"][f"dev{number}"] = {
            **device,
            **{k: change[k] for k in change.keys() & device.keys()},
        }
    return result


def cluster(count: int = 3, provisioned: dict[str, int] | None = None, **hosts: dict[str, Any]) -> Cluster:
    return cluster_from_view(view(count, **hosts), provisioned or {})


DOWN = {"health": "down", "reason": "silent for 14 s"}


def test_three_hosts_get_a_replica_each() -> None:
    placed = place(cluster(), size=GIB, replicas=3, groups=2)
    assert [{choice.host for choice in group} for group in placed] == [{"host1", "host2", "host3"}] * 2


def test_refusal_has_numbers_and_reasons() -> None:
    with pytest.raises(NotEnoughHosts) as caught:
        place(cluster(host3=DOWN), size=GIB, replicas=3, groups=1)
    assert str(caught.value) == (
        "needs 3 distinct hosts, 2 are up: host3 down (silent for 14 s): "
        "start hosts, or ask for fewer replicas"
    )
    assert caught.value.details == {"needs": 3, "up": 2}


def test_refusal_tells_a_host_without_a_device_and_a_failed_device() -> None:
    seen = view(3)
    del seen["devices"]["dev1"]
    seen["devices"]["dev2"].update(health="failed", reason="fsync: EIO")
    with pytest.raises(
        NotEnoughHosts, match=r"1 is up: host1 has no device, host2: its device dev2 is failed"
    ):
        place(cluster_from_view(seen, {}), size=GIB, replicas=3, groups=1)


def test_device_of_an_unknown_host_is_not_used() -> None:
    seen = view(3)
    del seen["hosts"]["host3"]
    with pytest.raises(NotEnoughHosts, match="2 are up"):
        place(cluster_from_view(seen, {}), size=GIB, replicas=3, groups=1)


def test_suspect_hosts_get_nothing_new() -> None:
    with pytest.raises(NotEnoughHosts, match="host2 suspect"):
        place(cluster(host2={"health": "suspect", "reason": ""}), size=GIB, replicas=3, groups=1)


def test_two_devices_of_a_host_are_one_host() -> None:
    seen = view(2)
    seen["devices"]["dev9"] = {**seen["devices"]["dev2"]}
    with pytest.raises(NotEnoughHosts, match="needs 3 distinct hosts, 2 are up"):
        place(cluster_from_view(seen, {}), size=GIB, replicas=3, groups=1)


def test_full_devices_are_refused_with_what_they_have() -> None:
    full = {"used": 100 * GIB - 3 * MIB}
    with pytest.raises(NoSpace) as caught:
        place(cluster(host2=full), size=GIB, replicas=3, groups=1)
    assert str(caught.value).startswith(
        "needs 3 distinct hosts with 64 MiB free, 2 have it: host2 has 3 MiB: delete or discard data"
    )


def test_room_at_the_limit_and_just_past_it() -> None:
    at = {"used": 100 * GIB - ROOM_MIN}
    assert place(cluster(host2=at), size=GIB, replicas=3, groups=1)
    with pytest.raises(NoSpace):
        place(cluster(host2={"used": 100 * GIB - ROOM_MIN + 1}), size=GIB, replicas=3, groups=1)


def test_small_volume_needs_little_room() -> None:
    assert place(cluster(host2={"used": 100 * GIB - MIB}), size=MIB, replicas=3, groups=1)


def test_volumes_are_thin() -> None:
    assert place(cluster(), size=64 << 40, replicas=3, groups=64)


def test_full_host_is_passed_over_when_there_are_others() -> None:
    placed = place(cluster(4, host2={"used": 100 * GIB}), size=GIB, replicas=3, groups=4)
    assert all({c.host for c in group} == {"host1", "host3", "host4"} for group in placed)


def test_least_loaded_device_is_taken_first() -> None:
    placed = place(cluster(5, {"dev1": 90 * GIB, "dev2": 80 * GIB}), size=GIB, replicas=3, groups=1)
    assert {choice.device for choice in placed[0]} == {"dev3", "dev4", "dev5"}


def test_load_counts_by_capacity() -> None:
    seen = view(2)
    seen["devices"]["dev2"]["capacity"] = 1000 * GIB
    placed = place(cluster_from_view(seen, {}), size=GIB, replicas=1, groups=11)
    assert Counter(group[0].device for group in placed) == {"dev2": 10, "dev1": 1}


def test_one_huge_device_does_not_hold_two_replicas_of_a_group() -> None:
    seen = view(3)
    seen["devices"]["dev2"]["capacity"] = 10_000 * GIB
    seen["devices"]["dev9"] = {**seen["devices"]["dev2"]}  # and its host has another one
    for group in place(cluster_from_view(seen, {}), size=GIB, replicas=3, groups=9):
        assert sorted(choice.host for choice in group) == ["host1", "host2", "host3"]


def test_among_equals_the_emptier_device_is_taken() -> None:
    placed = place(cluster(2, host1={"used": GIB}), size=GIB, replicas=1, groups=1)
    assert placed == [[Choice("dev2", "host2")]]


def test_groups_are_spread_evenly() -> None:
    placed = place(cluster(6), size=64 * GIB, replicas=3, groups=64)
    used = Counter(choice.device for group in placed for choice in group)
    assert set(used.values()) == {32}


def test_racks_are_spread_when_possible() -> None:
    labels = {f"host{n}": {"labels": {"rack": f"r{(n - 1) // 2}"}} for n in range(1, 7)}
    for group in place(cluster(6, **labels), size=GIB, replicas=3, groups=8):
        assert {(int(choice.host[4:]) - 1) // 2 for choice in group} == {0, 1, 2}


def test_sites_come_before_racks() -> None:
    where = [("a", "r1"), ("a", "r2"), ("a", "r3"), ("b", "r1"), ("b", "r1")]
    labels = {f"host{n}": {"labels": {"site": s, "rack": r}} for n, (s, r) in enumerate(where, 1)}
    for group in place(cluster(5, **labels), size=GIB, replicas=3, groups=6):
        chosen = [where[int(choice.host[4:]) - 1] for choice in group]
        assert {site for site, _ in chosen} == {"a", "b"}
        assert len(set(chosen)) == 3  # r1 of b is another rack than r1 of a


def test_one_rack_does_not_forbid() -> None:
    labels = {f"host{n}": {"labels": {"rack": "r1"}} for n in range(1, 4)}
    assert place(cluster(3, **labels), size=GIB, replicas=3, groups=1)


@pytest.mark.parametrize(
    ("hosts", "replicas", "size", "groups"),
    [
        (3, 3, GIB, 1),
        (5, 3, GIB, 1),
        (6, 3, GIB, 2),
        (9, 3, GIB, 3),
        (99, 3, GIB, 8),
        (9, 3, MIB, 1),
        (9, 3, 8 * MIB, 2),
        (1, 1, GIB, 1),
        (0, 3, GIB, 1),
        (12, 5, GIB, 2),
    ],
)
def test_default_number_of_groups(hosts: int, replicas: int, size: int, groups: int) -> None:
    assert groups_default(cluster(hosts), size, replicas) == groups


@pytest.mark.parametrize(
    ("size", "groups", "share"),
    [(MIB, 1, MIB), (4 * MIB, 1, 4 * MIB), (12 * MIB, 2, 8 * MIB), (MIB, 64, MIB), (GIB, 64, 16 * MIB)],
)
def test_share_of_a_replica(size: int, groups: int, share: int) -> None:
    assert replica_share(size, groups) == share


def test_same_input_same_plan() -> None:
    rng = random.Random(7)
    for _ in range(50):
        count = rng.randint(3, 9)
        hosts = {
            f"host{n}": {"used": rng.randrange(50 * GIB), "labels": {"rack": f"r{rng.randint(0, 3)}"}}
            for n in range(1, count + 1)
        }
        size, groups = rng.randint(1, 64) * GIB, rng.randint(1, 9)
        plans = [place(cluster(count, **hosts), size=size, replicas=3, groups=groups) for _ in range(2)]
        assert plans[0] == plans[1]
        assert len(plans[0]) == groups
        for group in plans[0]:
            assert len({choice.host for choice in group}) == 3


def test_replacement_goes_to_another_host_in_another_rack() -> None:
    racks = {1: "a", 2: "b", 3: "c", 4: "b", 5: "c"}
    labels = {f"host{n}": {"labels": {"rack": rack}} for n, rack in racks.items()}
    choice = place_replacement(cluster(5, **labels), size=GIB, groups=1, keep=["host1", "host2"])
    assert choice.host in ("host3", "host5")


def test_replacement_without_a_host_says_why() -> None:
    with pytest.raises(
        NotEnoughHosts, match=r"besides host1, host2, none is up: host3 down \(silent for 14 s\)"
    ):
        place_replacement(cluster(3, host3=DOWN), size=GIB, groups=1, keep=["host1", "host2"])
    with pytest.raises(NoSpace, match="needs 1 distinct hosts"):
        place_replacement(cluster(3, host3={"used": 100 * GIB}), size=GIB, groups=1, keep=["host1", "host2"])
