"""Devices in memory behind real sockets, with the real member core: what a session needs, and faults on
demand."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.quorum import member as members
from moorage.quorum.history import cut, epoch_at
from moorage.quorum.lease import GrantedLease
from moorage.quorum.member import Member
from moorage.quorum.orders import Append, Apply, Note, Sync
from moorage.quorum.record import BLOCK_SIZE, Kind, Position, Record, block_sums, decode_batch, encode_head
from moorage.quorum.state import MemberState
from moorage.wire import log_messages as messages
from moorage.wire.connection import Connection
from moorage.wire.errors import Behind, Busy, Corrupt, Fenced, MoorageError, NoReplica, Stale
from moorage.wire.frame import ACK, APPEND, HEARTBEAT, NACK, ONEWAY, READ
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext, Result, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, serve


def now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class MemoryReplica:
    def __init__(self, device: MemoryDevice, replica: int, sync: bool) -> None:
        self.device = device
        self.replica = replica
        self.records: dict[int, Record] = {}
        self.blocks: dict[int, tuple[int, bytes]] = {}
        self.applied = 0
        self.conn: Connection | None = None
        self.sync = sync
        self.core = self._core(MemberState(replica), restarted=False)

    def _core(self, state: MemberState, restarted: bool = True) -> Member:
        return Member(
            state,
            sync=self.sync,
            now_ms=now_ms(),
            tail_from=lambda: min(self.records, default=self.core.state.last + 1),
            restarted=restarted,
        )

    def lose_unsynced(self) -> None:
        """As after a loss of power: it comes back at its durable LSN."""
        durable = self.core._durable
        state = MemberState.unpack(self.core.state.pack())
        cut(state.history, durable + 1)
        state.last, state.commit = durable, min(state.commit, durable)
        self.records = {lsn: record for lsn, record in self.records.items() if lsn <= durable}
        self.blocks, self.applied = {}, 0
        self.core = self._core(state)
        self.apply(state.commit)

    def drain(self) -> None:
        while effects := self.core.take_effects():
            for effect in effects:
                match effect:
                    case Append():
                        for record in effect.records:
                            record.data = bytes(record.data)
                            self.records[record.lsn] = record
                        if not self.device.unsynced or self.sync:
                            asyncio.get_running_loop().call_soon(self.persisted, effect.ticket)
                    case Note() | Sync():
                        asyncio.get_running_loop().call_soon(self.persisted, effect.ticket)
                    case Apply():
                        self.apply(effect.lsn)
        self.send_ack()

    def persisted(self, ticket: int) -> None:
        self.core.persisted(ticket)
        self.drain()

    def send_ack(self) -> None:
        ack = self.core.take_ack()
        if ack is None or self.conn is None:
            return
        session, received, durable, applied, limit, flags = ack
        body = messages.pack_ack(
            self.replica, self.core.state.epoch, received, durable, applied, limit, session, flags
        )
        self.conn.send(ONEWAY, ACK, 0, body)

    def apply(self, lsn: int) -> None:
        while self.applied < lsn:
            self.applied += 1
            record = self.records[self.applied]
            first = record.chunk * 1024 + record.block
            match record.kind:
                case Kind.WRITE:
                    for at in range(record.count):
                        data = record.data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE]
                        self.blocks[first + at] = (
                            int.from_bytes(record.sums[at * 8 : at * 8 + 8], "little"),
                            data,
                        )
                case Kind.ZERO:
                    for block in range(first, first + record.count):
                        self.blocks.pop(block, None)
                case Kind.ZERO_CHUNKS:
                    for block in range(record.chunk * 1024, (record.chunk + record.count) * 1024):
                        self.blocks.pop(block, None)


class MemoryDevice:
    """A device with its replicas. Faults: ``mute`` (sockets open, no answer), ``full``, ``refuse_reads``,
    ``flip`` (block -> its data is served with a flipped bit), ``unsynced`` (writeback data is not
    durable)."""

    def __init__(self, host: str, secret: ClusterSecret) -> None:
        self.host = host
        self.device = secrets.token_hex(16)
        self.secret = secret
        self.replicas: dict[int, MemoryReplica] = {}
        self.leases: dict[Connection, GrantedLease] = {}
        self.muted: set[Connection] = set()
        self.full = False
        self.unsynced = False
        self.refuse_reads: MoorageError | None = None
        self.flip: set[int] = set()
        self.reads = self.appends = self.records = 0
        self.server: Server | None = None
        self.router = Router()
        for name, method in [("seal", self.seal), ("tail", self.tail), ("release", self.release)]:
            self.router.method(f"node.{name}", method)
        for op, handler in [(APPEND, self.append), (READ, self.read), (HEARTBEAT, self.heartbeat)]:
            self.router.op(op, self.op(handler))

    async def start(self, address: str = "127.0.0.1:0") -> None:
        hello = Hello("node", self.secret.cluster, self.host, secrets.token_hex(8), {"device": self.device})
        self.server = await serve(address, hello=hello, secret=self.secret, endpoint=self.router)

    async def stop(self) -> None:
        """As a crash and restart: what is durable stays, connections end."""
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None

    @property
    def address(self) -> str:
        assert self.server is not None
        return self.server.address

    def create(self, replica: int, sync: bool) -> None:
        self.replicas[replica] = MemoryReplica(self, replica, sync)

    def set_mute(self, mute: bool) -> None:
        """Stop taking anything from the sockets that are open, as a stopped process does."""
        self.muted = set(self.server.connections) if mute and self.server else set()
        for conn in self.server.connections if self.server else ():
            transport = conn._transport
            assert transport is not None
            if mute:
                transport.pause_reading()  # type: ignore[attr-defined]
            else:
                transport.resume_reading()  # type: ignore[attr-defined]

    def op(self, handler: Callable[..., None]) -> Callable[..., None]:
        def call(
            conn: Connection,
            kind: int,
            flags: int,
            request_id: int,
            deadline_ms: int,
            body: memoryview,
            payload: memoryview,
            owned: bool,
        ) -> None:
            handler(conn, flags, request_id, body, payload)

        return call

    def find(self, replica: int) -> MemoryReplica:
        if replica not in self.replicas:
            raise NoReplica(f"{self.host} has no replica {replica:x}")
        return self.replicas[replica]

    async def seal(self, context: CallContext, params: dict[str, Any]) -> Any:
        replica = self.find(params["replica"])
        lease = self.leases.setdefault(context.conn, GrantedLease())
        former, core = replica.conn, replica.core
        was = core.state.epoch, core.session
        session = params["session"]
        if not core.seal(session, params["epoch"], params["writer"], now_ms(), lease):
            raise Stale("an old SEAL")
        if former is not None and former is not context.conn and former not in self.muted:
            nack = messages.pack_nack(replica.replica, was[0], core.state.epoch, 0, was[1], members.FENCED)
            former.send(ONEWAY, NACK, 0, nack)
        replica.conn = None
        core.grant(0 if self.full else 64 << 20, self.full)
        replica.drain()
        while (answer := core.take_seal_answer(now_ms())) is None:
            await asyncio.sleep(0.002)
            if (core.session, core.state.epoch) != (session, params["epoch"]):
                raise Stale("sealed anew meanwhile")
        replica.conn = context.conn
        return answer[1].pack()

    async def tail(self, context: CallContext, params: dict[str, Any]) -> Any:
        replica = self.find(params["replica"])
        found = [replica.records[lsn] for lsn in range(params["from_lsn"], params["to_lsn"] + 1)][:3]
        heads = b"".join(
            encode_head(r.epoch, r.lsn, r.kind, r.chunk, r.block, r.count, r.sums) for r in found
        )
        return Result(heads, [record.data for record in found if record.data])

    async def release(self, context: CallContext, params: dict[str, Any]) -> Any:
        self.find(params["replica"]).core.release(params["epoch"], params["writer"])
        return {}

    def append(
        self, conn: Connection, flags: int, request_id: int, body: memoryview, payload: memoryview
    ) -> None:
        fields = messages.unpack_append(body)
        replica_id, writer, epoch, prev_epoch, prev_lsn, commit, session, count = fields
        replica = self.find(replica_id)
        self.appends += 1
        self.records += count
        records = decode_batch(body[messages.APPEND_SIZE :], bytes(payload))
        assert len(records) == count
        for record in records:
            if record.kind == Kind.WRITE:
                assert block_sums(record.data) == record.sums, "the writer sent bytes that changed"
        core = replica.core
        code = core.append(writer, epoch, session, prev_epoch, prev_lsn, commit, flags, records)
        if code != members.OK:
            promised = core.state.epoch
            conn.send(
                ONEWAY, NACK, 0, messages.pack_nack(replica_id, epoch, promised, core.matched, session, code)
            )
            return
        core.grant(0 if self.full else 64 << 20, self.full)
        replica.drain()

    def read(
        self, conn: Connection, flags: int, request_id: int, body: memoryview, payload: memoryview
    ) -> None:
        replica_id, epoch, lsn, chunk, block, count = messages.unpack_read(body)
        replica = self.find(replica_id)
        self.reads += 1
        if self.refuse_reads is not None:
            raise self.refuse_reads
        prefix = flags & messages.PREFIX
        if prefix:
            shows = replica.core.may_show(Position(epoch, lsn)) is not None
            code = members.OK if shows else members.BEHIND
        else:
            code = replica.core.may_read(epoch, lsn)
        if code == members.FENCED:
            raise Fenced("promised higher", promised=replica.core.state.epoch)
        if code != members.OK:
            raise Behind("not yet")
        replica.drain()
        first = chunk * 1024 + block
        found = [replica.blocks.get(at, (0, bytes(BLOCK_SIZE))) for at in range(first, first + count)]
        sums = b"".join(found_sum.to_bytes(8, "little") for found_sum, _ in found)
        reply = messages.pack_read_reply(replica.applied, count, sums)
        if prefix:
            reply += epoch_at(replica.core.state.history, replica.applied).to_bytes(8, "little")
        if not any(found_sum for found_sum, _ in found):
            conn.reply(request_id, READ, reply, (), prefix | messages.HOLES)
            return
        if flags & messages.SUMS:
            conn.reply(request_id, READ, reply, (), prefix)
            return
        data = bytearray(b"".join(block_data for _, block_data in found))
        for at in range(count):
            if first + at in self.flip:
                data[at * BLOCK_SIZE] ^= 1
        conn.reply(request_id, READ, reply, [bytes(data)], prefix)

    def heartbeat(
        self, conn: Connection, flags: int, request_id: int, body: memoryview, payload: memoryview
    ) -> None:
        if conn in self.leases:  # else nothing is sealed here, and the answer promises nothing
            self.leases[conn].renew(now_ms())
        reply = messages.pack_heartbeat_reply(messages.unpack_heartbeat(body), 1000)
        conn.reply(request_id, HEARTBEAT, reply)


class MemoryCluster:
    """Three devices, one volume, and a metadata that only counts epochs."""

    def __init__(self, secret: ClusterSecret, groups: int, sync: bool) -> None:
        self.secret = secret
        self.devices = [MemoryDevice(f"host{index}", secret) for index in range(3)]
        self.sync = sync
        self.epoch = 0
        self.writer = 0
        self.owner = 0  # the last writer that came to write
        self.size = 64 << 20
        self.metadata_away = False
        self.held = False
        self.calls: list[str] = []
        self.rows = [
            {
                "group": group,
                "version": 1,
                "members": [
                    {"replica": group * 100 + index + 1, "device": device.device, "host": device.host}
                    for index, device in enumerate(self.devices)
                ],
                "wish": None,
            }
            for group in range(groups)
        ]
        for row in self.rows:
            for member, device in zip(row["members"], self.devices, strict=True):
                device.create(member["replica"], sync)

    def groups(self) -> list[dict[str, Any]]:
        address = {device.device: device.address if device.server else "" for device in self.devices}
        return [
            {**row, "members": [{**each, "address": address[each["device"]]} for each in row["members"]]}
            for row in self.rows
        ]

    async def call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        self.calls.append(method)
        if self.metadata_away:
            raise MoorageError("metadata is away")
        match method:
            case "metadata.attach":
                alive = self.held
                if params["mode"] != "ro":
                    if self.held and params["mode"] == "recover":
                        raise Busy("held", holder={"recovers": False})
                    if params.get("succeeds") and self.owner not in params["succeeds"]:
                        raise self.taken_over()
                    self.epoch += 1
                    self.writer = params["writer"]
                    self.held = True
                    if params["mode"] == "rw":
                        self.owner = self.writer
                durability = "sync" if self.sync else "writeback"
                volume = {"id": 1, "name": "db", "size": self.size, "durability": durability}
                return {
                    "volume": volume,
                    "epoch": self.epoch,
                    "capability": b"",
                    "groups": self.groups(),
                    "holder_alive": alive,
                }
            case "metadata.detach":
                self.held = False
            case "metadata.renew":
                if params["writer"] != self.writer:
                    raise self.taken_over()
                return {"size": self.size, "groups": self.groups()}
            case "metadata.watch":
                await asyncio.sleep(timeout)  # nothing comes
            case "metadata.resize_volume":
                self.size = params["size"]
                return {"size": self.size}
        return {}

    def taken_over(self) -> Fenced:
        holder = {"writer": self.writer, "recovers": self.writer != self.owner}
        text = "volume 'db' was taken over by other on host9 (pid 1)"
        return Fenced(text, epoch=self.epoch, holder=holder)

    def agrees(self) -> bool:
        """Whether the same is applied on all members, as must be after quiescence."""
        for row in self.rows:
            pairs = zip(row["members"], self.devices, strict=True)
            copies = [device.replicas[each["replica"]] for each, device in pairs]
            if any(copy.blocks != copies[0].blocks for copy in copies):
                return False
        return True


@pytest.fixture
def corrupt() -> MoorageError:
    return Corrupt("bad block")


@pytest.fixture
async def memory_cluster(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[MemoryCluster]]]:
    """Make clusters of memory devices: ``await memory_cluster(groups=2, sync=True)``."""
    made: list[MemoryCluster] = []

    async def make(groups: int = 2, sync: bool = True) -> MemoryCluster:
        secret = ClusterSecret.create(tmp_path / f"secret{len(made)}")
        cluster = MemoryCluster(secret, groups, sync)
        made.append(cluster)
        for device in cluster.devices:
            await device.start()
        return cluster

    yield make
    for cluster in made:
        for device in cluster.devices:
            device.set_mute(False)
            await device.stop()
            await device.router.stop()
