"""An event loop in virtual time that many simulated processes share.

Owns the order of events, the clock of each process, and who lives: every callback belongs to the process in
whose context it was scheduled (a ContextVar), waits while that one is paused, and never runs once it is
dead. Must never read a real clock, wait, or run two things at once.

Invariants: events run in the order of (time, sequence); the same seed and the same code give the same order;
time advances with each event, so a busy loop is seen as time that passes, not as a hang.

A process dies between two callbacks, or in the middle of one: ``effect`` counts what it does to the world,
and raises ``Killed`` at the one that was chosen. What a dead process still holds is kept alive to the end
of the history: its ``finally`` blocks must not run, as they would not after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import Any, Protocol

import xxhash

EVENT_S = 2e-6  # what an event costs in virtual time
EXECUTOR_S = (20e-6, 2e-3)  # how long a job of a thread takes
STORY_LENGTH = 400

current: ContextVar[Process | None] = ContextVar("simulated process", default=None)


class Killed(BaseException):
    """This process is dead: nothing of its code runs on."""


class Resource(Protocol):
    """What the kernel takes back when a process dies."""

    def release(self) -> None: ...


class Process:
    """One life of a simulated process. ``rate``: how fast its clocks run; ``wall_s``: how wrong its wall
    clock is."""

    def __init__(self, loop: SimLoop, name: str, host: str, rate: float = 1.0, wall_s: float = 0.0) -> None:
        self.loop = loop
        self.name = name
        self.host = host
        self.alive = True
        self.paused = False
        self.rate = rate
        self.wall_s = wall_s
        self.started_at = loop.now
        self.context: Context = contextvars.copy_context()
        self.context.run(current.set, self)
        self.waiting: list[asyncio.Handle] = []  # while it is paused
        self.effects = 0
        self.dies_at = 0  # number of the effect in whose place it dies; 0: none
        self.on_death: Callable[[], None] = _nothing
        self.resources: list[Resource] = []
        self._remains: list[Any] = []
        loop._processes.append(self)

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ' dead'}>"

    # -- clocks ---------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds of its monotonic clock."""
        return 1000.0 + (self.loop.now - self.started_at) * self.rate

    def real(self, own: float) -> float:
        """The moment at which that clock shows ``own``."""
        return self.started_at + (own - 1000.0) / self.rate

    # -- life -----------------------------------------------------------------------------------------------

    def start(self, main: Callable[[], Coroutine[Any, Any, Any]], name: str) -> asyncio.Task[Any]:
        task = self.context.run(lambda: self.loop.create_task(main(), name=name))
        task.add_done_callback(self._main_ended, context=self.context)
        return task

    def _main_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.failures.append((self, error))

    def effect(self) -> None:
        """Called before each thing that this process does to the world outside of its memory."""
        if not self.alive:
            raise Killed
        self.effects += 1
        if self.effects == self.dies_at:
            self.on_death()
            raise Killed

    def kill(self) -> None:
        """SIGKILL. What the kernel holds for it is released; its memory stays, unseen."""
        if not self.alive:
            return
        self.alive = False
        self.paused = False
        self._remains.append(self.waiting)
        self.waiting = []
        for resource in reversed(self.resources):
            resource.release()
        self.resources = []

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        waiting, self.waiting = self.waiting, []
        for handle in waiting:
            self.loop.push(self.loop.now, handle)

    def keep(self, thing: Any) -> None:
        if isinstance(thing, asyncio.Task):
            thing._log_destroy_pending = False  # type: ignore[attr-defined]
        self._remains.append(thing)
        if len(self._remains) > 4096:
            self._remains = [each for each in self._remains if not _is_done(each)]


def _is_done(thing: Any) -> bool:
    return isinstance(thing, asyncio.Future) and thing.done()


def _nothing() -> None:
    pass


_hashes = [itertools.count(1)]  # of the history at hand


def stable_hash(thing: Any) -> int:
    """For objects that are compared by identity: sets of them are then in the same order in each run, which
    their addresses would not give."""
    try:
        return int(thing._stable_hash)
    except AttributeError:
        thing._stable_hash = found = next(_hashes[0])
        return found


class SimTask(asyncio.Task[Any]):
    __hash__ = stable_hash


class SimFuture(asyncio.Future[Any]):
    __hash__ = stable_hash


