"""A lane: one thread that does what may block, in order; results come back on the event loop.

Owns its thread and queue. Must never run two jobs at once: order in a lane is what the store relies on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], Done]


class Lane:
    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        """Run ``work`` in the thread, then ``done(result, None)`` or ``done(None, error)`` on the loop."""
        self._queue.put((work, done))

    async def run(self, work: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T, error: BaseException | None) -> None:
            if future.done():
                return  # who waited was cancelled; the work is done all the same
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(work, done)
        return await future

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            work, done = job
            result, failure = None, None
            try:
                result = work()
            except BaseException as error:  # whatever it is belongs to who asked
                failure = error
            try:
                self._loop.call_soon_threadsafe(done, result, failure)
            except RuntimeError:
                return  # the loop is closed: the process is ending
            del job, work, done, result, failure  # nothing of the last job outlives it here

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        self._queue.put(None)
        self._thread.join()
