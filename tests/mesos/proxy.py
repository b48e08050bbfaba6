"""A way to a master on which calls and answers get lost, calls wait, and events come twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any, Literal

import aiohttp
from aiohttp import web

from moorage.framework.recordio import RecordReader

Json = dict[str, Any]
Fate = Literal["arrives", "swallowed", "lost", "unheard"]
PASSED_ON = ("Content-Type", "Accept", "Mesos-Stream-Id")


class Proxy:
    """``fate``: of a call to the scheduler API. *swallowed*: answered as the master would, and never told to
    it; *lost*: the connection breaks, and the master has heard nothing; *unheard*: the same, and the master
    has done it. ``gate``: calls of that kind wait until the event is set, and ``waiting`` then has them.
    ``repeating``: each event comes twice. ``heard``: the calls that the master has got."""

    def __init__(self, master: str) -> None:
        self.address = ""
        self.fate: Callable[[Json], Fate] = lambda _: "arrives"
        self.gate: dict[str, asyncio.Event] = {}
        self.waiting: list[Json] = []
        self.repeating = False
        self.heard: list[Json] = []
        self._url = f"http://{master}"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True)  # a stream ends with its scheduler
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        """Once the scheduler has ended."""
        assert self._runner is not None
        await self._session.close()
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        call: Json = json.loads(raw)
        is_scheduler = request.path.endswith("/scheduler")
        fate = self.fate(call) if is_scheduler else "arrives"
        if is_scheduler and (gate := self.gate.get(call["type"])) is not None:
            self.waiting.append(call)
            await gate.wait()
        if fate == "swallowed":
            return web.Response(status=202)
        if fate == "lost":
            return self._break(request)
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        async with self._session.post(self._url + request.path, data=raw, headers=headers) as answer:
            self.heard.append(call)
            if fate == "unheard":
                await answer.read()
                return self._break(request)
            back = web.StreamResponse(status=answer.status)
            for name in ("Content-Type", "Mesos-Stream-Id"):
                if name in answer.headers:
                    back.headers[name] = answer.headers[name]
            await back.prepare(request)
            await self._pass_on(answer, back, call["type"] == "SUBSCRIBE" and answer.status == 200)
            return back

    @staticmethod
    def _break(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _pass_on(
        self, answer: aiohttp.ClientResponse, back: web.StreamResponse, is_stream: bool
    ) -> None:
        records = RecordReader()
        with contextlib.suppress(OSError, aiohttp.ClientError):
            async for chunk in answer.content.iter_any():
                if not is_stream:
                    await back.write(chunk)
                    continue
                records.feed(chunk)
                while (record := records.next_record()) is not None:
                    framed = b"%d\n%b" % (len(record), record)
                    again = self.repeating and json.loads(record)["type"] != "SUBSCRIBED"
                    await back.write(framed * (2 if again else 1))
