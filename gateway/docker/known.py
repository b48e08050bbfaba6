"""What volumes the cluster has, without asking it: a copy, refreshed in the background.

Owns the copy and its file. It serves calls that must not wait for a network, also through an outage and a
restart in it: an engine that is told "no such volume" of one that exists makes an empty one on its own disk
in its place.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from moorage.client.cluster import VolumeInfo
from moorage.gateway import notes as files
from moorage.gateway.docker.notes import Notes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownVolume:
    name: str
    size: int
    created_ms: int


class Known:
    def __init__(self, notes: Notes) -> None:
        self._file = notes.known_file
        found = files.load(self._file, {1: _by_name, 2: _listed}, torn_is_none=True)
        self.loaded = found is not None  # ever, by this life or a former one
        self._volumes = found or {}
        self._touched: set[str] = set()  # made or removed here since the cluster was asked

    def get(self, name: str) -> KnownVolume | None:
        return self._volumes.get(name)

    def all(self) -> list[KnownVolume]:
        return [self._volumes[name] for name in sorted(self._volumes)]

    def asking(self) -> None:
        """The cluster is about to be asked for :meth:`replace`."""
        self._touched.clear()

    def replace(self, found: list[VolumeInfo]) -> set[str]:
        """By all that the cluster had when it was asked; returns the names that are no more."""
        volumes = {info.name: _known(info) for info in found if info.state != "deleting"}
        for name in self._touched:
            volumes.pop(name, None)
            if name in self._volumes:
                volumes[name] = self._volumes[name]
        gone = set(self._volumes) - set(volumes)
        if volumes != self._volumes or not self.loaded:
            self._volumes = volumes
            self._save()
        return gone

    def add(self, info: VolumeInfo) -> None:
        self._touched.add(info.name)
        self._volumes[info.name] = _known(info)
        self._save()

    def remove(self, name: str) -> None:
        self._touched.add(name)
        if self._volumes.pop(name, None) is not None:
            self._save()

    def _save(self) -> None:
        self.loaded = True
        rows = {each.name: [each.size, each.created_ms] for each in self.all()}
        files.save(self._file, {"volumes": rows}, version=2)


def _by_name(volumes: dict[str, Any]) -> dict[str, KnownVolume]:
    """All of a note of format 1, in which one could be called ``format``; since then a field of it."""
    return {name: KnownVolume(name, size, created_ms) for name, (size, created_ms) in volumes.items()}


def _listed(content: dict[str, Any]) -> dict[str, KnownVolume]:
    return _by_name(**content)


def _known(info: VolumeInfo) -> KnownVolume:
    return KnownVolume(info.name, info.size, info.created_ms)
