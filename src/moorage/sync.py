"""The library without ``await``: ``import moorage.sync``. See :mod:`moorage.client.sync`."""

from __future__ import annotations

from moorage.client.cluster import VolumeInfo
from moorage.client.sync import Cluster, Volume, connect

__all__ = ["Cluster", "Volume", "VolumeInfo", "connect"]
