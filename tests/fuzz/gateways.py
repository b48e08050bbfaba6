"""What drivers of containers send, what a person wrote into a configuration, and what an NBD server answers.

Owns the calls of the gateways without a cluster behind them: one volume exists, and nothing can be mounted.
What comes out of a call is its answer or an error with its own code.
"""

from __future__ import annotations

import itertools
import json
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from moorage.client import answers, config, uri
from moorage.client.cluster import VolumeInfo
from moorage.client.mount_table import MountTable
from moorage.client.places import Moves
from moorage.client.quota import Quota
from moorage.client.uri import Address
from moorage.client.why import Facts, about_device
from moorage.framework import messages
from moorage.framework.master import base_of, leader_named
from moorage.framework.recordio import RecordReader
from moorage.gateway.csi import csi_pb2 as pb
from moorage.gateway.csi.codes import Refused
from moorage.gateway.csi.controller import Controller
from moorage.gateway.csi.node import Node
from moorage.gateway.csi.pending import Pending
from moorage.gateway.docker.known import Known
from moorage.gateway.docker.notes import Notes
from moorage.gateway.docker.plugin import DockerPlugin
from moorage.gateway.nbd import protocol as nbd
from moorage.gateway.nbd.client import NbdConnection
from moorage.wire import frame
from moorage.wire.errors import InvariantViolation, MoorageError, NotFound, ProtocolError

from .engine import Target

OURS = (InvariantViolation,)
INFO = VolumeInfo.from_wire(
    {"name": "db", "size": 1 << 30, "state": "ready", "replicas": 3, "groups": [1], "durability": "sync"}
    | {"created_ms": 1000}
)
VIEW = {"devices": {"d": {"health": "up", "capacity": 9 << 30, "used": 1, "host": "h1"}}}


# -- Docker ---------------------------------------------------------------------------------------------


class _Volumes:
    """Of this host: what a call asks for is read as it would be for a cluster, and nothing is mounted."""

    async def create(self, address: Address) -> VolumeInfo:
        uri.creation(address.options)
        return INFO

    async def remove(self, address: Address) -> None: ...

    async def mount(self, address: Address, user: str, by: str, engine: str) -> str:
        raise NotFound(f"volume {address.name!r} does not exist")

    async def unmount(self, name: str, user: str) -> None: ...

    def path(self, name: str) -> str:
        return ""


class _Request:
    """What the plugin looks at of one."""

    def __init__(self, call: str, body: bytes, transport: Any) -> None:
        self.match_info = {"call": call}
        self.transport = transport
        self._body = body

    async def read(self) -> bytes:
        return self._body


class _Transport:
    def __init__(self) -> None:
        self._socket, self._other = socket.socketpair()

    def get_extra_info(self, name: str) -> socket.socket:
        return self._socket


DOCKER_CALLS: list[tuple[str, Any]] = [
    ("Create", {"Name": "db", "Opts": {"size": "1G", "mode": "ro", "iops": "100", "principal": "team-a"}}),
    ("Create", {"Name": "moorage:///db?size=1G&fs=xfs", "Opts": None}),
    ("Mount", {"Name": "db", "ID": "a"}),
    ("Unmount", {"Name": "db", "ID": None}),
    ("Remove", {"Name": "db"}),
    ("Path", {"Name": "db"}),
    ("Get", {"Name": "db"}),
    ("List", {}),
    ("Capabilities", None),
]


class Docker:
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._transport = _Transport()
        self._volumes: Any = _Volumes()

    async def call(self, data: bytes) -> None:
        """Which call by number, then the body."""
        notes = Notes(Path(self._directory.name))
        notes.prepare()
        notes.known_file.unlink(missing_ok=True)
        plugin = DockerPlugin(self._volumes, Known(notes), Path("nowhere"), lambda: None)
        request: Any = _Request(
            DOCKER_CALLS[(data[0] if data else 0) % len(DOCKER_CALLS)][0], data[1:], self._transport
        )
        response = await plugin._serve(request)
        assert response.status in (200, 500) and isinstance(response.body, bytes)
        assert (response.status == 500) == ("Err" in json.loads(response.body))


# -- CSI ------------------------------------------------------------------------------------------------


