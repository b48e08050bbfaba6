"""Objects on a node: blocks that are written once, read, discarded, and fetched from another member.

Owns the methods ``node.*_blocks``. A replica of a bucket has no log: its blocks have addresses that metadata
gives to one writer, once, so neither order nor epoch matters. In the store a block that was written has LSN
1, one that was discarded LSN 2, as part of a whole region LSN 3: the greater one stays, whatever comes late.
Must never say that blocks are there before they are durable, nor change one that is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from moorage.node.reader import Blocks
from moorage.node.replica import OBJECTS, Replica
from moorage.node.scheduler import Work
from moorage.node.segment import Run, RunKind
from moorage.node.sessions import Sessions
from moorage.node.store import Done, Store
from moorage.quorum.record import (
    BLOCK_SIZE,
    BLOCKS_PER_CHUNK,
    CHUNKS_MAX,
    SUM_SIZE,
    Buffer,
    block_sums,
    first_bad_block,
    unpack_lsns,
)
from moorage.wire.connection import Connection
from moorage.wire.errors import (
    Behind,
    Corrupt,
    Damaged,
    Invalid,
    MoorageError,
    NoSpace,
    ProtocolError,
    Stale,
    Unavailable,
)
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext, Result, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect

log = logging.getLogger(__name__)

WRITTEN, DISCARDED, REGION_DISCARDED = 1, 2, 3  # LSNs

BLOCKS_AT_ONCE: Final = min(256, BLOCKS_PER_CHUNK)  # in one call: 1 MiB
EXTENTS_AT_ONCE: Final = 2000
FETCH_S: Final = 5.0  # for one piece, from one member
LOOKED_AT: Final = 4096  # blocks, before others are served
ZEROES_AT_ONCE: Final = 20_000  # tombstones of blocks in one entry of the log

Params = dict[str, Any]
Piece = tuple[int, int, int]  # chunk, block, blocks


class ObjectHandlers:
    """``check_order(context, params)``: raises unless metadata's leader asks; ``check_device()``: unless the
    device is well."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        hello: Hello,
        secret: ClusterSecret,
        check_order: Callable[[CallContext, Params], None],
        check_device: Callable[[], None],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._hello = hello
        self._secret = secret
        self._check_order = check_order
        self._check_device = check_device

    def register(self, router: Router) -> None:
        for name, method in (
            ("put_blocks", self.put_blocks),
            ("read_blocks", self.read_blocks),
            ("lacking_blocks", self.lacking_blocks),
            ("discard_blocks", self.discard_blocks),
            ("mended_blocks", self.mended_blocks),
            ("fetch_blocks", self.fetch_blocks),
        ):
            router.method(f"node.{name}", method)

    # -- what clients do -----------------------------------------------------------------------------------

    async def put_blocks(self, context: CallContext, params: Params) -> Any:
        """``{replica, chunk, block, sums}``, and the blocks as payload: answered when they are durable. May
        be repeated; another content for the same address is refused."""
        self._check_device()
        replica = self._replica(params)
        sums, data = params.get("sums"), context.payload
        if (
            not isinstance(sums, bytes)
            or len(sums) % SUM_SIZE
            or len(data) != len(sums) // SUM_SIZE * BLOCK_SIZE
        ):
            raise Invalid(f"{len(data)} bytes of blocks do not go with their checksums")
        chunk, block, _ = _piece((params.get("chunk"), params.get("block"), len(sums) // SUM_SIZE))
        if first_bad_block(sums, data) >= 0:
            raise ProtocolError("a block does not match its checksum: send it again")
        await self._put(replica, chunk, block, sums, data)
        return {}

    async def _put(self, replica: Replica, chunk: int, block: int, sums: bytes, data: Buffer) -> None:
        """What is there already is left as it is."""
        count = len(sums) // SUM_SIZE
        reader = self._store.reader
        lsns = unpack_lsns(reader.lsns(replica, chunk, block, count))
        if any(lsns):
            if max(lsns) > WRITTEN:
                raise Stale(f"chunk {chunk} block {block}: these addresses were discarded: write elsewhere")
            there = reader.sums(replica, chunk, block, count)
            for at, lsn in enumerate(lsns):
                mine = slice(at * SUM_SIZE, (at + 1) * SUM_SIZE)
                if lsn and there[mine] != sums[mine]:
                    raise Invalid(
                        f"chunk {chunk} block {block + at} holds something else: it is written once"
                    )
        if len(data) > self._store.room():
            raise NoSpace(f"device of replica {replica.info.replica} has no room for {len(data)} bytes more")
        run = Run(RunKind.DATA, chunk, block, (WRITTEN,) * count, tuple(unpack_lsns(sums)))
        await self._merge(replica, [run], [data])
        self._check_put(replica, chunk, block, sums)

    def _check_put(self, replica: Replica, chunk: int, block: int, sums: bytes) -> None:
        """It is durable: but what came meanwhile may have been first, and an index that cannot be read took
        nothing."""
        reader, count = self._store.reader, len(sums) // SUM_SIZE
        if max(unpack_lsns(reader.lsns(replica, chunk, block, count))) > WRITTEN:
            raise Stale(f"chunk {chunk} block {block}: these addresses were discarded: write elsewhere")
        if reader.sums(replica, chunk, block, count) != sums:
            raise Invalid(f"chunk {chunk} block {block}: something else was written there meanwhile")

    async def _merge(self, replica: Replica, runs: list[Run], data: list[Buffer]) -> None:
        await self._durable(lambda done: self._store.merge(replica, runs, data, done))

    async def _durable(self, begin: Callable[[Done], None]) -> None:
        """Returns when that is durable."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: MoorageError | None) -> None:
            if not waiting.done():
                waiting.set_result(None) if error is None else waiting.set_exception(error)

        begin(done)
        await waiting

    async def read_blocks(self, context: CallContext, params: Params) -> Any:
        """``{replica, chunk, block, blocks}`` -> their checksums, and the blocks as payload. Behind when it
        does not have all of them, Corrupt when one is bad: another member has them."""
        self._check_device()
        replica = self._replica(params)
        chunk, block, count = _piece((params.get("chunk"), params.get("block"), params.get("blocks")))
        sums, data = await self._read(replica, chunk, block, count)
        return Result(sums, [data])

    async def _read(self, replica: Replica, chunk: int, block: int, count: int) -> tuple[bytes, Buffer]:
        waiting: asyncio.Future[Blocks] = asyncio.get_running_loop().create_future()

        def done(found: Blocks | MoorageError) -> None:
            if waiting.done():
                return
            if isinstance(found, MoorageError):
                waiting.set_exception(found)
            else:
                waiting.set_result(found)

        self._store.reader.read(replica, chunk, block, count, done)
        sums, data = await waiting
        if data is None or 0 in unpack_lsns(sums):
            what = f"chunk {chunk} blocks {block}..{block + count}"
            raise Behind(f"replica {replica.info.replica} does not have all of {what}")
        return sums, data

    # -- what metadata orders ------------------------------------------------------------------------------

    async def lacking_blocks(self, context: CallContext, params: Params) -> Any:
        """``{replica, pieces: [[chunk, block, blocks]]}`` -> those of which it has not everything, or has
        something that is bad; and how many blocks are known to be ``bad``, of these or others. Raises Damaged
        when it may also have what was discarded; its ``damage`` is another one after each damage, and in each
        life of the node."""
        self._check_device()
        replica = self._replica(params)
        if replica.damaged:
            why = f"replica {replica.info.replica} is damaged: {replica.damaged}"
            raise Damaged(why, damage=self._damage(replica))
        bad = self._bad(replica)
        found = []
        looked_at = 0
        for chunk, block, count in _pieces(params):
            if (looked_at := looked_at + count) > LOOKED_AT:
                await asyncio.sleep(0)
                looked_at = 0
            if not self._has(replica, chunk, block, count, bad):
                found.append([chunk, block, count])
        return {"lacking": found, "bad": len(bad)}

    def _damage(self, replica: Replica) -> str:
        return f"{self._hello.instance}.{replica.damages}"

    def _bad(self, replica: Replica) -> list[int]:
        """Addresses of blocks that were found to be."""
        return [chunk * BLOCKS_PER_CHUNK + block for chunk, block in self._store.scrubber.check(replica).bad]

    def _has(self, replica: Replica, chunk: int, block: int, count: int, bad: list[int]) -> bool:
        """All of it, and well, as far as is known."""
        first = chunk * BLOCKS_PER_CHUNK + block
        if any(first <= each < first + count for each in bad):
            return False
        try:
            return not any(
                0 in unpack_lsns(self._store.reader.sums(replica, *piece))
                for piece in _by_chunk(chunk, block, count)
            )
        except Corrupt:  # a page of the index
            return False

    async def discard_blocks(self, context: CallContext, params: Params) -> Any:
        """``{replica, pieces, regions: [[first chunk, chunks]]}``: they are not written any more, nor
        read."""
        self._check_order(context, params)
        self._check_device()
        replica = self._replica(params)
        waiting = [
            Run(RunKind.CHUNKS, chunk, count, (REGION_DISCARDED,), ()) for chunk, count in _regions(params)
        ]
        zeroes = len(waiting)
        for piece in _pieces(params):
            for chunk, block, count in _by_chunk(*piece):
                zeroes += count
                if not self._is_discarded(replica, chunk, block, count):
                    waiting.append(_discard(chunk, block, count))
                if zeroes > ZEROES_AT_ONCE:
                    zeroes = await self._discarded(replica, waiting)
        await self._discarded(replica, waiting)
        return {}

    async def _discarded(self, replica: Replica, waiting: list[Run]) -> int:
        """None waits any more: they are durable."""
        if waiting:
            await self._merge(replica, waiting, [])
            waiting.clear()
        else:
            await asyncio.sleep(0)
        return 0

    def _is_discarded(self, replica: Replica, chunk: int, block: int, count: int) -> bool:
        """It is asked again while another member is away: that must not be written again and again."""
        if replica.table.tombstones.lsn(chunk) >= DISCARDED:
            return True
        if count == BLOCKS_PER_CHUNK:
            return False
        return min(unpack_lsns(self._store.reader.lsns(replica, chunk, block, count))) >= DISCARDED

    async def mended_blocks(self, context: CallContext, params: Params) -> Any:
        """``{replica, damage}``: it was damaged, and may have lost blocks, or that some were discarded. All
        that it lacked was fetched since ``damage``, and all that it should not have was discarded. Stale when
        there was more damage since then."""
        self._check_order(context, params)
        self._check_device()
        replica = self._replica(params)
        if replica.damaged:
            if params.get("damage") != self._damage(replica):
                raise Stale(f"replica {replica.info.replica} was damaged again: look through it anew")
            log.warning("replica %d is mended; it was damaged: %s", replica.info.replica, replica.damaged)
            await self._durable(lambda done: self._store.mend(replica, done))
            self._sessions.mended(replica)
        return {}

    async def fetch_blocks(self, context: CallContext, params: Params) -> Any:
        """``{replica, sources: [{address, device, replica}], pieces}``: have them, from the first of the
        sources that does -> those that it lacks still, with why."""
        self._check_order(context, params)
        self._check_device()
        replica = self._replica(params)
        sources = params.get("sources")
        if not isinstance(sources, list | tuple) or not all(map(_is_source, sources)):
            raise Invalid("sources: use a list of {address, device, replica}")
        left, why = [], ""
        async with contextlib.aclosing(_Sources(sources, self._hello, self._secret)) as others:
            for piece in _pieces(params):
                try:
                    for part in _by_chunk(*piece):
                        await self._fetch(replica, others, *part)
                except MoorageError as error:
                    left.append(list(piece))
                    why = str(error)
        return {"left": left, "why": why}

    async def _fetch(self, replica: Replica, sources: _Sources, chunk: int, block: int, count: int) -> None:
        for at in range(block, block + count, BLOCKS_AT_ONCE):
            part = min(BLOCKS_AT_ONCE, block + count - at)
            if self._has(replica, chunk, at, part, self._bad(replica)):
                continue  # by an order of before, that took too long
            sums, data = await sources.read(chunk, at, part)
            await self._store.pacer.admitted(Work.COPY, part * BLOCK_SIZE)
            await self._put(replica, chunk, at, sums, data)

    def _replica(self, params: Params) -> Replica:
        identity = params.get("replica")
        if type(identity) is not int:
            raise Invalid("replica: use its id")
        replica = self._sessions.find(identity).replica
        if replica.info.durability != OBJECTS:
            raise Invalid(f"replica {identity} is of a volume: it holds no objects")
        return replica


class _Sources:
    """Members that have blocks, for one order. Owns the connections to them; one that cannot be reached, or
    is silent, is asked last from then on, and not again within this order when others were enough."""

    def __init__(self, sources: Iterable[Params], hello: Hello, secret: ClusterSecret) -> None:
        self._sources = list(sources)
        self._hello = hello
        self._secret = secret
        self._conns: dict[int, Connection] = {}  # by replica

    async def aclose(self) -> None:
        for conn in self._conns.values():
            conn.close()

    async def read(self, chunk: int, block: int, count: int) -> tuple[bytes, Buffer]:
        """From the first that has them. Raises what the last one said."""
        last: MoorageError = Unavailable("there is nobody to fetch it from")
        for source in list(self._sources):
            try:
                return await self._read_there(source, chunk, block, count)
            except MoorageError as error:
                last = error
                if isinstance(error, Unavailable) and not isinstance(error, Behind):
                    self._sources.remove(source)
                    self._sources.append(source)
                    if (conn := self._conns.pop(source["replica"], None)) is not None:
                        conn.close()
        raise last

    async def _read_there(self, source: Params, chunk: int, block: int, count: int) -> tuple[bytes, Buffer]:
        conn = self._conns.get(source["replica"])
        if conn is None or conn.closed:
            conn = await connect(source["address"], hello=self._hello, secret=self._secret, timeout=FETCH_S)
            self._conns[source["replica"]] = conn
        if conn.peer.extra.get("device") != source["device"]:
            raise Unavailable(f"{source['address']} is not device {source['device']}")
        params = {"replica": source["replica"], "chunk": chunk, "block": block, "blocks": count}
        sums, payload = await conn.call("node.read_blocks", params, timeout=FETCH_S)
        data = bytes(payload)
        if not isinstance(sums, bytes) or len(data) != count * BLOCK_SIZE or sums != block_sums(data):
            raise ProtocolError(f"what {source['address']} sent does not match its checksums")
        return sums, data


def _piece(value: Any, most: int = 0) -> Piece:
    """``most``: blocks, that may reach over chunks; 0: of one chunk, and of one call."""
    match value:
        case (int() as chunk, int() as block, int() as count) if (
            0 <= chunk < CHUNKS_MAX
            and 0 <= block < BLOCKS_PER_CHUNK
            and 0 < count <= (most or BLOCKS_AT_ONCE)
        ):
            if not most and block + count > BLOCKS_PER_CHUNK:
                raise Invalid(f"blocks {block}..{block + count} are not inside of a chunk")
            return chunk, block, count
    raise Invalid(f"{value!r} is no chunk, block, and 1 to {most or BLOCKS_AT_ONCE} blocks")


def _pieces(params: Params) -> list[Piece]:
    """They may reach over several chunks."""
    found = params.get("pieces", [])
    if not isinstance(found, list | tuple) or len(found) > EXTENTS_AT_ONCE:
        raise Invalid(f"pieces: use a list of at most {EXTENTS_AT_ONCE} [chunk, block, blocks]")
    pieces = [_piece(tuple(each) if isinstance(each, list) else each, 1 << 16) for each in found]
    if sum(count for _, _, count in pieces) > EXTENTS_AT_ONCE << 16:
        raise Invalid("pieces: too many blocks in one call")
    return pieces


def _regions(params: Params) -> list[tuple[int, int]]:
    found = params.get("regions", [])
    if not isinstance(found, list | tuple) or len(found) > EXTENTS_AT_ONCE:
        raise Invalid(f"regions: use a list of at most {EXTENTS_AT_ONCE} [first chunk, chunks]")
    for each in found:
        match each:
            case [int() as chunk, int() as count] if 0 <= chunk < chunk + count <= CHUNKS_MAX:
                pass
            case _:
                raise Invalid(f"{each!r} is no first chunk and number of chunks")
    return [(chunk, count) for chunk, count in found]


def _by_chunk(chunk: int, block: int, count: int) -> Iterable[Piece]:
    while count:
        part = min(count, BLOCKS_PER_CHUNK - block)
        yield chunk, block, part
        chunk, block, count = chunk + 1, 0, count - part


def _discard(chunk: int, block: int, count: int) -> Run:
    if count == BLOCKS_PER_CHUNK:
        return Run(RunKind.CHUNKS, chunk, 1, (DISCARDED,), ())
    return Run(RunKind.ZERO, chunk, block, (DISCARDED,) * count, ())


def _is_source(value: Any) -> bool:
    match value:
        case {"address": str(), "device": str(), "replica": int()}:
            return True
    return False
