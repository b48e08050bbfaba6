"""Snapshots as they are asked for, and as their holders hear of them and report: the calls, over real
connections. Holders are stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moorage.metadata import records
from moorage.metadata.attachments import RECOVERY_GRACE_MS
from moorage.metadata.tasks import snapshot as snapshot_task
from moorage.wire.errors import (
    Busy,
    DeadlineExceeded,
    Fenced,
    Invalid,
    LimitExceeded,
    NameTaken,
    NotFound,
    NotLeader,
    Unavailable,
)

GIB = 1 << 30
LONG_MS = 20_000


class Holder:
    """Holds a volume, and does what the watch says. ``withholds``: what it does not report."""

    def __init__(self, cluster: Any, attached: dict[str, Any], writer: int) -> None:
        self.cluster = cluster
        self.groups = len(attached["groups"])
        self.who = {
            "name": attached["volume"]["name"],
            "volume": attached["volume"]["id"],
            "epoch": attached["epoch"],
            "writer": writer,
        }
        self.seen = 0
        self.withholds = False
        self.all_put: list[int] = []  # sets

    async def call(self, method: str, **params: Any) -> Any:
        return await self.cluster.call(method, **self.who, **params)

    async def watch(self, wait_ms: int = LONG_MS, **more: Any) -> Any:
        found = await self.cluster.call(
            "watch", 30.0, **{**self.who, "seen": self.seen, "wait_ms": wait_ms, **more}
        )
        self.seen = found["version"]
        return found

    async def run(self) -> None:
        while True:
            found = await self.watch()
            if not self.withholds:
                await self.write(found)

    async def write(self, found: Any) -> None:
        """As a holder does: alone a snapshot is reported at once, one of a set once all are put."""
        self.all_put += [number for number, put in found["sets"].items() if put]
        creating = [entry for entry in found["snapshots"] if entry["state"] == "creating"]
        ids = [entry["id"] for entry in creating if entry["set"] and not entry["put"]]
        if ids:
            await self.call("snapshots_put", ids=ids)
        created = [
            [entry["id"], [entry["id"]] * self.groups]
            for entry in creating
            if not entry["lsns"] and found["sets"].get(entry["set"], not entry["set"])
        ]
        deleted = [entry["id"] for entry in found["snapshots"] if entry["state"] == "deleting"]
        if created or deleted:
            await self.call("snapshots_done", created=created, deleted=deleted)


class Repairer:
    """Leads a volume that nobody holds, as a holder does."""

    def __init__(self) -> None:
        self.led = 0
        self.fails: Unavailable | None = None

    async def lead(self, call: Callable[..., Any], done: Callable[[], bool]) -> None:
        self.led += 1
        if self.fails is not None:
            raise self.fails
        writer = 1000 + self.led
        about = {"host": "h", "pid": 1, "program": "repairer"}
        attached = await call("metadata.attach", {"mode": "recover", "writer": writer, "holder": about}, 5.0)

        class Ours:
            async def call(self, method: str, timeout: float = 5.0, **params: Any) -> Any:
                return await call(f"metadata.{method}", params, timeout)

        holder = Holder(Ours(), attached, writer)
        task = asyncio.create_task(holder.run())
        try:
            while not done():
                await asyncio.sleep(0.005)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await holder.call("detach")

    async def close(self) -> None: ...


@pytest.fixture
def repairer(cluster: Any) -> Iterator[Repairer]:
    made = Repairer()
    for service in cluster.services.values():
        service.runner._context.leading = made
    yield made


@asynccontextmanager
async def holding(cluster: Any, name: str = "db", writer: int = 7, **more: Any) -> AsyncIterator[Holder]:
    """A volume that is created, and held."""
    await cluster.create(name, **more)
    holder = Holder(cluster, await cluster.attach(name, writer), writer)
    task = asyncio.create_task(holder.run())
    try:
        yield holder
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Fenced):
            await task


def ask(cluster: Any, *names: str, snapshot: str = "before", timeout: float = 10.0, **more: Any) -> Any:
    params = {"name": names[0], "volumes": list(names), "snapshot": snapshot, "request": f"s-{snapshot}"}
    return cluster.call("create_snapshot", timeout, **{**params, **more})


async def delete(cluster: Any, snapshot: str = "before", timeout: float = 10.0) -> Any:
    params = {"name": "db", "snapshot": snapshot, "request": f"d-{snapshot}"}
    return await cluster.call("delete_snapshot", timeout, **params)


def waiting(cluster: Any) -> int:
    return len(cluster.leader().runner._context.changes)


async def until(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.005)


# -- a volume that is held -------------------------------------------------------------------------------


async def test_snapshot_comes_and_goes(cluster: Any) -> None:
    async with holding(cluster, groups=2) as holder:
        for _ in range(2):  # asked for again, it is the same
            (row,) = (await ask(cluster, "db"))["snapshots"]
            assert (row["volume"], row["name"], row["state"], row["size"]) == ("db", "before", "ready", GIB)
            assert row["lsns"] == [row["id"]] * 2 and "request" not in row
        shown = await cluster.call("show_volume", name="db")
        assert [entry["id"] for entry in shown["snapshots"]] == [row["id"]]
        (listed,) = (await cluster.call("list_volumes"))["volumes"]
        assert listed["snapshots"] == shown["snapshots"]
        reader = await cluster.attach("db", 9, mode="ro")
        assert reader["volume"]["snapshots"] == shown["snapshots"]
        for _ in range(2):
            assert await delete(cluster) == {"left": False}
        assert (await cluster.call("show_volume", name="db"))["snapshots"] == []
        assert holder.seen and cluster.leader().runner.count == 0


async def test_of_all_volumes_or_none(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with holding(cluster, "a") as first, holding(cluster, "b") as second:
        rows = (await ask(cluster, "a", "b"))["snapshots"]
        assert [(row["volume"], row["state"]) for row in rows] == [("a", "ready"), ("b", "ready")]
        (number,) = {row["set"] for row in rows}
        assert number in first.all_put and number in second.all_put
        second.withholds = True
        monkeypatch.setattr(snapshot_task, "SET_S", 0.3)  # long before its caller gives up: writes wait
        message = (
            r"'two' of volume 'a' is given up.*kept: volume 'b' was not done in time by fio on h .*majority"
        )
        with pytest.raises(Busy, match=message) as caught:
            await ask(cluster, "a", "b", snapshot="two")
        with pytest.raises(Busy) as again:
            await ask(cluster, "a", "b", snapshot="two")
        assert caught.value.message == again.value.message
        await second.write(await second.watch(seen=0))
        kv = cluster.leader().replicated.kv
        await until(lambda: all(len(v["snapshots"]) == 1 for v in records.volumes(kv)))


async def test_next_leader_gives_up_what_nobody_waits_for(
    cluster: Any, fake_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        await cluster.create(name)
        await cluster.attach(name, 7)
    asking = asyncio.create_task(ask(cluster, "a", "b"))
    await until(lambda: waiting(cluster) > 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    monkeypatch.setattr(snapshot_task, "SET_S", 0.05)
    fake_log.elect("host2")
    kv = cluster.leader().replicated.kv
    await until(lambda: all(v["snapshots"][0]["state"] == "deleting" for v in records.volumes(kv)))


async def test_caller_hears_before_its_deadline_why(cluster: Any) -> None:
    async with holding(cluster) as holder:
        holder.withholds = True
        with pytest.raises(Busy, match=r"'before' of volume 'db' is given up.*by fio on h .*; try again"):
            await ask(cluster, "db", timeout=0.5)
        assert (await cluster.call("show_volume", name="db"))["snapshots"][0]["state"] == "deleting"


async def test_deletion_that_takes_long_goes_on(cluster: Any) -> None:
    async with holding(cluster) as holder:
        await ask(cluster, "db")
        holder.withholds = True
        assert await delete(cluster, timeout=0.5) == {"left": True}
        with pytest.raises(Busy, match="being deleted"):
            await ask(cluster, "db", request="another")
        await holder.write(await holder.watch(seen=0))
        assert await delete(cluster) == {"left": False}


async def test_what_is_refused(cluster: Any) -> None:
    async with holding(cluster) as holder:
        await ask(cluster, "db")
        with pytest.raises(NameTaken):
            await ask(cluster, "db", request="another")
        with pytest.raises(
            NotFound, match="no volume 'nothere' in metadata group m1: snapshots are made at one"
        ):
            await ask(cluster, "db", "nothere", snapshot="two")
        with pytest.raises(NotFound, match="no volume 'nothere'"):
            await ask(cluster, "nothere", snapshot="two")
        with pytest.raises(Busy, match="has 1 snapshot: delete it first"):
            await cluster.call("delete_volume", name="db", force=True)
        for wrong in ({"snapshot": "A"}, {"request": ""}, {"volumes": []}, {"volumes": "db"}, {"extra": 1}):
            with pytest.raises(Invalid):
                await ask(cluster, "db", **wrong)
        for created in (5, [5], [[1]], [["a", [1]]], [[1, 5]], [[1, [0]]], [[1, ["a"]]]):
            with pytest.raises(Invalid):
                await holder.call("snapshots_done", created=created)
        for ids in (None, [None], ["a"], [1] * 501):
            with pytest.raises(Invalid):
                await holder.call("snapshots_put", ids=ids)
        with pytest.raises(LimitExceeded, match="of 65 volumes"):
            await ask(cluster, *(f"v{n}" for n in range(65)))


# -- the watch -------------------------------------------------------------------------------------------


async def test_watch_wakes_up_at_once_and_costs_nothing_before(cluster: Any) -> None:
    await cluster.create("db")
    holder = Holder(cluster, await cluster.attach("db", 7), 7)
    watching = asyncio.create_task(holder.watch())
    await until(lambda: waiting(cluster) == 1)
    await cluster.call("resize_volume", name="db", size=2 * GIB)  # is another matter
    await until(lambda: waiting(cluster) == 1)
    assert not watching.done()
    asking = asyncio.create_task(ask(cluster, "db"))
    async with asyncio.timeout(5):
        found = await watching
    assert found["version"] == 1 and found["sets"] == {}
    (entry,) = found["snapshots"]
    assert (entry["name"], entry["state"], "request" in entry) == ("before", "creating", False)
    assert (await holder.watch(seen=0))["version"] == 1  # what it has not seen is told at once
    assert await holder.watch(wait_ms=0) == found  # and what it has seen after its time
    await holder.call("snapshots_done", created=[[entry["id"], [5]]], deleted=[])
    assert (await asking)["snapshots"][0]["lsns"] == [5]
    await until(lambda: waiting(cluster) == 0)


async def test_watch_hears_of_each_put_of_its_set(cluster: Any) -> None:
    for name in ("a", "b"):
        await cluster.create(name)
    first, second = [Holder(cluster, await cluster.attach(name, 7), 7) for name in ("a", "b")]
    asking = asyncio.create_task(ask(cluster, "a", "b"))
    found = {holder: await holder.watch() for holder in (first, second)}
    ids = {holder: found[holder]["snapshots"][0]["id"] for holder in found}
    (number,) = found[first]["sets"]
    assert found[second]["sets"] == {number: False}
    await first.call("snapshots_put", ids=[ids[first]])
    for holder in (first, second):
        assert (await holder.watch())["sets"] == {number: False}
    await second.call("snapshots_put", ids=[ids[second]])
    for holder in (first, second):
        assert (await holder.watch())["sets"] == {number: True}
        await holder.call("snapshots_done", created=[[ids[holder], [5]]], deleted=[])
    assert [row["state"] for row in (await asking)["snapshots"]] == ["ready", "ready"]
    assert (await first.watch())["sets"] == {}


@pytest.mark.parametrize("how", ["attach", "detach", "delete"])
async def test_who_is_fenced_hears_of_it_while_it_watches(cluster: Any, how: str) -> None:
    await cluster.create("db")
    holder = Holder(cluster, await cluster.attach("db", 7), 7)
    watching = asyncio.create_task(holder.watch())
    await until(lambda: waiting(cluster) == 1)
    if how == "attach":
        await cluster.attach("db", 8, force=True)
    elif how == "detach":
        await holder.call("detach")
    else:
        await cluster.call("delete_volume", name="db", force=True)
    async with asyncio.timeout(5):
        with pytest.raises(Fenced):
            await watching
    with pytest.raises(Fenced):
        await holder.watch()


async def test_watch_ends_with_leadership(cluster: Any, fake_log: Any) -> None:
    await cluster.create("db")
    holder = Holder(cluster, await cluster.attach("db", 7), 7)
    handlers = cluster.leader().handlers.methods()
    params = {**holder.who, "seen": 0, "wait_ms": LONG_MS}
    watching = asyncio.create_task(handlers["watch"](None, params))
    await until(lambda: waiting(cluster) == 1)
    fake_log.elect("host2")
    async with asyncio.timeout(5):
        with pytest.raises(NotLeader):
            await watching
    assert (await holder.watch(wait_ms=0))["version"] == 0  # the next one serves it


# -- a volume that nobody holds --------------------------------------------------------------------------


async def test_volume_that_nobody_holds_is_led_at_once(
    cluster: Any, repairer: Repairer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_task, "POLL_S", 1000.0)  # nothing waits for the next look
    await cluster.create("a")
    await cluster.create("db")
    assert [row["state"] for row in (await ask(cluster, "a", "db"))["snapshots"]] == ["ready", "ready"]
    assert repairer.led == 2
    await until(lambda: cluster.leader().runner.count == 0)  # it has let go
    assert await delete(cluster) == {"left": False}
    assert repairer.led == 3
    await until(lambda: cluster.leader().runner.count == 0)
    shown = await cluster.call("show_volume", name="db")
    assert (shown["holder"], shown["epoch"]) == (None, 2)


async def test_volume_is_led_as_soon_as_its_holder_detaches(
    cluster: Any, repairer: Repairer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_task, "POLL_S", 1000.0)
    async with holding(cluster) as holder:
        holder.withholds = True
        asking = asyncio.create_task(ask(cluster, "db"))
        await until(lambda: holder.seen)
        assert repairer.led == 0
        await holder.call("detach")
        assert (await asking)["snapshots"][0]["state"] == "ready"
        assert repairer.led == 1


async def test_who_cannot_lead_says_why(cluster: Any, repairer: Repairer) -> None:
    repairer.fails = Unavailable("no majority of group 0 answers")
    await cluster.create("db")
    message = "'db' is held by nobody, and was not led here in time: no majority of group 0 answers"
    with pytest.raises(Busy, match=message):
        await ask(cluster, "db", timeout=0.5)


async def test_silent_holder_is_left_alone_for_a_while(
    cluster: Any, repairer: Repairer, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be cut off from metadata alone."""
    monkeypatch.setattr(snapshot_task, "POLL_S", 0.01)
    await cluster.create("db")
    await cluster.attach("db", 7)
    asking = asyncio.create_task(ask(cluster, "db"))
    await until(lambda: waiting(cluster) == 2)
    leader = cluster.leader()
    (volume,) = records.volumes(leader.replicated.kv)
    clock.ahead_ms += 4001 + RECOVERY_GRACE_MS - 1000
    assert leader.attachments.lapsed_ms(volume) > 0 and not leader.runner.snapshots._is_free(volume)
    clock.ahead_ms += 1000
    assert (await asking)["snapshots"][0]["state"] == "ready"
    assert repairer.led == 1


