"""The calls of each service, with parameters that nobody sane sends: method and parameters are the input.

Owns services without sockets: their handlers on a state that applies what is proposed at once, or a store on
a disk in memory. A call runs until it waits for somebody, and is ended there. What a handler raises must be
an error for the caller; anything else would be "internal error" in a log.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from yarl import URL

from moorage.metadata import healing, records
from moorage.metadata.attachments import Attachments
from moorage.metadata.charges import Charges
from moorage.metadata.handlers import Handlers as MetadataHandlers
from moorage.metadata.objects.writers import Writers
from moorage.metadata.state import StateMachine
from moorage.node.handlers import Handlers as NodeHandlers
from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import ReplicaInfo
from moorage.node.sessions import Sessions
from moorage.node.store import Store, StoreConfig
from moorage.quorum.raft_types import Config, Member
from moorage.quorum.record import block_sums
from moorage.registry.handlers import RegistryHandlers
from moorage.registry.health import HealthBoard, Timings
from moorage.registry.state import RegistryMachine
from moorage.service import raft_transport
from moorage.service.embed import Route
from moorage.service.http import HttpServer
from moorage.service.kv import KV
from moorage.service.raft_storage import Pin
from moorage.service.replicated import Replicated
from moorage.wire import frame
from moorage.wire.capability import Capability, sign
from moorage.wire.errors import Invalid, InvariantViolation, MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext, Router, parse_call
from moorage.wire.secret import ClusterSecret

from ..golden import support
from ..golden import values as v
from .engine import Target
from .fixing import fix_records

SECRET = ClusterSecret(v.CLUSTER, v.KEY)
OURS = (InvariantViolation,)
TURNS = 10  # of the loop that a call gets


class Applied:
    """What handlers use of a replicated state, of which this member is the only one."""

    def __init__(self, machine: Any, commands: list[dict[str, Any]]) -> None:
        self.kv = KV()
        self.group = "m1"
        self.is_leader = True
        self.term = 7
        self.leader = {"name": "a", "address": "h1:1"}
        self.members: list[dict[str, Any]] = []
        self._machine = machine
        self._index = 0
        for command in commands:
            self._apply(command)

    def _apply(self, command: dict[str, Any]) -> Any:
        self._index += 1
        # As it would come out of the log: what msgpack cannot say is refused before it gets there.
        command = frame.unpack(frame.pack(command))
        try:
            result = self._machine.apply(self.kv, command, self._index)
        except BaseException:
            self.kv.rollback()
            raise
        self.kv.commit()
        return result

    async def propose(self, command: dict[str, Any], timeout: float = 5.0) -> Any:
        return self._apply(command)

    async def read_barrier(self, timeout: float = 5.0) -> None: ...

    def status(self) -> dict[str, Any]:
        return {}


class _Connection:
    """Takes what is sent; its peer may order everything."""

    def __init__(self) -> None:
        self.peer = Hello("host", v.CLUSTER, "a", "e" * 16, {"address": "h1:1"})
        self.hello = self.peer
        self.closed = False
        self.write_queue_size = 0

    def send(self, *_: Any) -> None: ...

    def reply(self, request: int, op: int, body: bytes, payload: Any = (), flags: int = 0) -> None:
        assert len(body) <= frame.BODY_SIZE_MAX

    def reply_error(self, request: int, op: int, error: MoorageError) -> None:
        if isinstance(error, InvariantViolation):
            raise error
        frame.pack_error(error)


class _Directory:
    """Knows no device."""

    last_error = None
    view: dict[str, Any] = {"hosts": {}, "devices": {}, "services": [], "groups": []}
    view["devices"] = {
        f"d{number}": {"host": f"h{number}", "address": f"h{number}:2", "health": "up", "since_ms": 0}
        | {"capacity": 1 << 40, "used": 0, "reason": "", "drain": None, "token": "t"}
        for number in range(1, 6)
    }

    async def know(self, devices: Any) -> None: ...

    def tell(self, kind: str, about: Any, text: str) -> None: ...

    def is_refused(self, device: str) -> bool:
        return False

    async def charge(self, volume: dict[str, Any], turn: tuple[int, int], timeout: float) -> None: ...

    async def fetch_view(self, timeout: float) -> dict[str, Any]:
        return self.view

    def address_of(self, device: str) -> str:
        return ""


class _Healer:
    """Decides as the real one, and begins nothing."""

    blocked: list[healing.Blocked] = []
    unevenness = ""

    def __init__(self, state: Any) -> None:
        self._state = state

    async def move(self, volume: dict[str, Any], device: str, to: str) -> healing.Decisions:
        provisioned = records.provisioned(self._state.kv)
        return healing.move_off(_Directory.view, volume, provisioned, device, to)


class _Runner:
    """Never comes to an end of anything."""

    count = 0
    repair_after_ms = 600_000

    def __init__(self, state: Any) -> None:
        self.healer = _Healer(state)
        self.writers = Writers()

    def start_volume(self, volume: int) -> None: ...

    async def wait_until(self, volume: int, condition: Any, timeout: float, what: str) -> None:
        if not condition():
            await asyncio.sleep(3600)


Method = Callable[[Any, dict[str, Any]], Awaitable[Any]]
Router_ = dict[str, Method]


class _Methods(Router):
    """A router of which only the table is used."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Router_ = self._methods
        self.ops = self._ops


