"""The desired state: what is filled in, and that every mistake is named with its place."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.framework.spec import Needs, parse
from moorage.wire.errors import Invalid

LEAST: dict[str, Any] = {"secret_file": "/etc/moorage/secret", "devices": [{}]}


def test_what_is_not_said_has_a_default() -> None:
    spec = parse(LEAST)
    assert (spec.name, spec.role, spec.principal, spec.command) == (
        "moorage",
        "moorage",
        "moorage",
        ("moorage",),
    )
    assert (spec.registry.members, spec.metadata.members, spec.groups) == (3, 3, ("m1",))
    (devices,) = spec.devices
    assert (devices.source, devices.size, devices.needs) == ("MOUNT", 1024, Needs(0.5, 512))


def test_the_role_is_the_name_unless_it_is_said() -> None:
    assert parse({**LEAST, "name": "prod"}).role == "prod"
    assert parse({**LEAST, "name": "prod", "role": "storage/prod"}).role == "storage/prod"


def test_sizes_are_bytes_or_have_a_unit() -> None:
    spec = parse({**LEAST, "devices": [{"source": "ROOT", "size": "200G", "mem": 1 << 30}]})
    assert (spec.devices[0].size, spec.devices[0].needs.mem) == (200 * 1024, 1024)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"secret_file": None}, "secret_file is missing"),
        ({"devices": None}, "devices is missing"),
        ({"devices": []}, "devices: use a list of at least one"),
        ({"devices": [{"source": "RAW"}]}, r"devices\[0\].source: 'RAW': use one of ROOT, PATH, MOUNT"),
        ({"devices": [{"source": "PATH"}]}, r"devices\[0\].size is missing"),
        ({"devices": [{"size": "much"}]}, r"devices\[0\].size: 'much': use a number of bytes"),
        ({"devices": [{"mem": 64}]}, r"devices\[0\].mem: 64: use a size of at least 1M"),
        ({"devices": [{"cpus": True}]}, r"devices\[0\].cpus: True: use a number above 0"),
        ({"devices": [{"cpu": 1}]}, r"unknown: devices\[0\].cpu"),
        ({"devices": [{"agents": ["ssd"]}]}, r"devices\[0\].agents: use NAME: TEXT"),
        ({"registry": {"members": 2}}, "registry.members: 2 is no size of a Raft group: use 1, 3 or 5"),
        ({"registry": {"members": "3"}}, "registry.members: '3': use a whole number"),
        ({"metadata": {"groups": 0}}, "metadata.groups: 0: use a whole number from 1 to 64"),
        ({"metadata": 3}, "metadata: use fields and their values"),
        ({"name": "Prod"}, "name: 'Prod': use 1 to 63 of a-z"),
        ({"command": []}, "command: use a program, or a list of it and its arguments"),
        ({"devises": 1}, "unknown: devises"),
        ({"options": {"repair_after": 60}}, "options: there is no option repair_after of a service"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        parse({**LEAST, **change})


@pytest.mark.parametrize("document", [None, 3, "text", [], [LEAST]])
def test_a_document_is_fields_and_values(document: object) -> None:
    with pytest.raises(Invalid, match="the document: use fields and their values"):
        parse(document)
