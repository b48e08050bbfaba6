"""HTTP of a process: probes and metrics for everybody, the JSON API and a page for who has the token.

Owns the listener, the token check and the one table from errors to status codes. ``GET /healthz``,
``/readyz`` and ``/metrics`` are open and change nothing; every other path needs ``Authorization: Bearer
TOKEN``, also one that does not exist, so that nothing can be learnt by asking. Without a token file every
such call is refused. ``GET /``, where there is a page, takes the token as a browser's password as well; calls
do not, since a browser sends a password along with whatever other sites make it ask for. Who has no token may
still connect: connections are bounded, and end when no request comes, since they share the process's
descriptors with the binary protocol.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from moorage.service.embed import Call, Route
from moorage.wire import errors
from moorage.wire.secret import read_private

log = logging.getLogger(__name__)

BODY_MAX = 1 << 20
TOKEN_MIN = 16
CONNECTIONS_MAX = 128  # some probes, a scraper and operators: the descriptors are for the binary protocol
HEADERS_S = 5.0  # for the headers of a request, from connecting or from the last answer; as for a handshake
_OPEN = frozenset({"/healthz", "/readyz", "/metrics"})
PAGE = "/"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LAG_INTERVAL_S = 0.5

# First match wins. A client may retry 503 as it is; 409 and 4xx need a change by the caller.
_STATUS: tuple[tuple[type[errors.MoorageError], int], ...] = (
    (errors.NotFound, 404),
    (errors.NameTaken, 409),
    (errors.Busy, 409),
    (errors.Invalid, 400),
    (errors.Denied, 403),
    (errors.NotLeader, 503),
    (errors.Stale, 409),
    (errors.DeadlineExceeded, 504),
    (errors.Unavailable, 503),
    (errors.Overloaded, 503),
    (errors.NoSpace, 507),
)


def status_of(error: errors.MoorageError) -> int:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def load_token(path: Path) -> str:
    """The token of a file that only its owner may read. Raises Invalid."""
    token = read_private(path, "token file").decode("ascii", "replace").strip()
    if len(token) < TOKEN_MIN or not token.isascii() or any(each.isspace() for each in token):
        raise errors.Invalid(
            f"{path}: a token is one word of at least {TOKEN_MIN} ASCII characters: write a new one"
        )
    return token


def create_token(path: Path) -> None:
    """Write a new random token to a file that must not exist yet."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.Invalid(f"cannot create the token file {path}: {error.strerror}") from None
    with open(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
        file.flush()
        os.fsync(descriptor)


class HttpServer:
    """One listener. Probes ask ``not_ready``: the reasons why this process does not serve now. ``page``: the
    HTML of ``GET /``, if there is one."""

    def __init__(
        self,
        *,
        token: str | None,
        metrics: CollectorRegistry,
        not_ready: Callable[[], list[str]],
        page: Callable[[], str] | None = None,
    ) -> None:
        self._token = token
        self._page = page
        self._metrics = metrics
        self._not_ready = not_ready
        self._started = time.monotonic()
        self._routes: dict[tuple[str, str], Call] = {}
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._serving: set[asyncio.BaseProtocol] = set()  # connections with a request that is being answered
        self._lag_task: asyncio.Task[None] | None = None
        self._lag = Gauge(
            "moorage_loop_lag_seconds", "How late the event loop woke up last.", registry=metrics
        )

    def add_routes(self, routes: Iterable[Route]) -> None:
        """Services join after the listener is up: probes must answer while they start."""
        for route in routes:
            self._routes[route.method, route.name] = route.handler

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port. Raises CannotBind."""
        self._runner = web.AppRunner(
            self._app(),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            keepalive_timeout=HEADERS_S,  # also of a connection that never sent a request
        )
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(self._accept, host, port)
        except OSError as error:
            await self.stop()
            raise errors.CannotBind(
                f"cannot listen for HTTP on {host} port {port}: {error.strerror or error}"
            ) from None
        self._lag_task = asyncio.create_task(self._watch_lag(), name="loop-lag")
        return int(self._listener.sockets[0].getsockname()[1])

    def _accept(self) -> asyncio.Protocol:
        assert self._runner is not None and self._runner.server is not None
        made = self._runner.server()
        loop = asyncio.get_running_loop()
        # aiohttp counts a connection from its connection_made on, which comes in the next turn of the loop.
        loop.call_soon(loop.call_soon, self._make_room, made)
        return made

    def _make_room(self, newest: web.RequestHandler) -> None:
        """Past the bound the oldest connection without a whole request ends, which may be the newest."""
        if self._runner is None or self._runner.server is None:
            return
        alive = [each for each in self._runner.server.connections if each.transport is not None]
        if len(alive) > CONNECTIONS_MAX:
            next((each for each in alive if each not in self._serving), newest).force_close()

    async def stop(self) -> None:
        if self._lag_task is not None:
            self._lag_task.cancel()
            await asyncio.wait([self._lag_task])
            self._lag_task = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_MAX)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_page)
        if self._page is not None:
            app.router.add_get(PAGE, self._html)
        app.router.add_route("*", "/v1/{call}", self._call)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        is_probe = request.path in _OPEN and request.method in ("GET", "HEAD")
        if not is_probe and not self._authorized(request):
            refused = _failure(
                401, "send the token of --token-file as 'Authorization: Bearer TOKEN'", "Unauthorized"
            )
            if self._is_page(request):
                refused.headers["WWW-Authenticate"] = 'Basic realm="the token is the password"'
            return refused
        self._serving.add(request.protocol)
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _failure(error.status, error.reason, "HTTP")
        except errors.MoorageError as error:
            return _failure(status_of(error), error.message, type(error).__name__, error.details)
        except Exception:
            log.exception("request failed: %s %s", request.method, request.path)
            return _failure(500, "internal error; the log has the story", "Internal")
        finally:
            self._serving.discard(request.protocol)

    def _is_page(self, request: web.Request) -> bool:
        return self._page is not None and request.path == PAGE and request.method in ("GET", "HEAD")

    def _authorized(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic" and self._is_page(request):
            given = _password(given)
        elif scheme.lower() != "bearer":
            return False
        wanted = self._token or ""
        return bool(wanted) and hmac.compare_digest(given.strip().encode("utf-8", "replace"), wanted.encode())

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "uptime_s": round(time.monotonic() - self._started, 3)})

    async def _readyz(self, _request: web.Request) -> web.Response:
        reasons = self._not_ready()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._metrics), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
        )

    async def _html(self, _request: web.Request) -> web.Response:
        assert self._page is not None
        return web.Response(text=self._page(), content_type="text/html", headers=_PAGE_HEADERS)

    async def _call(self, request: web.Request) -> web.Response:
        name = request.match_info["call"]
        handler = self._routes.get((request.method, name))
        if handler is None:
            known = ", ".join(sorted(f"{method} /v1/{call}" for method, call in self._routes))
            raise errors.NotFound(
                f"no such call: {request.method} /v1/{name}; there are: {known or 'none yet'}"
            )
        params = {**await _body(request), **request.query}
        return web.json_response(await handler(params), dumps=_dumps)

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self._lag.set(max(0.0, loop.time() - due))


def _password(basic: str) -> str:
    """Of ``USER:PASSWORD`` in base64; "" of what is none."""
    try:
        return base64.b64decode(basic.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


async def _body(request: web.Request) -> dict[str, Any]:
    raw = await request.read()
    if not raw:
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise errors.Invalid("the body is not JSON: send an object such as {}") from None
    if not isinstance(value, dict):
        raise errors.Invalid("the body is not an object: send one such as {}")
    return value


def _failure(status: int, message: str, kind: str, details: dict[str, Any] | None = None) -> web.Response:
    value = {"error": {"kind": kind, "message": message, "details": details or {}}}
    return web.json_response(value, status=status, dumps=_dumps)


def _dumps(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)