class SimLoop(asyncio.AbstractEventLoop):
    def __init__(self, seed: int) -> None:
        _hashes[0] = itertools.count(1)
        self.rng = Random(seed)
        self.now = 0.0
        self.events = 0
        self.story: deque[str] = deque(maxlen=STORY_LENGTH)
        self.devices: dict[str, Any] = {}  # of each host, set by the world
        self.failures: list[tuple[Process | None, BaseException]] = []  # no process should have any
        self.network: Any = None  # set by who makes one: where connections come from
        self._heap: list[tuple[float, int, asyncio.Handle]] = []
        self._sequence = itertools.count()
        self._hash = xxhash.xxh3_64()
        self._executors: dict[tuple[int, int], float] = {}  # when each one has done what it was given
        self._running = False
        self._processes: list[Process] = []

    # -- the trace ------------------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """A line of the story, and of the trace whose hash tells two histories apart."""
        entry = f"{self.now:.6f} {line}"
        self._hash.update(entry.encode())
        self.story.append(entry)

    def tell(self, line: str) -> None:
        """A line of the story alone: it may name what is not of the history, as a real process id."""
        self.story.append(f"{self.now:.6f} {line}")

    def trace_hash(self) -> str:
        return f"{self._hash.hexdigest()}-{self.events}-{self.now:.6f}"

    # -- running -------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], deadline: float) -> bool:
        """Events until ``until`` (asked after each) or the deadline in virtual seconds; whether it was
        reached."""
        asyncio._set_running_loop(self)
        self._running = True
        try:
            while self._heap:
                when, _, handle = self._heap[0]
                if when > deadline:
                    break
                heapq.heappop(self._heap)
                if handle._cancelled:
                    continue
                self.now = max(self.now, when) + EVENT_S
                self.events += 1
                self._run(handle)
                if until():
                    return True
            self.now = max(self.now, deadline)
            return until()
        finally:
            self._running = False
            asyncio._set_running_loop(None)

    def _run(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(current)  # type: ignore[attr-defined]
        if process is not None:
            if not process.alive:
                process.keep(handle)
                return
            if process.paused:
                process.waiting.append(handle)
                return
        try:
            handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
        except Killed:
            if process is not None:
                process.keep(handle)
        except BaseException as error:
            self.failures.append((process, error))

    def push(self, when: float, handle: asyncio.Handle) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._sequence), handle))

    def at(
        self, delay: float, callback: Callable[..., Any], *args: Any, process: Process | None = None
    ) -> None:
        """For the world itself: ``callback`` after ``delay`` real (virtual) seconds, in a process's
        context."""
        context = process.context if process is not None else contextvars.Context()
        self.push(self.now + delay, asyncio.Handle(callback, args, self, context))

    # -- what asyncio asks of a loop -----------------------------------------------------------------------

    def time(self) -> float:
        process = current.get()
        return self.now if process is None else process.time()

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.push(self.now, handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        process = handle._context.get(current)  # type: ignore[attr-defined]
        self.push(when if process is None else process.real(when), handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def create_task(
        self, coro: Any, *, name: Any = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = SimTask(coro, loop=self, name=name, context=context)
        process = current.get()
        if process is not None:
            process.keep(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Jobs of one executor run one after the other; the default one runs them side by side."""
        process = current.get()
        future = self.create_future()
        begin = self.now
        if executor is not None:
            key = (id(process), id(executor))
            begin = max(begin, self._executors.get(key, 0.0))
        does_at = begin + self.rng.uniform(*EXECUTOR_S)
        tells_at = does_at + self.rng.uniform(*EXECUTOR_S)
        if executor is not None:
            self._executors[key] = tells_at

        def do() -> None:
            result, error = None, None
            if process is not None:
                process.effect()
            try:
                result = func(*args)
            except Killed:
                raise
            except BaseException as failure:
                error = failure
            self.push(tells_at, asyncio.Handle(tell, (result, error), self, contextvars.copy_context()))

        def tell(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.push(does_at, asyncio.Handle(do, (), self, contextvars.copy_context()))
        return future

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return self.network.listen(protocol_factory, host, port)

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return await self.network.connect(protocol_factory, host, port)

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Any, *args: Any
    ) -> None:
        pass

    def remove_signal_handler(self, sig: int) -> bool:
        return False

    def set_exception_handler(self, handler: Any) -> None:
        pass  # whatever comes there fails the history

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Killed):
            return
        if error is None:
            error = AssertionError(context.get("message"))
        self.failures.append((current.get(), error))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return False

    async def shutdown_asyncgens(self) -> None:
        pass

    def close(self) -> None:
        """The end of the history: everybody is dead, and what they leave may go; it can do nothing any
        more."""
        for process in self._processes:
            process.kill()
        self._heap.clear()
        for process in self._processes:
            process._remains.clear()
