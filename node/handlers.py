"""What a node answers: the methods ``node.*`` and the hot ops APPEND, READ and HEARTBEAT.

Owns checking what peers say (capabilities, ranges, checksums) before a member hears of it. Must never let an
error of one request touch another one, nor answer anything for a replica that this device does not hold other
than NoReplica: it counts as dead, never as empty.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from moorage.node.checks import Check
from moorage.node.copying import Copier
from moorage.node.member import MemberShell
from moorage.node.objects import ObjectHandlers
from moorage.node.reader import Blocks
from moorage.node.replica import DURABILITIES, OBJECTS, Replica, ReplicaInfo
from moorage.node.segment import pack_head
from moorage.node.sessions import Sessions
from moorage.node.store import Store
from moorage.quorum import member as outcomes
from moorage.quorum.history import epoch_at
from moorage.quorum.lease import LEASE_MS
from moorage.quorum.record import (
    BLOCKS_PER_CHUNK,
    CHUNKS_MAX,
    EPOCH_MAX,
    LSN_MAX,
    Position,
    decode_batch,
    first_bad_block,
)
from moorage.quorum.state import MemberState
from moorage.wire.capability import verify
from moorage.wire.connection import Connection
from moorage.wire.errors import (
    Behind,
    Damaged,
    Denied,
    DeviceFailed,
    Fatal,
    Fenced,
    Invalid,
    MoorageError,
    NoReplica,
    NotFound,
    ProtocolError,
    ShuttingDown,
    Stale,
)
from moorage.wire.frame import APPEND, HEARTBEAT, NACK, ONEWAY, READ
from moorage.wire.handshake import Hello
from moorage.wire.log_messages import (
    APPEND_SIZE,
    HOLES,
    LSNS,
    PREFIX,
    SUMS,
    pack_heartbeat_reply,
    pack_nack,
    pack_read_reply,
    split_snapshot,
    unpack_append,
    unpack_heartbeat,
    unpack_read,
)
from moorage.wire.rpc import CallContext, Result, Router
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

TAIL_BYTES_MAX = 4 << 20
UNWANTED_KEPT = 10_000
BAD_BLOCKS_MAX = 256  # in one answer: about what a client mends at once
_ORDERERS = ("metadata", "host")


class Handlers:
    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        copier: Copier,
        hello: Hello,
        secret: ClusterSecret,
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._members = sessions.members
        self._copier = copier
        self._secret = secret
        self._describe = describe
        self._objects = ObjectHandlers(
            store, sessions, hello, secret, self._require_orderer, self._require_device
        )
        self._creating: dict[int, tuple[ReplicaInfo, asyncio.Future[None]]] = {}
        self._dropping: dict[int, asyncio.Future[None]] = {}  # members no more, but not durably yet
        self._unwanted: dict[int, None] = {}  # were to be dropped in this life: an order to create comes late
        self._terms: dict[str, int] = {}  # the greatest one of each metadata group that ordered something

    def register(self, router: Router) -> None:
        for name, method in (
            ("describe", self.describe),
            ("create_replica", self.create_replica),
            ("drop_replica", self.drop_replica),
            ("list_replicas", self.list_replicas),
            ("bad_blocks", self.bad_blocks),
            ("scrub", self.scrub),
            ("seal", self.seal),
            ("tail", self.tail),
            ("release", self.release),
            ("copy", self.copy),
            ("pull", self.pull),
        ):
            router.method(f"node.{name}", method)
        self._objects.register(router)
        for op, handler in ((APPEND, self.append), (READ, self.read), (HEARTBEAT, self.heartbeat)):
            router.op(op, handler)
        router.on_connection_lost(self._sessions.connection_lost)
        self._router = router

    async def withdraw(self) -> None:
        """Serve nobody any more: the store is about to be closed, connections belong to the process."""
        await self._router.withdraw("node.", (APPEND, READ, HEARTBEAT))
        self._sessions.end(ShuttingDown("the node is shutting down"))

    # -- hot ops ------------------------------------------------------------------------------------

    def append(
        self,
        conn: Connection,
        kind: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        replica, writer, epoch, prev_epoch, prev_lsn, commit, session, count = unpack_append(body)
        member = self._members.get(replica)
        if member is None or member.conn is not conn or self._store.failed is not None:
            self._refuse(conn, member, replica, epoch, session)
            return
        records = []
        heads = b""
        if count:
            heads = bytes(body[APPEND_SIZE:])
            records = decode_batch(heads, payload if owned else bytes(payload))
            if len(records) != count:
                raise ProtocolError(f"an APPEND of {len(records)} records says {count}")
            for record in records:
                if record.data and first_bad_block(record.sums, record.data) >= 0:
                    raise ProtocolError(f"record {record.lsn} does not match its checksums: sent again")
        code = member.core.append(writer, epoch, session, prev_epoch, prev_lsn, commit, flags, records)
        if code:
            member.nack(conn, epoch, session, code)
            member.drain()
            return
        member.drain(records, heads)
        member.accepted()

    def _refuse(
        self, conn: Connection, member: MemberShell | None, replica: int, epoch: int, session: int
    ) -> None:
        """No session of this connection: the writer seals anew, and is told then what is wrong."""
        if member is None:
            code, promised, matched = outcomes.NO_SESSION, 0, 0
        else:
            state = member.core.state
            promised, matched = state.epoch, member.core.matched
            code = outcomes.FENCED if epoch < promised else outcomes.NO_SESSION
        conn.send(ONEWAY, NACK, 0, pack_nack(replica, epoch, promised, matched, session, code))

    def read(
        self,
        conn: Connection,
        kind: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        body, snapshot = split_snapshot(body, flags)
        replica, epoch, lsn, chunk, block, count = unpack_read(body)
        member = self._sessions.find(replica)
        if not count or block + count > BLOCKS_PER_CHUNK:
            raise Invalid(f"blocks {block}..{block + count} are not inside of a chunk")
        if chunk >= CHUNKS_MAX:
            raise Invalid(f"chunk {chunk} is past the end of every volume")
        self._read(member, conn, request_id, (epoch, lsn, chunk, block, count, flags, snapshot))

    def _read(
        self,
        member: MemberShell,
        conn: Connection,
        request_id: int,
        what: tuple[int, int, int, int, int, int, int],
    ) -> None:
        epoch, lsn, chunk, block, count, flags, snapshot = what
        prefix = flags & PREFIX
        if prefix:
            lsn = _reach(member, Position(epoch, lsn))
        elif code := member.core.may_read(epoch, lsn):
            raise _refusal(member, code, lsn)
        if member.gone:
            raise NoReplica("the replica was dropped meanwhile")
        member.drain()
        replica = member.replica
        if lsn > replica.state.commit:
            if self._store.failed is not None:
                raise self._store.failed
            # Committed, but not synced here yet: it will be with one of the next group commits.
            member.park(lsn, lambda error: self._read_again(member, conn, request_id, what, error))
            return
        if snapshot and snapshot not in replica.table.snapshots:
            raise NotFound(f"replica {replica.info.replica} has no snapshot {snapshot}: it was deleted")
        reader = self._store.reader
        applied = replica.state.commit
        end = epoch_at(member.core.state.history, applied).to_bytes(8, "little") if prefix else b""
        if flags & (SUMS | LSNS):
            ask = reader.lsns if flags & LSNS else reader.sums
            body = pack_read_reply(applied, count, ask(replica, chunk, block, count, snapshot))
            conn.reply(request_id, READ, body + end, (), prefix)
            return
        found = reader.read_now(replica, chunk, block, count, snapshot)
        if found is not None:
            _answer(conn, request_id, applied, count, found, end)
            return

        def done(result: Blocks | MoorageError) -> None:
            if isinstance(result, MoorageError):
                conn.reply_error(request_id, READ, result)
            else:
                _answer(conn, request_id, applied, count, result, end)

        reader.read_later(replica, chunk, block, count, done, snapshot)

    def _read_again(
        self,
        member: MemberShell,
        conn: Connection,
        request_id: int,
        what: tuple[int, int, int, int, int, int, int],
        ended: MoorageError | None,
    ) -> None:
        if conn.closed:
            return
        try:
            if ended is not None:
                raise ended
            self._read(member, conn, request_id, what)
        except MoorageError as error:
            conn.reply_error(request_id, READ, error)
        except Exception as error:
            # It runs amid what others wait for: they must not hear of it.
            log.exception("a read of (epoch, LSN, chunk, block, count, flags, snapshot) %s failed", what)
            conn.reply_error(request_id, READ, Fatal(f"the read failed: {error}"))

    def heartbeat(
        self,
        conn: Connection,
        kind: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        sent = unpack_heartbeat(body)
        self._sessions.renew(conn)
        conn.reply(request_id, HEARTBEAT, pack_heartbeat_reply(sent, LEASE_MS))

    # -- sessions -------------------------------------------------------------------------------------

    async def seal(self, context: CallContext, params: dict[str, Any]) -> Any:
        self._require_device()
        epoch, writer = _number(params, "epoch", EPOCH_MAX), _number(params, "writer", LSN_MAX)
        session = _number(params, "session", (1 << 32) - 1)
        member = self._sessions.find(_number(params, "replica", LSN_MAX))
        if member.replica.info.durability == OBJECTS:
            raise Invalid(f"replica {member.replica.info.replica} is of a bucket: it has no log")
        self._check_capability(member, epoch, writer, params.get("capability"))
        lease = self._sessions.lease(context.conn)
        answer = await member.seal(context.conn, session, epoch, writer, lease)
        return answer.pack()

    def _check_capability(self, member: MemberShell, epoch: int, writer: int, signed: Any) -> None:
        """Its expiry bounds the first use only: who was promised an epoch goes on with it."""
        if not isinstance(signed, bytes):
            raise Denied("a SEAL needs a capability: attach the volume")
        state = member.core.state
        known = (epoch, writer) == (state.epoch, state.writer)
        capability = verify(self._secret, signed, 0 if known else time.time_ns() // 1_000_000)
        if capability.rights != "rw":
            raise Denied("the capability is for reading only: attach the volume for writing")
        if (capability.epoch, capability.writer) != (epoch, writer) or (
            state.replica not in capability.replicas
        ):
            raise Denied(f"the capability is not for replica {state.replica} under epoch {epoch}")

    async def tail(self, context: CallContext, params: dict[str, Any]) -> Any:
        """``from_lsn..to_lsn`` as far as ``max_bytes`` goes: the heads, and the data as payload."""
        member = self._in_session(params)
        first, last = _number(params, "from_lsn", LSN_MAX), _number(params, "to_lsn", LSN_MAX)
        size = min(_number(params, "max_bytes", 1 << 31), TAIL_BYTES_MAX)
        # What was accepted is answered from the log, so it has to be there.
        while member.replica.state.last < min(last, member.core.state.last) and not member.gone:
            self._require_device()
            await self._store.flushed()
        if first < member.replica.tail_from:
            raise Stale(
                f"records below {member.replica.tail_from} are not kept", kept=member.replica.tail_from
            )
        records = await self._store.reader.records(member.replica, first, last, size)
        heads = b"".join(pack_head(record) for record in records)
        return Result(heads, [record.data for record in records if record.data])

    def _in_session(self, params: dict[str, Any]) -> MemberShell:
        member = self._sessions.find(_number(params, "replica", LSN_MAX))
        session, epoch = _number(params, "session", (1 << 32) - 1), _number(params, "epoch", EPOCH_MAX)
        if not member.core.sealed_by(session, epoch, _number(params, "writer", LSN_MAX)):
            promised = member.core.state.epoch
            if epoch < promised:
                raise Fenced(f"epoch {promised} has been promised", promised=promised)
            raise Stale("this session is over: seal anew")
        return member

    async def release(self, context: CallContext, params: dict[str, Any]) -> Any:
        member = self._sessions.find(_number(params, "replica", LSN_MAX))
        member.release(_number(params, "epoch", EPOCH_MAX), _number(params, "writer", LSN_MAX))
        return {}

    async def copy(self, context: CallContext, params: dict[str, Any]) -> Any:
        self._require_device()
        member = self._sessions.find(_number(params, "replica", LSN_MAX))
        source = params.get("source")
        match source:
            case {"address": str(), "device": str(), "replica": int()}:
                pass
            case _:
                raise Invalid("source: use {address, device, replica}")
        base = _position(params.get("base"), "base")
        floor = _position(params.get("floor", (0, 0)), "floor")
        history = params.get("history", ())
        if not isinstance(history, list | tuple):
            raise Invalid("history: use a list of [epoch, first LSN]")
        known = [_position(each, "history") for each in history]
        session = _number(params, "session", (1 << 32) - 1)
        epoch, writer = _number(params, "epoch", EPOCH_MAX), _number(params, "writer", LSN_MAX)
        fresh = bool(params.get("fresh"))
        member.core.copy(session, epoch, writer, source, base, fresh, known, floor)
        member.drain()
        member.send_ack()
        return {}

    async def pull(self, context: CallContext, params: dict[str, Any]) -> Any:
        if context.peer.service not in ("node", "host"):
            raise Denied("only a node may pull")
        member = self._sessions.find(_number(params, "replica", LSN_MAX))
        member.drain()
        return await self._copier.serve(member, params)

    # -- replicas -------------------------------------------------------------------------------------

    async def create_replica(self, context: CallContext, params: dict[str, Any]) -> Any:
        self._require_orderer(context, params)
        self._require_device()
        info = ReplicaInfo(
            replica=_number(params, "replica", LSN_MAX),
            volume=_number(params, "volume", LSN_MAX),
            group=_number(params, "group", 1 << 31),
            durability=params["durability"] if params.get("durability") in DURABILITIES else "sync",
            members=_number(params, "members", 63),
        )
        if info.replica in self._unwanted:
            raise Stale(f"replica {info.replica} was dropped: an order to create it comes late")
        if info.replica in self._sessions.withheld:
            self._sessions.find(info.replica)  # it is here, and must not begin anew: it would forget
        if info.replica in self._members:
            _check_same(self._members[info.replica].replica.info, info)
            return {}
        if info.replica not in self._creating:
            self._creating[info.replica] = info, self._create(info)
        ordered, waiting = self._creating[info.replica]
        _check_same(ordered, info)
        await asyncio.shield(waiting)
        return {}

    def _create(self, info: ReplicaInfo) -> asyncio.Future[None]:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: MoorageError | None) -> None:
            del self._creating[info.replica]
            if error is None:
                self._sessions.created(self._store.replica(info.replica))
                log.info("replica %d of volume %d created", info.replica, info.volume)
            if not waiting.done():
                waiting.set_result(None) if error is None else waiting.set_exception(error)

        self._store.create(info, done)
        return waiting

    async def drop_replica(self, context: CallContext, params: dict[str, Any]) -> Any:
        self._require_orderer(context, params)
        self._require_device()
        identity, volume = _number(params, "replica", LSN_MAX), _number(params, "volume", LSN_MAX)
        if identity in self._creating:
            await asyncio.shield(self._creating[identity][1])
        waiting = self._dropping.get(identity)
        if waiting is None:
            if identity not in self._sessions.withheld:
                found = self._members.get(identity)
                if found is not None and found.replica.info.volume != volume:
                    raise Invalid(
                        f"replica {identity} is of volume {found.replica.info.volume}, not of {volume}:"
                        " not dropped"
                    )
                self._never_again(identity)
                self._sessions.find(identity)
            waiting = self._dropping[identity] = self._drop(identity)
        await asyncio.shield(waiting)
        return {}

    def drop_withheld(self, identity: int) -> None:
        """Metadata has taken it away, and its note of that is lost here."""
        if identity in self._sessions.withheld and self._store.failed is None:
            log.warning("replica %d was dropped before, and is here again by damage", identity)
            self._dropping[identity] = self._drop(identity)

    def _never_again(self, identity: int) -> None:
        """No id is given twice. An order to create it may still be on its way, on another connection."""
        self._unwanted[identity] = None
        if len(self._unwanted) > UNWANTED_KEPT:
            del self._unwanted[next(iter(self._unwanted))]

    def _drop(self, identity: int) -> asyncio.Future[None]:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: MoorageError | None) -> None:
            del self._dropping[identity]
            if error is None:
                log.info("replica %d dropped", identity)
            if not waiting.done():
                waiting.set_result(None) if error is None else waiting.set_exception(error)

        # From here on it serves nobody, whatever becomes of this call.
        self._sessions.dropped(identity)
        self._store.drop(identity, done)
        return waiting

    async def list_replicas(self, context: CallContext, params: dict[str, Any]) -> Any:
        """What is here of it, and how well: of all replicas, or of those of ``volume`` only. ``position`` is
        that of the last record; ``verified_ms``: all that it holds was read back, or written, then or later;
        0: never, or it has ``bad_blocks``."""
        members, withheld, check = self._members, self._sessions.withheld, self._store.scrubber.check
        rows = [
            _row(each.replica, each.core.state, each.core.whole, check(each.replica))
            for each in members.values()
        ]
        rows += [_row(each, each.state, False, check(each)) for each in withheld.values()]
        volume = params.get("volume")
        chosen = [row for row in rows if volume is None or row["volume"] == volume]
        return sorted(chosen, key=itemgetter("replica"))

    async def bad_blocks(self, context: CallContext, params: dict[str, Any]) -> Any:
        """Of one replica, for its writer to write again: [chunk, block] of some of them."""
        member = self._sessions.find(_number(params, "replica", LSN_MAX))
        bad = sorted(self._store.scrubber.check(member.replica).bad)
        return [list(block) for block in bad[:BAD_BLOCKS_MAX]]

    async def scrub(self, context: CallContext, params: dict[str, Any]) -> Any:
        """Begin to read back some replicas, or all, without waiting for their turn: which."""
        self._require_device()
        wanted = params.get("replicas")
        if wanted is not None and not (
            isinstance(wanted, list) and all(type(each) is int for each in wanted)
        ):
            raise Invalid("replicas: use a list of ids")
        chosen = [each for each in self._members if wanted is None or each in wanted]
        for identity in chosen:
            self._store.scrubber.ask(self._members[identity].replica)
        return sorted(chosen)

    async def describe(self, context: CallContext, params: dict[str, Any]) -> Any:
        return self._describe()

    def _require_orderer(self, context: CallContext, params: dict[str, Any]) -> None:
        """A former leader's order may come late: it would create again what the next one has dropped."""
        if context.peer.service not in _ORDERERS:
            raise Denied("replicas are created and dropped by metadata's order only")
        group, term = str(params.get("metadata", "")), _number(params, "term", LSN_MAX)
        newest = self._terms.get(group, 0)
        if term < newest:
            raise Stale(f"metadata group {group} is led in term {newest}, not {term} any more")
        self._terms[group] = term

    def _require_device(self) -> None:
        if self._store.failed is not None:
            raise DeviceFailed(str(self._store.failed))


