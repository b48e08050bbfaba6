"""A metadata group without Raft: commands are applied one after the other, and every state is checked."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.metadata.invariants import validate
from moorage.metadata.state import StateMachine
from moorage.service.kv import KV
from moorage.wire.errors import MoorageError

MIB = 1 << 20


class AppliedGroup:
    def __init__(self, group: str = "m1") -> None:
        self.kv = KV()
        self.machine = StateMachine(group)
        self.index = 0

    def apply(self, do: str, **fields: Any) -> Any:
        self.index += 1
        try:
            result = self.machine.apply(self.kv, {"do": do, **fields}, self.index)
        except MoorageError:
            self.kv.rollback()
            raise
        finally:
            self.kv.commit()
            validate(self.kv)
        return result

    def create(
        self, name: str = "db", *, size: int = 64 * MIB, groups: int = 1, request: str = "", **more: Any
    ) -> dict[str, Any]:
        """A volume in state creating, on devices d1..d3 of hosts h1..h3."""
        placement = [[{"device": f"d{n}", "host": f"h{n}"} for n in (1, 2, 3)] for _ in range(groups)]
        fields = {
            "request": request or f"create-{name}-{self.index}",
            "name": name,
            "size": size,
            "replicas": 3,
            "durability": "sync",
            "placement": placement,
            "created_ms": 1000,
        }
        volume: dict[str, Any] = self.apply("create", **{**fields, **more})
        return volume

    def ready(self, name: str = "db", **more: Any) -> dict[str, Any]:
        volume: dict[str, Any] = self.apply("ready", volume=self.create(name, **more)["id"])
        return volume

    def attach(
        self, volume: dict[str, Any], writer: int, epoch: int | None = None, **more: Any
    ) -> dict[str, Any]:
        attached: dict[str, Any] = self.apply(
            "attach",
            volume=volume["id"],
            epoch=volume["epoch"] if epoch is None else epoch,
            writer=writer,
            holder={"host": "h1", "pid": writer, "program": "fio"},
            now_ms=2000 + writer,
            **{"recovers": False, "succeeds": [], **more},
        )
        return attached

    def dump(self) -> list[tuple[str, Any]]:
        return list(self.kv.scan(""))


@pytest.fixture
def metadata_group() -> AppliedGroup:
    return AppliedGroup()
