"""The life of a service process: claim the directory, listen, start, say "ready", wait, drain, exit with
a code.

Owns the process: its event loop, its two listeners (binary protocol and HTTP), its signals, its one line
on stdout. The services inside know none of that. Must never print anything else on stdout, and never end
with a traceback: what a person or a scheduler must know is one line on stderr and an exit code
(`exits.py`, docs/launch.md).

Order matters: the directory is claimed before anything listens (a second process must not even answer),
HTTP is up before the services start (a scheduler asks /healthz while they wait for others), and the ready
line comes when /readyz is green for the first time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from moorage.service import log as service_log
from moorage.service.embed import EmbeddedService
from moorage.service.exits import Exit, exit_code
from moorage.service.http import HttpServer, load_token
from moorage.service.identity import DirectoryLock, claim_directory
from moorage.service.launch import Settings, join_address, load_settings, unknown_variables
from moorage.wire import address
from moorage.wire.buffers import reuse_payload_memory
from moorage.wire.errors import CannotBind, Invalid, InvariantViolation, MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, serve

log = logging.getLogger(__name__)

READY_POLL_S = 0.05


@dataclass(frozen=True)
class Launch:
    """What a process knows once it listens, and what its services are built from."""

    settings: Settings
    secret: ClusterSecret
    hello: Hello  # of this process: service, cluster, name, a random instance
    address: str  # advertised, with the bound port: HOST:PORT
    http: str  # HOST:PORT

    @property
    def directory(self) -> Path:
        return self.settings.data_dir


Build = Callable[[Launch], list[EmbeddedService]]


def run(
    service: str, flags: Mapping[str, str | None], build: Build, environ: Mapping[str, str] = os.environ
) -> int:
    """Run ``service`` until it is told to stop; returns the exit code."""
    lock: DirectoryLock | None = None
    try:
        settings = load_settings(service, flags, environ)
        service_log.configure(settings.log_level)
        for variable in unknown_variables(environ):
            log.warning("environment variable %s is not an option of Moorage: misspelt?", variable)
        secret = ClusterSecret.load(settings.secret_file)
        token = load_token(settings.token_file) if settings.token_file else None
        reuse_payload_memory()
        lock = claim_directory(settings.data_dir, cluster=secret.cluster, name=settings.name, kind=service)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return int(runner.run(Process(settings, secret, token, build).run()))
    except MoorageError as error:
        return int(complain(service, error))
    finally:
        if lock is not None:
            lock.release()


def complain(program: str, error: MoorageError) -> Exit:
    """The one line that a person reads, and the code that a scheduler does."""
    line = " ".join(str(error).split())
    sys.stderr.write(f"moorage {program}: {line}\n")
    sys.stderr.flush()
    return exit_code(error)


class Process:
    """One run. ``_ending`` gets the reason to stop: None when asked to, else the error that ends it."""

    def __init__(self, settings: Settings, secret: ClusterSecret, token: str | None, build: Build) -> None:
        self._settings = settings
        self._secret = secret
        self._build = build
        self._metrics = CollectorRegistry()
        self._router = Router()
        self._server: Server | None = None
        self._http = HttpServer(token=token, metrics=self._metrics, not_ready=self.not_ready)
        self._services: list[EmbeddedService] = []
        self._starting: set[str] = {settings.service}  # kinds whose start() has not returned
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._ending: asyncio.Future[MoorageError | None]

    def not_ready(self) -> list[str]:
        """Reasons for GET /readyz, each with the service that has it."""
        if self._draining:
            return ["stopping"]
        reasons = [f"{each.kind}: {reason}" for each in self._services for reason in each.not_ready()]
        explained = {reason.partition(":")[0] for reason in reasons}
        return reasons + [f"{kind}: starting" for kind in sorted(self._starting - explained)]

    async def run(self) -> Exit:
        loop = asyncio.get_running_loop()
        self._ending = loop.create_future()
        loop.set_exception_handler(self._loop_failed)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        error: MoorageError | None
        try:
            launch = await self._listen()
            self._start_services(launch)
            error = await self._ending
        except MoorageError as failure:
            error = failure
        in_time = await self._drain()
        if error is not None:
            return complain(self._settings.service, error)
        return Exit.OK if in_time else Exit.DRAIN_OVERRUN

    async def _listen(self) -> Launch:
        settings = self._settings
        process = Hello(settings.service, self._secret.cluster, settings.name, secrets.token_hex(8))
        ProcessCollector(registry=self._metrics)
        PlatformCollector(registry=self._metrics)
        self._server = await self._serve(process)
        bound = address.parse(self._server.address)
        assert isinstance(bound, address.Tcp)
        advertised = join_address(settings.advertise, bound.port)
        http_port = await self._http.start(settings.bind, settings.http_port)
        launch = Launch(
            settings=settings,
            secret=self._secret,
            hello=replace(process, extra={"address": advertised}),  # to whom we call: where to call back
            address=advertised,
            http=join_address(settings.advertise, http_port),
        )
        log.info(
            "%s %s listens on %s, HTTP on %s", settings.service, settings.name, launch.address, launch.http
        )
        return launch

    async def _serve(self, hello: Hello) -> Server:
        where = join_address(self._settings.bind, self._settings.port)
        try:
            return await serve(
                where, hello=lambda: self._hello(hello), secret=self._secret, endpoint=self._router
            )
        except (Invalid, OSError) as error:
            raise CannotBind(f"{error}: choose another --port or --bind, or stop who has it") from None

    def _hello(self, bare: Hello) -> Hello:
        """Peers check whose port this is now: so the extras are those of the services that have started."""
        extra: dict[str, Any] = {}
        for each in self._services:
            if each.kind not in self._starting:
                extra |= each.hello_extra()
        return replace(bare, extra=extra)

    def _start_services(self, launch: Launch) -> None:
        self._services = self._build(launch)
        self._starting = {each.kind for each in self._services}
        for each in self._services:
            each.fatal = self._fail
            each.register_metrics(self._metrics)
            self._http.add_routes(each.routes())
            self._spawn(self._start(each), f"start-{each.kind}")
        self._spawn(self._announce(launch), "announce")

    async def _start(self, service: EmbeddedService) -> None:
        await service.start(self._router)
        self._starting.discard(service.kind)
        log.info("%s has started", service.kind)

    async def _announce(self, launch: Launch) -> None:
        while self.not_ready():  # noqa: ASYNC110 - readiness is many things that no one event stands for
            await asyncio.sleep(READY_POLL_S)
        line = {
            "event": "ready",
            "service": self._settings.service,
            "name": self._settings.name,
            "address": launch.address,
            "http": launch.http,
            "pid": os.getpid(),
        }
        try:
            os.write(
                sys.stdout.fileno(), json.dumps(line).encode() + b"\n"
            )  # no buffer that exit would flush
        except OSError as error:  # nobody listens: not a reason to end
            log.warning("the ready line found no reader: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, InvariantViolation) or not isinstance(error, MoorageError):
            log.critical("internal error", exc_info=error)
        if not isinstance(error, MoorageError):
            error = InvariantViolation(
                f"internal error, the log has the story: {type(error).__name__}: {error}"
            )
        if not self._ending.done():
            self._ending.set_result(error)

    def _loop_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.error("event loop: %s", context.get("message"), exc_info=error)
        if isinstance(error, InvariantViolation):
            self._fail(error)

    def _asked_to_stop(self, number: int) -> None:
        if self._draining:
            log.warning("signal %d again: ending at once", number)
            _exit_now(Exit.DRAIN_OVERRUN)
        log.info("signal %d: stopping", number)
        if not self._ending.done():
            self._ending.set_result(None)

    async def _drain(self) -> bool:
        """Stop all in order, within the time allowed. SIGKILL is safe at any moment, and so is running
        late."""
        self._draining = True
        watchdog = threading.Timer(self._settings.drain_s + 1.0, _exit_now, [Exit.DRAIN_OVERRUN])
        watchdog.daemon = True  # it outlives the loop: also a thread that hangs must not hold the process
        watchdog.start()
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._stop_all()
        except TimeoutError:
            log.warning("not stopped within --drain-s %d: ending anyhow", self._settings.drain_s)
            return False
        return True

    async def _stop_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        for service in reversed(self._services):
            try:
                await service.stop()
            except MoorageError as error:
                log.warning("%s did not stop cleanly: %s", service.kind, error)
            except Exception:
                log.exception("%s did not stop cleanly", service.kind)
        await self._router.stop()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await self._http.stop()


def _exit_now(code: Exit) -> None:
    """Without unwinding: what is durable is durable, and the rest is nobody's."""
    sys.stderr.flush()
    os._exit(code)
