"""A driver's life: what it publishes stays when it ends, what a dead host held is had elsewhere."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fsck import check_clean_at

from .conftest import MakeDriver
from .support import Driver, capability

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHARING = capability("SINGLE_NODE_MULTI_WRITER")
READER = capability("MULTI_NODE_READER_ONLY")


def publication(volume: str, target: Path, **fields: Any) -> dict[str, Any]:
    context = {"size": "64M", "replicas": "1", **fields.pop("context", {})}
    wanted = {"volume_capability": capability(), "volume_context": context, **fields}
    return {"volume_id": volume, "target_path": str(target), **wanted}


def write_through(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def unpublish(driver: Driver, volume: str, target: Path) -> None:
    await driver.client.ok("NodeUnpublishVolume", volume_id=volume, target_path=str(target))
    assert not target.exists()


async def test_what_is_published_outlives_the_driver(make_driver: MakeDriver, tmp_path: Path) -> None:
    target = tmp_path / "t"
    driver = await make_driver()
    await driver.client.ok("NodePublishVolume", **publication("life", target, context={"owner": "1234:5678"}))
    assert (target.stat().st_uid, target.stat().st_gid) == (1234, 5678)
    assert stat.S_IMODE(driver.socket.stat().st_mode) == 0o600
    (target / "f").write_text("before")
    assert await driver.stop() == 0
    assert (target / "f").read_text() == "before"
    (target / "f").write_text("meanwhile")

    await driver.start()
    await driver.client.ok("NodePublishVolume", **publication("life", target, context={"owner": "1234:5678"}))
    assert (target / "f").read_text() == "meanwhile"
    await driver.stop(9)
    await driver.start()
    stats = await driver.client.ok("NodeGetVolumeStats", volume_id="life", volume_path=str(target))
    assert not stats.volume_condition.abnormal
    await unpublish(driver, "life", target)
    await driver.client.ok("NodePublishVolume", **publication("life", target, readonly=True))
    assert (target / "f").read_text() == "meanwhile"
    with pytest.raises(OSError, match="Read-only"):
        (target / "g").touch()
    await unpublish(driver, "life", target)
    await check_clean_at(driver.environment, "life")


async def test_a_second_driver_of_a_node_is_refused(make_driver: MakeDriver, tmp_path: Path) -> None:
    driver = await make_driver()
    same_state = driver.command("--endpoint", f"unix://{tmp_path}/other.sock")
    same_socket = driver.command("--state-dir", str(tmp_path / "other"))
    for command, says in ((same_state, "another CSI driver works"), (same_socket, "somebody serves")):
        run = await asyncio.to_thread(
            subprocess.run, command, env=driver.environment, capture_output=True, text=True, timeout=30
        )
        assert (run.returncode, says in run.stderr) == (6, True), run.stderr
    await driver.client.ok("Probe")


@pytest.mark.slow
async def test_takeover(make_driver: MakeDriver, tmp_path: Path) -> None:
    """Held by a living node: refused, with who; by a dead one: waited for; with force: taken, and the old one
    is fenced and says so."""
    one, two = await make_driver(node="n1"), await make_driver(node="n2")
    t1, t2 = tmp_path / "t1", tmp_path / "t2"
    await one.client.ok("NodePublishVolume", **publication("db", t1))
    write_through(t1 / "f", b"one")
    code, message = await two.client.call("NodePublishVolume", **publication("db", t2))
    assert (code, "on n1" in message, "force=true" in message) == ("FAILED_PRECONDITION", True, True), message
    assert not t2.exists()

    await one.kill_host()
    began = time.monotonic()
    await two.client.ok("NodePublishVolume", **publication("db", t2))
    assert time.monotonic() - began < 15, "the lease of a dead holder (4 s) is waited for, and no more"
    assert (t2 / "f").read_text() == "one"
    write_through(t2 / "f", b"two")

    await one.start()  # the host comes back: what it had is put right
    assert not t1.exists()
    await one.client.ok("NodePublishVolume", **publication("db", t1, context={"force": "true"}))
    assert (t1 / "f").read_text() == "two"

    async def is_lost() -> bool:
        stats = await two.client.ok("NodeGetVolumeStats", volume_id="db", volume_path=str(t2))
        return stats.volume_condition.abnormal and "n1" in stats.volume_condition.message

    async with asyncio.timeout(20):
        while not await is_lost():
            await asyncio.sleep(0.1)
    with pytest.raises(OSError):
        write_through(t2 / "f", b"late")
    await unpublish(two, "db", t2)
    await unpublish(one, "db", t1)
    await two.client.ok("NodePublishVolume", **publication("db", t2))
    assert (t2 / "f").read_text() == "two"
    await unpublish(two, "db", t2)
    await check_clean_at(two.environment, "db")


@pytest.mark.slow
async def test_a_lost_mount_is_made_anew_where_it_is_published_again(
    make_driver: MakeDriver, tmp_path: Path
) -> None:
    one, two = await make_driver(node="n1"), await make_driver(node="n2")
    t1, t2 = tmp_path / "t1", tmp_path / "t2"
    await one.client.ok("NodePublishVolume", **publication("again", t1))
    await two.client.ok("NodePublishVolume", **publication("again", t2, context={"force": "true"}))
    (t2 / "f").write_text("two")
    await unpublish(two, "again", t2)
    await one.client.ok("NodePublishVolume", **publication("again", t1))
    assert (t1 / "f").read_text() == "two"
    await unpublish(one, "again", t1)
    await check_clean_at(one.environment, "again")


@pytest.mark.slow
async def test_readers_on_two_nodes(make_driver: MakeDriver, tmp_path: Path) -> None:
    one, two = await make_driver(node="n1"), await make_driver(node="n2")
    t1, t2 = tmp_path / "t1", tmp_path / "t2"
    await one.client.ok("NodePublishVolume", **publication("lib", t1))
    (t1 / "f").write_text("text")
    code, message = await two.client.call(
        "NodePublishVolume", **publication("lib", t2, volume_capability=READER)
    )
    assert (code, "n1" in message) == ("FAILED_PRECONDITION", True), message
    await unpublish(one, "lib", t1)
    for driver, target in ((one, t1), (two, t2)):
        await driver.client.ok("NodePublishVolume", **publication("lib", target, volume_capability=READER))
        assert (target / "f").read_text() == "text"
    await unpublish(one, "lib", t1)
    await unpublish(two, "lib", t2)


@pytest.mark.slow
async def test_staging_is_asked_for(make_driver: MakeDriver, tmp_path: Path) -> None:
    driver = await make_driver("--stage")
    staging, target = tmp_path / "s", tmp_path / "t"
    staging.mkdir()
    capabilities = await driver.client.ok("NodeGetCapabilities")
    assert 1 in [each.rpc.type for each in capabilities.capabilities]
    wish = publication("staged", target, volume_capability=SHARING)
    code, message = await driver.client.call("NodePublishVolume", **wish)
    assert (code, "NodeStageVolume" in message) == ("FAILED_PRECONDITION", True)
    await driver.client.ok(
        "NodeStageVolume",
        volume_id="staged",
        staging_target_path=str(staging),
        volume_capability=SHARING,
        volume_context=wish["volume_context"],
    )
    (staging / "f").write_text("there")
    await driver.client.ok("NodePublishVolume", **wish, staging_target_path=str(staging))
    assert (target / "f").read_text() == "there"
    await driver.stop()
    await driver.start("--stage")
    await unpublish(driver, "staged", target)
    await driver.client.ok("NodeUnstageVolume", volume_id="staged", staging_target_path=str(staging))
    assert list(staging.iterdir()) == []


@pytest.mark.slow
async def test_a_volume_grows_while_it_is_published(make_driver: MakeDriver, tmp_path: Path) -> None:
    """By the node's call alone. (xfs: ext4 takes a capability that a container's root may lack.)"""
    driver, target = await make_driver(), tmp_path / "t"
    wish = publication("grow", target, volume_capability=capability(fs="xfs"), context={"size": "320M"})
    await driver.client.ok("NodePublishVolume", **wish)

    async def total() -> int:
        stats = await driver.client.ok("NodeGetVolumeStats", volume_id="grow", volume_path=str(target))
        return int(stats.usage[0].total)

    before = await total()
    grown = await driver.client.ok(
        "NodeExpandVolume",
        volume_id="grow",
        volume_path=str(target),
        capacity_range={"required_bytes": 640 << 20},
    )
    assert grown.capacity_bytes == 640 << 20
    assert await total() > before + (300 << 20)
    await unpublish(driver, "grow", target)


@pytest.mark.slow
async def test_calls_for_one_volume_at_once(make_driver: MakeDriver, tmp_path: Path) -> None:
    """One after the other; a caller that goes away leaves a whole state behind."""
    driver = await make_driver()
    wish = publication("busy", tmp_path / "t")
    answers = await asyncio.gather(*(driver.client.call("NodePublishVolume", **wish) for _ in range(4)))
    assert sorted(code for code, _ in answers) == ["OK"] * 4
    await unpublish(driver, "busy", tmp_path / "t")

    going = asyncio.ensure_future(driver.client.call("NodePublishVolume", **wish))
    await asyncio.sleep(0.3)
    going.cancel()
    await driver.client.ok("NodePublishVolume", **wish)
    assert (tmp_path / "t").is_mount()
    await unpublish(driver, "busy", tmp_path / "t")


@pytest.mark.slow
async def test_a_driver_that_dies_at_any_moment(make_driver: MakeDriver, tmp_path: Path) -> None:
    """The same call again ends what was begun; nothing is left once it is taken back."""
    driver, target = await make_driver(), tmp_path / "t"
    kept = b""
    for number, moment in enumerate((0.0, 0.05, 0.2, 0.5, 0.8, 1.2)):
        wish = publication("killed", target, readonly=number % 2 == 1)
        going = asyncio.ensure_future(driver.client.call("NodePublishVolume", **wish))
        await asyncio.sleep(moment)
        await driver.stop(9)
        going.cancel()
        await driver.start()
        await driver.client.ok("NodePublishVolume", **wish)
        assert kept == b"" or (target / "f").read_bytes() == kept
        if not wish["readonly"]:
            kept = b"%d" % number
            write_through(target / "f", kept)
        going = asyncio.ensure_future(
            driver.client.call("NodeUnpublishVolume", volume_id="killed", target_path=str(target))
        )
        await asyncio.sleep(moment / 4)
        await driver.stop(9)
        going.cancel()
        await driver.start()
        await unpublish(driver, "killed", target)
        assert driver.mounts() == []
        await check_clean_at(driver.environment, "killed")
