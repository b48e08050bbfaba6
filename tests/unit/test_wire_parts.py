"""Addresses, the secret file, capabilities, the bound on log lines, and address lists."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest

from moorage.wire import address, capability, discovery, loglimit
from moorage.wire.capability import Capability
from moorage.wire.errors import Denied, Invalid, ProtocolError
from moorage.wire.frame import pack
from moorage.wire.rpc import parse_call
from moorage.wire.secret import ClusterSecret

SECRET = ClusterSecret("ab" * 8, b"k" * 32)


@pytest.mark.parametrize("text", ["host1:80", "127.0.0.1:0", "[::1]:65535", "unix:/run/m.sock", "unix:rel"])
def test_addresses_survive_parse_and_print(text: str) -> None:
    assert str(address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "host:x",
        "host:65536",
        "host:-1",
        "::1:80",
        "unix:",
        "unix:a\x00b",
        "h:²",
        "h\udcff:1",
        "unix:/\udcdc",
        "[]:1",
        "unix:/" + "x" * 107,
    ],
)
def test_bad_addresses_are_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(Invalid, match=r"HOST:PORT|longer than 107"):
        address.parse(text)


async def test_a_list_of_addresses_loses_its_duplicates() -> None:
    assert await discovery.resolve("a:1, b:2,a:1,") == ["a:1", "b:2"]
    with pytest.raises(Invalid):
        await discovery.resolve(" , ")
    with pytest.raises(Invalid):
        await discovery.resolve("a:1,b")


# -- secret --------------------------------------------------------------------------------------------


def test_a_secret_is_created_private_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = ClusterSecret.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = ClusterSecret.load(path)
    assert loaded.cluster == made.cluster
    assert loaded.mac("x", b"y") == made.mac("x", b"y")
    with pytest.raises(Invalid, match="File exists"):
        ClusterSecret.create(path)


def test_the_key_is_never_shown() -> None:
    secret = ClusterSecret("ab" * 8, bytes(range(32)))
    for text in (repr(secret), str(secret), f"{secret}"):
        assert bytes(range(32)).hex() not in text and "\\x00" not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_secret_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    ClusterSecret.create(path)
    os.chmod(path, mode)
    with pytest.raises(Invalid, match="run chmod 600"):
        ClusterSecret.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "ab:cd",
        "ab" * 8 + ":" + "0" * 63,
        "AB" * 8 + ":" + "0" * 64,
        "ab" * 8 + ":" + "0" * 64 + "\n\n",
    ],
)
def test_a_malformed_secret_file_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Invalid, match="not one line") as caught:
        ClusterSecret.load(path)
    assert "0" * 60 not in str(caught.value)


def test_a_missing_or_strange_secret_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="No such file"):
        ClusterSecret.load(tmp_path / "none")
    (tmp_path / "dir").mkdir(mode=0o700)
    with pytest.raises(Invalid):
        ClusterSecret.load(tmp_path / "dir")


# -- capability ----------------------------------------------------------------------------------------

GRANT = Capability(volume=7, epoch=3, writer=1 << 62, replicas=[1, 2, 3], rights="rw", expires_ms=1000)


def test_a_capability_is_taken_until_it_expires() -> None:
    signed = capability.sign(SECRET, GRANT)
    assert capability.verify(SECRET, signed, 1000) == GRANT
    with pytest.raises(Denied, match=r"expired 0\.5 s ago"):
        capability.verify(SECRET, signed, 1500)


def test_a_capability_changed_anywhere_is_refused() -> None:
    signed = capability.sign(SECRET, GRANT)
    for at in range(len(signed)):
        broken = bytearray(signed)
        broken[at] ^= 1
        with pytest.raises(Denied, match="not signed"):
            capability.verify(SECRET, bytes(broken), 0)
    for cut in (signed[:31], b"", signed + b"x", bytes(5000)):
        with pytest.raises(Denied):
            capability.verify(SECRET, cut, 0)
    with pytest.raises(Denied):
        capability.verify(ClusterSecret("ab" * 8, b"x" * 32), signed, 0)


# -- log lines -----------------------------------------------------------------------------------------


def test_repeated_lines_are_held_back_and_counted() -> None:
    limiter = loglimit.LogLimiter()
    shown = [limiter.allow("k", 0.0) for _ in range(loglimit.BURST + 7)]
    assert shown == [0] * loglimit.BURST + [None] * 7
    assert limiter.allow("other", 0.0) == 0
    assert limiter.allow("k", loglimit.INTERVAL_S) == 7
    for count in range(10_000):
        limiter.allow(f"key {count}", 0.0)
    assert len(limiter._keys) <= loglimit.KEYS_MAX


@pytest.mark.parametrize(
    "value", [None, [], ["m"], ["m", []], [1, {}], ["m", {1: 2}], ["m", {b"a": 1, "b": 2}]]
)
def test_a_call_has_a_method_and_named_parameters(value: object) -> None:
    assert parse_call(pack(["m", {"a": {1: 2}}])) == ("m", {"a": {1: 2}})
    with pytest.raises(ProtocolError, match="malformed CALL"):
        parse_call(pack(value))
