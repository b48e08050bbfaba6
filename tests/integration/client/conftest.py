"""A cluster of three `moorage host` processes for the tests of the library."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moorage.cli.local_cluster import LocalCluster

OPTIONS = {"MOORAGE_CAPACITY": "4G"}


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    local = LocalCluster(tmp_path / "cluster", hosts=3, options=OPTIONS)
    try:
        await local.start()
        yield local
    finally:
        await local.kill()
        local.remove()  # preallocated segments: gigabytes, were they kept for the last three runs
