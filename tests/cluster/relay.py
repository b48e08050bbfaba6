"""A relay of bytes that are late: ``relay.py PORT HOST:PORT``, told on stdin how late, one line each.

``delay MS JITTER_MS``: what arrives is passed on after MS and up to JITTER_MS more, in order on each
connection (as TCP keeps it), but not across connections. ``stall MS``: nothing is passed on for so long, now
and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys


class Relay:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.delay = self.jitter = self.stall = 0.0
        self.rng = random.Random(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self.pass_on(reader, far_writer), self.pass_on(far_reader, writer))

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read at once, write when it is due: a delay, not a slow link."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]](1000)

        async def write() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        writing = asyncio.create_task(write())
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                late = self.delay + self.rng.random() * self.jitter
                if self.stall and self.rng.random() < 0.002:
                    late += self.stall
                await queue.put((loop.time() + late, data))
        await queue.put((0.0, b""))
        with contextlib.suppress(OSError):
            await writing
        writer.close()

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            match line.split():
                case ["delay", delay, jitter]:
                    self.delay, self.jitter = float(delay) / 1e3, float(jitter) / 1e3
                case ["stall", stall]:
                    self.stall = float(stall) / 1e3


async def main(port: int, target: str) -> None:
    host, _, far = target.rpartition(":")
    relay = Relay(host, int(far))
    server = await asyncio.start_server(relay.serve, host, port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await relay.listen()
    server.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
