"""Writing one object: its bytes to the devices, and then its record to metadata.

Owns the window of pieces that are under way, and who has stored what. Its memory does not grow with the
object, but for the list of its extents. Must never say that something is stored before a majority of its
group has it durably, nor put an object of which some piece is not."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from moorage.client.objects.devices import Devices
from moorage.client.objects.space import PIECE_BLOCKS, RUN_BLOCKS_MAX, Run, Space
from moorage.quorum.majority import majority
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, Buffer, block_sums
from moorage.wire.errors import Invalid, MoorageError, NoQuorum, NoSpace, Unavailable

PIECE_BYTES = PIECE_BLOCKS * BLOCK_SIZE
WINDOW = 4  # pieces of an object that are under way to a majority
LATE_PIECES = 8  # that wait for the others: what a slow member holds in memory, beside that
PIECE_S = 10.0
LATE_S = 0.1  # for members after a majority: what they lack then is copied to them later
TRIES = 3  # groups that one piece is offered to

Body = Buffer | AsyncIterable[Buffer]


@dataclass
class Written:
    """What is stored of an object. ``holders``: of each extent, the replicas that have it."""

    id: str
    size: int
    md5: str
    writer: int
    extents: list[list[int]]
    holders: list[list[int]]

    def to_wire(self) -> dict[str, Any]:
        about = {"id": self.id, "size": self.size, "writer": self.writer}
        return {**about, "extents": self.extents, "stored": self.holders}


@dataclass(slots=True)
class _Sent:
    """One piece. ``region``: its first address. ``late``: calls to members that have not answered yet, with
    their replicas."""

    group: int
    region: int
    address: int
    blocks: int
    holders: set[int] = field(default_factory=set)
    late: dict[asyncio.Task[Any], int] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        return all(task.done() for task in self.late)

    def settle(self) -> None:
        """Whoever has not answered by now lacks it: it is copied there later."""
        for task, replica in self.late.items():
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None:
                self.holders.add(replica)
        self.late = {}


class ObjectWriter:
    """``await store(body)`` once, then :meth:`end`, whatever became of it."""

    def __init__(self, devices: Devices, space: Space) -> None:
        self._devices = devices
        self._space = space
        self._runs: list[Run] = []
        self._left: Run | None = None  # of the last run, what no piece has taken yet
        self._avoid: frozenset[int] = frozenset()
        self._tasks: deque[asyncio.Task[_Sent]] = deque()  # pieces under way, in order: WINDOW at most
        self._sent: deque[_Sent] = deque()  # at a majority, in order: LATE_PIECES at most
        self._extents = _Extents()  # all before

    async def store(self, body: Body, *, with_md5: bool = True) -> Written:
        """Its size and digest ("" without), and where it is: durable at a majority. Raises NoQuorum,
        NoSpace."""
        digest = hashlib.md5(usedforsecurity=False)
        size = 0
        async for piece, is_last in _pieces(body):
            if with_md5:
                digest.update(piece)
            large = not is_last or size > 0
            size += len(piece)
            await self._space.renew()
            while len(self._tasks) >= WINDOW:
                await self._next_sent()
            # An object of nothing has a block, too: by that it is known when it is put again.
            run = await self._place(max(-(-len(piece) // BLOCK_SIZE), 1), large)
            self._tasks.append(asyncio.create_task(self._send(piece, run, large), name="object piece"))
        while self._tasks:
            await self._next_sent()
        await self._wait_for_late()
        identity, found = secrets.token_hex(16), self._extents
        md5 = digest.hexdigest() if with_md5 else ""
        return Written(identity, size, md5, self._space.writer, found.extents, found.holders)

    async def _next_sent(self) -> None:
        """The first of those under way is at a majority."""
        sent = await self._tasks[0]
        del self._tasks[0]
        self._sent.append(sent)
        while self._sent and (self._sent[0].is_settled or len(self._sent) > LATE_PIECES):
            self._settle()

    def _settle(self) -> None:
        sent = self._sent.popleft()
        sent.settle()
        self._extents.add(sent)

    async def _wait_for_late(self) -> None:
        """Members that are a little late are waited for: they need no copy then."""
        late = [task for sent in self._sent for task in sent.late]
        if late:
            await asyncio.wait(late, timeout=LATE_S)
        while self._sent:
            self._settle()

    async def end(self) -> None:
        """The object is put, or will not be."""
        for task in self._tasks:
            task.cancel()
        for done in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(done, _Sent):
                done.settle()
        for sent in self._sent:
            sent.settle()
        runs, self._runs = self._runs, []
        self._space.release(runs)

    # -- pieces --------------------------------------------------------------------------------------------

    async def _send(self, piece: Buffer, run: Run, large: bool) -> _Sent:
        """To the members of a group, or of another one when no majority of it takes the piece."""
        data = bytes(piece).ljust(run.blocks * BLOCK_SIZE, b"\0")
        sums = block_sums(data)
        for _ in range(TRIES - 1):
            try:
                return await self._send_to(run, data, sums)
            except (NoQuorum, NoSpace) as error:
                group = run.region.group["group"]
                self._avoid |= {group}
                self._space.leave_group(group)
                self._left = None
                try:
                    run = await self._space.take(run.blocks, large=large, avoid=self._avoid)
                except Unavailable:
                    raise error from None
                self._runs.append(run)
        return await self._send_to(run, data, sums)

    async def _place(self, blocks: int, large: bool) -> Run:
        """The next addresses of the object's last run, or of a new one; runs grow with it."""
        if not large:
            self._runs.append(run := await self._space.take(blocks, large=False, avoid=self._avoid))
            return run
        if self._left is None or self._left.blocks < blocks:
            wanted = min(PIECE_BLOCKS << min(len(self._runs), 4), RUN_BLOCKS_MAX)
            self._left = await self._space.take(wanted, large=True, avoid=self._avoid)
            self._runs.append(self._left)
        region, address, left = self._left
        self._left = Run(region, address + PIECE_BLOCKS, left - PIECE_BLOCKS)
        return Run(region, address, blocks)

    async def _send_to(self, run: Run, data: bytes, sums: bytes) -> _Sent:
        group = run.region.group
        sent = _Sent(group["group"], run.region.first, run.address, run.blocks)
        params = {
            "chunk": run.address // BLOCKS_PER_CHUNK,
            "block": run.address % BLOCKS_PER_CHUNK,
            "sums": sums,
        }
        members = {member["replica"] for member in group["members"]}
        places = [*group["members"], *([group["wish"]] if group.get("wish") else [])]
        calls = {
            asyncio.create_task(
                self._devices.call(place, "node.put_blocks", params, [data], timeout=PIECE_S)
            ): place["replica"]
            for place in places
        }
        failures: list[MoorageError] = []  # of members: who is to become one does not count yet
        needed, waiting = majority(len(members)), set(calls)
        try:
            while len(sent.holders & members) < needed and len(failures) <= len(members) - needed:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        sent.holders.add(calls[task])
                    elif not isinstance(error, MoorageError):
                        raise error
                    elif calls[task] in members:
                        failures.append(error)
        except BaseException:
            _cancel(waiting)
            raise
        if len(sent.holders & members) >= needed:
            sent.late = {task: calls[task] for task in waiting}
            return sent
        _cancel(waiting)
        why = "; ".join(str(error) for error in failures)
        if all(isinstance(error, NoSpace) for error in failures):
            raise NoSpace(f"the devices of group {group['group']} are full: {why}")
        raise NoQuorum(f"{needed} of {len(members)} members are needed to store an object: {why}")


