"""Handshake core: only two holders of one secret, in one cluster and version, come to know each other."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.wire import frame, handshake
from moorage.wire.errors import AuthenticationFailed, Invalid, MoorageError, ProtocolError, VersionMismatch
from moorage.wire.handshake import ClientHandshake, Hello, ServerHandshake
from moorage.wire.secret import ClusterSecret

SECRET = ClusterSecret("ab" * 8, b"k" * 32)
CLIENT = Hello("client", SECRET.cluster, "job-1", "i1", {"pid": 7})
SERVER = Hello("node", SECRET.cluster, "host1", "i2", {"device": "d1", "token": "t"})


def client(secret: ClusterSecret = SECRET, nonce: bytes = b"c" * 32) -> ClientHandshake:
    return ClientHandshake(Hello("client", secret.cluster, "job-1", "i1", {"pid": 7}), secret, nonce)


def server(secret: ClusterSecret = SECRET, nonce: bytes = b"s" * 32) -> ServerHandshake:
    return ServerHandshake(Hello("node", secret.cluster, "host1", "i2", SERVER.extra), secret, nonce)


def finish(one: ClientHandshake, two: ServerHandshake) -> None:
    challenge = two.receive(one.start())
    assert two.peer is None
    proof = one.receive(challenge)
    assert one.peer is None and proof is not None
    assert one.receive(two.receive(proof)) is None


def test_both_ends_know_each_other_afterwards() -> None:
    one, two = client(), server()
    finish(one, two)
    assert one.peer == SERVER
    assert two.peer == CLIENT


def test_a_wrong_secret_is_refused_by_the_server() -> None:
    two = server()
    with pytest.raises(AuthenticationFailed, match="does not hold the secret"):
        finish(client(ClusterSecret(SECRET.cluster, b"x" * 32)), two)
    assert two.peer is None


def test_a_server_without_the_secret_is_refused_by_the_client() -> None:
    one, two = client(), server()
    proof = one.receive(two.receive(one.start()))
    assert proof is not None
    for false in (b"\0" * 32, frame.unpack(proof)[0]):  # also the client's own proof, reflected
        with pytest.raises(AuthenticationFailed):
            one.receive(frame.pack([false]))
    assert one.peer is None


def test_another_cluster_is_named() -> None:
    other = ClusterSecret("cd" * 8, b"k" * 32)
    with pytest.raises(AuthenticationFailed, match="of cluster cdcdcdcdcdcdcdcd, this side of abab"):
        finish(client(other), server())


def test_a_replayed_conversation_is_refused() -> None:
    one, two = client(), server()
    start = one.start()
    proof = one.receive(two.receive(start))
    assert proof is not None
    fresh = server(nonce=b"t" * 32)
    fresh.receive(start)
    with pytest.raises(AuthenticationFailed):
        fresh.receive(proof)


def test_what_a_middleman_changes_is_noticed() -> None:
    one, two = client(), server()
    hello = frame.unpack(one.start())
    hello[3][2] = "job-2"  # another name on its way to the server
    proof = one.receive(two.receive(frame.pack(hello)))
    assert proof is not None
    with pytest.raises(AuthenticationFailed):
        two.receive(proof)


@pytest.mark.parametrize(("low", "high"), [(2, 3), (0, 0), (99, 200)])
def test_no_common_version_is_said_whatever_else_the_hello_holds(low: int, high: int) -> None:
    with pytest.raises(VersionMismatch, match=f"peer speaks {low} to {high}, this side 1 to 1"):
        server().receive(frame.pack([low, high, {"layout": "of the future"}]))


def test_a_newer_client_that_also_speaks_our_version_is_served() -> None:
    body = frame.unpack(client().start())
    body[1] = 7
    assert frame.unpack(server().receive(frame.pack(body)))[0] == 1


def test_a_version_that_was_not_offered_is_refused() -> None:
    one = client()
    one.start()
    with pytest.raises(VersionMismatch):
        one.receive(frame.pack([2, b"s" * 32, SERVER.fields()]))


def test_a_hello_that_is_too_large_is_our_mistake() -> None:
    big = Hello("client", SECRET.cluster, "x" * handshake.MESSAGE_SIZE_MAX, "i")
    with pytest.raises(Invalid, match="larger than 4096"):
        ClientHandshake(big, SECRET, b"c" * 32).start()


values = st.recursive(
    st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=40) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60) | values.map(frame.pack), min_size=1, max_size=3))
def test_nothing_but_proof_opens_it(bodies: list[bytes]) -> None:
    one, two = client(), server()
    one.start()
    for body in bodies:
        with contextlib.suppress(MoorageError):
            one.receive(body)
        with contextlib.suppress(MoorageError):
            two.receive(body)
    assert one.peer is None and two.peer is None


def test_a_malformed_message_is_a_protocol_error() -> None:
    for body in (b"", b"\xc1", frame.pack([1]), frame.pack([1, 1, b"short", []]), frame.pack("x")):
        with pytest.raises(ProtocolError):
            server().receive(body)
