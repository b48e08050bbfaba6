"""What masters say, and what is made of it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from moorage.framework import messages
from moorage.framework.master import Credentials, base_of, leader_named
from moorage.framework.messages import FailedOver, FrameworkRemoved
from moorage.framework.subscription import Backoff
from moorage.wire import errors

BASE = "http://m1:5050"


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("m1:5050", BASE),
        ("http://m1:5050", BASE),
        ("http://M1:5050/", BASE),
        ("https://m1", "https://m1:443"),
        ("http://m1", "http://m1:80"),
        ("[::1]:5050", "http://[::1]:5050"),
        ("https://[::1]:5051", "https://[::1]:5051"),
    ],
)
def test_addresses(given: str, base: str) -> None:
    assert base_of(given) == base


@pytest.mark.parametrize(
    "given",
    [
        *(
            "",
            "m1",
            ":5050",
            "m1:x",
            "m1:70000",
            "m1:5050,m2:5050",
            "m1:5050/api",
            "http://m1:5050/?a",
            "[::1",
        ),
        *("ftp://m1:5050", "unix:/run/mesos", "http://"),
    ],
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(errors.Invalid, match="give HOST:PORT"):
        base_of(given)


def test_addresses_that_many_would_try() -> None:
    with pytest.raises(errors.Invalid, match="ZooKeeper is not asked"):
        base_of("zk://z1:2181,z2:2181/mesos")
    with pytest.raises(errors.Invalid) as caught:
        base_of("http://me:word@m1:5050")
    assert "word" not in str(caught.value) and "m1" in str(caught.value)


@pytest.mark.parametrize(
    ("base", "location", "leader"),
    [
        (BASE, "//m2:5050/api/v1/scheduler", "http://m2:5050"),
        (BASE, "//m2:5050", "http://m2:5050"),
        ("https://m1:5050", "//m2:5050/api/v1", "https://m2:5050"),
        (BASE, "http://10.0.0.2:5050/master/redirect?x", "http://10.0.0.2:5050"),
        (BASE, "https://m2/api/v1", "https://m2:443"),
        (BASE, "//[::1]:5050/", "http://[::1]:5050"),
        (BASE, "/elsewhere", BASE),
    ],
)
def test_the_leader_that_is_named(base: str, location: str, leader: str) -> None:
    assert leader_named(base, location) == leader


@pytest.mark.parametrize(
    ("base", "location"),
    [
        (BASE, ""),
        (BASE, "//m2:x/"),
        (BASE, "ftp://m2:5050/"),
        (BASE, "mailto:m2"),
        ("https://m1:1", "http://m2:1"),
    ],
)
def test_a_leader_that_cannot_be_followed(base: str, location: str) -> None:
    with pytest.raises(errors.Unavailable, match=base):
        leader_named(base, location)


def test_credentials() -> None:
    credentials = Credentials("me", "open sesame")
    assert credentials.header == "Basic bWU6b3BlbiBzZXNhbWU="
    assert "sesame" not in repr(credentials)
    for principal in ("", "a:b"):
        with pytest.raises(errors.Invalid, match="principal"):
            Credentials(principal, "x")


# -- events ---------------------------------------------------------------------------------------------


def subscribed(**more: Any) -> messages.Json:
    return {"type": "SUBSCRIBED", "subscribed": {"framework_id": {"value": "f"}, **more}}


def test_subscribed() -> None:
    assert messages.subscribed(BASE, subscribed(heartbeat_interval_seconds=7.5), 15) == ("f", 7.5)
    assert messages.subscribed(BASE, subscribed(), 15) == ("f", 15)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "HEARTBEAT"},
        {"type": "SUBSCRIBED"},
        {"type": "SUBSCRIBED", "subscribed": []},
        {"type": "SUBSCRIBED", "subscribed": {"framework_id": "f"}},
        {"type": "SUBSCRIBED", "subscribed": {"framework_id": {"value": 1}}},
        {"type": "OFFERS", "subscribed": {"framework_id": {"value": "f"}}},
        *(
            subscribed(heartbeat_interval_seconds=each)
            for each in (-1, math.inf, math.nan, "x", [1], 10**400)
        ),
    ],
)
def test_what_is_no_subscribed(event: messages.Json) -> None:
    with pytest.raises(errors.ProtocolError, match=BASE):
        messages.subscribed(BASE, event, 15)


def error(text: Any) -> messages.Json:
    return {"type": "ERROR", "error": {"message": text}}


def test_errors_are_told_apart() -> None:
    kinds = {
        "Framework failed over": FailedOver,
        "Framework has been removed": FrameworkRemoved,
        "Framework disconnected": errors.Unavailable,
        "Role 'a b' is not valid": errors.Unavailable,
    }
    assert {text: type(messages.error_of(BASE, error(text))) for text in kinds} == kinds
    assert type(messages.error_of(BASE, {"type": "ERROR"})) is errors.Unavailable
    assert not FailedOver("x").retriable and not FrameworkRemoved("x").retriable


def test_an_error_instead_of_subscribed_refuses_the_framework() -> None:
    with pytest.raises(errors.Invalid, match=r"m1:5050.*Role 'a b' is not valid"):
        messages.subscribed(BASE, error("Role 'a b' is not valid"), 15)
    with pytest.raises(FrameworkRemoved, match="subscribe as a new one"):
        messages.subscribed(BASE, error("Framework has been removed"), 15)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000, b"{}", b'{"type": 1}']
)
def test_what_is_no_event(raw: bytes) -> None:
    with pytest.raises(errors.ProtocolError, match=BASE):
        messages.parse_event(BASE, raw)


# -- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (400, errors.Invalid, "not_done"),
        (401, errors.AuthenticationFailed, "not_done"),
        (403, errors.AuthenticationFailed, "not_done"),
        (404, errors.ProtocolError, "not_done"),
        (409, errors.Busy, "not_done"),
        (500, errors.Unavailable, "unknown"),
        (503, errors.Unavailable, "not_done"),
    ],
)
def test_refusals_name_the_master_and_its_text(status: int, kind: type, outcome: str) -> None:
    found = messages.refusal(BASE, "RESERVE_RESOURCES", status, b"<b>no\nway</b>" + bytes(10_000))
    assert type(found) is kind and found.outcome == outcome
    assert f"{BASE} answers RESERVE_RESOURCES with {status} <b>no way</b>" in str(found)
    assert len(str(found)) < 700


def test_refused_calls_are_told_apart() -> None:
    stale = (
        b"The stream ID 'a' included in this request didn't match the stream ID currently associated with "
        b"framework ID f"
    )
    assert messages.is_superseded(400, stale) and not messages.is_unsubscribed(400, stale)
    gone = [
        (400, b"Framework cannot be found"),
        (403, b"Framework is not subscribed"),
        (403, b"Framework is not connected via HTTP"),
    ]
    assert all(messages.is_unsubscribed(*each) and not messages.is_superseded(*each) for each in gone)
    for status, text in [(400, b"Not a valid UUID"), (403, b"")]:
        assert not messages.is_superseded(status, text) and not messages.is_unsubscribed(status, text)


# -- pauses ---------------------------------------------------------------------------------------------


def test_pauses_double_up_to_the_most_and_start_afresh() -> None:
    backoff = Backoff(0.5, 30, random.Random(1))
    for most in (0.5, 1, 2, 4, 8, 16, 30, 30):
        assert most / 2 <= backoff.pause_s() <= most
    backoff.reset()
    assert backoff.pause_s() <= 0.5
    assert Backoff(0.5, 30, random.Random(1)).pause_s() != Backoff(0.5, 30, random.Random(2)).pause_s()
