"""The Node service: volumes on this node, for the containers that run here.

Owns the rules of which call is in order when: what a volume is published as, at how many targets, and which
code says that it cannot be. What is wished is noted before it is done (``notes.py``), and done by
``publishing.py``. One operation on a volume runs at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping

from grpc import StatusCode

from moorage.client import uri
from moorage.client.cluster import Cluster
from moorage.gateway.csi import csi_pb2 as pb
from moorage.gateway.csi import terms
from moorage.gateway.csi.codes import Refused, precondition
from moorage.gateway.csi.controller import expand
from moorage.gateway.csi.notes import Held, Notes, Publication
from moorage.gateway.csi.pending import Pending
from moorage.gateway.csi.publishing import Publisher
from moorage.gateway.mount.mounting import Mount
from moorage.wire.errors import MoorageError

log = logging.getLogger(__name__)

_CAN = pb.NodeServiceCapability.RPC
CAPABILITIES = (
    _CAN.GET_VOLUME_STATS,
    _CAN.EXPAND_VOLUME,
    _CAN.VOLUME_CONDITION,
    _CAN.SINGLE_NODE_MULTI_WRITER,
)
STATS_TIMEOUT_S = 10.0


class Node:
    """``stages``: whether staging is asked of the caller. Who stages without being asked to may."""

    def __init__(
        self, cluster: Cluster, pending: Pending, notes: Notes, publisher: Publisher, *, stages: bool
    ) -> None:
        self._cluster = cluster
        self._pending = pending
        self._notes = notes
        self._publisher = publisher
        self._stages = stages

    async def node_get_info(self, request: pb.NodeGetInfoRequest) -> pb.NodeGetInfoResponse:
        return pb.NodeGetInfoResponse(node_id=self._cluster.hello.name)

    async def node_get_capabilities(
        self, request: pb.NodeGetCapabilitiesRequest
    ) -> pb.NodeGetCapabilitiesResponse:
        kind = pb.NodeServiceCapability
        found = (*((_CAN.STAGE_UNSTAGE_VOLUME,) if self._stages else ()), *CAPABILITIES)
        return pb.NodeGetCapabilitiesResponse(capabilities=[kind(rpc=kind.RPC(type=each)) for each in found])

    async def put_right(self) -> None:
        """At the start: what is noted and is not mounted any more is forgotten, with what is left of it: the
        namespace in which it was mounted may have gone with a container, and its targets not. All notes are
        read before anything is done: Corrupt or VersionMismatch leaves everything as it is."""
        noted = [held for volume in self._notes.volumes() if (held := self._notes.load(volume))]
        await self._publisher.put_right()
        for held in noted:
            if self._publisher.mount_of(held.volume) is None:
                try:
                    await self._publisher.let_go(held)
                    self._notes.drop(held.volume)
                except (MoorageError, OSError) as error:
                    log.warning("volume %s: %s", held.volume, error)

    # -- stage -----------------------------------------------------------------------------------------

    async def node_stage_volume(self, request: pb.NodeStageVolumeRequest) -> pb.NodeStageVolumeResponse:
        name = terms.volume_name(request.volume_id)
        staging = _path(request.staging_target_path, "staging_target_path")
        capability = _capability(request)
        context = terms.options_of(request.volume_context, terms.CONTEXT_KEYS, "volume_context")
        async with self._pending.on(name):
            await self._stage(Held(name, staging, False, capability, _lasting(context)), _forced(context))
        return pb.NodeStageVolumeResponse()

    async def _stage(self, wish: Held, force: bool) -> None:
        held = self._notes.load(wish.volume)
        if held is None:
            self._notes.save(wish)
            try:
                mount = await self._publisher.hold(wish, force=force)
            except BaseException:
                self._notes.drop(wish.volume)
                raise
            wish.device = mount.device
            self._notes.save(wish)
            return
        if held.at != wish.at:
            where = f"published at {', '.join(held.targets)}" if held.implicit else f"staged at {held.at}"
            raise precondition(f"volume {wish.volume!r} is {where} already")
        if (held.capability, held.context) != (wish.capability, wish.context):
            raise Refused(StatusCode.ALREADY_EXISTS, f"volume {wish.volume!r} is staged there in another way")
        held.device = (await self._publisher.hold(held, force=force)).device
        self._notes.save(held)

    async def node_unstage_volume(self, request: pb.NodeUnstageVolumeRequest) -> pb.NodeUnstageVolumeResponse:
        name = _known(request.volume_id)
        staging = _path(request.staging_target_path, "staging_target_path")
        async with self._pending.on(name):
            held = self._notes.load(name)
            if held is not None and not held.implicit and held.at == staging:
                if held.targets:
                    raise precondition(f"volume {name!r} is still published at {', '.join(held.targets)}")
                await self._publisher.let_go(held)
                self._notes.drop(name)
        return pb.NodeUnstageVolumeResponse()

    # -- publish ---------------------------------------------------------------------------------------

    async def node_publish_volume(self, request: pb.NodePublishVolumeRequest) -> pb.NodePublishVolumeResponse:
        name = terms.volume_name(request.volume_id)
        target = _path(request.target_path, "target_path")
        capability = _capability(request)
        context = terms.options_of(request.volume_context, terms.CONTEXT_KEYS, "volume_context")
        staging = request.staging_target_path
        if staging:
            staging = _path(staging, "staging_target_path")
        elif self._stages:
            raise precondition("staging_target_path is missing: NodeStageVolume comes first")
        wish = Publication(capability, request.readonly, staging, _lasting(context))
        async with self._pending.on(name):
            held = self._notes.load(name)
            self._check(name, held, target, wish)
            if held is None:
                held = Held(name, self._notes.at(name), True, capability, wish.context)
            await self._publish(held, target, wish, _forced(context))
        return pb.NodePublishVolumeResponse()

    def _check(self, name: str, held: Held | None, target: str, wish: Publication) -> None:
        """Whether this publish is in order beside what there is."""
        if wish.staging and (held is None or held.implicit or held.at != wish.staging):
            raise precondition(f"volume {name!r} is not staged at {wish.staging}")
        if held is None:
            return
        if target in held.targets:
            if held.targets[target] != wish:
                raise Refused(
                    StatusCode.ALREADY_EXISTS, f"volume {name!r} is published at {target} in another way"
                )
            return
        if held.targets and not (wish.capability.shared and _all_shared(held)):
            raise precondition(
                f"volume {name!r} is published at {', '.join(held.targets)} already, and its access mode "
                "allows for one target: use SINGLE_NODE_MULTI_WRITER or MULTI_NODE_READER_ONLY"
            )
        if not held.capability.serves(wish.capability):
            raise precondition(f"volume {name!r} is mounted on this node in another way")

    async def _publish(self, held: Held, target: str, wish: Publication, force: bool) -> None:
        self._publisher.check_target(held, target)
        began = target not in held.targets
        held.targets[target] = wish
        self._notes.save(held)
        try:
            mount = await self._publisher.hold(held, force=force)
            held.device = mount.device
            self._notes.save(held)
            await self._publisher.bind(mount, target, wish.read_only)
        except BaseException:
            if began:
                await self._give_up(held, target)
            raise

    async def _give_up(self, held: Held, target: str) -> None:
        """What cannot be taken back now is taken back by the next call for this volume, whichever it is."""
        try:
            await self._withdraw(held, target)
        except (MoorageError, OSError) as error:
            log.warning("volume %s: %s", held.volume, error)
            del held.targets[target]
            self._notes.save(held)

    async def node_unpublish_volume(
        self, request: pb.NodeUnpublishVolumeRequest
    ) -> pb.NodeUnpublishVolumeResponse:
        name = _known(request.volume_id)
        target = _path(request.target_path, "target_path")
        async with self._pending.on(name):
            held = self._notes.load(name)
            given_up = held is not None and held.implicit and not held.targets
            if held is not None and (given_up or target in held.targets):
                await self._withdraw(held, target)
        return pb.NodeUnpublishVolumeResponse()

    async def _withdraw(self, held: Held, target: str) -> None:
        """The note goes last: what fails here is done by the next call."""
        await self._publisher.unbind(held, target)
        rest = {path: each for path, each in held.targets.items() if path != target}
        if held.implicit and not rest:
            await self._publisher.let_go(held)
            self._notes.drop(held.volume)
        else:
            held.targets = rest
            self._notes.save(held)

    # -- what it is like -------------------------------------------------------------------------------

    async def node_get_volume_stats(
        self, request: pb.NodeGetVolumeStatsRequest
    ) -> pb.NodeGetVolumeStatsResponse:
        name = terms.volume_name(request.volume_id)
        path = _path(request.volume_path, "volume_path")
        mount = self._mounted(name, path)
        condition = pb.VolumeCondition(
            abnormal=mount.state != "serving" or bool(mount.reason),
            message=": ".join(filter(None, (mount.state, mount.reason))),
        )
        usage = await _usage(path) if mount.state == "serving" else []
        return pb.NodeGetVolumeStatsResponse(usage=usage, volume_condition=condition)

    async def node_expand_volume(self, request: pb.NodeExpandVolumeRequest) -> pb.NodeExpandVolumeResponse:
        """Also when nobody called the controller."""
        name = terms.volume_name(request.volume_id)
        path = _path(request.volume_path, "volume_path")
        terms.check_bounds(request.capacity_range)
        async with self._pending.on(name):
            mount = self._mounted(name, path)
            if request.capacity_range.required_bytes or request.capacity_range.limit_bytes:
                size = await expand(self._cluster, name, request.capacity_range)
            else:
                size = (await self._cluster.show(name)).size
            await self._publisher.grown(mount, size)
        return pb.NodeExpandVolumeResponse(capacity_bytes=size)

    def _mounted(self, name: str, path: str) -> Mount:
        held = self._notes.load(name)
        mount = self._publisher.mount_of(name)
        if held is None or mount is None or path not in held.paths:
            raise Refused(StatusCode.NOT_FOUND, f"volume {name!r} is not published at {path}")
        return mount


async def _usage(path: str) -> list[pb.VolumeUsage]:
    try:
        async with asyncio.timeout(STATS_TIMEOUT_S):
            found = await asyncio.to_thread(os.statvfs, path)
    except TimeoutError:
        raise Refused(StatusCode.DEADLINE_EXCEEDED, f"{path} does not answer") from None
    block, unit = found.f_frsize, pb.VolumeUsage
    return [
        unit(
            unit=unit.BYTES,
            total=found.f_blocks * block,
            available=found.f_bavail * block,
            used=(found.f_blocks - found.f_bfree) * block,
        ),
        unit(
            unit=unit.INODES,
            total=found.f_files,
            available=found.f_favail,
            used=found.f_files - found.f_ffree,
        ),
    ]


def _capability(request: pb.NodeStageVolumeRequest | pb.NodePublishVolumeRequest) -> terms.Capability:
    given = request.HasField("volume_capability")
    capability = terms.capability_of(request.volume_capability if given else None)
    if reason := capability.unsupported():
        raise precondition(reason)
    return capability


def _path(path: str, field: str) -> str:
    """As the mount table will name it."""
    return os.path.realpath(terms.path_of(path, field))


def _known(volume_id: str) -> str:
    """To take back what cannot exist is no error."""
    return volume_id if volume_id and not uri.NAME.fullmatch(volume_id) else terms.volume_name(volume_id)


def _all_shared(held: Held) -> bool:
    return all(each.capability.shared for each in held.targets.values())


def _forced(context: Mapping[str, str]) -> bool:
    return context.get("force") == "true"


def _lasting(context: Mapping[str, str]) -> dict[str, str]:
    """Without how it is taken: whether it had to be is no property of what is published."""
    return {key: value for key, value in context.items() if key != "force"}
