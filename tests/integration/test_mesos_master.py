"""The way to the Mesos masters, with masters of our own: they lead, step down, fall silent and refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from moorage.framework.master import HOPS_MAX, Credentials, Master, Timings
from moorage.framework.messages import FailedOver, FrameworkRemoved
from moorage.framework.subscription import Event, Lost, Subscription
from moorage.wire import errors

Json = dict[str, Any]
INFO = {"user": "root", "name": "test", "principal": "me", "roles": ["storage"]}
QUICK = Timings(connect_s=5, answer_s=5, backoff_first_s=0.01, backoff_max_s=0.05, steady_s=0)
SCHEDULER, OPERATOR = "/api/v1/scheduler", "/api/v1"


class Stream:
    """What a master sends to one SUBSCRIBE."""

    def __init__(self, call: Json) -> None:
        self.call = call
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: break the connection; b"": end
        self.id = f"stream-{id(self)}"
        self.left = asyncio.Event()  # by the scheduler

    def send(self, event: Json) -> None:
        self.pieces.put_nowait(record(event))

    def subscribed(self, framework_id: str = "f1", heartbeat_s: float = 15) -> None:
        about = {"framework_id": {"value": framework_id}, "heartbeat_interval_seconds": heartbeat_s}
        self.send({"type": "SUBSCRIBED", "subscribed": about})

    def error(self, text: str) -> None:
        self.send({"type": "ERROR", "error": {"message": text}})
        self.end()

    def end(self) -> None:
        self.pieces.put_nowait(b"")

    def cut(self) -> None:
        self.pieces.put_nowait(None)


def record(event: Json) -> bytes:
    raw = json.dumps(event).encode()
    return b"%d\n%b" % (len(raw), raw)


class FakeMaster:
    """``leader``: whom it takes for the leader. ``answer``: what it does instead, with an operator's call or
    a scheduler's that is not SUBSCRIBE."""

    def __init__(self) -> None:
        self.leader: FakeMaster | None = None
        self.location = "//{address}{path}"
        self.address = ""
        self.calls: list[tuple[Json, dict[str, str]]] = []
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.answer_to_subscribe: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.on_call = lambda: None
        self._open: set[Stream] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post(SCHEDULER, self._scheduler)
        app.router.add_post(OPERATOR, self._operator)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        """All connections break."""
        for stream in self._open:
            stream.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def stream(self) -> Stream:
        async with asyncio.timeout(10):
            return await self.streams.get()

    async def _before(self, request: web.Request) -> web.Response | None:
        self.calls.append((await request.json(), dict(request.headers)))
        self.on_call()
        if self.leader is None:
            return web.Response(status=503, text="No leader elected")
        if self.leader is not self:
            location = self.location.format(address=self.leader.address, path=request.path)
            return web.Response(status=307, headers={"Location": location})
        return None

    async def _operator(self, request: web.Request) -> web.StreamResponse:
        if (response := await self._before(request)) is not None:
            return response
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response({"type": self.calls[-1][0]["type"], "by": self.address})

    async def _scheduler(self, request: web.Request) -> web.StreamResponse:
        if (response := await self._before(request)) is not None:
            return response
        call = self.calls[-1][0]
        if call["type"] != "SUBSCRIBE":
            return web.Response(status=202) if self.answer is None else await self.answer(request)
        if self.answer_to_subscribe is not None:
            return await self.answer_to_subscribe(request)
        stream = Stream(call)
        self._open.add(stream)
        try:
            return await self._serve(request, stream)
        finally:
            self._open.discard(stream)
            stream.left.set()

    async def _serve(self, request: web.Request, stream: Stream) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Mesos-Stream-Id": stream.id})
        response.enable_chunked_encoding()
        await response.prepare(request)
        self.streams.put_nowait(stream)
        while piece := await stream.pieces.get():
            await response.write(piece)
        if piece is None:
            assert request.transport is not None
            request.transport.abort()
        else:
            await response.write_eof()
        return response


def lead(masters: list[FakeMaster], leader: FakeMaster | None) -> None:
    for each in masters:
        each.leader = leader


@pytest.fixture
async def masters() -> AsyncIterator[list[FakeMaster]]:
    """Three; the last one leads."""
    made = [FakeMaster() for _ in range(3)]
    for each in made:
        await each.start()
    lead(made, made[2])
    yield made
    for each in made:
        await each.stop()


