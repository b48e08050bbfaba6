"""What programs do with objects of one bucket: put them whole and in parts, under conditions, read, list and
delete them; and whether one order explains what they were told.

Owns these programs and their history, key by key. The model of a key is which put it holds, or none: an
object that is a mix of two, one that is lost, and one that comes back are all the same: no order explains
them. In half of the histories the bucket keeps versions: then each put that was acknowledged is there at the
end under the version that it was given, and each deletion as a marker, in the order of their names."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from moorage.client.cluster import Cluster
from moorage.client.objects.bucket import Bucket, Condition, ObjectInfo, VersionListing
from moorage.quorum.record import BLOCK_SIZE
from moorage.simulation.cluster import Client, SimCluster
from moorage.simulation.linearizable import Call, is_linearizable
from moorage.simulation.operation import NotLinearizable
from moorage.wire.errors import MoorageError, NameTaken, NotFound, PreconditionFailed, Unavailable

BUCKET: Final = "b0"
KEYS: Final = ("k0", "k1", "k2", "\u00e9" * 300)
SIZES: Final = (0, 1, 700, BLOCK_SIZE, 3 * BLOCK_SIZE + 5, 40 * BLOCK_SIZE, 300 * BLOCK_SIZE + 1)
MIXED: Final = -1  # bytes that no put has written


@dataclass
class Done:
    """One operation on one key. ``number``: of the put; ``found``: what a get saw, 0: nothing."""

    kind: str
    key: str
    client: str
    number: int
    invoked: float
    returned: float | None = None
    found: int = 0
    gone: bool = False  # it certainly had no effect
    version: str = ""  # of what was put, or of the marker of what was deleted

    def __str__(self) -> str:
        until = "?" if self.returned is None else f"{self.returned:.6f}"
        key = self.key if len(self.key) < 9 else f"{self.key[:3]}..."
        return f"{self.invoked:.6f}..{until} {self.client} {self.kind} #{self.number} {key} {self.found}"


def content(number: int, size: int) -> bytes:
    """Of put ``number``: it can be told from each eight bytes."""
    return (number.to_bytes(8, "big") * (size // 8 + 1))[:size]


class ObjectPrograms:
    def __init__(self, cluster: SimCluster, seed: int) -> None:
        self._cluster = cluster
        self._loop = cluster.world.loop
        self._seed = seed
        self.history: list[Done] = []
        self._sizes: dict[int, int] = {}  # by number of the put
        self.keeps_versions = Random(f"{seed} keeps versions").random() < 0.5
        self.stopping = False

    async def program(self, client: Client, cluster: Cluster) -> None:
        rng = Random(f"{self._seed} objects {client.name} {client.lives}")
        bucket = await self._bucket(cluster)
        while not self.stopping:
            works = [self._work(client, bucket, rng) for _ in range(rng.choice((1, 1, 4)))]
            await asyncio.gather(*works)
            await asyncio.sleep(rng.choice((0.0, 0.02, 0.3)))

    async def _bucket(self, cluster: Cluster) -> Bucket:
        groups = self._cluster.tunables.groups
        while True:
            try:
                return await self._ready(await cluster.buckets.create(BUCKET, groups=groups))
            except NameTaken:
                try:
                    return await self._ready(await cluster.bucket(BUCKET))
                except MoorageError as error:
                    self._loop.tell(f"bucket: {error}")
            except MoorageError as error:
                self._loop.tell(f"create bucket: {error}")
            await asyncio.sleep(0.2)

    async def _ready(self, bucket: Bucket) -> Bucket:
        """Whoever uses it sees to its versions first: all that is put has one."""
        if self.keeps_versions and not self.stopping:
            await bucket.set_versioning("enabled")
        return bucket

    async def _work(self, client: Client, bucket: Bucket, rng: Random) -> None:
        what, key = rng.random(), rng.choice(KEYS)
        if what < 0.4:
            await self._put(client, bucket, key, rng)
        elif what < 0.5:
            await self._put_in_parts(client, bucket, key, rng)
        elif what < 0.8:
            await self.get(client, bucket, key)
        elif what < 0.9:
            await self._delete(client, bucket, key)
        else:
            await self._list(client, bucket)

    # -- operations ----------------------------------------------------------------------------------------

    def _begin(self, client: Client, kind: str, key: str) -> Done:
        done = Done(kind, key, client.name, len(self.history) + 1, self._loop.now)
        self.history.append(done)
        return done

    def _end(self, done: Done, found: int = 0) -> None:
        done.returned, done.found = self._loop.now, found

    def _failed(self, done: Done, error: MoorageError) -> None:
        self._loop.tell(f"{done}: {error}")
        done.gone = error.outcome != "unknown"

    async def _put(self, client: Client, bucket: Bucket, key: str, rng: Random) -> None:
        absent = rng.random() < 0.2
        done = self._begin(client, "put new" if absent else "put", key)
        size = self._sizes[done.number] = rng.choice(SIZES)
        data = content(done.number, size)
        body = data if rng.random() < 0.7 else _slowly(data, rng)
        note = {"n": done.number}
        try:
            condition = Condition(absent=True) if absent else None
            done.version = (await bucket.put(key, body, attributes=note, condition=condition)).version
            self._end(done)
        except PreconditionFailed:
            done.kind = "refused"
            self._end(done)
        except MoorageError as error:
            self._failed(done, error)

    async def _put_in_parts(self, client: Client, bucket: Bucket, key: str, rng: Random) -> None:
        done = self._begin(client, "put", key)
        sizes = [rng.choice(SIZES[1:]) for _ in range(rng.randint(1, 3))]
        whole = content(done.number, sum(sizes))
        self._sizes[done.number] = len(whole)
        parts = []
        try:
            upload = await bucket.create_upload(key)
            for number, size in enumerate(sizes, 1):
                at = sum(sizes[: number - 1])
                part = await bucket.put_part(upload, number, whole[at : at + size])
                parts.append((number, part["etag"]))
        except MoorageError as error:
            self._loop.tell(f"{done}: {error}")
            done.gone = True  # it was not to be complete
            return
        if rng.random() < 0.1:
            done.gone = True
            return  # it is left as it is
        done.invoked = self._loop.now
        try:
            note = {"n": done.number}
            info = await bucket.complete_upload(upload, key, parts, etag="e", attributes=note)
            done.version = info.version
            self._end(done)
        except MoorageError as error:
            self._failed(done, error)

    async def get(self, client: Client, bucket: Bucket, key: str) -> bool:
        """Whether it was answered."""
        done = self._begin(client, "get", key)
        try:
            info, reader = await bucket.open(key)
            self._end(done, info.attributes["n"])  # then it was looked up; its bytes come later
            data = await reader.read()
        except NotFound:
            self._end(done, 0)
        except MoorageError as error:
            self._loop.tell(f"{done}: {error}")
            done.returned, done.gone = None, True
            return False
        else:
            if data != content(done.found, self._sizes[done.found]):
                done.found = MIXED
        return True

    async def _delete(self, client: Client, bucket: Bucket, key: str) -> bool:
        """Whether it was answered."""
        done = self._begin(client, "delete", key)
        try:
            (deletion,) = await bucket.delete_versions([(key, None)])
            done.version = deletion.version or ""
            self._end(done)
        except MoorageError as error:
            self._failed(done, error)
        return done.returned is not None

    async def _list(self, client: Client, bucket: Bucket) -> None:
        """What a page says of all keys is of one moment; here of each key for itself."""
        seen = [self._begin(client, "get", key) for key in KEYS]
        try:
            page = await bucket.page()
        except MoorageError as error:
            for done in seen:
                self._failed(done, error)
                done.gone = True
            return
        found = {each.key: each.attributes["n"] for each in page.objects}
        for done in seen:
            self._end(done, found.get(done.key, 0))

    async def look(self, client: Client, cluster: Cluster) -> None:
        """At the end: each object is read, and counts; and one is deleted, which was in vain only while
        something was broken."""
        bucket = await self._bucket(cluster)
        while not await self._delete(client, bucket, KEYS[0]):
            pass
        for key in KEYS:
            while not await self.get(client, bucket, key):
                pass
        if self.keeps_versions:
            await self._look_at_versions(bucket)

    async def _look_at_versions(self, bucket: Bucket) -> None:
        """All that was acknowledged is there, and what is there was done, once."""
        found: dict[tuple[str, str], ObjectInfo] = {}
        page = VersionListing([], [], ("", ""))
        while page.next is not None:
            after, version = page.next
            page = await bucket.versions_page(after=after, after_version=version, limit=7)
            for info in page.versions:
                former = next(reversed(found), ("", ""))
                assert former[0] != info.key or former[1] > info.version, f"{info} is behind {former}"
                assert found.setdefault((info.key, info.version), info) is info, f"{info} is listed twice"
        known = {done.number: done for done in self.history if done.kind.startswith(("put", "delete"))}
        for done in known.values():
            if done.returned is not None:
                kept = found.get((done.key, done.version))
                assert kept is not None, f"version {done.version} of {done} is lost"
                assert kept.marker == (done.kind == "delete"), f"{kept} is of {done}"
                assert kept.marker or kept.attributes["n"] == done.number, f"{kept} is of {done}"
        puts = [info.attributes["n"] for info in found.values() if not info.marker]
        assert len(puts) == len(set(puts)), f"something was put twice: {sorted(puts)}"
        for key, version in found:
            info = found[key, version]
            if not info.marker:
                number = info.attributes["n"]
                assert known[number].key == key and not known[number].gone, f"{info} was never put"
                data = await self._patiently(bucket, key, version)
                assert data == content(number, self._sizes[number]), f"{info} is a mix"
        self._loop.tell(f"{len(found)} versions are as they were put")

    async def _patiently(self, bucket: Bucket, key: str, version: str) -> bytes:
        while True:
            try:
                return await bucket.get(key, version=version)
            except Unavailable as error:
                self._loop.tell(f"version {version}: {error}")

    # -- judging -------------------------------------------------------------------------------------------

    def check(self) -> int:
        """Raises NotLinearizable; the number of operations that were answered."""
        by_key: dict[str, list[Done]] = defaultdict(list)
        for done in self.history:
            if not done.gone:
                by_key[done.key].append(done)
        for key, all_done in by_key.items():
            seen = {done.found for done in all_done if done.kind == "get"}
            refused = any(done.kind == "refused" for done in all_done)  # by one that nobody read, perhaps
            calls = [
                Call(done.invoked, done.returned, (done.kind, done.number, done.found))
                for done in all_done
                # What nobody knows the outcome of, and nobody saw, explains nothing.
                if done.returned is not None or done.kind == "delete" or done.number in seen or refused
            ]
            if not is_linearizable(calls, 0, _step):
                raise NotLinearizable(f"object {key[:9]}", all_done)  # type: ignore[arg-type]
        return sum(done.returned is not None for done in self.history)


def _step(state: Any, action: Any) -> Iterable[Hashable]:
    kind, number, found = action
    if kind == "get":
        return [state] if state == found else []
    if kind == "refused":
        return [state] if state else []
    if kind == "put new":
        return [] if state else [number]
    return [0 if kind == "delete" else number]


async def _slowly(data: bytes, rng: Random) -> AsyncIterator[bytes]:
    step = rng.choice((1000, 100_000))
    pauses = {rng.randrange(len(data) // step + 1): rng.choice((0.01, 1.0, 5.0)) for _ in range(2)}
    for number, at in enumerate(range(0, len(data), step)):
        if number in pauses:
            await asyncio.sleep(pauses[number])
        yield data[at : at + step]
