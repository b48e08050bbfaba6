"""The Identity service: who this driver is, what it can do, whether it can do it now."""

from __future__ import annotations

from importlib.metadata import version

from moorage.client.cluster import Cluster
from moorage.gateway.csi import csi_pb2 as pb
from moorage.wire.errors import MoorageError

NAME = "org.moorage.csi"
PROBE_TIMEOUT_S = 3.0


class Identity:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def get_plugin_info(self, request: pb.GetPluginInfoRequest) -> pb.GetPluginInfoResponse:
        return pb.GetPluginInfoResponse(name=NAME, vendor_version=version("moorage"))

    async def get_plugin_capabilities(
        self, request: pb.GetPluginCapabilitiesRequest
    ) -> pb.GetPluginCapabilitiesResponse:
        kind = pb.PluginCapability
        service = kind.Service(type=kind.Service.CONTROLLER_SERVICE)
        expansion = kind.VolumeExpansion(type=kind.VolumeExpansion.ONLINE)
        return pb.GetPluginCapabilitiesResponse(
            capabilities=[kind(service=service), kind(volume_expansion=expansion)]
        )

    async def probe(self, request: pb.ProbeRequest) -> pb.ProbeResponse:
        """Ready while the cluster answers; that it does not is no fault of this process."""
        try:
            await self._cluster.status(timeout=PROBE_TIMEOUT_S)
        except MoorageError:
            return pb.ProbeResponse(ready={"value": False})
        return pb.ProbeResponse(ready={"value": True})
