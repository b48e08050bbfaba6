"""Handshake: who is there, in which cluster, in which version, and proof that both hold the secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hello:
    """How one end introduces itself. Nothing secret belongs in here: it is sent before the peer has proved
    anything."""

    service: str  # "registry" | "metadata" | "node" | "host" | "client"
    cluster: str  # 16 hex digits
    name: str  # host name or client name
    instance: str  # random per process start, or persistent (raft)
    extra: dict[str, Any] = field(default_factory=dict)  # e.g. {"device": ..., "token": ...}
