"""What is published on this node, as noted before it is done: one file for each volume.

Owns ``STATE_DIR/csi/``:

================== ==================================================================
``lock``           held by the driver: one for each state directory
``VOLUME.json``    :class:`Held`
``at/VOLUME/``     where a volume is mounted that was published without being staged
================== ==================================================================

The mount table is the truth: a note says what was wished, so that a call that is repeated after a crash ends
what it began. A reboot clears the directory with the mounts of ``/run``.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.gateway import notes
from moorage.gateway.csi.terms import Capability
from moorage.wire.errors import CannotBind

_SUFFIX = ".json"


@dataclass(frozen=True)
class Publication:
    """What a publish asked for, but its target: asked again, it has to be the same."""

    capability: Capability
    read_only: bool
    staging: str
    context: Mapping[str, str]


@dataclass
class Held:
    """A volume on this node. ``at``: where it is mounted; ``implicit``: by a publish that was not preceded by
    a stage, and for as long as it is published; ``device``: what is mounted there and at its
    targets, once it is."""

    volume: str
    at: str
    implicit: bool
    capability: Capability
    context: Mapping[str, str]
    device: str = ""
    targets: dict[str, Publication] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> Held:
        targets = {
            target: Publication(**{**each, "capability": _capability(each["capability"])})
            for target, each in content["targets"].items()
        }
        return cls(**{**content, "capability": _capability(content["capability"]), "targets": targets})

    @property
    def paths(self) -> set[str]:
        """Where who uses it may see it."""
        return {*self.targets, *(() if self.implicit else (self.at,))}


def _capability(content: Mapping[str, Any]) -> Capability:
    return Capability(**{**content, "flags": tuple(content["flags"])})


class Notes:
    def __init__(self, state_directory: Path) -> None:
        self._path = state_directory / "csi"

    def open(self) -> None:
        """Raises CannotBind where another driver works on the same node."""
        self._path.mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise CannotBind(
                f"another CSI driver works on {self._path.parent}: end it, or use another --state-dir"
            ) from None

    def close(self) -> None:
        os.close(self._lock)

    def at(self, volume: str) -> str:
        return str(self._path / "at" / volume)

    def load(self, volume: str) -> Held | None:
        """Raises Corrupt or VersionMismatch."""
        return notes.load(self._path / (volume + _SUFFIX), {1: Held.load})

    def save(self, held: Held) -> None:
        notes.save(self._path / (held.volume + _SUFFIX), dataclasses.asdict(held))

    def drop(self, volume: str) -> None:
        (self._path / (volume + _SUFFIX)).unlink(missing_ok=True)

    def volumes(self) -> list[str]:
        names = (path.name for path in self._path.glob(f"[!.]*{_SUFFIX}"))
        return sorted(name.removesuffix(_SUFFIX) for name in names)