def metadata_methods() -> Router_:
    state: Any = Applied(StateMachine("m1"), [*v.METADATA_COMMANDS, *BUCKET_COMMANDS])
    directory: Any = _Directory()
    runner: Any = _Runner(state)
    handlers = MetadataHandlers(
        group="m1",
        name="a",
        cluster=v.CLUSTER,
        replicated=state,
        directory=directory,
        runner=runner,
        attachments=Attachments(state, directory, SECRET, lease_ms=4000),
        charges=Charges(state, directory),
    )
    router = _Methods()
    handlers.register(router)
    admin = Replicated(
        directory=Path("nowhere"),
        group="m1",
        name="a",
        peers={},
        machine=StateMachine("m1"),
        hello=Hello("metadata", v.CLUSTER, "a", "e"),
        secret=SECRET,
    )
    admin.change_members = _change_members  # type: ignore[method-assign]
    router.table |= {
        "raft.m1.add_member": admin._rpc_add,
        "raft.m1.promote": admin._rpc_promote,
        "raft.m1.remove_member": admin._rpc_remove,
        "raft.m1.set_address": admin._rpc_set_address,
    }
    return router.table


async def _change_members(change: Callable[[Config], Config]) -> None:
    """What `Replicated` does of it before it proposes the configuration."""
    try:
        wanted = change(Config(Member(*each) for each in v.MEMBERS))
    except KeyError as error:
        raise Invalid(f"parameter {error} is missing") from error
    assert Config.decode(wanted.encode()) == wanted


def registry_methods() -> Router_:
    state: Any = Applied(RegistryMachine(), v.REGISTRY_COMMANDS)
    board = HealthBoard(Timings(heartbeat_ms=40, suspect_ms=200, down_ms=10_000))
    handlers = RegistryHandlers(
        name="a", cluster=v.CLUSTER, group=state, board=board, now_ms=lambda: 1_000_000
    )
    handlers.begin_serving()
    router = _Methods()
    handlers.install(router)
    return router.table


async def _call(methods: Router_, body: bytes) -> None:
    await _call_on(_Connection(), methods, body)


def _seeds(calls: dict[str, dict[str, Any]]) -> list[bytes]:
    return [frame.pack([method, params]) for method, params in calls.items()]


