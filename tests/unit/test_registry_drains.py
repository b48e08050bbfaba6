"""The registry's command ``set_drain``: what operators want to be emptied."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.registry import drains
from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV
from moorage.wire.errors import Invalid, NotFound


@pytest.fixture
def kv() -> KV:
    made = KV()
    made.put("host/h1", {})
    made.put("device/d1", {"host": "h1"})
    made.put("device/d2", {"host": "h2"})
    return made


def drain(kv: KV, kind: str, name: str, **more: Any) -> None:
    command = {"op": "set_drain", "kind": kind, "name": name, "drain": True, "to": "", "at_ms": 5, "by": "me"}
    RegistryMachine().apply(kv, {**command, **more}, 1)


def test_a_host_is_drained_with_its_devices(kv: KV) -> None:
    drain(kv, "host", "h1")
    assert drains.of_host(kv, "h1") == {"to": "", "at_ms": 5, "by": "me"}
    assert drains.of_device(kv, "d1", "h1") == {"to": "", "at_ms": 5, "by": "me"}
    assert drains.of_device(kv, "d2", "h2") is None
    drain(kv, "host", "h1", drain=False)
    drain(kv, "host", "h1", drain=False)
    assert drains.of_device(kv, "d1", "h1") is None


def test_a_device_has_a_wish_of_its_own(kv: KV) -> None:
    drain(kv, "device", "d1", to="d2")
    drain(kv, "host", "h1")
    assert (drains.of_device(kv, "d1", "h1") or {})["to"] == "d2"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"kind": "rack"}, Invalid, "use one of host, device"),
        ({"name": "h9"}, NotFound, "`moorage host list`"),
        ({"kind": "device", "name": "d1", "to": "d9"}, NotFound, "there is no device 'd9'"),
        ({"kind": "device", "name": "d1", "to": "d1"}, Invalid, "cannot take over"),
        ({"drain": "yes"}, Invalid, "true or false"),
        ({"by": "x" * 300}, Invalid, "at most 256"),
    ],
)
def test_what_is_refused(kv: KV, change: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        drain(kv, **{"kind": "host", "name": "h1", **change})
    assert not list(kv.scan("drain/"))
