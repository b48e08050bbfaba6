"""Handshake: who is there, in which cluster, in which version, and proof that both hold the secret.

A core without sockets: bodies of HELLO frames in, bodies out; the nonces are arguments. Four messages:

========= ====== =====================================================================
message   from   body (msgpack)
========= ====== =====================================================================
HELLO     client [version_min, version_max, nonce (32 bytes), hello]
CHALLENGE server [version, nonce (32 bytes), hello]
PROOF     client [HMAC-SHA256 of the transcript, label "moorage client proof"]
READY     server [HMAC-SHA256 of the transcript, label "moorage server proof"]
========= ====== =====================================================================

hello is [service, cluster, name, instance, extra]. The transcript is the bodies of HELLO and CHALLENGE with
their lengths: both nonces, both hellos and the versions offered are in it, so nothing can be replayed,
reflected (the labels differ) or downgraded. Never: accept a peer before its proof, or show the key.
The first two fields of HELLO keep their place in every later version.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Any, Final

from moorage.wire import frame
from moorage.wire.errors import AuthenticationFailed, Invalid, ProtocolError, VersionMismatch
from moorage.wire.secret import ClusterSecret

VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
NONCE_SIZE: Final = 32
MESSAGE_SIZE_MAX: Final = 4096  # all that a peer may send at once before it is known
_CLIENT = "moorage client proof"
_SERVER = "moorage server proof"


@dataclass(frozen=True)
class Hello:
    """How one end introduces itself. Nothing secret belongs in here: it is sent before the peer has proved
    anything."""

    service: str  # "registry" | "metadata" | "node" | "host" | "client"
    cluster: str  # 16 hex digits
    name: str  # host name or client name
    instance: str  # random per process start, or persistent (raft)
    extra: dict[str, Any] = field(default_factory=dict)  # e.g. {"device": ..., "token": ...}

    def __str__(self) -> str:
        return f"{self.service} {self.name}"

    def fields(self) -> list[Any]:
        return [self.service, self.cluster, self.name, self.instance, self.extra]


class ClientHandshake:
    """The connecting end: send :meth:`start`, feed what comes to :meth:`receive` until ``peer`` is set."""

    def __init__(self, hello: Hello, secret: ClusterSecret, nonce: bytes) -> None:
        self.peer: Hello | None = None
        self._hello = hello
        self._secret = secret
        self._nonce = nonce
        self._start = b""
        self._transcript = b""
        self._server: Hello | None = None

    def start(self) -> bytes:
        self._start = _sized(frame.pack([VERSION_MIN, VERSION_MAX, self._nonce, self._hello.fields()]))
        return self._start

    def receive(self, body: bytes) -> bytes | None:
        """The answer to CHALLENGE, or None after READY. Raises ProtocolError, AuthenticationFailed, ..."""
        if self._server is None:
            return self._challenged(body)
        _check_proof(body, self._secret.mac(_SERVER, self._transcript), f"{self._server}", self._secret)
        self.peer = self._server
        return None

    def _challenged(self, body: bytes) -> bytes:
        match frame.unpack(body):
            case [int(version), bytes(nonce), list(fields)] if len(nonce) == NONCE_SIZE:
                pass
            case _:
                raise ProtocolError("malformed CHALLENGE")
        if not VERSION_MIN <= version <= VERSION_MAX:
            raise _no_version(version, version)
        server = _read_hello(fields)
        _check_cluster(server, self._secret)
        self._server = server
        self._transcript = _transcript(self._start, body)
        return frame.pack([self._secret.mac(_CLIENT, self._transcript)])


class ServerHandshake:
    """The accepting end: feed :meth:`receive`, send what it returns; ``peer`` is set after the proof."""

    def __init__(self, hello: Hello, secret: ClusterSecret, nonce: bytes) -> None:
        self.peer: Hello | None = None
        self._hello = hello
        self._secret = secret
        self._nonce = nonce
        self._transcript = b""
        self._client: Hello | None = None

    def receive(self, body: bytes) -> bytes:
        """The answer to HELLO or PROOF. Raises ProtocolError, VersionMismatch, AuthenticationFailed."""
        if self._client is None:
            return self._greeted(body)
        _check_proof(body, self._secret.mac(_CLIENT, self._transcript), f"{self._client}", self._secret)
        self.peer = self._client
        return frame.pack([self._secret.mac(_SERVER, self._transcript)])

    def _greeted(self, body: bytes) -> bytes:
        match frame.unpack(body):
            case [int(low), int(high), *rest]:
                pass
            case _:
                raise ProtocolError("malformed HELLO")
        version = min(high, VERSION_MAX)
        if version < max(low, VERSION_MIN):
            raise _no_version(low, high)
        match rest:
            case [bytes(nonce), list(fields)] if len(nonce) == NONCE_SIZE:
                client = _read_hello(fields)
            case _:
                raise ProtocolError("malformed HELLO")
        _check_cluster(client, self._secret)
        self._client = client
        challenge = _sized(frame.pack([version, self._nonce, self._hello.fields()]))
        self._transcript = _transcript(body, challenge)
        return challenge


def _transcript(start: bytes, challenge: bytes) -> bytes:
    return b"%d:%b%d:%b" % (len(start), start, len(challenge), challenge)


def _sized(body: bytes) -> bytes:
    if len(body) > MESSAGE_SIZE_MAX:
        raise Invalid(f"hello of {len(body)} bytes is larger than {MESSAGE_SIZE_MAX}: put less in extra")
    return body


def _read_hello(fields: list[Any]) -> Hello:
    match fields:
        case [str(service), str(cluster), str(name), str(instance), dict(extra)]:
            return Hello(service, cluster, name, instance, extra)
    raise ProtocolError("malformed hello")


def _no_version(low: int, high: int) -> VersionMismatch:
    return VersionMismatch(
        f"no common protocol version: peer speaks {low} to {high}, this side {VERSION_MIN} to {VERSION_MAX}"
    )


def _check_cluster(peer: Hello, secret: ClusterSecret) -> None:
    if peer.cluster != secret.cluster:
        raise AuthenticationFailed(
            f"{peer} is of cluster {peer.cluster[:16]}, this side of {secret.cluster}: "
            "check the address and the secret file"
        )


def _check_proof(body: bytes, expected: bytes, peer: str, secret: ClusterSecret) -> None:
    match frame.unpack(body):
        case [bytes(proof)]:
            if not hmac.compare_digest(proof, expected):
                raise AuthenticationFailed(
                    f"{peer} does not hold the secret of cluster {secret.cluster}: check the secret file"
                )
        case _:
            raise ProtocolError("malformed proof")