REGISTRY_CALLS: dict[str, dict[str, Any]] = {
    f"registry.{each['op']}": {key: value for key, value in each.items() if key != "op"}
    for each in v.REGISTRY_COMMANDS
    if each["op"] != "note_counts"
} | {
    "registry.create_key": {"id": "A" * 20, "principal": "a", "by": "me"},
    "registry.revoke_key": {"id": "A" * 20},
    "registry.key": {"id": "A" * 20},
    "registry.keys": {"after": ""},
    "registry.heartbeat": {
        "device": v.DEVICE.hex(),
        "token": "a" * 32,
        "count": 31,
        "address": "h1:2",
        "capacity": 1 << 30,
        "used": 5,
        "failed": "disk",
    },
    "registry.charge": {"group": "m1", "term": 1, "count": 1, "name": "db", "id": v.V1}
    | {"principal": "a", "size": 5},
    "registry.settle": {"group": "m1", "term": 1, "count": 2, "charges": [["db", v.V1, "a", 7]]},
    "registry.mount_table": {"version": 1, "known": 0},
    "registry.set_mount_table": {"version": 0, "text": "moorage:///db /data\n", "by": "a", "request": "q"},
    "registry.set_drain": {"kind": "host", "name": "h1", "drain": True, "to": "", "by": "a"},
    "registry.set_balance": {"paused": True, "by": "a"},
    "registry.note_events": {
        "events": [{"at_ms": 1, "kind": "attach", "about": ["db"], "text": "it is attached", "id": "e"}]
    },
    "registry.events": {"after": -20, "about": "db", "limit": 20},
    "registry.evict_device": {"device": v.DEVICE.hex(), "by": "a"},
    "registry.forget": {"kind": "device", "name": v.DEVICE.hex()},
    "registry.set_quota": {"principal": "a", "capacity": 6, "volumes": 1},
    "registry.quotas": {"after": ""},
    "registry.remove_quota": {"principal": "a"},
    "registry.locate": {"name": "db"},
    "registry.view": {},
    "registry.status": {},
    "registry.describe": {},
}
# After those of set 1: the next ids that are given.
BUCKET = v.R7 + 1
BUCKET_COMMANDS: list[dict[str, Any]] = [
    {
        "do": "create_bucket",
        "request": "q9",
        "name": "photos",
        "size": 0,
        "replicas": 3,
        "durability": "sync",
        "placement": v.PLACEMENT,
        "created_ms": 1000,
    },
    {"do": "ready", "volume": BUCKET},
    {"do": "open_region", "bucket": BUCKET, "group": 0, "writer": 77},
    {
        "do": "put_object",
        "bucket": BUCKET,
        "key": "a/b",
        "writer": 77,
        "condition": {},
        "object": {"id": "o1", "size": 5, "etag": "e", "at_ms": 5, "attributes": {}},
        "extents": [[0, 0, 0, 1]],
        "stored": [[BUCKET + 1, BUCKET + 2]],
    },
    {"do": "create_upload", "bucket": BUCKET, "upload": "u1", "key": "c", "attributes": {}, "now_ms": 5},
    {
        "do": "put_part",
        "bucket": BUCKET,
        "upload": "u1",
        "number": 1,
        "writer": 77,
        "object": {"id": "o2", "size": 5, "etag": "e", "at_ms": 5, "attributes": {}},
        "extents": [[0, 0, 1, 1]],
        "stored": [[BUCKET + 1, BUCKET + 2]],
    },
]
_WRITTEN = {"writer": 77, "id": "o3", "size": 5, "etag": "e", "attributes": {"a": 1}}
_WHERE = {"extents": [[0, 0, 2, 1]], "stored": [[BUCKET + 1, BUCKET + 2]]}
METADATA_CALLS: dict[str, dict[str, Any]] = {
    "metadata.create_bucket": {"name": "b", "replicas": 1, "groups": 1, "request": "q5", "locks": True},
    "metadata.list_buckets": {"after": "", "limit": 2},
    "metadata.delete_bucket": {"name": "photos", "force": True, "request": "q6"},
    "metadata.show_bucket": {"name": "photos"},
    "metadata.show_lacks": {"name": "photos"},
    "metadata.open_region": {"name": "photos", "writer": 77, "avoid": [1]},
    "metadata.renew_regions": {"name": "photos", "writer": 77},
    "metadata.close_regions": {"name": "photos", "regions": [[0, 64]]},
    "metadata.put_object": {
        "name": "photos",
        "key": "k",
        "condition": {"absent": True},
        **_WRITTEN,
        **_WHERE,
    },
    "metadata.set_document": {"name": "photos", "document": "policy", "text": "{}"},
    "metadata.set_attributes": {
        "name": "photos",
        "key": "a/b",
        "id": "o1",
        "former": {},
        "attributes": {"a": 2},
    },
    "metadata.get_object": {"name": "photos", "key": "a/b"},
    "metadata.set_versioning": {"name": "photos", "state": "enabled", "locks": True, "request": "q7"},
    "metadata.set_lock": {
        "name": "photos",
        "key": "a/b",
        "id": "o1",
        "version": "null",
        "retention": ["GOVERNANCE", 5],
        "hold": True,
        "bypass": False,
    },
    "metadata.list_versions": {
        "name": "photos",
        "after": "a",
        "version": "null",
        "delimiter": "/",
        "limit": 3,
    },
    "metadata.delete_objects": {
        "name": "photos",
        "keys": ["a", "k"],
        "ids": ["o", "p"],
        "versions": ["null", None],
        "former": True,
        "bypass": True,
        "condition": {"not_etags": ["x"]},
        "request": "r",
    },
    "metadata.list_objects": {"name": "photos", "prefix": "a", "delimiter": "/", "after": "a", "limit": 3},
    "metadata.create_upload": {"name": "photos", "key": "k", "upload": "u2", "attributes": {}},
    "metadata.put_part": {"name": "photos", "upload": "u1", "number": 2, **_WRITTEN, **_WHERE}
    | {"extents": [[0, 0, 3, 1]]},
    "metadata.complete_upload": {
        "name": "photos",
        "upload": "u1",
        "key": "c",
        "parts": [[1, "e"]],
        "id": "o4",
        "etag": "e-1",
        "attributes": {},
    },
    "metadata.abort_upload": {"name": "photos", "upload": "u1"},
    "metadata.show_upload": {"name": "photos", "upload": "u1", "after": 0, "limit": 5},
    "metadata.list_uploads": {"name": "photos", "prefix": "c", "after": ["c", 1, "u0"]},
    "metadata.describe": {},
    "metadata.status": {},
    "metadata.create_volume": {
        "name": "a",
        "size": 1 << 20,
        "replicas": 1,
        "groups": 2,
        "request": "q1",
        "iops": 5,
    },
    "metadata.list_volumes": {"after": "", "limit": 2},
    "metadata.show_volume": {"name": "db"},
    "metadata.resize_volume": {"name": "db", "size": 1 << 30},
    "metadata.set_volume": {"name": "db", "iops": 100, "bw": 1 << 20},
    "metadata.delete_volume": {"name": "db", "force": True, "request": "q2"},
    "metadata.attach": {"name": "db", "writer": 9, "mode": "rw", "force": True, "holder": v.HOLDER},
    "metadata.renew": {"volume": v.V1, "epoch": 1, "writer": 77, "name": "db"},
    "metadata.detach": {"volume": v.V1, "epoch": 1, "writer": 77},
    "metadata.current_epochs": {"replicas": [v.R1, v.R2]},
    "metadata.create_snapshot": {"name": "db", "volumes": ["db"], "snapshot": "s", "request": "q3"},
    "metadata.delete_snapshot": {"name": "db", "snapshot": "s", "request": "q4"},
    "metadata.watch": {"volume": v.V1, "epoch": 1, "writer": 77, "name": "db", "seen": 1, "wait_ms": 5},
    "metadata.snapshots_put": {"volume": v.V1, "epoch": 1, "writer": 77, "ids": [v.R7 + 1]},
    "metadata.snapshots_done": {
        "volume": v.V1,
        "epoch": 1,
        "writer": 77,
        "created": [[v.R7 + 2, [5]]],
        "deleted": [v.R7 + 3],
    },
    "metadata.rolled_back": {"volume": v.V1, "epoch": 1, "writer": 77},
    "metadata.note_fs": {"name": "db", "epoch": 1, "writer": 77, "fs": {"type": "ext4", "state": "new"}},
    "metadata.reconfigure": {"volume": v.V1, "group": 0, "epoch": 1, "version": 1, "old": v.R1}
    | {"new": v.R7, "name": "db"},
    "metadata.moves": {"devices": ["d1"]},
    "metadata.check_departure": {"devices": ["d1", "d2"], "at_once": True},
    "metadata.move_replica": {"name": "db", "device": "d2", "to": "d5"},
    "raft.m1.add_member": {"name": "c", "address": "h3:1"},
    "raft.m1.promote": {"name": "b"},
    "raft.m1.remove_member": {"name": "b"},
    "raft.m1.set_address": {"name": "b", "address": "h4:1"},
}