async def test_next_leader_goes_on(cluster: Any, repairer: Repairer, fake_log: Any) -> None:
    repairer.fails = Unavailable("not yet")
    await cluster.create("db")
    asking = asyncio.create_task(ask(cluster, "db"))
    await until(lambda: repairer.led)
    fake_log.elect(None)
    repairer.fails = None
    fake_log.elect("host3")
    assert (await asking)["snapshots"][0]["state"] == "ready"


# -- clones and rollbacks --------------------------------------------------------------------------------


async def test_clone_is_created_with_its_parent(cluster: Any) -> None:
    parent = {"volume": "db", "snapshot": "before"}
    async with holding(cluster):
        await ask(cluster, "db")
        made = await cluster.call("create_volume", name="copy", request="c1", parent=parent)
        assert (made["size"], made["parent"]["name"], made["parent"]["snapshot_name"]) == (
            GIB,
            "db",
            "before",
        )
        assert (await cluster.call("create_volume", name="copy", request="c1", parent=parent))["id"] == made[
            "id"
        ]
        larger = await cluster.call(
            "create_volume", name="larger", request="c2", parent=parent, size=2 * GIB, replicas=1, iops=5
        )
        assert (larger["size"], larger["replicas"], larger["iops"]) == (2 * GIB, 1, 5)
        shown = await cluster.call("show_volume", name="db")
        assert shown["snapshots"][0]["children"] == [made["id"], larger["id"]]
        with pytest.raises(Busy, match="is the parent of copy, larger"):
            await delete(cluster)
        with pytest.raises(Invalid, match="are too few"):
            await cluster.create("small", size=GIB // 2, parent=parent)
        for name in ("copy", "larger"):
            await cluster.call("delete_volume", name=name)
        assert await delete(cluster) == {"left": False}


@pytest.mark.parametrize(
    ("parent", "error"),
    [
        ({"volume": "nothere", "snapshot": "before"}, NotFound),
        ({"volume": "db", "snapshot": "nothere"}, NotFound),
        ({"volume": "db"}, Invalid),
        ("db@before", Invalid),
        (None, Invalid),
    ],
)
async def test_bad_parent(cluster: Any, parent: Any, error: Any) -> None:
    await cluster.create("db")
    with pytest.raises(error):
        await cluster.create("copy", parent=parent)


async def test_rollback_takes_the_volume_until_it_is_done(cluster: Any) -> None:
    async with holding(cluster) as holder:
        await ask(cluster, "db")
        await holder.call("detach")
    rolling = await cluster.attach("db", 8, rollback="before")
    (entry,) = rolling["volume"]["snapshots"]
    assert rolling["volume"]["rollback"] == entry["id"]
    for more in ({}, {"force": True}, {"mode": "ro"}):
        with pytest.raises(Busy, match=r"finish with `moorage snapshot rollback db@before`|held by fio"):
            await cluster.attach("db", 9, **more)
    of_it = await cluster.attach("db", 9, mode="ro", snapshot="before")  # is as it was
    assert of_it["volume"]["snapshots"] == rolling["volume"]["snapshots"]
    assert (await cluster.attach("db", 10, rollback="before", force=True))["epoch"] == 3
    with pytest.raises(Fenced):
        await Holder(cluster, rolling, 8).call("rolled_back")
    await Holder(cluster, {**rolling, "epoch": 3}, 10).call("rolled_back")
    assert (await cluster.attach("db", 11, force=True))["volume"]["rollback"] == 0
    with pytest.raises(NotFound, match="no snapshot 'nothere'"):
        await cluster.attach("db", 12, mode="ro", snapshot="nothere")
    for wrong in ({"mode": "ro", "rollback": "before"}, {"snapshot": "before"}, {"rollback": "A"}):
        with pytest.raises(Invalid):
            await cluster.attach("db", 12, **wrong)


async def test_answer_that_is_lost_is_asked_for_again(cluster: Any, fake_log: Any) -> None:
    async with holding(cluster):
        lost: list[bool] = []

        def loses_reply() -> bool:
            if fake_log.commands[-1]["do"] == "create_snapshots" and not lost:
                lost.append(True)
                return True
            return False

        fake_log.loses_reply = loses_reply
        assert len((await ask(cluster, "db"))["snapshots"]) == 1
        assert lost
        with pytest.raises(DeadlineExceeded):
            await cluster.call("create_snapshot", 0.0, name="db", snapshot="x", request="x")


async def test_on_the_real_replication(real_cluster: Any) -> None:
    """Also while the leader goes away: the next one is asked, and the watch goes on there."""
    await until(real_cluster.has_leader)
    async with holding(real_cluster) as holder:
        (row,) = (await ask(real_cluster, "db"))["snapshots"]
        assert row["state"] == "ready" and holder.seen
        await real_cluster.stop_member(real_cluster.leader().config.name)
        (row,) = (await ask(real_cluster, "db", snapshot="two"))["snapshots"]
        assert row["state"] == "ready"
        assert await delete(real_cluster, "two") == {"left": False}
