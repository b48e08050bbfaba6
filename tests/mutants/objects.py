"""Planted bugs of objects, for whole clusters whose programs use them."""

from __future__ import annotations

import asyncio
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import pytest

from moorage.client.objects import writing
from moorage.metadata import state as machine
from moorage.metadata.objects import layout, state, versions
from moorage.metadata.objects.layout import Extent
from moorage.metadata.objects.state import Objects
from moorage.metadata.objects.writers import Writers
from moorage.metadata.tasks import objects as keeper
from moorage.metadata.tasks.objects import ObjectKeeper
from moorage.node import objects as node
from moorage.node.objects import ObjectHandlers
from moorage.simulation.run import run_seed

from .catalogue import planted
from .cluster import verdict as verdict


def run(seed: int) -> object:
    with redirect_stderr(StringIO()):
        return run_seed(seed, aim="storm", moves=seed % 2 == 0, snapshots=False, objects=True)


# -- metadata ----------------------------------------------------------------------------------------------


@planted("objects", "17a", rare=True)
def a_region_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is put although its writer was taken for gone, and its bytes for garbage."""
    monkeypatch.setattr(state, "_check_taken", lambda *_: None)


@planted("objects", "17b", rare=True)
def holders_of_former_members_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is put by a majority of members of which some are none any more."""
    monkeypatch.setattr(state, "is_majority", lambda yes: list(yes) != [])


@planted(
    "objects",
    "17d",
    rare=True,
    excuse="each member is asked from time to time whether it has all that it should, and what it lacks is"
    " noted then: the copy comes late, and nothing else is seen (unit tests of the state have it)",
)
def nobody_notes_who_lacks_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a member that was away lacks is not noted with the put."""
    monkeypatch.setattr(Objects, "_note_holders", lambda *_: None)


@planted("objects", "17d", rare=True)
def a_member_to_come_is_told_of_no_puts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put while a new member copies is not noted for it."""
    monkeypatch.setattr(
        state, "replicas_of", lambda group: [member["replica"] for member in group["members"]]
    )


@planted("objects", "7", rare=True)
def a_member_counts_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new member takes the place of another one before it has all."""
    monkeypatch.setattr(machine, "is_built", lambda *_: True)
    monkeypatch.setattr(keeper, "is_built", lambda *_: True)

    real = ObjectKeeper._fetch

    async def only_members(
        self: ObjectKeeper, bucket: int, group: int, place: Any, wanted: list[Extent]
    ) -> tuple[list[Extent], list[Extent]]:
        return (wanted, []) if "replaces" in place else await real(self, bucket, group, place, wanted)

    monkeypatch.setattr(ObjectKeeper, "_fetch", only_members)


@planted("objects", "conditions", rare=True)
def a_condition_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several puts that must be the first, all are."""
    monkeypatch.setattr(state, "check_condition", lambda *_: None)


@planted("objects", "versions", rare=True)
def what_is_replaced_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A former version is kept, and its bytes are discarded."""
    real = versions.put

    def put(kv: Any, bucket: int, key: str, found: Any, index: int) -> Any:
        former = layout.find_object(kv, bucket, key)
        gone = real(kv, bucket, key, found, index)
        return gone or ([] if former is None else [former])

    monkeypatch.setattr(versions, "put", put)


@planted("objects", "versions", rare=True)
def a_deletion_leaves_no_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted goes for good, though versions are on."""

    def delete(kv: Any, bucket: int, key: str, index: int, at_ms: int) -> Any:
        there = layout.find_object(kv, bucket, key)
        return [] if there is None else versions.remove(kv, bucket, key, there)

    monkeypatch.setattr(versions, "delete", delete)