# -- a node ---------------------------------------------------------------------------------------------


class _Copier:
    """Serves as the real one, and begins nothing."""

    def __init__(self, store: Store) -> None:
        from moorage.node.copying import Copier

        self._real = Copier(store, Hello("node", v.CLUSTER, "a", "e"), SECRET)
        self.serve = self._real.serve

    def begin(self, member: Any, pull: Any) -> None: ...

    def end(self, member: Any) -> None: ...


class Node:
    """A device with replicas 1 (sync, with data) and 2 (writeback), sealed by one connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = tempfile.TemporaryDirectory()
        loop.run_until_complete(self._open())

    async def _open(self) -> None:
        config = StoreConfig(
            Path(self.directory.name), v.DEVICE, 1 << 30, 8 << 20, v.SEED, checkpoint_seconds=1e9
        )
        self.store = Store(config, MemoryDisk())
        await self.store.open()
        for fields in [*list(v.DEVICE_REPLICAS.values())[:2], [3, 13, 0, "objects", 3]]:
            done = asyncio.get_running_loop().create_future()
            self.store.create(ReplicaInfo(*fields), done.set_result)
            await done
        copier: Any = _Copier(self.store)
        sessions = Sessions(self.store, copier)
        sessions.load()
        router = _Methods()
        NodeHandlers(self.store, sessions, copier, Hello("node", v.CLUSTER, "a", "e"), SECRET, dict).register(
            router
        )
        self.methods, self.ops = router.table, router.ops
        self.methods["node.seal"] = _with_capability(self.methods["node.seal"])
        self.connection: Any = _Connection()
        for method, params in _NODE_CALLS[:2]:
            await self.methods[method](CallContext(self.connection, memoryview(b""), None), params)
        await self.store.flushed()

    async def call(self, body: bytes) -> None:
        await _call_on(self.connection, self.methods, body)

    async def op(self, op: int, body: bytes) -> None:
        if op == frame.APPEND:
            body = body[:56] + fix_records(body[56:], BLOCKS)
        payload = memoryview(BLOCKS) if op == frame.APPEND and len(body) > 56 else memoryview(b"")
        self.ops[op](self.connection, frame.REQUEST, 0, 7, 0, memoryview(body), payload, True)
        await asyncio.sleep(0)


BLOCKS = v.block(21, 1)


def _with_capability(seal: Method) -> Method:
    """A capability of True is replaced by one that fits."""

    async def wrapped(context: Any, params: dict[str, Any]) -> Any:
        if params.get("capability") is True:
            numbers = [params.get(key) for key in ("epoch", "writer", "replica")]
            if all(isinstance(each, int) and 0 <= each < 1 << 63 for each in numbers):
                epoch, writer, replica = numbers
                signed = sign(SECRET, Capability(11, epoch, writer, [replica], "rw", 1 << 50))  # type: ignore[list-item, arg-type]
                params = {**params, "capability": signed}
        return await seal(context, params)

    return wrapped


async def _call_on(connection: Any, methods: Router_, body: bytes) -> None:
    """As `wire/rpc.py` does one; it is ended where it waits for long."""
    method, params = parse_call(body)
    handler = methods.get(method)
    if handler is None:
        return
    context = CallContext(connection, memoryview(b"payload"), asyncio.get_running_loop().time() + 10)
    work = asyncio.ensure_future(handler(context, params))
    for _ in range(TURNS):
        await asyncio.sleep(0)
        if work.done():
            break
    if not work.done():
        work.cancel()
        await asyncio.wait([work])
    if not work.cancelled():
        value = work.result()
        frame.pack(value.value if hasattr(value, "value") else value)


_SESSION = {"epoch": 2, "writer": 77, "session": 1}
_ORDER = {"metadata": "m1", "term": 9}
_SOURCE = {"address": "unix:/nowhere", "device": "d", "replica": 1}
_NODE_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("node.seal", {"replica": 1, "capability": True, **_SESSION}),
    ("node.seal", {"replica": 2, "capability": True, **_SESSION}),
    ("node.tail", {"replica": 1, "from_lsn": 1, "to_lsn": 3, "max_bytes": 1 << 20, **_SESSION}),
    ("node.release", {"replica": 1, "epoch": 2, "writer": 77}),
    (
        "node.copy",
        {
            "replica": 2,
            "base": [1, 5],
            "history": [[1, 1]],
            "floor": [0, 0],
            "fresh": True,
            "source": {"address": "h1:1", "device": "d", "replica": 1},
            **_SESSION,
        },
    ),
    ("node.pull", {"replica": 1, "base": 0, "above": 0, "cursor": [0, 0], "max_bytes": 1 << 20}),
    ("node.pull", {"replica": 1, "base": 0, "above": 0, "cursor": [1, 0], "max_bytes": 1 << 20, "rate": 9}),
    (
        "node.create_replica",
        {
            "replica": 9,
            "volume": 1,
            "group": 0,
            "durability": "sync",
            "members": 3,
            "metadata": "m1",
            "term": 1,
        },
    ),
    ("node.drop_replica", {"replica": 9, "volume": 1, "metadata": "m1", "term": 1}),
    ("node.list_replicas", {}),
    ("node.list_replicas", {"volume": 11}),
    ("node.bad_blocks", {"replica": 1}),
    ("node.scrub", {"replicas": [1]}),
    ("node.describe", {}),
    ("node.put_blocks", {"replica": 3, "chunk": 0, "block": 5, "sums": block_sums(BLOCKS)}),
    ("node.read_blocks", {"replica": 3, "chunk": 0, "block": 0, "blocks": 1}),
    ("node.lacking_blocks", {"replica": 3, "pieces": [[0, 0, 1], [0, 1000, 100]]}),
    ("node.discard_blocks", {"replica": 3, "pieces": [[0, 7, 2]], "regions": [[64, 64]], **_ORDER}),
    ("node.mended_blocks", {"replica": 3, "damage": "", **_ORDER}),
    ("node.fetch_blocks", {"replica": 3, "sources": [_SOURCE], "pieces": [[0, 9, 1]], **_ORDER}),
]
NODE_SEEDS = [frame.pack([method, params]) for method, params in _NODE_CALLS]


# -- HTTP -----------------------------------------------------------------------------------------------


TOKEN = "t" * 16
HTTP_ROUTES = [
    *(("GET", f"metadata.{name}") for name in ("describe", "status", "list_volumes", "show_volume", "moves")),
    *(
        ("POST", f"metadata.{name}")
        for name in ("create_volume", "resize_volume", "set_volume", "delete_volume")
    ),
    *(("POST", f"raft.m1.{name}") for name in ("add_member", "promote", "remove_member")),
    *(
        ("GET", f"registry.{name}")
        for name in ("describe", "view", "mount_table", "events", "quotas", "status")
    ),
    *(("POST", f"registry.{name}") for name in ("set_quota", "remove_quota")),
    ("GET", "node.describe"),
]


HTTP_SEEDS: dict[str, Any] = METADATA_CALLS | REGISTRY_CALLS | {"node.describe": {}}


class _Request:
    """What the server uses of a request, which aiohttp has parsed."""

    def __init__(self, verb: str, name: str, query: bytes, body: bytes) -> None:
        self.method, self.path = verb, f"/v1/{name}"
        self.match_info = {"call": name}
        self.headers = {"Authorization": f"Bearer {TOKEN}"}
        self.protocol = object()
        self.query = URL.build(path=self.path, query_string=query.decode("latin-1"), encoded=True).query
        self._body = body

    async def read(self) -> bytes:
        return self._body


class Http:
    """The JSON API of a process with all three services, behind the parser of aiohttp."""

    def __init__(self, node: Node) -> None:
        self._server = HttpServer(token=TOKEN, metrics=CollectorRegistry(), not_ready=list)
        methods = metadata_methods() | registry_methods() | node.methods
        self._server.add_routes(
            Route(verb, name, partial(methods[name], None))  # type: ignore[arg-type]
            for verb, name in HTTP_ROUTES
        )

    async def request(self, data: bytes) -> None:
        """Verb and name by number, the rest of the path's line is the query, what follows the body."""
        number = data[0] if data else 0
        query, _, body = data[1:].partition(b"\n")
        verb, name = HTTP_ROUTES[number % len(HTTP_ROUTES)]
        request: Any = _Request(verb, name, query, body)
        work = asyncio.ensure_future(self._server._guard(request, self._server._call))
        for _ in range(TURNS):
            await asyncio.sleep(0)
            if work.done():
                break
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
            return
        response = work.result()
        assert isinstance(response, web.Response)
        assert response.status != 500, response.text


