"""The engine of ``moorage bench bucket``: what a bucket costs when there are a hundred times as many objects
in it.

Owns the names of the objects, the filling, and what is asked of a bucket once it is filled. Objects come in
an order that has nothing to do with that of their keys, as those of many users do. Whose cluster it is, and
what its processes need, is the command's to know.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

from moorage.bench.block import latency_figures
from moorage.bench.objects import Step, closed_loop
from moorage.bench.processes import Memory
from moorage.client.objects.bucket import Bucket
from moorage.wire.errors import Corrupt

OBJECTS_MIN = 4000  # with fewer a page of folders is not full
SHARE = 100  # the bucket is measured with one object of so many, and with all
SHELVES = 4  # prefixes with very many objects below
FOLDER = 2  # objects in each of very many prefixes
PAGE_MAX = 1000
_SPREAD = 0x9E3779B1  # odd: times this, modulo a power of two, no two numbers become the same
_SPACE = 1 << 32
_PROGRESS_EVERY = 50

Progress = Callable[[int], None]
"""Called now and then with how many objects there are."""


def page_size(objects: int) -> int:
    """Keys on a page, so many that it is full also where there are few objects: a shelf has a quarter of
    them, and half as many folders."""
    return min(PAGE_MAX, objects // SHARE // 10)


def key_of(number: int) -> str:
    """Of the object that is put as the ``number``-th."""
    folder, shelf = divmod(number // FOLDER, SHELVES)
    return f"{shelf}/{folder * _SPREAD % _SPACE:08x}/object-{number % FOLDER}.bin"


@dataclass(slots=True)
class Figures:
    """``entries``: on a page."""

    operations: int
    latency_us: dict[str, float]
    entries: int | None = None


@dataclass(slots=True)
class Stage:
    """A bucket with ``objects`` in it. ``put_per_s``: of the last of them, a hundredth of the larger bucket;
    ``memory`` and ``metadata_bytes``: of each host; ``ready_s``: of each host, from the start of a process to
    where it serves, after the one before was killed."""

    objects: int
    put_per_s: float
    operations: dict[str, Figures] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    metadata_bytes: list[int] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)


class Load:
    """Fills a bucket and asks it. ``objects``: how many will be in it at most; what is put while it is
    measured is beside them."""

    def __init__(self, bucket: Bucket, objects: int, *, size: int, concurrency: int) -> None:
        self._bucket = bucket
        self._concurrency = concurrency
        self._page = page_size(objects)
        self._rng = random.Random(1)
        self._data = self._rng.randbytes(size)
        self._filled = 0
        self._beside = count()

    async def fill(self, target: int, on_progress: Progress) -> float:
        """Until there are ``target`` objects; puts per second."""
        first, began = self._filled, time.perf_counter()
        numbers = iter(range(first, target))

        def step() -> Awaitable[None] | None:
            number = next(numbers, None)
            if number is None:
                return None
            if number % _PROGRESS_EVERY == 0:
                on_progress(number)
            return self._put(key_of(number))

        await closed_loop(step, self._concurrency, float("inf"), array("Q"))
        self._filled = target
        on_progress(target)
        return (target - first) / max(time.perf_counter() - began, 1e-9)

    async def ask(self, seconds: float, on_operation: Callable[[str], None]) -> dict[str, Figures]:
        """Each operation for so long, one after the other. Raises Corrupt for a page that is not full."""
        found = {}
        for name, (step, entries) in self._operations().items():
            on_operation(name)
            samples = array("Q")
            await closed_loop(step, 1, seconds, samples)
            found[name] = Figures(len(samples), latency_figures(samples), entries)
        return found

    def _operations(self) -> dict[str, tuple[Step, int | None]]:
        page, bucket = self._page, self._bucket

        def anywhere() -> Awaitable[None]:
            # Behind it are all of the last shelf, at least.
            return self._list(page, after=self._marker(self._rng.randrange(SHELVES - 1), _SPACE))

        def of_a_prefix() -> Awaitable[None]:
            shelf = self._rng.randrange(SHELVES)
            return self._list(page, f"{shelf}/", after=self._marker(shelf, _SPACE // 4))

        def small_folders() -> Awaitable[None]:
            shelf = self._rng.randrange(SHELVES)
            return self._list(page, f"{shelf}/", delimiter="/", after=self._marker(shelf, _SPACE // 20))

        def large_folders() -> Awaitable[None]:
            return self._list(SHELVES, delimiter="/")

        async def get() -> None:
            await bucket.get(key_of(self._rng.randrange(self._filled)))

        return {
            "page from anywhere": (anywhere, page),
            "page of a prefix": (of_a_prefix, page),
            "page of small folders": (small_folders, page),
            "page of large folders": (large_folders, SHELVES),
            "get": (get, None),
            "put": (lambda: self._put(f"{SHELVES}/beside/{next(self._beside):08}"), None),
        }

    def _marker(self, shelf: int, below: int) -> str:
        return f"{shelf}/{self._rng.randrange(below):08x}"

    async def _put(self, key: str) -> None:
        await self._bucket.put(key, self._data)

    async def _list(self, entries: int, prefix: str = "", *, delimiter: str = "", after: str = "") -> None:
        found = await self._bucket.page(prefix, delimiter=delimiter, after=after, limit=entries)
        came = len(found.objects) + len(found.prefixes)
        if came != entries:
            raise Corrupt(f"a page of {prefix!r} behind {after!r} has {came} entries, not {entries}")