def _answer(conn: Connection, request_id: int, applied: int, count: int, found: Blocks, end: bytes) -> None:
    sums, data = found
    body = pack_read_reply(applied, count, sums) + end
    flags = PREFIX if end else 0
    if data is None:
        conn.reply(request_id, READ, body, (), flags | HOLES)
    else:
        conn.reply(request_id, READ, body, (data,), flags)


def _reach(member: MemberShell, position: Position) -> int:
    lsn = member.core.may_show(position)
    if lsn is None:
        raise _refusal(member, outcomes.BEHIND, position.lsn)
    return lsn


def _refusal(member: MemberShell, code: int, lsn: int) -> MoorageError:
    state = member.core.state
    if state.damaged:
        return Damaged(f"replica {state.replica} is damaged: {state.damaged}")
    if code == outcomes.FENCED:
        return Fenced(f"epoch {state.epoch} has been promised", promised=state.epoch)
    if code == outcomes.BEHIND:
        return Behind(f"replica {state.replica} cannot show LSN {lsn} yet", applied=state.commit)
    return Stale("no session of this epoch here: seal anew")


def _row(replica: Replica, state: MemberState, whole: bool, check: Check) -> dict[str, Any]:
    info = replica.info
    return {
        "replica": info.replica,
        "volume": info.volume,
        "group": info.group,
        "durability": info.durability,
        "epoch": state.epoch,
        "last": state.last,
        "position": list(state.position),
        "commit": state.commit,
        "bytes": replica.table.live,
        "whole": whole,
        "damaged": state.damaged,
        "offered": not state.promise_lost,
        "bad_blocks": check.count,
        "verified_ms": check.verified_ms,
        "scrub": {"asked": check.asked, "began_ms": check.began_ms, "bytes_done": check.done},
    }


def _check_same(found: ReplicaInfo, ordered: ReplicaInfo) -> None:
    """An order may come again. One for something else under the same id is a mistake that must not be taken
    for done: its sender would drop what is another's."""
    if found != ordered:
        raise Invalid(f"replica id {ordered.replica} is in use: {found}, ordered is {ordered}")


def _number(params: dict[str, Any], name: str, limit: int) -> int:
    value = params.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise Invalid(f"{name}: use a number from 0 to {limit}")
    return value


def _position(value: Any, name: str) -> Position:
    match value:
        case [int(epoch), int(lsn)]:
            return Position(epoch, lsn)
        case _:
            raise Invalid(f"{name}: use [epoch, LSN]")