@pytest.fixture
async def leader(masters: list[FakeMaster]) -> FakeMaster:
    return masters[2]


@pytest.fixture
async def connect(masters: list[FakeMaster]) -> AsyncIterator[Callable[..., Master]]:
    made: list[Master] = []

    def make(*given: FakeMaster, timings: Timings = QUICK, **more: Any) -> Master:
        made.append(Master([each.address for each in given or masters], timings=timings, **more))
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.fixture
async def master(connect: Callable[..., Master]) -> Master:
    return connect()


@pytest.fixture
async def subscription(master: Master) -> AsyncIterator[Subscription]:
    made = Subscription(master, INFO)
    yield made
    made.close()


@pytest.fixture
def nobody() -> Iterator[FakeMaster]:
    """An address at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        made = FakeMaster()
        made.address = f"127.0.0.1:{bound.getsockname()[1]}"
        yield made


async def take(subscription: Subscription) -> Event:
    async with asyncio.timeout(10):
        return await anext(subscription)


async def up(subscription: Subscription, leader: FakeMaster, **about: Any) -> Stream:
    """Subscribed, by the one attempt or another."""
    task = asyncio.create_task(take(subscription))
    stream = await leader.stream()
    stream.subscribed(**about)
    event = await task
    assert isinstance(event, dict) and event["type"] == "SUBSCRIBED"
    return stream


async def lost(subscription: Subscription, kind: type, match: str) -> None:
    event = await take(subscription)
    assert isinstance(event, Lost) and type(event.error) is kind and match in str(event.error), event
    assert subscription.leader is None and subscription.last_error is event.error


def kinds(master: FakeMaster) -> list[str]:
    return [call["type"] for call, _ in master.calls]


def saying(status: int, text: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return answer


async def breaking(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


# -- who leads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["//{address}{path}", "http://{address}{path}", "//{address}"])
async def test_the_leader_is_found_and_remembered(
    masters: list[FakeMaster], master: Master, location: str
) -> None:
    for each in masters:
        each.location = location
    assert (await master.query("GET_AGENTS"))["by"] == masters[2].address
    assert master.leader == f"http://{masters[2].address}"
    await master.query("GET_TASKS")
    assert [kinds(each) for each in masters] == [["GET_AGENTS"], [], ["GET_AGENTS", "GET_TASKS"]]


async def test_a_leader_that_steps_down_names_the_next_one(masters: list[FakeMaster], master: Master) -> None:
    await master.query("GET_AGENTS")
    lead(masters, masters[1])
    assert (await master.query("GET_AGENTS"))["by"] == masters[1].address
    assert [len(each.calls) for each in masters] == [1, 1, 2]


async def test_a_leader_that_dies_is_forgotten(masters: list[FakeMaster], master: Master) -> None:
    await master.query("GET_AGENTS")
    await masters[2].stop()
    lead(masters, masters[1])
    assert (await master.query("GET_AGENTS"))["by"] == masters[1].address
    assert master.leader == f"http://{masters[1].address}"
    lead(masters, None)
    with pytest.raises(errors.Unavailable):
        await master.query("GET_AGENTS")
    assert master.leader is None


async def test_one_that_names_a_dead_leader_is_not_the_last_word(
    masters: list[FakeMaster], connect: Callable[..., Master], nobody: FakeMaster
) -> None:
    masters[0].leader = nobody
    assert (await connect(nobody, masters[0], masters[2]).query("GET_AGENTS"))["by"] == masters[2].address


async def test_nobody_leads(masters: list[FakeMaster], master: Master) -> None:
    lead(masters, None)
    with pytest.raises(errors.Unavailable, match="No leader elected") as caught:
        await master.query("RESERVE_RESOURCES", {})
    assert all(each.address in str(caught.value) for each in masters)
    assert caught.value.outcome == "not_done" and master.leader is None


async def test_nobody_is_there(connect: Callable[..., Master], nobody: FakeMaster) -> None:
    with pytest.raises(errors.Unavailable, match=f"{nobody.address}.*is it up") as caught:
        await connect(nobody).query("RESERVE_RESOURCES", {})
    assert caught.value.outcome == "not_done"


async def test_masters_that_name_each_other(
    masters: list[FakeMaster], connect: Callable[..., Master]
) -> None:
    masters[0].leader, masters[1].leader = masters[1], masters[0]
    with pytest.raises(errors.Unavailable, match="in a row"):
        await connect(*masters[:2]).query("GET_AGENTS")
    assert len(masters[0].calls) == len(masters[1].calls) == HOPS_MAX


async def test_no_masters_are_no_cluster() -> None:
    with pytest.raises(errors.Invalid, match="HOST:PORT"):
        Master([])


# -- the operator API -----------------------------------------------------------------------------------


async def test_a_call_and_its_answer(leader: FakeMaster, master: Master) -> None:
    leader.answer = saying(202, "")
    assert await master.query("RESERVE_RESOURCES", {"agent_id": {"value": "a"}}) == {}
    sent, headers = leader.calls[-1]
    assert sent == {"type": "RESERVE_RESOURCES", "reserve_resources": {"agent_id": {"value": "a"}}}
    assert headers["Accept"] == headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers


async def test_credentials_go_to_the_leader_too(
    masters: list[FakeMaster], connect: Callable[..., Master]
) -> None:
    await connect(credentials=Credentials("me", "pw")).query("GET_AGENTS")
    assert {each.calls[0][1]["Authorization"] for each in (masters[0], masters[2])} == {"Basic bWU6cHc="}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Invalid),
        (401, errors.AuthenticationFailed),
        (403, errors.AuthenticationFailed),
        (404, errors.ProtocolError),
        (409, errors.Busy),
    ],
)
async def test_a_refusal(leader: FakeMaster, master: Master, status: int, kind: type) -> None:
    leader.answer = saying(status, "because")
    with pytest.raises(kind, match=f"{leader.address} answers CREATE_VOLUMES with {status} because"):
        await master.query("CREATE_VOLUMES", {})
    assert len(leader.calls) == 1


@pytest.mark.parametrize("answer", [breaking, silent, saying(500, "oops")])
async def test_what_may_have_been_done_is_not_repeated(
    masters: list[FakeMaster], connect: Callable[..., Master], answer: Any
) -> None:
    masters[2].answer = answer
    master = connect(masters[2], *masters[:2], timings=Timings(answer_s=0.2))
    with pytest.raises(errors.Unavailable, match=masters[2].address) as caught:
        await master.query("RESERVE_RESOURCES", {})
    assert caught.value.outcome == "unknown"
    assert [len(each.calls) for each in masters] == [0, 0, 1]


@pytest.mark.parametrize("answer", [breaking, silent, saying(500, "oops")])
async def test_a_question_is_asked_elsewhere(
    masters: list[FakeMaster], connect: Callable[..., Master], answer: Any
) -> None:
    masters[2].answer = answer
    masters[0].leader = masters[0]  # it was elected, and the other one does not know yet
    master = connect(masters[2], masters[0], timings=Timings(answer_s=0.2))
    assert (await master.query("GET_AGENTS"))["by"] == masters[0].address


async def test_an_answer_that_is_none(leader: FakeMaster, master: Master) -> None:
    leader.answer = saying(200, "<html>welcome to the proxy")
    with pytest.raises(errors.ProtocolError, match=f"{leader.address}.*welcome.*is it a Mesos master"):
        await master.query("GET_AGENTS")


async def test_an_answer_that_breaks(leader: FakeMaster, master: Master) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        return await breaking(request)

    leader.answer = answer
    with pytest.raises(errors.ConnectionLost, match=leader.address):
        await master.query("GET_AGENTS")


async def test_an_answer_without_an_end(
    leader: FakeMaster, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.framework.master.ANSWER_SIZE_MAX", 1000)
    leader.answer = saying(200, "x" * 2000)
    with pytest.raises(errors.ProtocolError, match="more than 1000 bytes"):
        await master.query("GET_AGENTS")


# -- a subscription -------------------------------------------------------------------------------------


async def test_events_come_and_calls_go(leader: FakeMaster, subscription: Subscription) -> None:
    stream = await up(subscription, leader)
    assert subscription.framework_id == "f1" and subscription.leader == f"http://{leader.address}"
    assert stream.call == {"type": "SUBSCRIBE", "subscribe": {"framework_info": INFO}}
    stream.send({"type": "HEARTBEAT"})
    stream.send({"type": "OFFERS", "offers": {"offers": []}})
    assert await take(subscription) == {"type": "OFFERS", "offers": {"offers": []}}
    await subscription.call("DECLINE", {"offer_ids": []})
    await subscription.call("REVIVE")
    assert [call for call, _ in leader.calls[1:]] == [
        {"type": "DECLINE", "framework_id": {"value": "f1"}, "decline": {"offer_ids": []}},
        {"type": "REVIVE", "framework_id": {"value": "f1"}},
    ]
    assert all(headers["Mesos-Stream-Id"] == stream.id for _, headers in leader.calls[1:])
    assert "Mesos-Stream-Id" not in leader.calls[0][1]


async def test_records_come_in_any_pieces(leader: FakeMaster, subscription: Subscription) -> None:
    stream = await up(subscription, leader)
    sent = [{"type": "UPDATE", "number": number} for number in range(3)]
    for byte in b"".join(map(record, sent)):
        stream.pieces.put_nowait(bytes([byte]))
    assert [await take(subscription) for _ in sent] == sent
    stream.pieces.put_nowait(b"".join(map(record, sent)))
    assert [await take(subscription) for _ in sent] == sent


async def test_a_framework_that_comes_back_sends_its_id_twice(leader: FakeMaster, master: Master) -> None:
    subscription = Subscription(master, INFO, "f7")
    stream = await up(subscription, leader, framework_id="f7")
    assert stream.call["framework_id"] == stream.call["subscribe"]["framework_info"]["id"] == {"value": "f7"}
    assert "id" not in INFO
    subscription.close()


async def test_a_stream_that_falls_silent(leader: FakeMaster, subscription: Subscription) -> None:
    stream = await up(subscription, leader, heartbeat_s=0.05)
    await lost(subscription, errors.ConnectionLost, f"http://{leader.address} for 0.15 s")
    await stream.left.wait()
    again = await up(subscription, leader)
    assert again.call["framework_id"] == again.call["subscribe"]["framework_info"]["id"] == {"value": "f1"}
    await subscription.call("REVIVE")
    assert leader.calls[-1][1]["Mesos-Stream-Id"] == again.id != stream.id


async def test_heartbeats_keep_a_stream(leader: FakeMaster, subscription: Subscription) -> None:
    stream = await up(subscription, leader, heartbeat_s=0.2)
    task = asyncio.create_task(take(subscription))
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.0
    while loop.time() < end:  # for longer than three intervals
        stream.send({"type": "HEARTBEAT"})
        await asyncio.sleep(0.05)
    stream.send({"type": "RESCIND"})
    assert await task == {"type": "RESCIND"}


@pytest.mark.parametrize("how", ["cut", "end"])
async def test_a_stream_that_ends_within_an_event(
    leader: FakeMaster, subscription: Subscription, how: str
) -> None:
    stream = await up(subscription, leader)
    stream.send({"type": "UPDATE"})
    stream.pieces.put_nowait(record({"type": "UPDATE"})[:-3])
    assert await take(subscription) == {"type": "UPDATE"}
    getattr(stream, how)()
    await lost(subscription, errors.ConnectionLost, "in the middle of an event" if how == "end" else "broke")
    await up(subscription, leader)


@pytest.mark.parametrize("garbage", [b"nonsense", b"2\n[]", b"2\n{}", b"67108865\n"])
async def test_a_stream_of_something_else(
    leader: FakeMaster, subscription: Subscription, garbage: bytes
) -> None:
    (await up(subscription, leader)).pieces.put_nowait(garbage)
    await lost(subscription, errors.ProtocolError, "")
    await up(subscription, leader)


async def test_another_master_leads(
    masters: list[FakeMaster], leader: FakeMaster, subscription: Subscription
) -> None:
    await up(subscription, leader)
    await leader.stop()
    await lost(subscription, errors.ConnectionLost, leader.address)
    with pytest.raises(errors.Unavailable, match="REVIVE was not sent: not subscribed"):
        await subscription.call("REVIVE")
    lead(masters, masters[0])
    again = await up(subscription, masters[0])
    assert again.call["framework_id"] == {"value": "f1"}
    await subscription.call("REVIVE")
    assert kinds(masters[0])[-1] == "REVIVE" and "REVIVE" not in kinds(masters[1])


async def test_no_leader_for_a_while(masters: list[FakeMaster], subscription: Subscription) -> None:
    """The caller hears of it when there is one; until then ``last_error`` has the reason."""
    lead(masters, None)
    said: list[str] = []

    def elect() -> None:
        said.append(str(subscription.last_error))
        if len(said) == 10:
            lead(masters, masters[1])

    for each in masters:
        each.on_call = elect
    await up(subscription, masters[1])
    assert said[0] == "None" and "No leader elected" in said[-1]
    assert subscription.last_error is None


async def test_a_loss_is_told_once(
    masters: list[FakeMaster], leader: FakeMaster, subscription: Subscription
) -> None:
    stream = await up(subscription, leader)
    lead(masters, None)
    stream.end()
    await lost(subscription, errors.ConnectionLost, "ended the stream")
    asked = len(masters[0].calls)
    masters[0].on_call = lambda: lead(masters, leader) if len(masters[0].calls) > asked + 3 else None
    await up(subscription, leader)


async def test_the_pauses_grow_while_streams_are_short(
    leader: FakeMaster, connect: Callable[..., Master]
) -> None:
    """Only a subscription that lasted starts them afresh."""
    timings = Timings(backoff_first_s=0.01, backoff_max_s=0.04, steady_s=60)
    subscription = Subscription(connect(timings=timings), INFO)
    loop = asyncio.get_running_loop()
    for _ in range(3):
        (await up(subscription, leader)).end()
        await lost(subscription, errors.ConnectionLost, "ended the stream")
    since = loop.time()
    await up(subscription, leader)
    assert loop.time() - since >= 0.02  # half of the most
    subscription.close()


async def test_another_scheduler_takes_over(leader: FakeMaster, subscription: Subscription) -> None:
    (await up(subscription, leader)).error("Framework failed over")
    for _ in range(2):
        with pytest.raises(FailedOver, match="one scheduler at a time"):
            await take(subscription)
    with pytest.raises(errors.Unavailable, match="not subscribed"):
        await subscription.call("REVIVE")
    assert kinds(leader) == ["SUBSCRIBE"]


STALE = "The stream ID 'x' included in this request didn't match the stream ID currently associated with f1"


async def test_a_scheduler_that_knows_itself_replaced_does_not_come_back(
    leader: FakeMaster, subscription: Subscription
) -> None:
    """Though the ERROR that says so is lost with the connection."""
    stream = await up(subscription, leader)
    leader.answer = saying(400, STALE)
    with pytest.raises(errors.Unavailable, match="another scheduler"):
        await subscription.call("REVIVE")
    stream.cut()
    with pytest.raises(FailedOver):
        await take(subscription)
    assert kinds(leader) == ["SUBSCRIBE", "REVIVE"]


async def test_a_framework_that_was_removed(leader: FakeMaster, master: Master) -> None:
    subscription = Subscription(master, INFO, "f1")
    task = asyncio.create_task(take(subscription))
    (await leader.stream()).error("Framework has been removed")
    with pytest.raises(FrameworkRemoved, match="as a new one"):
        await task
    await up(new := Subscription(master, INFO), leader, framework_id="f2")
    assert new.framework_id == "f2"
    new.close()


async def test_a_framework_that_is_removed(leader: FakeMaster, subscription: Subscription) -> None:
    (await up(subscription, leader)).end()
    await lost(subscription, errors.ConnectionLost, "ended the stream")
    task = asyncio.create_task(take(subscription))
    (await leader.stream()).error("Framework has been removed")
    with pytest.raises(FrameworkRemoved):
        await task


async def test_a_framework_that_is_refused(leader: FakeMaster, subscription: Subscription) -> None:
    task = asyncio.create_task(take(subscription))
    (await leader.stream()).error("Role 'a/' is not valid")
    with pytest.raises(errors.Invalid, match=f"{leader.address}.*Role 'a/' is not valid"):
        await task
    assert kinds(leader) == ["SUBSCRIBE"]


async def test_an_error_that_nobody_knows_is_no_end(leader: FakeMaster, subscription: Subscription) -> None:
    (await up(subscription, leader)).error("Framework disconnected")
    await lost(subscription, errors.Unavailable, "Framework disconnected")
    await up(subscription, leader)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, errors.Invalid), (401, errors.AuthenticationFailed), (403, errors.AuthenticationFailed)],
)
async def test_a_subscription_that_is_refused(
    leader: FakeMaster, subscription: Subscription, status: int, kind: type
) -> None:
    leader.answer_to_subscribe = saying(status, "because")
    for _ in range(2):
        with pytest.raises(kind, match=f"{leader.address} answers SUBSCRIBE with {status} because"):
            await take(subscription)
    assert kinds(leader) == ["SUBSCRIBE"]


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (307, "", errors.Unavailable),
        (400, STALE, errors.Unavailable),
        (400, "Framework cannot be found", errors.Unavailable),
        (400, "Not a valid UUID", errors.Invalid),
        (401, "", errors.AuthenticationFailed),
        (403, "Framework is not subscribed", errors.Unavailable),
        (403, "", errors.AuthenticationFailed),
        (503, "", errors.Unavailable),
    ],
)
async def test_a_call_that_is_refused(
    leader: FakeMaster, subscription: Subscription, status: int, text: str, kind: type
) -> None:
    stream = await up(subscription, leader)
    leader.answer = saying(status, text)
    with pytest.raises(errors.MoorageError, match="REVIVE") as caught:
        await subscription.call("REVIVE")
    assert type(caught.value) is kind and caught.value.outcome == "not_done"
    leader.answer = None
    stream.send({"type": "RESCIND"})  # whether the stream goes on, the stream says
    assert await take(subscription) == {"type": "RESCIND"}


async def test_a_subscription_that_may_have_been_made_is_not_made_twice_at_once(
    masters: list[FakeMaster], leader: FakeMaster, connect: Callable[..., Master]
) -> None:
    """Each SUBSCRIBE without an id makes a framework."""
    leader.answer_to_subscribe = breaking
    subscription = Subscription(connect(leader, *masters[:2], timings=Timings(backoff_first_s=60)), INFO)
    task = asyncio.create_task(take(subscription))
    async with asyncio.timeout(10):
        while subscription.last_error is None:
            await asyncio.sleep(0.01)
    assert isinstance(subscription.last_error, errors.ConnectionLost) and kinds(leader) == ["SUBSCRIBE"]
    task.cancel()
    await asyncio.wait([task])
    subscription.close()


async def test_a_call_whose_answer_is_lost(leader: FakeMaster, subscription: Subscription) -> None:
    await up(subscription, leader)
    leader.answer = breaking
    with pytest.raises(errors.ConnectionLost) as caught:
        await subscription.call("REVIVE")
    assert caught.value.outcome == "unknown"


async def test_a_master_that_accepts_and_says_nothing(
    leader: FakeMaster, connect: Callable[..., Master]
) -> None:
    timings = Timings(answer_s=0.1, backoff_first_s=0.01)
    subscription = Subscription(connect(timings=timings), INFO)
    task = asyncio.create_task(take(subscription))
    await (await leader.stream()).left.wait()
    (await leader.stream()).subscribed()
    assert isinstance(await task, dict)
    subscription.close()


async def test_whoever_waits_may_stop_and_go_on(leader: FakeMaster, subscription: Subscription) -> None:
    stream = await up(subscription, leader)
    stream.pieces.put_nowait(record({"type": "UPDATE"})[:5])
    for _ in range(5):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(subscription), 0.01)
    stream.pieces.put_nowait(record({"type": "UPDATE"})[5:])
    assert await take(subscription) == {"type": "UPDATE"}
    assert kinds(leader) == ["SUBSCRIBE"]


async def test_whoever_stops_during_a_pause_waits_no_longer(masters: list[FakeMaster], connect: Any) -> None:
    lead(masters, None)
    timings = Timings(backoff_first_s=0.2, backoff_max_s=0.2)
    subscription = Subscription(connect(timings=timings), INFO)
    async with asyncio.timeout(10):
        while len(masters[0].calls) < 3:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(anext(subscription), 0.05)
    subscription.close()


@pytest.mark.parametrize("subscribed", [True, False])
async def test_it_ends_when_it_is_closed(
    leader: FakeMaster, subscription: Subscription, subscribed: bool
) -> None:
    if subscribed:
        stream = await up(subscription, leader)
    task = asyncio.create_task(take(subscription))
    if not subscribed:
        stream = await leader.stream()
    subscription.close()
    if not subscribed:
        stream.subscribed()
    with pytest.raises(StopAsyncIteration):
        await task
    async with asyncio.timeout(10):
        await stream.left.wait()
    assert [event async for event in subscription] == []
