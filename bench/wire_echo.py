"""What a request and its reply cost in the wire alone: an echo server in another process, on uvloop.

``python -m moorage.bench.wire_echo`` prints requests per second, median and p99, and the CPU time that
both ends spend per request. The machine's other work is in these numbers: take the best of several runs.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import os
import pstats
import resource
import tempfile
import time
from multiprocessing.connection import Connection as Pipe

import uvloop
from rich.console import Console
from rich.table import Table

from moorage.wire.connection import Connection, Reply
from moorage.wire.errors import MoorageError
from moorage.wire.frame import HEARTBEAT, READ, REPLY
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect, serve

SECRET = ClusterSecret("00" * 8, bytes(32))
BODY = bytes(48)  # as large as a read request
CASES = [(4096, 1, 1.0), (4096, 32, 2.0), (1 << 20, 8, 2.0)]  # size, depth, seconds


def _hello(service: str) -> Hello:
    return Hello(service, SECRET.cluster, f"bench-{service}", "1")


async def _serve(address: str, pipe: Pipe) -> None:
    data = memoryview(os.urandom(1 << 20))

    def read(
        conn: Connection,
        kind: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        conn.send(REPLY, READ, request_id, b"", (data[:deadline_ms],))

    def cpu(conn: Connection, kind: int, flags: int, request_id: int, *_: object) -> None:
        conn.send(REPLY, HEARTBEAT, request_id, str(_cpu_s()).encode())

    router = Router()
    router.op(READ, read)
    router.op(HEARTBEAT, cpu)
    server = await serve(address, hello=_hello("node"), secret=SECRET, endpoint=router)
    pipe.send(server.address)
    await asyncio.get_running_loop().run_in_executor(None, pipe.poll, None)
    server.close()
    await server.wait_closed()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _serve_process(address: str, pipe: Pipe, profile: bool) -> None:
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    uvloop.run(_serve(address, pipe))
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


class _Load:
    """Keeps ``depth`` requests open; each slot has its buffer, so nothing is allocated per request."""

    def __init__(self, conn: Connection, size: int, depth: int, seconds: float) -> None:
        self.conn = conn
        self.size = size
        self.times: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.slots = [_Slot(self) for _ in range(depth)]
        self.open = depth
        self.end = time.perf_counter() + seconds
        for slot in self.slots:
            slot.start()


class _Slot:
    __slots__ = ("into", "load", "started")

    def __init__(self, load: _Load) -> None:
        self.load = load
        self.into = memoryview(bytearray(load.size))
        self.started = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()
        self.load.conn.request(READ, BODY, (), self.finished, self.into, self.load.size)

    def finished(self, reply: Reply | MoorageError) -> None:
        if isinstance(reply, MoorageError):
            raise reply
        load = self.load
        now = time.perf_counter()
        load.times.append(now - self.started)
        if now < load.end:
            self.start()
            return
        load.open -= 1
        if load.open == 0:
            load.done.set_result(None)


async def _server_cpu_s(conn: Connection) -> float:
    answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def finished(reply: Reply | MoorageError) -> None:
        assert isinstance(reply, Reply)
        answer.set_result(float(bytes(reply.body)))

    conn.request(HEARTBEAT, b"", (), finished)
    return await answer


async def _load(address: str, table: Table) -> None:
    conn = await connect(address, hello=_hello("client"), secret=SECRET)
    for size, depth, seconds in CASES:
        server_before, before, started = await _server_cpu_s(conn), _cpu_s(), time.perf_counter()
        load = _Load(conn, size, depth, seconds)
        await load.done
        elapsed, own = time.perf_counter() - started, _cpu_s() - before
        other = await _server_cpu_s(conn) - server_before
        count, times = len(load.times), sorted(load.times)
        table.add_row(
            f"{size >> 10} KiB",
            f"{depth}",
            f"{count / elapsed:,.0f}",
            f"{count * size / elapsed / 1e6:,.0f}",
            f"{times[count // 2] * 1e6:.0f}",
            f"{times[count * 99 // 100] * 1e6:.0f}",
            f"{own / count * 1e6:.1f}",
            f"{other / count * 1e6:.1f}",
        )
    conn.close()
    await conn.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a request and its reply in the wire")
    parser.add_argument("--tcp", action="store_true", help="TCP on loopback instead of a unix socket")
    parser.add_argument("--profile", action="store_true", help="profile both ends (slower)")
    options = parser.parse_args()
    table = Table(title="wire echo, " + ("TCP" if options.tcp else "unix socket"))
    columns = ("size", "depth", "requests/s", "MB/s", "median us", "p99 us", "client CPU us", "server CPU us")
    for column in columns:
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as directory:
        address = "127.0.0.1:0" if options.tcp else f"unix:{directory}/echo"
        pipe, other = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        server = spawn.Process(target=_serve_process, args=(address, other, options.profile))
        server.start()
        profiler = cProfile.Profile()
        if options.profile:
            profiler.enable()
        uvloop.run(_load(pipe.recv(), table))
        if options.profile:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(14)
        pipe.send(None)
        server.join()
    Console().print(table)


if __name__ == "__main__":
    main()
