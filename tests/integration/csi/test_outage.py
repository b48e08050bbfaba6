"""The cluster is down: each call that needs it says so within a bound, the others go on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from moorage.cli.local_cluster import LocalCluster
from moorage.gateway.mount.unmounting import UNMOUNT_TIMEOUT_S
from tests.fsck import check_clean_at

from .conftest import MakeDriver
from .support import Driver, capability

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

BOUND_S = 35.0  # of calls that need the cluster
UNMOUNT_BOUND_S = UNMOUNT_TIMEOUT_S + 10.0
WRITER = capability()
ONE = {"replicas": "1"}  # the cluster has one host
# It waits for the cluster as long as that takes: no write fails.
NEW = {"size": "64M", "io_timeout": "0", **ONE}
AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
Row = tuple[str, dict[str, Any]]


def need_the_cluster(at: Path) -> list[Row]:
    """Each for another volume: those for one wait for each other."""
    bounds = {"capacity_range": {"required_bytes": 64 << 20}}
    use = {"volume_capability": WRITER, "volume_context": NEW}
    unknown = {"volume_id": "v5", "target_path": str(at / "v5"), "volume_capability": WRITER}
    return [
        ("CreateVolume", {"name": "v1", "volume_capabilities": [WRITER], "parameters": ONE, **bounds}),
        ("DeleteVolume", {"volume_id": "v2"}),
        ("ListVolumes", {}),
        ("GetCapacity", {"parameters": ONE}),
        ("ValidateVolumeCapabilities", {"volume_id": "there", "volume_capabilities": [WRITER]}),
        ("ControllerExpandVolume", {"volume_id": "v3", **bounds}),
        ("NodePublishVolume", {"volume_id": "v4", "target_path": str(at / "v4"), **use}),
        ("NodePublishVolume", unknown),
        ("NodeStageVolume", {"volume_id": "v6", "staging_target_path": str(at / "stage"), **use}),
        ("NodeExpandVolume", {"volume_id": "there", "volume_path": str(at / "there")}),
    ]


def need_it_not(at: Path) -> list[Row]:
    there = {"volume_id": "there", "target_path": str(at / "there")}
    return [
        ("GetPluginInfo", {}),
        ("GetPluginCapabilities", {}),
        ("Probe", {}),
        ("ControllerGetCapabilities", {}),
        ("NodeGetInfo", {}),
        ("NodeGetCapabilities", {}),
        ("NodeGetVolumeStats", {"volume_id": "there", "volume_path": str(at / "there")}),
        ("NodePublishVolume", {**there, "volume_capability": WRITER, "volume_context": NEW}),  # it is
        ("NodeUnpublishVolume", {"volume_id": "v4", "target_path": str(at / "v4")}),
        ("NodeUnstageVolume", {"volume_id": "v6", "staging_target_path": str(at / "stage")}),
        ("DeleteVolume", {"volume_id": "No Such Volume"}),
    ]


async def timed(driver: Driver, row: Row) -> tuple[str, float, Any]:
    """The code, the seconds that it took, and the answer."""
    began = time.monotonic()
    code, answer = await driver.client.call(row[0], **row[1])
    return code, time.monotonic() - began, answer


async def test_a_cluster_that_is_down_and_comes_back(
    make_driver: MakeDriver, local: LocalCluster, tmp_path: Path
) -> None:
    driver, at = await make_driver(), tmp_path
    (at / "stage").mkdir()
    there = {"volume_id": "there", "target_path": str(at / "there")}
    await driver.client.ok("NodePublishVolume", **there, volume_capability=WRITER, volume_context=NEW)
    (at / "there" / "file").write_text("before")
    (host,) = local.hosts
    await host.kill()

    rows = need_the_cluster(at)
    for round_ in range(2):  # asked again, each says the same
        answers = await asyncio.gather(*(timed(driver, row) for row in rows))
        wrong = [
            (row, answer)
            for row, answer in zip(rows, answers, strict=True)
            if answer[0] not in AWAY or answer[1] > BOUND_S or not answer[2]
        ]
        assert not wrong, (round_, wrong)
    for row in need_it_not(at):
        code, seconds, answer = await timed(driver, row)
        assert code == "OK" and seconds < BOUND_S / 5, (row, code, seconds, answer)
    assert not (await driver.client.ok("Probe")).ready.value
    code, seconds, answer = await timed(driver, ("NodeUnpublishVolume", there))
    assert (code, seconds < UNMOUNT_BOUND_S) == ("DEADLINE_EXCEEDED", True), (code, seconds, answer)
    assert "is not unmounted yet" in answer

    await host.launch()
    await host.wait_ready(60)
    await driver.client.ok("NodeUnpublishVolume", **there)  # what was begun comes to its end
    assert not (at / "there").exists()
    await check_clean_at(driver.environment, "there")
    for name, fields in need_the_cluster(at):
        code, answer = await driver.client.call(name, **fields)
        missing = fields.get("volume_id") in ("v3", "v5") or name == "NodeExpandVolume"
        assert code == ("NOT_FOUND" if missing else "OK"), (name, fields, code, answer)
