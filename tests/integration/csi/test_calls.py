"""Calls in any order, repeated, with bad arguments: each ends with the code that the specification wants."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import MakeDriver
from .support import Client, capability

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
WRITER = capability()
SHARING = capability("SINGLE_NODE_MULTI_WRITER")
READER = capability("MULTI_NODE_READER_ONLY")
ONE = {"replicas": "1"}  # the cluster has one host
NEW = {"size": "64M", "replicas": "1"}


@dataclass
class Row:
    """One call, the code it ends with, and what the message must say."""

    call: str
    code: str
    fields: dict[str, Any]
    says: str = ""


def row(call: str, code: str, says: str = "", /, **fields: Any) -> Row:
    return Row(call, code, fields, says)


async def check(client: Client, rows: list[Row]) -> None:
    """All of them, in this order; what is wrong is told at once."""
    wrong = []
    for number, each in enumerate(rows):
        code, answer = await client.call(each.call, **each.fields)
        if code != each.code or (each.says and each.says not in str(answer)):
            wrong.append(
                f"row {number}, {each.call} {each.fields}: {code} {answer}, not {each.code} {each.says}"
            )
    assert not wrong, "\n".join(wrong)


def of_the_controller() -> list[Row]:
    def create(code: str, says: str = "", /, name: str = "c1", **fields: Any) -> Row:
        fields = {"volume_capabilities": [WRITER], "parameters": ONE, **fields}
        return row("CreateVolume", code, says, name=name, **fields)

    def size(required: int = 0, limit: int = 0) -> dict[str, Any]:
        return {"capacity_range": {"required_bytes": required, "limit_bytes": limit}}

    def expand(code: str, says: str = "", /, **fields: Any) -> Row:
        return row("ControllerExpandVolume", code, says, **{"volume_id": "c1", **fields})

    def validate(says: str, /, **fields: Any) -> Row:
        fields = {"volume_id": "c1", "volume_capabilities": [WRITER], **fields}
        return row("ValidateVolumeCapabilities", "OK", says, **fields)

    return [
        # create: what is wrong as it is
        create("INVALID_ARGUMENT", "name is missing", name=""),
        create("INVALID_ARGUMENT", "128 bytes", name="n" * 129),
        create("INVALID_ARGUMENT", "control characters", name="a\x07b"),
        create("INVALID_ARGUMENT", "capabilities are missing", volume_capabilities=[]),
        create("INVALID_ARGUMENT", "access_mode", volume_capabilities=[{"mount": {}}]),
        create("INVALID_ARGUMENT", "access type", volume_capabilities=[{"access_mode": {"mode": 1}}]),
        create("INVALID_ARGUMENT", "one writer", volume_capabilities=[capability("MULTI_NODE_MULTI_WRITER")]),
        create(
            "INVALID_ARGUMENT",
            "one writer",
            volume_capabilities=[WRITER, capability("MULTI_NODE_SINGLE_WRITER")],
        ),
        create(
            "INVALID_ARGUMENT",
            "access mode 99",
            volume_capabilities=[{"mount": {}, "access_mode": {"mode": 99}}],
        ),
        create("INVALID_ARGUMENT", "'ntfs'", volume_capabilities=[capability(fs="ntfs")]),
        create(
            "INVALID_ARGUMENT",
            "ext4 and xfs",
            volume_capabilities=[capability(fs="xfs"), capability(fs="ext4")],
        ),
        create("INVALID_ARGUMENT", "4096 bytes", volume_capabilities=[capability(flags=("x" * 4097,))]),
        create("INVALID_ARGUMENT", "unknown keys color", parameters={"color": "red"}),
        create("INVALID_ARGUMENT", "replicas=2", parameters={"replicas": "2"}),
        create("INVALID_ARGUMENT", "whole number", parameters={"replicas": "many"}),
        create("INVALID_ARGUMENT", "groups=65", parameters={**ONE, "groups": "65"}),
        create("INVALID_ARGUMENT", "durability", parameters={**ONE, "durability": "never"}),
        create("INVALID_ARGUMENT", "not a size", parameters={**ONE, "size": "big"}),
        create("INVALID_ARGUMENT", "bw=50: use", parameters={**ONE, "bw": "50"}),
        create("INVALID_ARGUMENT", "iops=99999999: use", parameters={**ONE, "iops": "99999999"}),
        create("INVALID_ARGUMENT", "'A B' is not", parameters={**ONE, "principal": "A B"}),
        create("INVALID_ARGUMENT", "negative", **size(-1)),
        create(
            "INVALID_ARGUMENT", "volume_content_source", volume_content_source={"volume": {"volume_id": "x"}}
        ),
        create("OUT_OF_RANGE", "more than its limit", **size(2 * MIB, MIB)),
        create("OUT_OF_RANGE", "no size", **size(65 << 40)),
        create("OUT_OF_RANGE", "no size", **size(MIB + 1, MIB + 2)),
        create("OUT_OF_RANGE", "no size", **size(0, 4096)),
        create("RESOURCE_EXHAUSTED", "hosts", parameters={"replicas": "3"}),
        # nothing of that was created; what is there is found again, or differs
        row("DeleteVolume", "OK", volume_id="c1"),
        row("ListVolumes", "OK"),
        create("OK", 'volume_id: "c1"', **size(16 * MIB)),
        create("OK", "capacity_bytes: 16777216", **size(16 * MIB)),
        create("OK", **size(8 * MIB, 32 * MIB)),
        create("INVALID_ARGUMENT", "block", volume_capabilities=[capability(block=True)]),
        create("OK", parameters={**ONE, "storage.kubernetes.io/pv": "ignored"}),
        create("ALREADY_EXISTS", "has 16777216 bytes", **size(17 * MIB)),
        create("ALREADY_EXISTS", "has 16777216 bytes", **size(MIB, 2 * MIB)),
        create("ALREADY_EXISTS", "has 16777216 bytes", parameters={**ONE, "size": "17M"}),
        create("ALREADY_EXISTS", "has 1 replicas", parameters={"replicas": "3"}),
        create("ALREADY_EXISTS", "durability sync", parameters={**ONE, "durability": "writeback"}),
        create("ALREADY_EXISTS", "1 groups", parameters={**ONE, "groups": "2"}),
        create("ALREADY_EXISTS", "has iops 0", parameters={**ONE, "iops": "5"}),
        create("ALREADY_EXISTS", "has bw 0", parameters={**ONE, "bw": "5M"}),
        create("ALREADY_EXISTS", "of principal default", parameters={**ONE, "principal": "other"}),
        create("OK", 'volume_id: "pvc-a', name="PVC A/ü"),
        create("OK", 'volume_id: "pvc-a', name="PVC A/ü"),
        create("OK", "", name="xf", volume_capabilities=[capability(fs="xfs")], **size(MIB)),
        create("ALREADY_EXISTS", "is for xfs", name="xf", volume_capabilities=[capability(fs="ext4")]),
        # list
        row("ListVolumes", "OK", 'volume_id: "c1"'),
        row("ListVolumes", "OK", 'next_token: "c1"', max_entries=1),
        row("ListVolumes", "OK", 'volume_id: "xf"', max_entries=2, starting_token="c1"),
        row("ListVolumes", "ABORTED", "begin again", starting_token="No Name"),
        row("ListVolumes", "INVALID_ARGUMENT", "max_entries", max_entries=-1),
        # validate
        row("ValidateVolumeCapabilities", "INVALID_ARGUMENT", "volume_id", volume_capabilities=[WRITER]),
        row("ValidateVolumeCapabilities", "INVALID_ARGUMENT", "missing", volume_id="c1"),
        row(
            "ValidateVolumeCapabilities",
            "NOT_FOUND",
            "nobody",
            volume_id="nobody",
            volume_capabilities=[WRITER],
        ),
        validate("confirmed"),
        validate("confirmed", volume_capabilities=[WRITER, READER, SHARING], volume_context={"owner": "1:1"}),
        validate("one writer", volume_capabilities=[capability("MULTI_NODE_MULTI_WRITER")]),
        validate("unknown keys", volume_context={"color": "red"}),
        validate("has 1 replicas", parameters={"replicas": "5"}),
        # capacity
        row("GetCapacity", "OK", "available_capacity", parameters=ONE),
        row("GetCapacity", "OK", "maximum_volume_size"),
        row("GetCapacity", "INVALID_ARGUMENT", "unknown keys", parameters={"color": "red"}),
        row("GetCapacity", "INVALID_ARGUMENT", "replicas=0", parameters={"replicas": "0"}),
        # expand
        expand("INVALID_ARGUMENT", "volume_id", volume_id="", **size(MIB)),
        expand("INVALID_ARGUMENT", "capacity_range"),
        expand(
            "INVALID_ARGUMENT",
            "one writer",
            volume_capability=capability("MULTI_NODE_MULTI_WRITER"),
            **size(MIB),
        ),
        expand("NOT_FOUND", "nobody", volume_id="nobody", **size(MIB)),
        expand("OUT_OF_RANGE", "no size", **size(65 << 40)),
        expand("OUT_OF_RANGE", "only grows", **size(MIB, 2 * MIB)),
        expand("OK", "node_expansion_required: true", **size(17 * MIB)),
        expand("OK", "capacity_bytes: 17825792", **size(17 * MIB)),
        expand("OK", "capacity_bytes: 17825792", **size(MIB)),
        # delete
        row("DeleteVolume", "INVALID_ARGUMENT", "volume_id"),
        row("DeleteVolume", "OK", volume_id="No Such Volume"),
        row("DeleteVolume", "OK", volume_id="c1"),
        row("DeleteVolume", "OK", volume_id="c1"),
    ]


def of_the_node(at: Path) -> list[Row]:
    """``at`` has a directory ``stage`` and a file ``file``."""

    def publish(code: str, says: str = "", /, target: str = "a", **fields: Any) -> Row:
        fields = {"volume_id": "v1", "volume_capability": WRITER, "volume_context": NEW, **fields}
        return row("NodePublishVolume", code, says, **{"target_path": f"{at}/{target}", **fields})

    def unpublish(code: str, says: str = "", /, target: str = "a", **fields: Any) -> Row:
        fields = {"volume_id": "v1", "target_path": f"{at}/{target}", **fields}
        return row("NodeUnpublishVolume", code, says, **fields)

    def stage(code: str, says: str = "", /, **fields: Any) -> Row:
        fields = {"volume_id": "v1", "volume_capability": SHARING, **fields}
        return row("NodeStageVolume", code, says, **{"staging_target_path": f"{at}/stage", **fields})

    def unstage(code: str, says: str = "", /, **fields: Any) -> Row:
        fields = {"volume_id": "v1", "staging_target_path": f"{at}/stage", **fields}
        return row("NodeUnstageVolume", code, says, **fields)

    def stats(code: str, says: str = "", /, path: str = "a", volume: str = "v1") -> Row:
        return row(
            "NodeGetVolumeStats", code, says, volume_id=volume, volume_path=f"{at}/{path}" if path else ""
        )

    staged = {"staging_target_path": f"{at}/stage", "volume_capability": SHARING, "volume_context": {}}
    return [
        # what is wrong as it is
        publish("INVALID_ARGUMENT", "volume_id is missing", volume_id=""),
        publish("INVALID_ARGUMENT", "not a volume name", volume_id="../etc"),
        publish("INVALID_ARGUMENT", "target_path is missing", target_path=""),
        publish("INVALID_ARGUMENT", "absolute", target_path="relative"),
        publish("INVALID_ARGUMENT", "access_mode", volume_capability=None),
        publish("INVALID_ARGUMENT", "access type", volume_capability={"access_mode": {"mode": 1}}),
        publish("INVALID_ARGUMENT", "unknown keys", volume_context={"color": "red"}),
        publish("INVALID_ARGUMENT", "force='yes'", volume_context={"force": "yes"}),
        publish("INVALID_ARGUMENT", "owner='me'", volume_context={"owner": "me"}),
        publish("INVALID_ARGUMENT", "absolute", staging_target_path="relative"),
        publish("INVALID_ARGUMENT", "replicas=2", volume_context={"size": "64M", "replicas": "2"}),
        publish("FAILED_PRECONDITION", "one writer", volume_capability=capability("MULTI_NODE_MULTI_WRITER")),
        publish("FAILED_PRECONDITION", "block", volume_capability=capability(block=True)),
        publish("FAILED_PRECONDITION", "'ntfs'", volume_capability=capability(fs="ntfs")),
        publish("FAILED_PRECONDITION", "not staged", **staged),
        publish("FAILED_PRECONDITION", "does not exist", target="no/such/directory"),
        publish("FAILED_PRECONDITION", "not a directory", target="file"),
        publish("FAILED_PRECONDITION", "proc", target_path="/proc"),
        publish("NOT_FOUND", "size=10G", volume_context={}, volume_id="nobody"),
        publish("RESOURCE_EXHAUSTED", "hosts", volume_context={"size": "64M"}, volume_id="v3"),
        stage("INVALID_ARGUMENT", "staging_target_path", staging_target_path=""),
        stage("INVALID_ARGUMENT", "access_mode", volume_capability=None),
        stage("NOT_FOUND", "nobody", volume_id="nobody"),
        stage("FAILED_PRECONDITION", "does not exist", staging_target_path=f"{at}/none", volume_context=NEW),
        stats("INVALID_ARGUMENT", "volume_path is missing", path=""),
        stats("NOT_FOUND", "not published"),
        # take back what is not there
        unpublish("INVALID_ARGUMENT", "volume_id", volume_id=""),
        unpublish("INVALID_ARGUMENT", "target_path", target_path=""),
        unpublish("OK"),
        unpublish("OK", volume_id="nobody"),
        unpublish("OK", volume_id="No Name"),
        unstage("INVALID_ARGUMENT", "volume_id", volume_id=""),
        unstage("INVALID_ARGUMENT", "staging_target_path", staging_target_path=""),
        unstage("OK"),
        # publish alone creates and mounts; again; elsewhere; otherwise
        publish("OK"),
        publish("OK"),
        publish("ALREADY_EXISTS", "in another way", readonly=True),
        publish("ALREADY_EXISTS", "in another way", volume_capability=SHARING),
        publish("ALREADY_EXISTS", "in another way", volume_context={**NEW, "size": "65M"}),
        publish("OK", volume_context={**NEW, "force": "true"}),
        publish("FAILED_PRECONDITION", "allows for one target", target="b"),
        publish("FAILED_PRECONDITION", "allows for one target", target="b", volume_capability=SHARING),
        publish("FAILED_PRECONDITION", "is a mount point already", volume_id="v2"),
        stage("FAILED_PRECONDITION", f"published at {at}/a already"),
        stats("OK", "unit: INODES"),
        stats("NOT_FOUND", "not published", path="b"),
        stats("NOT_FOUND", "not published", volume="v2"),
        row("DeleteVolume", "FAILED_PRECONDITION", "held by", volume_id="v1"),
        unpublish("OK", target="b"),
        unpublish("OK", volume_id="v2"),
        stats("OK", "unit: BYTES"),
        unstage("OK"),
        stats("OK"),
        unpublish("OK"),
        unpublish("OK"),
        stats("NOT_FOUND"),
        # readers want what is at rest; several targets
        publish("OK", volume_capability=READER, volume_context={}),
        publish("OK", volume_capability=READER, volume_context={}, target="b"),
        publish("FAILED_PRECONDITION", volume_capability=WRITER, volume_context={}, target="c"),
        publish(
            "FAILED_PRECONDITION",
            "in another way",
            volume_capability=capability("MULTI_NODE_READER_ONLY", fs="xfs"),
            target="c",
        ),
        unpublish("OK"),
        stats("OK", path="b"),
        unpublish("OK", target="b"),
        publish(
            "FAILED_PRECONDITION", "holds ext4", volume_capability=capability(fs="xfs"), volume_context={}
        ),
        # stage, publish, and back
        stage("OK"),
        stage("OK"),
        stage("ALREADY_EXISTS", "in another way", volume_capability=WRITER),
        stage("FAILED_PRECONDITION", "staged at", staging_target_path=f"{at}/stage2"),
        publish("OK", **staged),
        publish("OK", **staged),
        publish("OK", **staged, target="b", readonly=True),
        publish(
            "FAILED_PRECONDITION",
            "not staged",
            **{**staged, "staging_target_path": f"{at}/stage2"},
            target="c",
        ),
        stats("OK", path="stage"),
        unstage("FAILED_PRECONDITION", "still published"),
        row("NodeExpandVolume", "NOT_FOUND", "not published", volume_id="v1", volume_path=f"{at}/c"),
        row("NodeExpandVolume", "INVALID_ARGUMENT", "volume_path", volume_id="v1"),
        row("NodeExpandVolume", "OK", "capacity_bytes: 67108864", volume_id="v1", volume_path=f"{at}/a"),
        unpublish("OK"),
        unstage("FAILED_PRECONDITION", "still published"),
        unpublish("OK", target="b"),
        unstage("OK", staging_target_path=f"{at}/stage2"),
        stats("OK", path="stage"),
        unstage("OK"),
        unstage("OK"),
        row("DeleteVolume", "OK", volume_id="v1"),
        publish("NOT_FOUND", "there is no volume", volume_context={}),
    ]


async def test_what_the_controller_answers(make_driver: MakeDriver) -> None:
    rows = of_the_controller()
    assert len(rows) >= 60
    await check((await make_driver()).client, rows)


async def test_what_the_node_answers(make_driver: MakeDriver, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage2").mkdir()
    (tmp_path / "file").touch()
    driver = await make_driver()
    await check(driver.client, of_the_node(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["file", "stage", "stage2"]
    assert [path.name for path in (driver.state / "csi").iterdir()] == ["lock", "at"]
    assert list((driver.state / "csi" / "at").iterdir()) == []


async def test_what_it_says_of_itself(make_driver: MakeDriver) -> None:
    client = (await make_driver()).client
    info = await client.ok("GetPluginInfo")
    assert info.name == "org.moorage.csi" and info.vendor_version
    services = {each.service.type for each in (await client.ok("GetPluginCapabilities")).capabilities}
    assert 1 in services, "it has a controller"
    assert (await client.ok("Probe")).ready.value
    assert {each.rpc.type for each in (await client.ok("ControllerGetCapabilities")).capabilities} >= {1}
    node = await client.ok("NodeGetInfo")
    assert node.node_id and node.node_id == (await client.ok("NodeGetInfo")).node_id


async def test_what_is_not_offered_is_unimplemented(make_driver: MakeDriver) -> None:
    client = (await make_driver()).client
    for path in (
        "Controller/CreateSnapshot",
        "Controller/ControllerPublishVolume",
        "GroupController/CreateVolumeGroupSnapshot",
    ):
        assert (await client.raw(f"/csi.v1.{path}"))[0] == "UNIMPLEMENTED", path
