"""What a node service is built from; every number here has its derivation beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moorage.wire.errors import Invalid
from moorage.wire.secret import ClusterSecret

CAPACITY_MIN = 64 << 20


@dataclass(frozen=True)
class NodeConfig:
    """``data_dir`` is the device: one node process owns it. ``address`` and ``http`` are asked when needed,
    since a listener with port 0 knows its address only once it is bound. ``registry``: HOST:PORT,... or
    srv:NAME."""

    data_dir: Path
    name: str  # of the host: the failure domain
    secret: ClusterSecret
    registry: str
    address: Callable[[], str]
    http: Callable[[], str] = lambda: ""
    labels: tuple[tuple[str, str], ...] = ()
    capacity: int | None = None  # bytes; None: what the file system has free at the first start
    heartbeat_ms: int = 1000
    read_lease_ms: int = 1000
    scrub_period_s: float = 0.0  # within which all of the device is read back; 0: only when it is asked for
    copy_within_s: float = 0.0  # a copy is complete so soon, whatever users do; 0: it takes what they leave
    background_rate: int = 0  # bytes/s of all background work; 0: what users leave
    register_host: bool = True  # `moorage host` registers the host once, for all three services

    def validate(self) -> None:
        if self.capacity is not None and self.capacity < CAPACITY_MIN:
            raise Invalid(
                f"--capacity {self.capacity} is too small: use at least {CAPACITY_MIN >> 20}M"
                " (segments, their reserve and the index have to fit)"
            )
