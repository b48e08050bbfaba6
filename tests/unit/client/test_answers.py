"""What is no answer to a control call is said so, with the place where it is not."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.client import answers
from moorage.client.cluster import VolumeInfo
from moorage.client.mount_table import MountTable
from moorage.wire.errors import ProtocolError

HOLDER = {"host": "h", "pid": 1, "program": "p", "recovers": False}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], r"it is \[\], not a map"),
        (None, "it is None, not a map"),
        ({"size": "1G"}, "size is '1G', not a int"),
        ({"size": True}, "size is True, not a int"),
        ({"holder": {"host": "h"}}, "holder.pid is None, not a int"),
        ({"groups": {}}, "groups is {}, not a list"),
        ({"fs": 5}, "fs is 5, not a map"),
    ],
)
def test_what_describes_no_volume(value: Any, says: str) -> None:
    with pytest.raises(ProtocolError, match=f"describes no volume: {says}"):
        VolumeInfo.from_wire(value)


@pytest.mark.parametrize(
    ("method", "answer", "says"),
    [
        ("registry.view", {"hosts": {}, "devices": {"d": 5}, "services": [], "groups": []}, "devices.d is 5"),
        ("registry.view", {"hosts": {1: {}}, "devices": {}, "services": [], "groups": []}, "a key of hosts"),
        ("registry.locate", {}, "group is None"),
        ("metadata.list_volumes", {"volumes": [{"name": "a"}, {"name": 5}]}, r"volumes\[1\].name is 5"),
        ("metadata.attach", {"volume": {}}, "volume.id is None"),
        ("node.scrub", [1, "2"], r"\[1\] is '2'"),
    ],
)
def test_what_is_no_answer(method: str, answer: Any, says: str) -> None:
    with pytest.raises(ProtocolError, match=f"the answer to {method} is none: .*{says}") as caught:
        answers.check(method, answer)
    assert caught.value.outcome == "unknown"  # what was asked for may have been done


def test_more_than_is_read_is_an_answer() -> None:
    answers.check("registry.locate", {"group": "m1", "since": "a later version"})
    answers.check("some.other_call", 5)
    info = VolumeInfo.from_wire({"name": "db", "holder": HOLDER, "later": 1})
    assert info.name == "db" and info.iops == 0
    table = MountTable.from_wire({"version": 1, "text": "", "later": 1, "history": None})
    assert (table.version, table.history) == (1, [])
    for textless in ({}, {"text": None}):
        with pytest.raises(ProtocolError, match="version 1 of the mount table came without its text"):
            MountTable.from_wire({"version": 1, **textless})
