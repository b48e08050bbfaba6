"""Reads of one group on their way: asks members as :mod:`moorage.client.reader` decides, checks what they
answer.

Owns each read from its start to its ``done``: requests, second requests, checksums, the hand-out while the
read lease runs, the timeout. It never decides which log is right: the source says what a read must see,
and who may be asked.

Invariants:
- At most one request receives straight into the destination; second requests receive beside it. After
  ``done`` no request of the read is open, so nothing touches the destination any more.
- Only bytes that match their checksums are handed out, and only while the source's read lease runs, looked at
  after the answer arrived.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import xxhash

from moorage.client.device import Done
from moorage.client.nodes import READING_MAX, NodeLink, boot_clock_ms
from moorage.client.outcome import callback_failed
from moorage.client.reader import HEDGE_FLOOR_S, HedgeBudget, choose, judge, preference
from moorage.quorum.record import BLOCK_SIZE, CHUNK_SIZE
from moorage.wire.connection import Connection, Reply
from moorage.wire.errors import (
    Corrupt,
    Damaged,
    Fenced,
    Invalid,
    MoorageError,
    NoQuorum,
    NotFound,
    ProtocolError,
)
from moorage.wire.frame import READ
from moorage.wire.log_messages import AT, HOLES, LSNS, PREFIX, SUMS, pack_read, split_epoch, unpack_read_reply

SWEEP_S = HEDGE_FLOOR_S / 2
_xxh3 = xxhash.xxh3_64_intdigest
_one_sum = struct.Struct("<Q").unpack
_ZEROES = bytes(1 << 20)
_BLOCKS = [slice(at, at + BLOCK_SIZE) for at in range(0, CHUNK_SIZE, BLOCK_SIZE)]


class ReadSource(Protocol):
    """What a group's log knows about reads."""

    @property
    def epoch(self) -> int:
        """Goes with every request."""

    flags: int
    """Of every request: PREFIX where the source has no epoch of its own, AT for a snapshot."""

    snapshot: int
    """LSN of the snapshot that is read."""

    reads_until_ms: int
    """Until when (boot clock) reads may be handed out."""

    def read_lsn(self, chunk: int) -> int: ...

    def showed(self, epoch: int, applied: int) -> None:
        """A read is handed out that shows the log up to there: never go back. The epoch is that of the
        record, where the source has none of its own."""

    def refused_by(self, error: Fenced) -> None: ...

    def waiting_for(self) -> str: ...


class Target:
    """A replica that may be asked. ``readable`` is the source's word: sealed, whole, not far behind."""

    __slots__ = ("link", "readable", "replica")

    def __init__(self, link: NodeLink, replica: int) -> None:
        self.link = link
        self.replica = replica
        self.readable = False


