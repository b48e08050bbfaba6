"""Every command of the replicated states, and every kind of key, is in a set of golden files: a new one goes
into the next set (docs/formats.md), or this fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from moorage.metadata import records
from moorage.metadata.objects import layout
from moorage.metadata.state import StateMachine
from moorage.registry import events, keys, mount_table, quota
from moorage.registry import state as registry
from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV

from . import support

METADATA, REGISTRY = StateMachine("m1"), RegistryMachine()
DOCUMENTED = {  # the tables of keys, in the docstrings of their owners
    "metadata": (records, layout),
    "registry": (registry, quota, events, keys, mount_table),
}
HOW = "add it to the commands of a new set: tests/golden/make.py, docs/formats.md"


def proposed(name: str) -> dict[Path, list[dict[str, Any]]]:
    """By set, in their order."""
    return {
        golden: [*getattr(said, f"{name.upper()}_COMMANDS"), *getattr(said, f"{name.upper()}_LATER")]
        for golden, said in support.STATES.items()
    }


@pytest.mark.parametrize(
    ("name", "field", "known"),
    [("metadata", "do", METADATA._commands), ("registry", "op", REGISTRY._rows)],
)
def test_every_command(name: str, field: str, known: dict[str, Any]) -> None:
    golden = {command[field] for commands in proposed(name).values() for command in commands}
    assert golden == set(known), HOW


def kind_of(key: str) -> str:
    """The fixed part of a key: all of it where nothing varies."""
    return key.partition("/")[0]


def documented(name: str) -> set[str]:
    rows = re.findall(r"``([a-z_-]+)(?:/[^`]*)?``", "".join(_key_tables(name)))
    return set(rows)


def _key_tables(name: str) -> list[str]:
    """The first columns of the tables in these docstrings."""
    found = []
    for module in DOCUMENTED[name]:
        lines = (module.__doc__ or "").splitlines()
        edges = [number for number, line in enumerate(lines) if re.fullmatch(r"=+ =+", line)]
        if edges:
            width = lines[edges[0]].index(" ")
            found += [line[:width] for line in lines[edges[1] + 1 : edges[2]]]
    return found


@pytest.mark.parametrize("name", ["metadata", "registry"])
def test_every_kind_of_key(name: str) -> None:
    states = [json.loads((golden / f"{name}.json").read_text()) for golden in support.STATES]
    assert {kind_of(key) for state in states for key in state} == documented(name), HOW


@pytest.mark.parametrize(("name", "machine"), [("metadata", METADATA), ("registry", REGISTRY)])
def test_the_commands_write_keys_that_are_documented(name: str, machine: Any) -> None:
    for golden, commands in proposed(name).items():
        kv, kinds = _Noting(), documented(name)
        for index, command in enumerate(commands, 1):
            machine.apply(kv, command, index)
            kv.commit()
        assert kv.kinds <= kinds, golden


class _Noting(KV):
    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[str] = set()

    def put(self, key: str, value: Any) -> None:
        self.kinds.add(kind_of(key))
        super().put(key, value)
