"""The Controller service: volumes as such, from whatever node. Nothing of a node's calls depends on it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from grpc import StatusCode

from moorage.client import uri
from moorage.client.cluster import Cluster, VolumeInfo
from moorage.gateway.csi import csi_pb2 as pb
from moorage.gateway.csi import terms
from moorage.gateway.csi.codes import Refused, invalid
from moorage.gateway.csi.pending import Pending
from moorage.wire.errors import Busy, Invalid, NameTaken, NotFound

_CAN = pb.ControllerServiceCapability.RPC
CAPABILITIES = (
    _CAN.CREATE_DELETE_VOLUME,
    _CAN.LIST_VOLUMES,
    _CAN.GET_CAPACITY,
    _CAN.EXPAND_VOLUME,
    _CAN.SINGLE_NODE_MULTI_WRITER,
)


class Controller:
    def __init__(self, cluster: Cluster, pending: Pending) -> None:
        self._cluster = cluster
        self._pending = pending

    async def controller_get_capabilities(
        self, request: pb.ControllerGetCapabilitiesRequest
    ) -> pb.ControllerGetCapabilitiesResponse:
        kind = pb.ControllerServiceCapability
        return pb.ControllerGetCapabilitiesResponse(
            capabilities=[kind(rpc=kind.RPC(type=each)) for each in CAPABILITIES]
        )

    async def create_volume(self, request: pb.CreateVolumeRequest) -> pb.CreateVolumeResponse:
        name = terms.name_for(request.name)
        _check_supported(terms.capabilities_of(request.volume_capabilities))
        if request.HasField("volume_content_source"):
            raise invalid("volume_content_source is not supported: volumes begin empty")
        options = _creation_options(request)
        default = uri.parse_size(options.get("size", terms.SIZE_DEFAULT))
        size = terms.size_for(request.capacity_range, default)
        async with self._pending.on(name):
            info = await create(self._cluster, name, size, terms.creation_of(options))
        open_size = not request.HasField("capacity_range") and "size" in options
        if not terms.fits(info.size, request.capacity_range) or (open_size and info.size != size):
            raise _differs(name, f"has {info.size} bytes")
        _check_same(info, options)
        return pb.CreateVolumeResponse(volume=_volume(info))

    async def delete_volume(self, request: pb.DeleteVolumeRequest) -> pb.DeleteVolumeResponse:
        if not request.volume_id:
            raise invalid("volume_id is missing")
        if uri.NAME.fullmatch(request.volume_id):  # another one cannot exist
            async with self._pending.on(request.volume_id):
                with contextlib.suppress(NotFound):
                    await self._cluster.delete(request.volume_id)
        return pb.DeleteVolumeResponse()

    async def validate_volume_capabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        name = terms.volume_name(request.volume_id)
        wanted = terms.capabilities_of(request.volume_capabilities)
        info = await self._cluster.show(name)
        reasons = [each.unsupported() or other_fs(info, each.fs) for each in wanted]
        try:
            terms.options_of(request.volume_context, terms.CONTEXT_KEYS, "volume_context")
            options = terms.options_of(request.parameters, terms.CREATION_KEYS, "parameters")
            _check_same(info, options)
        except Refused as refused:
            reasons.append(refused.message)
        except Invalid as error:
            reasons.append(str(error))
        if reason := next(filter(None, reasons), ""):
            return pb.ValidateVolumeCapabilitiesResponse(message=reason)
        return pb.ValidateVolumeCapabilitiesResponse(
            confirmed=pb.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    async def list_volumes(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        """By name; the token is the last name of the page before, which may be gone by now."""
        if request.max_entries < 0:
            raise invalid(f"max_entries is {request.max_entries}: use 0 for all")
        after = request.starting_token
        if after and not uri.NAME.fullmatch(after):
            raise Refused(StatusCode.ABORTED, f"starting_token {after!r} is not one: begin again without")
        found = [info for info in await self._cluster.list_volumes() if info.name > after]
        page = found[: request.max_entries or len(found)]
        return pb.ListVolumesResponse(
            entries=[pb.ListVolumesResponse.Entry(volume=_volume(info)) for info in page],
            next_token=page[-1].name if len(page) < len(found) else "",
        )

    async def get_capacity(self, request: pb.GetCapacityRequest) -> pb.GetCapacityResponse:
        options = terms.options_of(request.parameters, terms.CREATION_KEYS, "parameters")
        replicas = terms.creation_of(options).get("replicas", 3)
        usable = not any(terms.capability_of(each).unsupported() for each in request.volume_capabilities)
        room = largest_volume(await self._cluster.status(), replicas) if usable else 0
        return pb.GetCapacityResponse(
            available_capacity=room,
            maximum_volume_size={"value": terms.SIZE_MAX},
            minimum_volume_size={"value": terms.SIZE_MIN},
        )

    async def controller_expand_volume(
        self, request: pb.ControllerExpandVolumeRequest
    ) -> pb.ControllerExpandVolumeResponse:
        name = terms.volume_name(request.volume_id)
        if not request.HasField("capacity_range"):
            raise invalid("capacity_range is missing")
        if request.HasField("volume_capability"):
            _check_supported([terms.capability_of(request.volume_capability)])
        async with self._pending.on(name):
            size = await expand(self._cluster, name, request.capacity_range)
        return pb.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=True)


async def create(cluster: Cluster, name: str, size: int, wanted: Mapping[str, Any]) -> VolumeInfo:
    """Create a volume, or find it: whoever else created it meanwhile. ABORTED while it comes or goes."""
    try:
        try:
            return await cluster.show(name)
        except NotFound:
            pass
        try:
            return await cluster.create_volume(name, size, **wanted)
        except NameTaken:
            return await cluster.show(name)
    except Busy as error:
        raise Refused(StatusCode.ABORTED, str(error)) from error


async def expand(cluster: Cluster, name: str, bounds: pb.CapacityRange) -> int:
    """Grow a volume to what ``bounds`` requires, unless it is as large already; its size then."""
    size = terms.size_for(bounds, terms.SIZE_MIN)
    info = await cluster.show(name)
    if info.size < size:
        info = await cluster.resize(name, size)
    if not terms.fits(info.size, bounds):
        raise Refused(
            StatusCode.OUT_OF_RANGE, f"volume {name!r} has {info.size} bytes already: it only grows"
        )
    return info.size


def largest_volume(view: Mapping[str, Any], replicas: int) -> int:
    """How large a new volume could be, were it filled: its replicas are on as many hosts, so that a host
    counts for no more than one whole copy."""
    free: dict[str, int] = {}
    for device in view["devices"].values():
        if device["health"] == "up":
            room = max(0, device["capacity"] - device["used"])
            free[device["host"]] = free.get(device["host"], 0) + room
    if len(free) < replicas:
        return 0
    low, high = 0, sum(free.values()) // replicas
    while low < high:
        size = (low + high + 1) // 2
        if sum(min(room, size) for room in free.values()) >= replicas * size:
            low = size
        else:
            high = size - 1
    return low - low % terms.SIZE_STEP


def other_fs(info: VolumeInfo, wanted: str) -> str:
    """That a volume holds another file system than the one asked for, or nothing."""
    noted = info.fs or {}
    if wanted and noted.get("type", wanted) != wanted and noted.get("state") == "ready":
        return f"volume {info.name!r} holds {noted['type']}, not {wanted}"
    return ""


def _creation_options(request: pb.CreateVolumeRequest) -> dict[str, str]:
    """The file system may be said by a capability, too."""
    options = terms.options_of(request.parameters, terms.CREATION_KEYS, "parameters")
    kinds = {each.mount.fs_type for each in request.volume_capabilities} | {options.get("fs", "")}
    kinds.discard("")
    if len(kinds) > 1:
        raise invalid(f"one volume cannot hold {' and '.join(sorted(kinds))}: choose one fs_type")
    return {**options, "fs": kinds.pop()} if kinds else options


def _check_supported(capabilities: list[terms.Capability]) -> None:
    if reason := next(filter(None, (each.unsupported() for each in capabilities)), ""):
        raise invalid(reason)


def _check_same(info: VolumeInfo, options: Mapping[str, str]) -> None:
    """What is asked for, and no default of what is not, has to be what there is."""
    wanted = terms.creation_of(options)
    if wanted.get("replicas", info.replicas) != info.replicas:
        raise _differs(info.name, f"has {info.replicas} replicas")
    if wanted.get("groups", 0) not in (0, len(info.groups)):
        raise _differs(info.name, f"has {len(info.groups)} groups")
    if wanted.get("durability", info.durability) != info.durability:
        raise _differs(info.name, f"has durability {info.durability}")
    if wanted.get("iops", info.iops) != info.iops:
        raise _differs(info.name, f"has iops {info.iops}")
    if uri.parse_size(wanted.get("bw", info.bw)) != info.bw:
        raise _differs(info.name, f"has bw {info.bw}")
    if wanted.get("principal", info.principal) != info.principal:
        raise _differs(info.name, f"is of principal {info.principal}")
    if "fs" in wanted and info.fs and info.fs["type"] != wanted["fs"]:
        raise _differs(info.name, f"is for {info.fs['type']}")


def _differs(name: str, how: str) -> Refused:
    return Refused(StatusCode.ALREADY_EXISTS, f"volume {name!r} exists and {how}")


def _volume(info: VolumeInfo) -> pb.Volume:
    return pb.Volume(volume_id=info.name, capacity_bytes=info.size)
