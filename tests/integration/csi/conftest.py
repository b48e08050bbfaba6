"""One small cluster for the tables of calls, drivers of as many nodes as a test wants."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio

from moorage.cli.local_cluster import LocalCluster

from ...prerequisites import no_mounts, require
from .support import Driver, own_mounts

MakeDriver = Callable[..., Awaitable[Driver]]


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    require(no_mounts())
    with own_mounts():
        yield


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def local(apart: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), hosts=1)
    await cluster.start()
    yield cluster
    await cluster.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def make_driver(
    local: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[MakeDriver]:
    """Drivers that are gone when the test ends, with all that they mounted."""
    made: list[Driver] = []
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MOORAGE_")},
        "MOORAGE_REGISTRY": local.registry,
        "MOORAGE_SECRET_FILE": str(local.secret_file),
    }

    async def make(*arguments: str, node: str = "n1") -> Driver:
        made.append(Driver(tmp_path_factory.mktemp(node), environment, node))
        return await made[-1].start(*arguments)

    yield make
    for driver in made:
        await driver.close()
