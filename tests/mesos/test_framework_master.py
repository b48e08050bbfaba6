"""Moorage's own way to the master, with a genuine one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.framework.master import Credentials, Master, Timings
from moorage.framework.messages import FailedOver, FrameworkRemoved
from moorage.framework.subscription import Lost, Subscription
from moorage.wire import errors

from .conftest import MakeMesos
from .scheduler import CAPABILITIES

Json = dict[str, Any]
Subscribe = Callable[..., Subscription]
QUICK = Timings(backoff_first_s=0.05, backoff_max_s=0.2, steady_s=0)
SECONDS = 20


def info(**more: Any) -> Json:
    return {
        **{"user": "root", "name": "test", "principal": "moorage", "roles": ["storage"]},
        **{"failover_timeout": 60, "checkpoint": True},
        "capabilities": [{"type": each} for each in CAPABILITIES],
        **more,
    }


class Relay:
    """A way to a master that can be cut."""

    def __init__(self, master: str) -> None:
        self.address = ""
        self._target = master.split(":")
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*self._target)
        self._writers |= {writer, there[1]}
        ways = asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        with contextlib.suppress(OSError):
            await ways

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()


@pytest.fixture
async def subscribe() -> AsyncIterator[Subscribe]:
    """``subscribe(address, framework_id, credentials=...)``: a scheduler with a session of its own."""
    masters: list[Master] = []
    made: list[Subscription] = []

    def make(address: str, framework_id: str | None = None, **more: Any) -> Subscription:
        masters.append(Master([address], timings=QUICK, credentials=more.pop("credentials", None)))
        made.append(Subscription(masters[-1], info(**more), framework_id))
        return made[-1]

    yield make
    for each in made:
        each.close()
    for master in masters:
        await master.close()


async def wait(subscription: Subscription, kind: str) -> Json:
    """The next event of a kind; those before it are passed over, a Lost is not."""
    async with asyncio.timeout(SECONDS):
        async for event in subscription:
            assert not isinstance(event, Lost), event
            if event["type"] == kind:
                return event
    raise AssertionError("closed")


async def lost(subscription: Subscription) -> Lost:
    async with asyncio.timeout(SECONDS):
        async for event in subscription:
            if isinstance(event, Lost):
                return event
    raise AssertionError("closed")


async def offers(subscription: Subscription) -> list[Json]:
    found: list[Json] = (await wait(subscription, "OFFERS"))["offers"]["offers"]
    return found


async def test_a_subscription_from_its_first_offer_to_its_end(mesos: MakeMesos, subscribe: Subscribe) -> None:
    cluster = await mesos()
    relay = Relay(cluster.master)
    await relay.start()
    first = subscribe(relay.address)
    about = (await wait(first, "SUBSCRIBED"))["subscribed"]
    assert first.framework_id == about["framework_id"]["value"]

    (offer,) = await offers(first)
    await first.call("DECLINE", {"offer_ids": [offer["id"]], "filters": {"refuse_seconds": 0}})
    (again,) = await offers(first)
    assert again["id"] != offer["id"] and again["agent_id"] == offer["agent_id"]
    with pytest.raises(errors.Invalid, match="REVIVE_NOT with 400"):
        await first.call("REVIVE_NOT")

    relay.cut()
    assert isinstance((await lost(first)).error, errors.ConnectionLost)
    back = (await wait(first, "SUBSCRIBED"))["subscribed"]
    assert back["framework_id"] == about["framework_id"]
    await offers(first)

    second = subscribe(cluster.master, first.framework_id)
    await wait(second, "SUBSCRIBED")
    with pytest.raises(errors.Unavailable, match="another scheduler"):
        await first.call("REVIVE")
    with pytest.raises(FailedOver):
        await lost(first)

    await second.call("TEARDOWN")
    with pytest.raises(FrameworkRemoved):
        await lost(second)
        await wait(second, "SUBSCRIBED")
    third = subscribe(cluster.master)
    await wait(third, "SUBSCRIBED")
    assert third.framework_id != first.framework_id
    await relay.stop()


async def test_a_scheduler_that_is_cut_off_is_not_called_for(mesos: MakeMesos, subscribe: Subscribe) -> None:
    """Its session may still reach the master, while its stream is gone."""
    cluster = await mesos(agents=0)
    first = subscribe(cluster.master)
    await wait(first, "SUBSCRIBED")
    second = subscribe(cluster.master, first.framework_id)
    await wait(second, "SUBSCRIBED")
    second.close()
    async with asyncio.timeout(SECONDS):
        while True:  # until the master has noticed
            with pytest.raises(errors.Unavailable) as caught:
                await first.call("REVIVE")
            if "not subscribed" in str(caught.value):
                break
            await asyncio.sleep(0.01)
    with pytest.raises(FailedOver):
        await lost(first)


async def test_what_the_master_refuses(mesos: MakeMesos, subscribe: Subscribe) -> None:
    cluster = await mesos(agents=0)
    with pytest.raises(errors.Invalid, match=f"{cluster.master}.*role"):
        await wait(subscribe(cluster.master, roles=["a b"]), "SUBSCRIBED")
    with pytest.raises(errors.Invalid, match="SUBSCRIBE with 400"):
        await wait(subscribe(cluster.master, failover_timeout="soon"), "SUBSCRIBED")


async def test_the_operator_api(mesos: MakeMesos) -> None:
    cluster = await mesos()
    async with Master([cluster.master]) as master:
        (agent,) = (await master.query("GET_AGENTS"))["get_agents"]["agents"]
        about = agent["agent_info"]
        disk = {"name": "disk", "type": "SCALAR", "scalar": {"value": 8}}
        disk["reservations"] = [{"type": "DYNAMIC", "role": "storage"}]
        body = {"agent_id": about["id"], "resources": [disk]}
        assert await master.query("RESERVE_RESOURCES", body) == {}
        disk["scalar"] = {"value": 1e9}
        with pytest.raises(errors.Busy, match="RESERVE_RESOURCES with 409"):
            await master.query("RESERVE_RESOURCES", body)
        with pytest.raises(errors.Invalid, match="No agent found"):
            await master.query("RESERVE_RESOURCES", {**body, "agent_id": {"value": "nobody"}})
        with pytest.raises(errors.Invalid, match="400"):
            await master.query("NO_SUCH_CALL")


async def test_credentials(mesos: MakeMesos, subscribe: Subscribe, tmp_path: Path) -> None:
    known = [{"principal": "moorage", "secret": "open"}, {"principal": "other", "secret": "door"}]
    (tmp_path / "credentials").write_text(json.dumps({"credentials": known}))
    flags = ("authenticate_http_frameworks", "http_framework_authenticators=basic")
    flags += ("authenticate_http_readwrite", f"credentials=file://{tmp_path}/credentials")
    cluster = await mesos(master_flags=flags)
    right = Credentials("moorage", "open")
    for wrong in (None, Credentials("moorage", "shut")):
        with pytest.raises(errors.AuthenticationFailed, match=f"{cluster.master}.*401"):
            await wait(subscribe(cluster.master, credentials=wrong), "SUBSCRIBED")
        async with Master([cluster.master], credentials=wrong) as master:
            with pytest.raises(errors.AuthenticationFailed, match="GET_AGENTS with 401"):
                await master.query("GET_AGENTS")
    with pytest.raises(errors.Invalid, match=r"SUBSCRIBE with 400.*principal"):
        await wait(subscribe(cluster.master, credentials=Credentials("other", "door")), "SUBSCRIBED")
    async with Master([cluster.master], credentials=right) as master:
        assert (await master.query("GET_AGENTS"))["get_agents"]["agents"]
    subscription = subscribe(cluster.master, credentials=right)
    (offer,) = await offers(subscription)
    await subscription.call("DECLINE", {"offer_ids": [offer["id"]]})


@pytest.mark.slow
async def test_a_master_that_restarts(mesos: MakeMesos, subscribe: Subscribe) -> None:
    cluster = await mesos(agents=0)
    subscription = subscribe(cluster.master)
    await wait(subscription, "SUBSCRIBED")
    framework_id = subscription.framework_id
    cluster.kill("master")
    assert isinstance((await lost(subscription)).error, errors.ConnectionLost)
    task = asyncio.create_task(wait(subscription, "SUBSCRIBED"))
    with pytest.raises(errors.Unavailable, match="not subscribed"):
        await subscription.call("REVIVE")
    cluster.start("master")
    assert (await task)["subscribed"]["framework_id"]["value"] == framework_id
