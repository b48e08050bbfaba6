"""The S3 server: sockets on one side, :class:`Gateway` on the other. It keeps nothing; any number may run.

Owns the listener, how many requests are answered at once, and the pace of bodies: bytes are read when the
store takes them, and written when the client does. A client that goes away cancels what it had asked for, and
nothing of an unfinished put is ever seen. aiohttp's routing and its reading of URLs are passed by: keys are
bytes of the request line as they are.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from moorage.client.cluster import Cluster
from moorage.gateway.s3.answer import XML, Answer
from moorage.gateway.s3.call import Place
from moorage.gateway.s3.credentials import Credentials
from moorage.gateway.s3.errors import S3Error, render
from moorage.gateway.s3.expiry import Expiry
from moorage.gateway.s3.gateway import Gateway
from moorage.gateway.s3.records import Records
from moorage.gateway.s3.request import Request
from moorage.wire.errors import CannotBind, MoorageError

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 512  # half of the descriptors that a process usually has
REQUESTS_MAX: Final = 128  # at once; each has some 8 MiB of an object under way
IDLE_S: Final = 60.0  # for the next bytes of a body, in either direction
KEEP_ALIVE_S: Final = 75.0  # for the next request of a connection, or the first
LINE_MAX: Final = 16 << 10  # a key of 1024 bytes has 3072 when it is encoded, beside the query
READ_BYTES: Final = 256 << 10
STOP_S: Final = 10.0  # for requests that are being answered


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "moorage_s3_requests",
            "Requests, by operation and status.",
            ["operation", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "moorage_s3_request_seconds",
            "From the head of a request to the end of its answer.",
            ["operation"],
            registry=registry,
        )
        self.serving = Gauge("moorage_s3_requests_now", "Requests being answered.", registry=registry)
        self.received = Counter("moorage_s3_received_bytes", "Bytes of bodies that came.", registry=registry)
        self.sent = Counter("moorage_s3_sent_bytes", "Bytes of bodies that were sent.", registry=registry)


class S3Server:
    """``tls``: None for plain HTTP. ``domains``: below which a bucket may be a label of the host."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        region: str,
        domains: Iterable[str] = (),
        replicas: int = 3,
        tls: ssl.SSLContext | None = None,
        metrics: CollectorRegistry | None = None,
    ) -> None:
        credentials = Credentials(cluster.keys.find, time.monotonic)
        self._expiry = Expiry(cluster)
        records = Records(cluster, time.monotonic)
        place = Place(cluster, credentials, records, region, replicas, self._expiry.rules_changed)
        self._gateway = Gateway(place, domains, lambda: int(time.time() * 1000))
        self._tls = tls
        self._metrics = Metrics(metrics or CollectorRegistry())
        self._busy: set[asyncio.BaseProtocol] = set()  # connections with a request that is being answered
        self._runner: web.ServerRunner | None = None
        self._listener: asyncio.Server | None = None
        self._expiring: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port. Raises CannotBind."""
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            auto_decompress=False,  # a body is stored as it was sent
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=LINE_MAX,
            max_field_size=LINE_MAX,
            read_bufsize=READ_BYTES,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=STOP_S)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(self._accept, host, port, ssl=self._tls)
        except OSError as error:
            await self.stop()
            why = error.strerror or error
            raise CannotBind(f"cannot listen for S3 on {host} port {port}: {why}") from None
        self._expiring = asyncio.create_task(self._expiry.run(), name="lifecycle rules")
        self._expiring.add_done_callback(_log_end)
        return int(self._listener.sockets[0].getsockname()[1])

    def _accept(self) -> asyncio.Protocol:
        assert self._runner is not None and self._runner.server is not None
        made = self._runner.server()
        loop = asyncio.get_running_loop()
        # aiohttp counts a connection from its connection_made on, which comes in the next turn of the loop.
        loop.call_soon(loop.call_soon, self._make_room)
        return made

    def _make_room(self) -> None:
        """Past the bound the oldest connection on which nothing is being answered ends: who never sends a
        request must not keep others out."""
        if self._runner is None or self._runner.server is None:
            return
        alive = [each for each in self._runner.server.connections if each.transport is not None]
        if len(alive) > CONNECTIONS_MAX:
            next((each for each in alive if each not in self._busy), alive[-1]).force_close()

    async def stop(self) -> None:
        """Requests that are being answered have :data:`STOP_S` to end."""
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.gather(self._expiring, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        incoming = _Incoming(http, self._metrics)
        operation, status = "", 499  # the client went away
        self._busy.add(http.protocol)
        self._metrics.serving.set(len(self._busy))
        try:
            operation, answer = await self._answer(http, incoming)
            status = answer.status
            return await self._send(http, answer, incoming)
        finally:
            self._busy.discard(http.protocol)
            self._metrics.serving.set(len(self._busy))
            self._metrics.requests.labels(operation, status).inc()
            self._metrics.seconds.labels(operation).observe(time.monotonic() - began)

    async def _answer(self, http: web.BaseRequest, incoming: _Incoming) -> tuple[str, Answer]:
        if len(self._busy) > REQUESTS_MAX:
            body = render(S3Error("SlowDown"), http.path, "")
            return "", Answer(503, {"Content-Type": XML, "Retry-After": "1"}, body)
        return await self._gateway.answer(_request(http), incoming.read())

    async def _send(self, http: web.BaseRequest, answer: Answer, incoming: _Incoming) -> web.StreamResponse:
        length = answer.length
        if length is None and answer.stream is None:
            length = len(answer.body)
        response = web.StreamResponse(status=answer.status, headers={"Server": "Moorage"})
        response.headers.update(answer.headers)
        if answer.status not in (204, 304):
            response.content_length = length
        if incoming.is_withheld:
            response.force_close()
        await response.prepare(http)
        if answer.body and http.method != "HEAD":
            await response.write(answer.body)
        if answer.stream is not None:
            await self._stream(http, response, answer.stream)
        if incoming.is_withheld:
            # The client may send its body now, or not: where another request would begin is not known.
            await response.write_eof()
            http.protocol.force_close()
        return response  # aiohttp ends it

    async def _stream(
        self, http: web.BaseRequest, response: web.StreamResponse, stream: AsyncIterator[memoryview]
    ) -> None:
        """What cannot be read in the middle ends the connection: the client sees that bytes are missing."""
        try:
            async for piece in stream:
                async with asyncio.timeout(IDLE_S):
                    await response.write(piece)
                self._metrics.sent.inc(len(piece))
        except ConnectionError:
            pass  # the client went away
        except (MoorageError, TimeoutError) as error:
            log.warning("an answer was cut off: %s", error)
            if http.transport is not None:
                http.transport.abort()
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("lifecycle rules are not acted on here any more", exc_info=error)


class _Incoming:
    """The body of a request, read when somebody wants it. A client that waits to be asked for it is asked
    then: one that is refused before need not send it."""

    def __init__(self, http: web.BaseRequest, metrics: Metrics) -> None:
        self._http = http
        self._metrics = metrics
        self.is_withheld = http.headers.get("Expect", "").lower() == "100-continue"

    async def read(self) -> AsyncIterator[bytes]:
        if self.is_withheld:
            self.is_withheld = False
            if self._http.transport is not None:
                self._http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    data = await self._http.content.readany()
            except TimeoutError:
                raise S3Error("RequestTimeout") from None
            except web.RequestPayloadError:
                raise S3Error("IncompleteBody") from None
            if not data:
                return
            self._metrics.received.inc(len(data))
            yield data


def _request(http: web.BaseRequest) -> Request:
    path, _, query = http.raw_path.partition("?")
    headers = (
        (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
        for name, value in http.raw_headers
    )
    peer = http.transport.get_extra_info("peername") if http.transport is not None else None
    return Request(
        *(http.method, path, query, headers),
        secure=http.transport is not None and http.transport.get_extra_info("sslcontext") is not None,
        source_ip=str(peer[0]) if peer else "",
    )