class _Cluster:
    """Of one volume."""

    async def show(self, name: str) -> VolumeInfo:
        if name != INFO.name:
            raise NotFound(f"volume {name!r} does not exist")
        return INFO

    async def create_volume(self, name: str, size: int, **wanted: Any) -> VolumeInfo:
        return INFO

    async def delete(self, name: str) -> None:
        await self.show(name)

    async def resize(self, name: str, size: int) -> VolumeInfo:
        return await self.show(name)

    async def list_volumes(self) -> list[VolumeInfo]:
        return [INFO]

    async def status(self) -> dict[str, Any]:
        return VIEW


class _NoNotes:
    """Nothing is published, and what is wished can be written down."""

    def load(self, volume: str) -> None:
        return None

    def at(self, volume: str) -> str:
        return f"/nowhere/{volume}"

    def save(self, held: Any) -> None:
        json.dumps(repr(held))

    def drop(self, volume: str) -> None: ...


class _Publisher:
    """Can mount nothing."""

    def check_target(self, held: Any, target: str) -> None: ...

    async def unbind(self, held: Any, target: str) -> None: ...

    async def let_go(self, held: Any) -> None: ...

    async def hold(self, held: Any, *, force: bool) -> Any:
        raise NotFound("there is no such volume here")


_CAPABILITY = pb.VolumeCapability(
    mount=pb.VolumeCapability.MountVolume(fs_type="ext4", mount_flags=["noatime"]),
    access_mode=pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
)
_RANGE = pb.CapacityRange(required_bytes=1 << 20, limit_bytes=1 << 30)
_CONTEXT = {"size": "64M", "replicas": "3", "owner": "1000:1000", "a/b": "c", "force": "true"}
CSI_CALLS: list[Any] = [
    pb.CreateVolumeRequest(
        name="pvc 1",
        capacity_range=_RANGE,
        volume_capabilities=[_CAPABILITY],
        parameters={"replicas": "3", "fs": "ext4", "iops": "100", "bw": "50M", "groups": "1"},
    ),
    pb.DeleteVolumeRequest(volume_id="db"),
    pb.ValidateVolumeCapabilitiesRequest(
        volume_id="db", volume_capabilities=[_CAPABILITY], volume_context=_CONTEXT, parameters={"fs": "xfs"}
    ),
    pb.ListVolumesRequest(max_entries=1, starting_token="a"),
    pb.GetCapacityRequest(volume_capabilities=[_CAPABILITY], parameters={"replicas": "1"}),
    pb.ControllerExpandVolumeRequest(volume_id="db", capacity_range=_RANGE, volume_capability=_CAPABILITY),
    pb.NodeStageVolumeRequest(
        volume_id="db", staging_target_path="/s", volume_capability=_CAPABILITY, volume_context=_CONTEXT
    ),
    pb.NodePublishVolumeRequest(
        volume_id="db", target_path="/t", volume_capability=_CAPABILITY, volume_context=_CONTEXT
    ),
]


async def csi(data: bytes) -> None:
    """Which request by number, then its bytes."""
    cluster: Any = _Cluster()
    notes: Any = _NoNotes()
    publisher: Any = _Publisher()
    controller, pending = Controller(cluster, Pending()), Pending()
    node = Node(cluster, pending, notes, publisher, stages=False)
    handlers: list[Callable[[Any], Awaitable[Any]]] = [
        controller.create_volume,
        controller.delete_volume,
        controller.validate_volume_capabilities,
        controller.list_volumes,
        controller.get_capacity,
        controller.controller_expand_volume,
        node.node_stage_volume,
        node.node_publish_volume,
    ]
    number = (data[0] if data else 0) % len(handlers)
    request = type(CSI_CALLS[number]).FromString(data[1:])
    (await handlers[number](request)).SerializeToString()


# -- a configured cluster -------------------------------------------------------------------------------


class ClusterFile:
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._environment = {"XDG_CONFIG_HOME": self._directory.name, "MOORAGE_SECRET_FILE": "/secret"}
        self._path = config.clusters_directory(self._environment) / "default.json"
        self._path.parent.mkdir(parents=True)

    def load(self, data: bytes) -> None:
        self._path.write_bytes(data)
        found = config.load(environment=self._environment)
        assert found.registry and found.name == ""


