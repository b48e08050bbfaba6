"""Capabilities: what metadata signs and a node checks, without asking metadata (docs/wire.md).

A capability is shown at SEAL. Its expiry bounds the first use only: a member that promised the epoch goes
on serving it, and revoking means raising the epoch.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Literal

from moorage.wire import frame
from moorage.wire.errors import Denied, ProtocolError
from moorage.wire.secret import ClusterSecret

Rights = Literal["rw", "ro"]
_LABEL = "moorage capability 1"
_MAC_SIZE = 32
_SIZE_MAX = 4096


@dataclass(frozen=True)
class Capability:
    volume: int
    epoch: int
    writer: int
    replicas: list[int]
    rights: Rights
    expires_ms: int  # wall clock, ms since 1970


def sign(secret: ClusterSecret, capability: Capability) -> bytes:
    """The capability as bytes that :func:`verify` takes: its MAC, then its fields in msgpack."""
    body = frame.pack(
        [
            capability.volume,
            capability.epoch,
            capability.writer,
            capability.replicas,
            capability.rights,
            capability.expires_ms,
        ]
    )
    return secret.mac(_LABEL, body) + body


def verify(secret: ClusterSecret, signed: bytes, now_ms: int) -> Capability:
    """Check signature and expiry; raises :class:`Denied`. Whether it fits the replica is the caller's."""
    mac, body = signed[:_MAC_SIZE], signed[_MAC_SIZE:]
    if len(signed) > _SIZE_MAX or not hmac.compare_digest(mac, secret.mac(_LABEL, body)):
        raise Denied("capability is not signed by this cluster: attach the volume again")
    capability = _read(body)
    if now_ms > capability.expires_ms:
        late_s = (now_ms - capability.expires_ms) / 1000
        raise Denied(f"capability expired {late_s:.1f} s ago: attach the volume again (or check the clocks)")
    return capability


def _read(body: bytes) -> Capability:
    match frame.unpack(body):
        case [int(volume), int(epoch), int(writer), list(replicas), "rw" | "ro" as rights, int(expires_ms)]:
            return Capability(volume, epoch, writer, replicas, rights, expires_ms)
    raise ProtocolError("capability of an unknown layout: it was signed by another version")
