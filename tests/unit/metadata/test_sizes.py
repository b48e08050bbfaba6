"""The greatest replies fit into a frame, whatever the names."""

from __future__ import annotations

from typing import Any

import msgpack

from moorage.metadata import limits
from moorage.metadata.handlers import LIST_MAX, LIST_MEMBERS_MAX
from moorage.wire import capability
from moorage.wire.frame import BODY_SIZE_MAX
from moorage.wire.secret import ClusterSecret

GREATEST = (1 << 63) - 1
ADDRESS = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"


def greatest_volume(groups: int, replicas: int, address: bool = False) -> dict[str, Any]:
    """As callers see it, every field as long as its limit allows (text in one byte per character)."""
    member: dict[str, Any] = {"replica": GREATEST, "device": "d" * 64, "host": "h" * 63}
    if address:
        member["address"] = ADDRESS
    group = {"group": 63, "version": GREATEST, "members": [member] * replicas, "wish": None}
    holder = {"host": "h" * 255, "pid": (1 << 32) - 1, "program": "p" * 255, "writer": GREATEST}
    return {
        "id": GREATEST,
        "name": "n" * limits.NAME_SIZE_MAX,
        "size": limits.SIZE_MAX,
        "replicas": replicas,
        "durability": "writeback",
        "epoch": GREATEST,
        "state": "deleting",
        "groups": [group] * groups,
        "created_ms": GREATEST,
        "holder": {**holder, "recovers": False, "since_ms": GREATEST},
        "holder_alive": True,
        "iops": limits.IOPS_MAX,
        "bw": limits.BW_MAX,
        "principal": "p" * limits.NAME_SIZE_MAX,
    }


def test_greatest_page_of_a_list() -> None:
    for groups, replicas in ((2, 3), (1, 5), (1, 1), (64, 5)):
        rows = max(1, min(LIST_MAX, LIST_MEMBERS_MAX // (groups * replicas)))
        page = {"volumes": [greatest_volume(groups, replicas)] * rows, "next": "n" * 63}
        assert len(msgpack.packb(page)) < BODY_SIZE_MAX


def test_greatest_attach_and_its_capability() -> None:
    volume = greatest_volume(limits.GROUPS_MAX, 5)
    replicas = [GREATEST] * (limits.GROUPS_MAX * 6)  # with a replacement under way in every group
    signed = capability.sign(
        ClusterSecret("00112233445566ff", bytes(32)),
        capability.Capability(GREATEST, GREATEST, GREATEST, replicas, "rw", GREATEST),
    )
    assert len(signed) <= capability._SIZE_MAX
    groups = greatest_volume(limits.GROUPS_MAX, 6, address=True)["groups"]
    reply = {"volume": volume, "epoch": GREATEST, "lease_ms": 4000, "capability": signed, "groups": groups}
    assert len(msgpack.packb(reply)) < BODY_SIZE_MAX