@planted("objects", "versions", rare=True)
def a_former_version_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one version of each key is kept beside the current object."""
    real = versions._keep

    def keep(kv: Any, bucket: int, key: str, record: Any) -> None:
        for former in list(versions.history(kv, bucket, key)):
            versions._forget(kv, bucket, key, former)
        real(kv, bucket, key, record)

    monkeypatch.setattr(versions, "_keep", keep)


@planted(
    "objects",
    "versions",
    rare=True,
    excuse="the answer to a put must be lost, and the key be put anew before it is sent again; then it is"
    " refused, which a program may take for unknown (unit tests of the state have it)",
)
def a_put_that_comes_again_is_no_former_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A put of unknown outcome that was replaced meanwhile is not known any more."""
    monkeypatch.setattr(state, "_former", lambda *_: None)


# -- who sees to the bytes -----------------------------------------------------------------------------------


@planted(
    "objects",
    "retries",
    rare=True,
    excuse="the answer to a delete must be lost, and the key be seen to be gone, put again, and seen to be"
    " gone again, before it is sent again: not in 200 histories (unit tests of the state have it)",
)
def a_delete_that_comes_again_deletes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put since a delete of unknown outcome goes with its second coming."""
    monkeypatch.setattr(state, "once", lambda do: do)


@planted("objects", "17c", rare=True)
def who_is_away_keeps_what_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata forgets what is to be discarded though a member was not told."""
    real = ObjectKeeper._discard

    async def discard(self: ObjectKeeper, *arguments: Any) -> bool:
        await real(self, *arguments)
        return True

    monkeypatch.setattr(ObjectKeeper, "_discard", discard)


@planted("objects", "17a", rare=True)
def regions_of_the_dead_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer that is gone has left is never collected."""
    monkeypatch.setattr(Writers, "is_gone", lambda self, writer: False)


@planted("objects", "17a", rare=True)
def a_sweep_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed region is discarded with the objects in it."""
    real = keeper._gaps
    monkeypatch.setattr(keeper, "_gaps", lambda chunk, used: real(chunk, []))


# -- nodes and clients ------------------------------------------------------------------------------------


@planted("objects", "fsync", rare=True)
def blocks_are_acknowledged_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node says that it has blocks when they are queued."""

    async def merge(self: ObjectHandlers, replica: Any, runs: Any, data: Any) -> None:
        self._store.merge(replica, runs, data, lambda error: None)
        await asyncio.sleep(0)

    monkeypatch.setattr(ObjectHandlers, "_merge", merge)
    monkeypatch.setattr(ObjectHandlers, "_check_put", lambda *_: None)


@planted("objects", "17c", rare=True)
def a_discard_is_older_than_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is discarded comes back with a write that comes late, and may not go at all."""
    monkeypatch.setattr(node, "DISCARDED", node.WRITTEN)
    monkeypatch.setattr(node, "REGION_DISCARDED", node.WRITTEN)


@planted("objects", "11", rare=True)
def holes_are_read_as_zeroes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that lacks blocks of an object answers with zeroes."""

    async def read(self: ObjectHandlers, replica: Any, chunk: int, block: int, count: int) -> Any:
        reader = self._store.reader
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reader.read(replica, chunk, block, count, found.set_result)
        _, data = await found
        data = bytes(count * node.BLOCK_SIZE) if data is None else data
        return node.block_sums(data), data

    monkeypatch.setattr(ObjectHandlers, "_read", read)


@planted("objects", "17b", rare=True)
def one_member_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client takes a piece for stored when one member has it, and so does metadata."""
    monkeypatch.setattr(writing, "majority", lambda count: 1)
    monkeypatch.setattr(state, "is_majority", lambda yes: any(yes))


@planted("objects", "order", rare=True)
def pieces_are_put_together_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of an object are those that came first, first."""
    real = writing._Extents.add

    def add(self: writing._Extents, sent: Any) -> None:
        self._end = (-1, -1)
        real(self, sent)
        for each in (self.extents, self.holders):
            each.insert(0, each.pop())

    monkeypatch.setattr(writing._Extents, "add", add)