# -- Raft -----------------------------------------------------------------------------------------------


class _RaftReceiver:
    """Who would hear the messages that a transport lets through."""

    def received(self, source: str, message: Any) -> None: ...

    def accepted(self) -> None: ...

    def refused(self, by: str, reason: str) -> None: ...


async def raft(body: bytes) -> None:
    transport = raft_transport.Transport(
        group="m1",
        name="b",
        hello=Hello("metadata", v.CLUSTER, "b", "e"),
        secret=SECRET,
        receiver=_RaftReceiver(),
    )
    transport.members, transport.pins = {"a": 0, "b": 0}, {"a": Pin(0, v.RAFT_INSTANCE)}
    dispatcher = raft_transport._Dispatcher()
    dispatcher.groups["m1"] = transport
    connection: Any = _Connection()
    connection.close = lambda *_: None
    dispatcher(connection, frame.ONEWAY, 0, 0, 0, memoryview(body), memoryview(b""), True)


def service_targets(loop: asyncio.AbstractEventLoop, in_loop: Callable[[Any], None]) -> list[Target]:
    moorage = (MoorageError,)
    registry, metadata, node = registry_methods(), metadata_methods(), Node(loop)
    http = Http(node)

    def of(work: Callable[[bytes], Awaitable[None]]) -> Callable[[bytes], None]:
        return lambda data: in_loop(lambda: work(data))

    async def hot(data: bytes) -> None:
        await node.op((frame.APPEND, frame.READ, frame.HEARTBEAT)[(data[0] if data else 0) % 3], data[1:])

    def large(size: int) -> int:
        return (8 << 20) + 64 * size

    lives = [
        ["birth", 1, "t" * 16, ""],
        ["start", 2, "u" * 16, "t" * 16],
        ["accepted", ""],
        ["refused", "why"],
    ]
    raft_seeds = [support.wire(f"raft-{code}") for code in v.RAFT]
    raft_seeds += [frame.pack(["m1", "a", v.RAFT_INSTANCE, 0, None, each]) for each in lives]
    record = support.wire("append")[56 : 56 + 48 + 48 + 16]
    head = (1).to_bytes(8, "little") + (77).to_bytes(8, "little") + (2).to_bytes(8, "little")
    append = head + bytes(24) + (1).to_bytes(4, "little") + (2).to_bytes(4, "little") + record
    hot_seeds = [
        b"\0" + append,
        b"\0" + support.wire("append"),
        b"\1" + support.wire("read"),
        b"\2" + bytes(8),
    ]
    json_seeds = [
        bytes([at]) + b"name=db&x=%20\n" + json.dumps(HTTP_SEEDS[name]).encode()
        for at, (_, name) in enumerate(HTTP_ROUTES)
    ]
    return [
        Target(
            "registry", of(lambda data: _call(registry, data)), _seeds(REGISTRY_CALLS), moorage, OURS, large
        ),
        Target(
            "metadata", of(lambda data: _call(metadata, data)), _seeds(METADATA_CALLS), moorage, OURS, large
        ),
        Target("node", of(node.call), NODE_SEEDS, moorage, OURS, large),
        Target("node-hot", of(hot), hot_seeds, moorage, OURS, large),
        Target("http", of(http.request), json_seeds, (), (), large),
        Target("raft", of(raft), raft_seeds, moorage, OURS, large),
    ]
