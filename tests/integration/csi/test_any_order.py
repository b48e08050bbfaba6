"""Calls for one volume in an order that chance gives, each repeated: a model says with which code it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fsck import check_clean_at

from .conftest import MakeDriver
from .support import capability

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

SHARING = capability("SINGLE_NODE_MULTI_WRITER")
NEW = {"size": "64M", "replicas": "1"}  # the cluster has one host
CALLS = 120


@dataclass
class Model:
    """A volume as one node knows it. ``targets``: whether each is published from the staging path, and with
    the context that creates the volume."""

    exists: bool = False
    staged: bool = False
    targets: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return self.staged or bool(self.targets)

    def create(self) -> str:
        self.exists = True
        return "OK"

    def delete(self) -> str:
        if self.held:
            return "FAILED_PRECONDITION"
        self.exists = False
        return "OK"

    def look(self) -> str:
        return "OK" if self.exists else "NOT_FOUND"

    def stage(self) -> str:
        if self.targets and not self.staged:
            return "FAILED_PRECONDITION"
        self.staged = self.exists
        return self.look()

    def unstage(self) -> str:
        if self.staged and self.targets:
            return "FAILED_PRECONDITION"
        self.staged = False
        return "OK"

    def publish(self, target: str, staged: bool, new: bool) -> str:
        if staged and not self.staged:
            return "FAILED_PRECONDITION"
        if target in self.targets:
            return "OK" if self.targets[target] == (staged, new) else "ALREADY_EXISTS"
        self.exists |= new
        if self.exists:
            self.targets[target] = (staged, new)
        return self.look()

    def unpublish(self, target: str) -> str:
        self.targets.pop(target, None)
        return "OK"

    def look_at(self, target: str) -> str:
        return "OK" if target in self.targets else "NOT_FOUND"


Call = tuple[str, dict[str, Any], Callable[[], str]]


def draw(rng: Random, model: Model, volume: str, at: Path) -> Call:
    """The name of a call, its fields, and what the model makes of it."""
    target = rng.choice("ab")
    path, staging = str(at / target), str(at / "stage")
    staged, new = rng.choice([(False, False), (False, True), (True, False)])
    this, bounds = {"volume_id": volume}, {"capacity_range": {"required_bytes": 64 << 20}}
    published: dict[str, Any] = {
        "target_path": path,
        "volume_capability": SHARING,
        "volume_context": NEW if new else {},
        "staging_target_path": staging if staged else "",
    }
    created = {"name": volume, "volume_capabilities": [SHARING], "parameters": NEW}
    calls: list[tuple[int, Call]] = [
        (1, ("CreateVolume", created, model.create)),
        (4, ("DeleteVolume", this, model.delete)),
        (1, ("ControllerExpandVolume", this | bounds, model.look)),
        (1, ("ValidateVolumeCapabilities", this | {"volume_capabilities": [SHARING]}, model.look)),
        (3, ("NodeStageVolume", {"staging_target_path": staging, "volume_capability": SHARING}, model.stage)),
        (5, ("NodeUnstageVolume", {"staging_target_path": staging}, model.unstage)),
        (6, ("NodePublishVolume", published, lambda: model.publish(target, staged, new))),
        (8, ("NodeUnpublishVolume", {"target_path": path}, lambda: model.unpublish(target))),
        (1, ("NodeGetVolumeStats", {"volume_path": path}, lambda: model.look_at(target))),
        (1, ("NodeExpandVolume", {"volume_path": path}, lambda: model.look_at(target))),
    ]
    ((name, fields, expect),) = rng.choices([call for _, call in calls], [weight for weight, _ in calls])
    return name, fields if name == "CreateVolume" else this | fields, expect


@pytest.mark.parametrize("seed", range(4))
async def test_calls_in_any_order(make_driver: MakeDriver, tmp_path: Path, seed: int) -> None:
    rng, model, volume = Random(seed), Model(), f"shuffled{seed}"
    (tmp_path / "stage").mkdir()
    driver = await make_driver()
    done: list[str] = []
    written = b""
    for number in range(CALLS):
        name, fields, expect = draw(rng, model, volume, tmp_path)
        for _ in range(rng.choice((1, 2, 3))):
            code, answer = await driver.client.call(name, **fields)
            shown = f"{name} {fields.get('target_path', '')} {fields.get('staging_target_path', '')}"
            done.append(f"{shown} {fields.get('volume_context', '')}: {code}")
            assert code == expect(), "\n".join([f"seed {seed}:", *done, str(answer)])
        for target in ("a", "b"):
            assert (tmp_path / target).is_mount() == (target in model.targets), "\n".join(done)
        assert (tmp_path / "stage").is_mount() == model.staged
        if not model.exists:
            written = b""
        elif model.targets:  # all show the one file system, which is the one from before
            file = tmp_path / rng.choice(sorted(model.targets)) / "file"
            assert (file.read_bytes() if file.exists() else b"") == written, "\n".join(done)
            written = b"%d" % number
            file.write_bytes(written)
    for target in sorted(model.targets):
        await driver.client.ok("NodeUnpublishVolume", volume_id=volume, target_path=str(tmp_path / target))
    staging = str(tmp_path / "stage")
    await driver.client.ok("NodeUnstageVolume", volume_id=volume, staging_target_path=staging)
    assert driver.mounts() == [] and os.listdir(tmp_path) == ["stage"]
    if model.exists:
        await check_clean_at(driver.environment, volume)