# -- an NBD server --------------------------------------------------------------------------------------


class _Answers:
    """A socket whose peer has said all that it says."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def sendall(self, data: bytes) -> None: ...

    def sendmsg(self, parts: tuple[bytes, ...]) -> int:
        return sum(map(len, parts))

    def recv_into(self, into: memoryview) -> int:
        part, self._data = self._data[: len(into)], self._data[len(into) :]
        into[: len(part)] = part
        return len(part)


def nbd_client(data: bytes) -> None:
    """What a server says to a client that opens an export and then reads and writes."""
    connection = NbdConnection.__new__(NbdConnection)
    connection._socket, connection._cookies = _Answers(data), itertools.count(1)  # type: ignore[assignment]
    size, _ = connection._negotiate(b"db")
    assert 0 <= size < 1 << 64
    assert len(connection.read(0, 16)) == 16
    connection.write(0, bytes(16))
    connection.flush()


def _nbd_answers() -> list[bytes]:
    greeting = nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, nbd.FLAG_FIXED_NEWSTYLE)
    info = nbd.EXPORT_INFO.pack(nbd.INFO_EXPORT, 1 << 20, 1)
    opened = greeting + _option_reply(nbd.REP_INFO, info) + _option_reply(nbd.REP_ACK, b"")
    replies = [nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie) for cookie in (1, 2, 3)]
    failed = nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 5, 1)
    return [
        opened + replies[0] + bytes(16) + replies[1] + replies[2],
        opened + failed,
        greeting + _option_reply(nbd.REP_ERR_UNKNOWN, b"there is no such export"),
    ]


def _option_reply(reply: int, data: bytes) -> bytes:
    return nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, nbd.OPT_GO, reply, len(data)) + data


# -- a Mesos master -------------------------------------------------------------------------------------


def mesos_events(data: bytes) -> None:
    """The stream of a subscription, cut at any places; or whom a master names as the leader."""
    mode, raw = (data[0] if data else 0), data[1:]
    if mode & 4:
        found = leader_named("https://m1:5050", raw.decode("utf-8", "replace"))
        assert found.startswith("https://") and base_of(found) == found
        return
    step, reader, begun = (1, 7, 100, 1 << 16)[mode % 4], RecordReader(), False
    for at in range(0, len(raw), step):
        reader.feed(raw[at : at + step])
        while (record := reader.next_record()) is not None:
            event = messages.parse_event("m1", record)
            if not begun:
                assert messages.subscribed("m1", event, 15.0).heartbeat_s > 0
            elif event["type"] == "ERROR":
                raise messages.error_of("m1", event)
            begun = True


def _mesos_seeds() -> list[bytes]:
    begin = {"framework_id": {"value": "f"}, "heartbeat_interval_seconds": 15.0}
    events: list[dict[str, Any]] = [
        {"type": "SUBSCRIBED", "subscribed": begin},
        {"type": "HEARTBEAT"},
        {"type": "ERROR", "error": {"message": "Framework failed over"}},
    ]
    removed = {"type": "ERROR", "error": {"message": "Framework has been removed"}}
    streams = [b"".join(map(_record, each)) for each in (events, [removed], [events[0], removed])]
    named = [b"//m2:5050/api/v1/scheduler", b"https://[::1]:5050", b"http://m2:5050/"]
    return [bytes([mode]) + each for mode in (0, 3) for each in streams] + [b"\4" + each for each in named]


def _record(event: dict[str, Any]) -> bytes:
    raw = json.dumps(event).encode()
    return b"%d\n%b" % (len(raw), raw)


# -- answers to control calls ---------------------------------------------------------------------------


def control_answers(data: bytes) -> None:
    """Which call by number, then the body of the answer: checked, and read as the library does."""
    methods = sorted(answers.ANSWERS)
    method, value = methods[(data[0] if data else 0) % len(methods)], frame.unpack(data[1:])
    answers.check(method, value)
    match method:
        case "metadata.list_volumes":
            found = [VolumeInfo.from_wire(each) for each in value["volumes"]]
            assert all(isinstance(each.has_writer, bool) for each in found)
        case "metadata.show_volume" | "metadata.create_volume" | "metadata.set_volume":
            VolumeInfo.from_wire(value).to_json()
        case "registry.quotas":
            for row in value["quotas"]:
                Quota.from_wire(row).to_json()
        case "registry.mount_table":
            if value.get("text") is not None:
                MountTable.from_wire(value).lines()
        case "registry.view":
            for device in value["devices"]:
                about_device(device, Facts(value, NO_MOVES, now_ms=1))
        case "metadata.attach":
            for group in value["groups"]:
                assert all(each["address"] is not None for each in group["members"])
        case _:
            pass


NO_MOVES = Moves({}, [], [], 0, 0, 0, [])
_MEMBER = {"replica": 2, "device": "d", "host": "h", "address": "h:1"}
_GROUP = {"group": 0, "version": 1, "members": [_MEMBER], "wish": None}
_VOLUME = INFO.to_json() | {"groups": [_GROUP], "id": 1}
_ROW = {"principal": "a", "capacity": None, "volumes": 5, "used_bytes": 1, "used_volumes": 1}
_DEVICE = {"host": "h1", "address": "h1:2", "capacity": 9, "used": 1, "health": "down", "reason": "silent"}
_ANSWERS: dict[str, Any] = {
    "metadata.show_volume": _VOLUME,
    "metadata.create_volume": INFO.to_json(),
    "metadata.list_volumes": {"volumes": [INFO.to_json()], "next": "db"},
    "metadata.attach": {"volume": _VOLUME, "epoch": 1, "capability": b"c", "groups": [_GROUP]}
    | {"holder_alive": False},
    "metadata.renew": {"size": 1, "groups": [_GROUP], "capability": b"c"},
    "registry.quotas": {"quotas": [_ROW], "next": None},
    "registry.mount_table": {"version": 1, "text": "moorage:///db /data\n", "by": "a", "at_ms": 1},
    "registry.view": {
        "hosts": {"h1": {"health": "up", "reason": "", "since_ms": 0, "drain": None}},
        "devices": {"d": _DEVICE | {"since_ms": 0, "drain": None}},
        "services": [{"service": "metadata", "group": "m1", "name": "a", "address": "h1:1"}],
        "groups": ["m1"],
    },
    "registry.events": {
        "events": [{"number": 1, "at_ms": 1, "kind": "attach", "about": [], "text": "x"}],
        "next": 1,
    },
}


# -- the table ------------------------------------------------------------------------------------------


def gateway_targets(in_loop: Callable[[Any], None]) -> list[Target]:
    def of(work: Callable[[bytes], Awaitable[None]]) -> Callable[[bytes], None]:
        return lambda data: in_loop(lambda: work(data))

    def memory(size: int) -> int:
        return (1 << 20) + 64 * size

    docker = Docker()
    docker_seeds = [bytes([at]) + json.dumps(body).encode() for at, (_, body) in enumerate(DOCKER_CALLS)]
    csi_seeds = [bytes([at]) + each.SerializeToString() for at, each in enumerate(CSI_CALLS)]
    files = [
        {"registry": "h1:1,h2:2", "secret_file": "prod.secret", "principal": "team-a"},
        {"registry": "srv:moorage.example"},
    ]
    file_seeds = [json.dumps(each).encode() for each in files]
    numbers = {method: at for at, method in enumerate(sorted(answers.ANSWERS))}
    answer_seeds = [bytes([numbers[method]]) + frame.pack(each) for method, each in _ANSWERS.items()]
    moorage = (MoorageError,)
    return [
        Target("docker", of(docker.call), docker_seeds, (), (), memory),
        Target("csi", of(csi), csi_seeds, (*moorage, Refused, DecodeError), OURS, memory),
        Target("nbd-client", nbd_client, _nbd_answers(), (OSError,), (), memory),
        Target("mesos-events", mesos_events, _mesos_seeds(), moorage, OURS, memory),
        Target("control-answers", control_answers, answer_seeds, (ProtocolError,), OURS, memory),
        Target("cluster-file", ClusterFile().load, file_seeds, moorage, OURS, memory),
    ]