def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


class _Extents:
    """In the order of the object's bytes, and who has each; what lies together in one region, and was stored
    by the same, is one."""

    def __init__(self) -> None:
        self.extents: list[list[int]] = []
        self.holders: list[list[int]] = []
        self._end = (-1, -1, -1)  # group, region, address

    def add(self, sent: _Sent) -> None:
        has = sorted(sent.holders)
        begins = (sent.group, sent.region, sent.address)
        if begins == self._end and self.holders[-1] == has:
            self.extents[-1][3] += sent.blocks
        else:
            chunk, block = divmod(sent.address, BLOCKS_PER_CHUNK)
            self.extents.append([sent.group, chunk, block, sent.blocks])
            self.holders.append(has)
        self._end = (sent.group, sent.region, sent.address + sent.blocks)


async def _pieces(body: Body) -> AsyncIterator[tuple[Buffer, bool]]:
    """Of 1 MiB but for the last, each with whether it is the last; of nothing, one."""
    if isinstance(body, bytes | bytearray | memoryview):
        view = memoryview(body).cast("B")
        for at in range(0, max(len(view), 1), PIECE_BYTES):
            yield view[at : at + PIECE_BYTES], at + PIECE_BYTES >= len(view)
        return
    if not hasattr(body, "__aiter__"):
        raise Invalid(
            f"an object's body is bytes, or an asynchronous iterable of bytes, not {type(body).__name__}"
        )
    piece = bytearray()
    async for part in body:
        view = memoryview(part).cast("B")
        while view:
            room = PIECE_BYTES - len(piece)
            if not room:
                yield piece, False
                piece, room = bytearray(), PIECE_BYTES
            piece += view[:room]
            view = view[room:]
    yield piece, True
