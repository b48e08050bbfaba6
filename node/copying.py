"""Copying what a member lacks from another one, node to node: both ends.

Owns the pulls that run (one per member), how fast they have to be, and the scan at the source; at both ends
the pacer says when the next piece may go. Must never hold more than one batch in memory, nor log blocks
before the member's note of the position that they show is queued in front of them. A copy may repeat, and
blocks may come in any order: per block the greater LSN wins.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from moorage.node.member import MemberShell
from moorage.node.page import PAGE_BLOCKS, PAGES_PER_CHUNK
from moorage.node.scheduler import ALL, Work
from moorage.node.segment import Run, RunKind, unpack_runs
from moorage.node.store import Store
from moorage.quorum.orders import Pull
from moorage.quorum.record import (
    BLOCK_SIZE,
    BLOCKS_PER_CHUNK,
    CHUNKS_MAX,
    EPOCH_MAX,
    LSN_MAX,
    SNAPSHOTS_MAX,
    Buffer,
    Position,
    are_snapshots,
    first_bad_block,
)
from moorage.wire.connection import Connection
from moorage.wire.errors import Behind, Corrupt, Invalid, MoorageError, NoSpace, ProtocolError, Unavailable
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Result
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20  # and what the last pages give: it has to fit into a frame and into a segment
CALL_S = 10.0
SERVE_WAIT_S = 4.0  # who pulls gives up after CALL_S
DUE_S = 10.0  # how long the rate that a copy needs is believed, when nothing more is heard of it
LEAST_SHARE = 10  # a copy that is late gets a tenth of its time anew
RETRY_S = 0.25
TRIES = 4  # then the writer is told that this source is no good
PAGES_PER_TURN = 8
PAGE_BYTES = PAGE_BLOCKS * BLOCK_SIZE
BLOCKS_MAX = 20_000  # tombstones of blocks: a frame's body is bounded
_RANGES_MAX = 10_000

# a cursor: [0, chunk] for tombstones, then [1, page] for blocks, then [2, page, LSN] for versions that only
# snapshots show
START = [0, 0]
CURSOR_MAX = CHUNKS_MAX * PAGES_PER_CHUNK  # no page has this number


@dataclass
class Batch:
    runs: list[Run]
    data: memoryview
    cursor: list[int] | None  # where to go on; None at the end


@dataclass(slots=True)
class Progress:
    """Of one copy: since when, of how many bytes (0: the source does not say), and how many have come."""

    began: float
    total: int = 0
    done: int = 0

    def rate(self, now: float, within_s: float) -> float:
        """Bytes per second that are needed to have it done in time."""
        if not within_s:
            return 0.0
        left_s = max(self.began + within_s - now, within_s / LEAST_SHARE)
        return max(0, self.total - self.done) / left_s


class Copier:
    """``within_s``: a copy is to be complete so soon after it began, whatever users want; 0: it yields to
    them but for a floor."""

    def __init__(self, store: Store, hello: Hello, secret: ClusterSecret, within_s: float = 0.0) -> None:
        self._store = store
        self._hello = hello
        self._secret = secret
        self._within_s = within_s
        self._progress: dict[MemberShell, Progress] = {}
        self._tasks: dict[MemberShell, asyncio.Task[None]] = {}
        self._cursors: dict[MemberShell, list[int]] = {}

    # -- the member that lacks something -----------------------------------------------------------

    def begin(self, member: MemberShell, pull: Pull) -> None:
        """Start, in place of a former pull of this member."""
        former = self._tasks.pop(member, None)
        if former is not None:
            former.cancel()
        if not pull.resume:
            self._cursors.pop(member, None)
            self._progress.pop(member, None)
        name = f"pull {member.replica.info.replica:x}"
        task = self._tasks[member] = asyncio.create_task(self._run(member, pull), name=name)
        task.add_done_callback(lambda done: self._ended(member, done))

    def end(self, member: MemberShell) -> None:
        task = self._tasks.pop(member, None)
        if task is not None:
            task.cancel()
        self._forget(member)

    def _forget(self, member: MemberShell) -> None:
        self._cursors.pop(member, None)
        if self._progress.pop(member, None) is not None:
            self._store.pacer.set_due(Work.COPY, member, 0.0, 0.0)

    def _ended(self, member: MemberShell, task: asyncio.Task[None]) -> None:
        if self._tasks.get(member) is task:
            del self._tasks[member]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("copy of replica %d ended", member.replica.info.replica, exc_info=error)

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, member: MemberShell, pull: Pull) -> None:
        identity = member.replica.info.replica
        log.info("replica %d copies what is above LSN %d from %s", identity, pull.above, pull.source)
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(RETRY_S)
            try:
                if await self._pull_all(member, pull):
                    log.info("replica %d has copied all", identity)
                return
            except MoorageError as error:
                log.warning("copy of replica %d from %s: %s", identity, pull.source, error)
            except Exception:
                # An answer that makes no sense, or our own mistake: neither gets better by asking again.
                log.exception("copy of replica %d from %s", identity, pull.source)
                break
        member.stalled()

    async def _pull_all(self, member: MemberShell, pull: Pull) -> bool:
        source = pull.source
        conn = await connect(source["address"], hello=self._hello, secret=self._secret, timeout=CALL_S)
        try:
            if conn.peer.extra.get("device") != source["device"]:
                raise Unavailable(f"{source['address']} is not device {source['device']}")
            progress = await self._begun(member, pull, conn)
            cursor: list[int] | None = self._cursors.get(member, START)
            while cursor is not None:
                rate = progress.rate(asyncio.get_running_loop().time(), self._within_s)
                self._store.pacer.set_due(Work.COPY, member, rate, DUE_S)
                cursor, size = await self._pull_one(member, pull, conn, cursor, int(rate))
                if cursor is None and size < 0:
                    return False
                progress.done += size
                self._cursors[member] = cursor or START
                if size:
                    await self._store.pacer.admitted(Work.COPY, size)
        finally:
            conn.close()
        self._forget(member)
        member.core.copied(pull.number)
        member.drain()
        return True

    async def _begun(self, member: MemberShell, pull: Pull, conn: Connection) -> Progress:
        """How much there is to copy at most, if the source says so."""
        progress = self._progress.get(member)
        if progress is None:
            progress = self._progress[member] = Progress(asyncio.get_running_loop().time())
        params = {"volume": member.replica.info.volume}
        try:
            rows, _ = await conn.call("node.list_replicas", params, timeout=CALL_S)
            (size,) = [row["bytes"] for row in rows if row["replica"] == pull.source["replica"]]
            progress.total = int(size)
        except (MoorageError, ValueError, TypeError, KeyError) as error:
            log.debug(
                "the source of replica %d does not say its size: %r", member.replica.info.replica, error
            )
        return progress

    async def _pull_one(
        self, member: MemberShell, pull: Pull, conn: Connection, cursor: list[int], rate: int
    ) -> tuple[list[int] | None, int]:
        """One batch: (next cursor, bytes), or (None, -1) when this pull is over."""
        store = self._store
        if store.free_slots <= store.layout.reserve:
            # That is for discards, for notes (also that this copy is given up), and for compaction.
            raise NoSpace("there is no room on this device for more of a copy: add space, or move data away")
        base = pull.base.lsn
        if cursor[0] == 2 and (copy := member.core.state.copy) is not None:
            # What was shown as a block before may be a version by now: a source that is behind the one that
            # showed it would not have it as one.
            base = max(base, copy.until.lsn)
        params = {
            "replica": pull.source["replica"],
            "base": base,
            "above": pull.above,
            "cursor": cursor,
            "max_bytes": self._store.pacer.piece(),
            "rate": rate,
            "snapshots": True,  # an older source knows of none, an older puller would not know what they are
        }
        answer, payload = await conn.call("node.pull", params, timeout=CALL_S)
        runs, position, following = _parse(answer, payload)
        if not member.core.pulled(pull.number, position):
            return None, -1
        member.drain()
        if runs and runs[0].kind == RunKind.SNAPSHOTS and not runs[0].chunk:
            del runs[0]  # there never were any: nothing to note
            member.replica.table.learn_of_snapshots()
        if runs:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def logged(error: MoorageError | None) -> None:
                if not done.done():
                    done.set_result(None) if error is None else done.set_exception(error)

            self._store.merge(member.replica, runs, [payload], logged)
            await done
        self._store.metrics.copied_bytes += len(payload)
        return following, len(payload)

    # -- the member that has it ------------------------------------------------------------------------

    async def serve(self, member: MemberShell, params: dict[str, Any]) -> Result:
        """``node.pull``: blocks newer than ``above``, from ``cursor`` on, and the position they show."""
        base, above, cursor, max_bytes = _read_request(params)
        snapshots = params.get("snapshots") is True
        if member.core.may_pull(base) is None or member.replica.state.commit < base:
            raise Behind(f"replica {member.replica.info.replica} has not applied {base}")
        pacer = self._store.pacer
        pacer.set_due(Work.SERVE, member, _rate_of(params), DUE_S)
        batch = await self._batch(member, above, cursor, min(max_bytes, pacer.piece()), snapshots)
        if batch.data:
            await pacer.admitted(Work.SERVE, len(batch.data), at_most_s=SERVE_WAIT_S)
        # Asked after the blocks were read: they show nothing newer than this.
        position = member.core.may_pull(base)
        if position is None:
            raise Behind(f"replica {member.replica.info.replica} is not whole any more")
        if snapshots:
            # First, and as of now: of what is in this piece nothing must be let go of that one of them shows.
            table = member.replica.table
            batch.runs.insert(0, Run(RunKind.SNAPSHOTS, table.snapshots_lsn, 0, tuple(table.snapshots), ()))
        body = b"".join(run.pack() for run in batch.runs)
        return Result([body, list(position), batch.cursor], [batch.data] if batch.data else [])

    async def _batch(
        self, member: MemberShell, above: int, cursor: list[int], max_bytes: int, snapshots: bool
    ) -> Batch:
        phase, number, *after = cursor
        if phase == 0:
            # By chunk: the ranges shift with each discard, and are others at another source.
            newer = [each for each in member.replica.table.tombstones.from_chunk(number) if each[2] > above]
            sent = newer[:_RANGES_MAX]
            runs = [Run(RunKind.CHUNKS, first, end - first, (lsn,), ()) for first, end, lsn in sent]
            more = len(newer) > len(sent)
            return Batch(runs, memoryview(b""), [0, newer[len(sent)][0]] if more else [1, 0])
        if phase == 2:
            return await self._versions(member, above, number, after[0], max_bytes)
        batch = await self._pages(member, above, number, max_bytes)
        if batch.cursor is None and snapshots and member.replica.table.snapshots_lsn:
            batch.cursor = [2, 0, 0]
        return batch

    async def _versions(
        self, member: MemberShell, above: int, number: int, after: int, max_bytes: int
    ) -> Batch:
        """Of what snapshots show besides."""
        limit = max(1, max_bytes // BLOCK_SIZE)
        found, following = self._store.newer_versions(member.replica, above, number, after, limit)
        return await self._fetched(member, found, None if following is None else [2, *following])

    async def _pages(self, member: MemberShell, above: int, number: int, max_bytes: int) -> Batch:
        """Blocks of pages from ``number`` on, until there is enough of them."""
        found: list[tuple[int, int, int, int, int]] = []  # chunk, block, location, sum, LSN
        following: int | None = number
        size = 0
        while following is not None and size < max_bytes and len(found) < BLOCKS_MAX:
            pages = min(PAGES_PER_TURN, max(1, (max_bytes - size) // PAGE_BYTES))
            blocks, following = self._store.newer_blocks(member.replica, above, following, pages)
            found += blocks
            size += sum(BLOCK_SIZE for each in blocks if each[2])
            await asyncio.sleep(0)
        return await self._fetched(member, found, None if following is None else [1, following])

    async def _fetched(
        self,
        member: MemberShell,
        found: list[tuple[int, int, int, int, int]],  # chunk, block, location, sum, LSN
        cursor: list[int] | None,
    ) -> Batch:
        runs, locations = _to_runs(found)
        data = await self._store.fetch_blocks(member.replica, locations)
        sums = b"".join(each.to_bytes(8, "little") for run in runs for each in run.sums)
        bad = first_bad_block(sums, data)
        if bad >= 0:
            chunk, block = [each[:2] for each in found if each[2]][bad]
            self._store.scrubber.suspect(member.replica, chunk, block)
            raise Corrupt(f"replica {member.replica.info.replica}: a block to copy is corrupt", place=bad)
        return Batch(runs, data, cursor)


def _to_runs(found: list[tuple[int, int, int, int, int]]) -> tuple[list[Run], list[int]]:
    """Consecutive blocks of a kind become one run; the locations of those with data, in order."""
    runs: list[Run] = []
    locations = []
    at = 0
    while at < len(found):
        chunk, block, location, _, _ = found[at]
        end = at
        while (
            end < len(found)
            and found[end][:2] == (chunk, block + end - at)
            and bool(found[end][2]) == bool(location)
        ):
            end += 1
        part = found[at:end]
        lsns = tuple(each[4] for each in part)
        if location:
            runs.append(Run(RunKind.DATA, chunk, block, lsns, tuple(each[3] for each in part)))
            locations += [each[2] for each in part]
        else:
            runs.append(Run(RunKind.ZERO, chunk, block, lsns, ()))
        at = end
    return runs, locations


def _read_request(params: dict[str, Any]) -> tuple[int, int, list[int], int]:
    """Base, above, cursor and size of a ``node.pull``; raises :class:`Invalid`."""
    match params:
        case {"base": int(base), "above": int(above), "cursor": cursor, "max_bytes": int(max_bytes)}:
            if 0 <= base <= LSN_MAX and 0 <= above <= LSN_MAX and max_bytes > 0 and _is_cursor(cursor):
                return base, above, cursor, min(max_bytes, BATCH_BYTES)
    raise Invalid("node.pull: use base, above, cursor [0 or 1, number] or [2, number, LSN], and max_bytes")


def _rate_of(params: dict[str, Any]) -> float:
    """Bytes per second that who pulls needs; others have not said so yet."""
    rate = params.get("rate", 0)
    return float(rate) if type(rate) is int and 0 <= rate < ALL else 0.0


def _is_cursor(value: Any) -> bool:
    match value:
        case [0 | 1, int(number)]:
            return 0 <= number <= CURSOR_MAX
        case [2, int(number), int(lsn)]:
            return 0 <= number <= CURSOR_MAX and 0 <= lsn <= LSN_MAX
    return False


def _parse(answer: Any, payload: memoryview) -> tuple[list[Run], Position, list[int] | None]:
    """Check what a source sent: a hostile or broken peer ends the copy, not the node."""
    try:
        body, (epoch, lsn), cursor = answer
        if not (0 <= epoch <= EPOCH_MAX and 0 <= lsn <= LSN_MAX):
            raise ValueError("position out of range")
        if cursor is not None and not _is_cursor(cursor):
            raise ValueError("no cursor")
        runs: list[Run] = unpack_runs(memoryview(body))
        sums: list[Buffer] = []
        for run in runs:
            _check_run(run)
            sums += [each.to_bytes(8, "little") for each in run.sums]
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"an answer to node.pull makes no sense: {error}") from None
    if len(sums) * BLOCK_SIZE != len(payload):
        raise ProtocolError(f"{len(payload)} bytes for {len(sums)} blocks in an answer to node.pull")
    if first_bad_block(b"".join(sums), payload) >= 0:
        raise Corrupt("a copied block does not match its checksum")
    return runs, Position(epoch, lsn), cursor


def _check_run(run: Run) -> None:
    """A run is logged as it came: the fold must be able to take it, live and at every start."""
    count = len(run.lsns)
    if run.kind == RunKind.SNAPSHOTS:
        if count > SNAPSHOTS_MAX or run.block or not are_snapshots(run.lsns, run.chunk):
            raise ValueError("no list of snapshots")
        return
    if run.kind == RunKind.CHUNKS:
        if count != 1 or not run.block:
            raise ValueError("no range of whole chunks")
    elif not count or run.block + count > BLOCKS_PER_CHUNK:
        raise ValueError("blocks outside of their chunk")
    if run.chunk + (run.block if run.kind == RunKind.CHUNKS else 1) > CHUNKS_MAX:
        raise ValueError("chunks out of range")
    if not all(0 < lsn <= LSN_MAX for lsn in run.lsns):
        raise ValueError("LSN out of range")