class ReadSweep:
    """The clock of all reads of an attachment: one timer, and only while reads are open."""

    def __init__(self, io_timeout: float) -> None:
        self.io_timeout = io_timeout
        self.budget = HedgeBudget()
        self.reads: dict[Read, None] = {}
        self.hedges = self.retries = self.bad_blocks = 0
        self.loop = asyncio.get_running_loop()
        self.stopped: MoorageError | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, read: Read) -> None:
        self.reads[read] = None
        if self.stopped is not None:
            self.loop.call_soon(self.stop, self.stopped)
        elif self._timer is None:
            self._timer = self.loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self.loop.time()
        for read in list(self.reads):  # in order of their start
            if now - read.started < HEDGE_FLOOR_S:
                break
            read.look(now)
        self._timer = self.loop.call_later(SWEEP_S, self._sweep) if self.reads else None

    def stop(self, error: MoorageError) -> None:
        """End all reads, and the clock."""
        self.stopped = error
        while self.reads:  # the end of one may begin another: that of the next write in the same block
            for read in list(self.reads):
                read.end(error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GroupReader:
    """Reads of one group. ``repair(chunk, block, count)`` is told of blocks that a member holds badly;
    ``rotation`` spreads the preferred members over groups."""

    def __init__(
        self,
        source: ReadSource,
        targets: Sequence[Target],
        sweep: ReadSweep,
        *,
        rotation: int,
        repair: Callable[[int, int, int], None],
    ) -> None:
        self.source = source
        self.sweep = sweep
        self.repair = repair
        self._rotation = rotation
        self.set_targets(targets)

    def set_targets(self, targets: Sequence[Target]) -> None:
        """From now on these may be asked; requests on their way to another one end by themselves."""
        self.targets = list(targets)
        self.order = preference([target.link.health for target in targets], self._rotation)
        self.preferred = [self.targets[index] for index in self.order]

    def ask_others(self, targets: Sequence[Target]) -> None:
        """Another epoch has begun, with these: reads that are open begin again, when these may be asked."""
        self.set_targets(targets)
        for read in self.sweep.reads:
            if read.group is self:
                read.begin_again()

    def read(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """See :class:`~moorage.client.group.GroupLog`."""
        self._begin(Read(self, chunk, block, into, done, self.sweep.loop.time()))

    def look(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """See :class:`~moorage.client.group.GroupLog`."""
        self._begin(Look(self, chunk, block, into, done, self.sweep.loop.time()))

    def stamps(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """See :class:`~moorage.client.group.GroupLog`."""
        self._begin(Stamps(self, chunk, block, into, done, self.sweep.loop.time()))

    def read_from(self, host: str, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """See :class:`~moorage.client.group.GroupLog`."""
        read = ReadAlone(self, chunk, block, into, done, self.sweep.loop.time())
        found = [target for target in self.targets if target.link.host == host]
        if not found:
            hosts = ", ".join(target.link.host for target in self.targets)
            done(Invalid(f"no replica of this group is on {host!r}: they are on {hosts}"))
            return
        read.only = next((target for target in found if target.readable), found[0])  # a learner may be there
        self.sweep.add(read)
        if self.sweep.stopped is None:
            read.ask_another(read.started)

    def _begin(self, read: Read) -> None:
        sweep = self.sweep
        sweep.budget.earn()
        sweep.add(read)
        if sweep.stopped is not None:
            return
        for target in self.preferred:
            health = target.link.health
            if target.readable and health.up and not health.demoted:
                read.ask(target, read.started)
                return
        read.ask_another(read.started)


class Attempt:
    """One request to one member. ``request_id`` 0: it waits until the member has answered others."""

    __slots__ = ("conn", "into", "read", "request_id", "sent_at", "target")

    def __init__(
        self, read: Read, target: Target, conn: Connection, into: memoryview, sent_at: float
    ) -> None:
        self.read = read
        self.target = target
        self.conn = conn
        self.into = into
        self.sent_at = sent_at
        self.request_id = 0

    def send(self) -> None:
        read = self.read
        source = read.group.source
        into = self.into
        body = pack_read(
            self.target.replica,
            source.epoch,
            source.read_lsn(read.chunk),
            read.chunk,
            read.block,
            len(into) // read.unit,
        )
        self.target.link.reading += len(into)
        flags = read.flags | source.flags
        if flags & AT:
            body += source.snapshot.to_bytes(8, "little")
        self.request_id = self.conn.request(READ, body, (), self.on_reply, into, flags=flags)

    def send_late(self) -> None:
        """Its turn has come, if the read is not over."""
        if self in self.read.attempts:
            self.sent_at = self.read.group.sweep.loop.time()
            self.send()

    def cancel(self) -> None:
        if self.request_id:
            self.conn.cancel(self.request_id)
            self.target.link.reading -= len(self.into)
            self.target.link.next_reads()

    def on_reply(self, reply: Reply | MoorageError) -> None:
        read = self.read
        read.attempts.remove(self)
        link, into = self.target.link, self.into
        link.reading -= len(into)
        if link.reads_waiting:
            link.next_reads()
        if not isinstance(reply, Reply):
            read.refused_by(self, reply)
            return
        link.health.answered(self.conn.last_received, self.sent_at)
        epoch = 0
        try:
            if read.group.source.flags & PREFIX:
                reply.body, epoch = split_epoch(reply.body, reply.flags)
            applied, bad = read.check(reply, into)
        except ProtocolError as error:
            read.refused_by(self, error)
            return
        if bad:
            read.found_bad(self, bad)  # on that member's disk, or on the way
        else:
            read.answered(self, epoch, applied)


class Read:
    """One read of whole blocks inside one chunk."""

    unit = BLOCK_SIZE  # bytes of ``into`` for each block
    flags = 0

    __slots__ = (
        "applied",
        "attempts",
        "bad_at",
        "block",
        "chunk",
        "done",
        "epoch",
        "group",
        "into",
        "parked",
        "refused",
        "started",
    )

    def __init__(
        self, group: GroupReader, chunk: int, block: int, into: memoryview, done: Done, started: float
    ) -> None:
        self.group = group
        self.chunk = chunk
        self.block = block
        self.into = into
        self.done = done
        self.started = started
        self.attempts: list[Attempt] = []
        self.refused: list[Target] = []  # answered that they cannot, in this round
        self.bad_at: set[int] = set()  # replicas whose copy does not match its checksum
        self.parked = False  # the bytes are there, but no read lease runs
        self.epoch = self.applied = 0  # what it shows

    # -- asking --------------------------------------------------------------------------------------

    def ask(self, target: Target, now: float) -> None:
        link = target.link
        conn = link.conn
        if conn is None:
            self.refused.append(target)
            return
        into = self.into
        if self.attempts and any(attempt.into is into for attempt in self.attempts):
            into = memoryview(bytearray(len(into)))
        attempt = Attempt(self, target, conn, into, now)
        self.attempts.append(attempt)
        if link.reading < READING_MAX:
            attempt.send()
        else:
            link.reads_waiting.append(attempt.send_late)

    def ask_another(self, now: float) -> bool:
        """Ask the best member that was not asked; False when there is none."""
        group = self.group
        out = [
            index
            for index, target in enumerate(group.targets)
            if not target.readable
            or target in self.refused
            or any(attempt.target is target for attempt in self.attempts)
        ]
        index = choose([target.link.health for target in group.targets], group.order, out)
        if index is None:
            return False
        self.ask(group.targets[index], now)
        return True

    def begin_again(self) -> None:
        self._cancel_others()
        self.refused.clear()
        self.bad_at.clear()
        self.parked = False

    def look(self, now: float) -> None:
        """From time to time: is this read late?"""
        sweep = self.group.sweep
        if sweep.io_timeout and now - self.started > sweep.io_timeout:
            self.end(self._timeout())
        elif self.parked:
            self.hand_out()
        elif not self.attempts:  # all said no, or nobody was there: the next round
            self.refused.clear()
            self.ask_another(now)
        else:
            last = self.attempts[-1]
            verdict = judge(last.target.link.health, last.sent_at, now)
            if verdict == "silent" or (
                verdict == "hedge" and len(self.attempts) == 1 and sweep.budget.spend()
            ):
                sweep.hedges += self.ask_another(now)

    def _timeout(self) -> NoQuorum:
        reason = self.group.source.waiting_for() or "the members answer too slowly"
        return NoQuorum(f"no answer after {self.group.sweep.io_timeout:g} s: {reason}")

    # -- answers -------------------------------------------------------------------------------------

    def refused_by(self, attempt: Attempt, error: MoorageError) -> None:
        if isinstance(error, Fenced):
            self.group.source.refused_by(error)
        elif isinstance(error, Corrupt) and not isinstance(error, Damaged | ProtocolError):
            self.found_bad(attempt, range(self._first_bad(error), len(self.into) // self.unit))
            return
        elif isinstance(error, NotFound):  # the snapshot was deleted
            self.end(error)
            return
        self._next(attempt)

    def _first_bad(self, error: Corrupt) -> int:
        """Index of the first bad block, as far as the member named it: what comes before it is good."""
        chunk, block = error.details.get("chunk"), error.details.get("block")
        if chunk != self.chunk or not isinstance(block, int):
            return 0
        index = block - self.block
        return index if 0 <= index < len(self.into) // self.unit else 0

    def found_bad(self, attempt: Attempt, indices: Sequence[int]) -> None:
        group = self.group
        group.sweep.bad_blocks += 1
        self.bad_at.add(attempt.target.replica)
        if len(self.bad_at) == len(group.targets):
            hosts = ", ".join(target.link.host for target in group.targets)
            where = f"chunk {self.chunk}, block {self.block + indices[0]}"
            self.end(Corrupt(f"no replica has a good copy of {where} of the group on {hosts}"))
            return
        group.repair(self.chunk, self.block + indices[0], indices[-1] - indices[0] + 1)
        self._next(attempt)

    def _next(self, attempt: Attempt) -> None:
        self.group.sweep.retries += 1
        self.refused.append(attempt.target)
        if not self.attempts:
            self.ask_another(self.group.sweep.loop.time())

    def answered(self, attempt: Attempt, epoch: int, applied: int) -> None:
        if self.attempts:
            self._cancel_others()
        if attempt.into is not self.into:
            self.into[:] = attempt.into
        self.epoch, self.applied = epoch, applied
        self.hand_out()

    def _cancel_others(self) -> None:
        attempts, self.attempts = self.attempts, []
        for attempt in attempts:
            attempt.cancel()

    def hand_out(self) -> None:
        source = self.group.source
        if boot_clock_ms() >= source.reads_until_ms:
            self.parked = True  # a frozen process that was thawed: perhaps the volume has another owner
            return
        source.showed(self.epoch, self.applied)
        self.end(None)

    def check(self, reply: Reply, into: memoryview) -> tuple[int, list[int]]:
        return check(reply, into)

    def end(self, error: MoorageError | None) -> None:
        if self.attempts:
            self._cancel_others()
        self.group.sweep.reads.pop(self, None)
        try:
            self.done(error)
        except Exception as exc:
            callback_failed(exc)


class Look(Read):
    """Asks which blocks hold data, not for the data: ``into`` gets a byte for each, 0 for a hole."""

    unit = 1
    flags = SUMS

    __slots__ = ()

    def check(self, reply: Reply, into: memoryview) -> tuple[int, list[int]]:
        applied, count, sums = unpack_read_reply(reply.body)
        if count != len(into):
            raise ProtocolError(f"a reply to READ about {count} blocks where {len(into)} were asked for")
        into[:] = bytes([each != 0 for each in memoryview(sums).cast("Q")])
        return applied, []


class Stamps(Read):
    """Asks when each block was written or discarded last: ``into`` gets an LSN of 8 bytes for each, 0 for
    never."""

    unit = 8
    flags = LSNS

    __slots__ = ()

    def check(self, reply: Reply, into: memoryview) -> tuple[int, list[int]]:
        applied, count, lsns = unpack_read_reply(reply.body)
        if count * 8 != len(into):
            raise ProtocolError(f"a reply to READ about {count} blocks where {len(into) // 8} were asked for")
        into[:] = lsns
        return applied, []


class ReadAlone(Read):
    """Asks one replica and no other: is its own copy good? A bad one is told, and repaired as ever."""

    __slots__ = ("only",)

    only: Target

    def begin_again(self) -> None:
        super().begin_again()
        host = self.only.link.host
        self.only = next((target for target in self.group.targets if target.link.host == host), self.only)

    def ask_another(self, now: float) -> bool:
        target = self.only
        if self.attempts or target in self.refused or not target.readable or not target.link.health.up:
            return False
        self.ask(target, now)
        return True

    def found_bad(self, attempt: Attempt, indices: Sequence[int]) -> None:
        group, first, host = self.group, self.block + indices[0], attempt.target.link.host
        group.sweep.bad_blocks += 1
        group.repair(self.chunk, first, indices[-1] - indices[0] + 1)
        self.end(Corrupt(f"the copy of chunk {self.chunk}, block {first} on {host} is bad"))


def check(reply: Reply, into: memoryview) -> tuple[int, list[int]]:
    """Compare a reply with its checksums: (applied LSN, indices of bad blocks). Holes become zeroes."""
    applied, count, sums = unpack_read_reply(reply.body)
    size = len(into)
    if reply.flags & HOLES:
        into[:] = _ZEROES[:size] if size <= len(_ZEROES) else bytes(size)
        return applied, []
    if count * BLOCK_SIZE != size or len(reply.payload) != size:
        raise ProtocolError(f"a reply to READ of {len(reply.payload)} bytes where {size} were asked for")
    if count == 1:
        (want,) = _one_sum(sums)
        if want and (_xxh3(into) or 1) != want:
            return applied, [0]
        if not want:
            into[:] = _ZEROES[:BLOCK_SIZE]
        return applied, []
    wanted = struct.unpack(f"<{count}Q", sums)
    found = tuple([_xxh3(into[block]) or 1 for block in _BLOCKS[:count]])
    return applied, [] if found == wanted else _compare(into, found, wanted)


def _compare(into: memoryview, found: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Indices of bad blocks. The checksum 0 is a hole."""
    bad: list[int] = []
    for index, block in enumerate(_BLOCKS[: len(wanted)]):
        if not wanted[index]:
            into[block] = _ZEROES[:BLOCK_SIZE]
        elif found[index] != wanted[index]:
            bad.append(index)
    return bad
