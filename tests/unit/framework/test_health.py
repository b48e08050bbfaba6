"""What keeps a release from going round: copies of volumes and of buckets that do not count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from moorage.client.redundancy import GOOD, UNTOLD, Copy
from moorage.framework.health import what_is_wrong
from moorage.wire.errors import NotFound


def copies(*states: str) -> Any:
    return SimpleNamespace(
        copies=tuple(Copy(0, n, f"h{n}", f"d{n}", state, 0, 0) for n, state in enumerate(states, start=1))
    )


class Cluster:
    """All is well, but for copies of volumes, and of buckets by name; None: it is gone when it is asked."""

    def __init__(self, volumes: dict[str, Any], buckets: dict[str, Any], state: str = "ready") -> None:
        self._volumes, self._buckets, self._state = volumes, buckets, state
        self.members = self.buckets = self

    async def status(self) -> dict[str, Any]:
        return {"devices": {"d1": {"host": "h1", "health": "up"}}}

    async def groups(self) -> list[str]:
        return []

    async def list_volumes(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self._volumes]

    async def redundancy(self, volume: Any) -> Any:
        return self._volumes[volume.name]

    async def list(self) -> list[dict[str, Any]]:
        return [{"name": name, "state": self._state} for name in self._buckets]

    async def bucket_copies(self, name: str) -> Any:
        if self._buckets[name] is None:
            raise NotFound(f"no bucket {name!r}")
        return SimpleNamespace(redundancy=self._buckets[name])


async def wrong_with(
    volumes: dict[str, Any], buckets: dict[str, Any], state: str = "ready"
) -> dict[str, str]:
    cluster: Any = Cluster(volumes, buckets, state)
    return await what_is_wrong(cluster)


async def test_copies_of_volumes_and_of_buckets_are_looked_at() -> None:
    assert await wrong_with({"db": copies(GOOD, GOOD)}, {"photos": copies(GOOD, GOOD)}) == {}
    volumes, buckets = {"db": copies(GOOD, "is being copied to")}, {"photos": copies("lacks 3 extents", GOOD)}
    assert await wrong_with(volumes, buckets) == {
        "h1": "bucket photos on h1: lacks 3 extents",
        "h2": "volume db on h2: is being copied to",
    }


async def test_a_bucket_that_comes_or_goes_is_not_wrong() -> None:
    assert await wrong_with({}, {"photos": None}) == {}
    assert await wrong_with({}, {"photos": copies("its device does not know it")}, "creating") == {}


async def test_a_release_does_not_wait_for_what_only_it_brings() -> None:
    assert await wrong_with({}, {"photos": copies(UNTOLD, "damaged: a page")}) == {
        "h2": "bucket photos on h2: damaged: a page"
    }
