"""What calls a scheduler, and who else may be there: each refusal is an error of ours, and shows no token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from moorage.framework.remote import call
from moorage.service.embed import Route
from moorage.service.http import HttpServer
from moorage.wire import errors

TOKEN = "a-token-of-some-length"


class Scheduler:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.given: list[dict[str, Any]] = []
        self.server = HttpServer(token=TOKEN, metrics=CollectorRegistry(), not_ready=lambda: [])
        self.server.add_routes([Route("POST", "framework.apply", self.apply)])

    async def apply(self, params: dict[str, Any]) -> Any:
        self.given.append(params)
        if self.error is not None:
            raise self.error
        return {"steps": [], "problems": []}


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    made = Scheduler()
    yield made
    await made.server.stop()


async def test_what_the_scheduler_says(scheduler: Scheduler) -> None:
    address = f"127.0.0.1:{await scheduler.server.start('127.0.0.1', 0)}"
    spec = {"spec": {"name": "prod"}}
    assert await call(address, TOKEN, "framework.apply", spec) == {"steps": [], "problems": []}
    assert scheduler.given == [spec]
    for error in (errors.Invalid("no"), errors.Unavailable("not now"), errors.AuthenticationFailed("acl")):
        scheduler.error = error
        with pytest.raises(type(error), match=str(error)):
            await call(address, TOKEN, "framework.apply", spec)
    scheduler.error = KeyError("our own mistake")
    with pytest.raises(errors.RemoteError, match="internal error"):
        await call(address, TOKEN, "framework.apply", spec)
    with pytest.raises(errors.AuthenticationFailed) as caught:
        await call(address, "another-token-of-it", "framework.apply", spec)
    assert "another-token" not in str(caught.value)


async def test_nobody_or_somebody_else_is_there() -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def empty(_: web.Request) -> web.Response:
        return web.json_response([])

    app = web.Application()
    app.router.add_post("/v1/framework.apply", hello)
    app.router.add_post("/v1/list", empty)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    for name in ("framework.apply", "list", "none"):
        with pytest.raises(errors.ProtocolError, match="is no scheduler of Moorage"):
            await call(f"{host}:{port}", TOKEN, name, {})
    await runner.cleanup()
    with pytest.raises(errors.CannotConnect):
        await call(f"{host}:{port}", TOKEN, "framework.apply", {})
    for address in ("", "no address", "127.0.0.1:99999999"):
        with pytest.raises(errors.MoorageError):
            await call(address, TOKEN, "framework.apply", {})
