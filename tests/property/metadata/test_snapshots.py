"""Random commands about snapshots, sets, clones and rollbacks: what came to be stays what it was, what was
given up never comes to be, and each command sent again changes nothing."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from moorage.metadata import records
from moorage.metadata.invariants import validate
from moorage.metadata.state import StateMachine
from moorage.service.kv import KV
from moorage.wire.errors import Busy, MoorageError

MIB = 1 << 20
STEPS = 400
SEEDS = range(12)
ORDER = ("creating", "ready", "deleting", "gone")
AGAIN = {
    "create_snapshots",
    "snapshots_put",
    "snapshots_done",
    "abandon_snapshots",
    "delete_snapshot",
    "rolled_back",
}


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kv = KV()
        self.machine = StateMachine("m1")
        self.index = 0
        self.done: dict[str, int] = {}
        for number in range(4):
            self._create(f"v{number}", None)

    def apply(self, do: str, **fields: Any) -> Any:
        """As the member does: what raises leaves nothing."""
        self.index += 1
        try:
            result = self.machine.apply(self.kv, {"do": do, **copy.deepcopy(fields)}, self.index)
        except MoorageError as error:
            self.kv.rollback()
            return error
        self.kv.commit()
        self.done[do] = self.done.get(do, 0) + 1
        return result

    def _create(self, name: str, parent: Any) -> None:
        placement = [
            [{"device": f"d{n}", "host": f"h{n}"} for n in (1, 2, 3)] for _ in range(self.rng.randint(1, 2))
        ]
        fields = {
            "request": f"c{self.index}",
            "name": name,
            "size": 8 * MIB,
            "replicas": 3,
            "durability": "sync",
        }
        more = {"do": "create"} if parent is None else {"do": "create_clone", "parent": parent}
        made = self.apply(**more, **fields, placement=placement, created_ms=0)
        if not isinstance(made, MoorageError) and self.rng.random() < 0.9:
            self.apply("ready", volume=made["id"])

    def step(self) -> tuple[str, dict[str, Any]]:
        """Often sensible, sometimes late or wrong."""
        rng = self.rng
        volumes = list(records.volumes(self.kv))
        volume = rng.choice(volumes)
        entries = records.snapshots(volume)
        ids = [entry["id"] for entry in entries if rng.random() < 0.7] + ([99] if rng.random() < 0.1 else [])
        holder = volume["holder"] or {"writer": 1}
        who = {"volume": volume["id"], "epoch": volume["epoch"], "writer": holder["writer"], "now_ms": 0}
        if rng.random() < 0.05:
            who["epoch"] += 1
        groups = len(volume["groups"]) if rng.random() < 0.95 else 9
        name = rng.choice(entries)["name"] if entries and rng.random() < 0.8 else f"s{rng.randint(1, 5)}"
        clones = [each for each in volumes if each.get("parent")]
        doomed = volume if rng.random() < 0.02 else rng.choice(clones or [{"id": 99, "name": "x"}])
        some = rng.sample(volumes, min(len(volumes), rng.choice([1, 1, 2, 3])))
        request = f"r{self.index}" if rng.random() < 0.9 else f"r{rng.randint(1, 60)}"
        attach = {
            "volume": volume["id"],
            "epoch": volume["epoch"],
            "writer": rng.randint(1, 1 << 40),
            "now_ms": 0,
        }
        attach |= {"holder": {"host": "h", "pid": 1, "program": "p"}, "recovers": rng.random() < 0.3}
        return rng.choice(
            [
                ("create_snapshots", {"request": request, "created_ms": 0}
                 | {"wanted": [{"volume": each["id"], "name": f"s{rng.randint(1, 5)}"} for each in some]}),
                ("snapshots_put", who | {"ids": ids}),
                ("snapshots_done", who | {"created": [[each, [5] * groups] for each in ids], "deleted": ids}),
                ("snapshots_done", who | {"created": [[each, [6] * groups] for each in ids], "deleted": []}),
                ("abandon_snapshots", {"volume": volume["id"], "ids": ids[:1]}
                 | {"error": records.error_record(Busy("slow"))}),
                ("delete_snapshot", {"volume": volume["id"], "snapshot": name, "request": request}),
                ("rolled_back", who),
                ("attach", attach),
                ("attach_to_roll_back", attach | {"recovers": False, "rolls_back": name}),
                ("detach", who),
                ("clone", {"volume": volume["id"], "snapshot": rng.choice(ids or [99])}),
                ("delete", who | {"request": "", "name": doomed["name"], "volume": doomed["id"]}),
                ("abandon", {"volume": volume["id"], "error": {}, "now_ms": 0}),
            ]
        )  # fmt: skip

    def snapshots(self) -> dict[int, dict[str, Any]]:
        return {
            entry["id"]: entry for volume in records.volumes(self.kv) for entry in records.snapshots(volume)
        }


@pytest.mark.parametrize("seed", SEEDS)
def test_what_came_to_be_stays_and_what_was_given_up_does_not_come(seed: int) -> None:
    world = World(seed)
    before = world.snapshots()
    for _ in range(STEPS):
        do, fields = world.step()
        if do == "clone":
            world._create(f"c{world.index}", fields)
        else:
            result = world.apply(do, **fields)
            if do in AGAIN and not isinstance(result, MoorageError):
                state = list(world.kv.scan(""))
                world.apply(do, **fields)
                assert list(world.kv.scan("")) == state, do
        validate(world.kv)
        after = world.snapshots()
        for number, old in before.items():
            new = after.get(number, {**old, "state": "gone"})
            assert ORDER.index(old["state"]) <= ORDER.index(new["state"])
            assert (old["state"], new["state"]) not in {("creating", "gone"), ("ready", "gone")}
            if old["state"] == "ready":
                assert new["lsns"] == old["lsns"]
        before = after
    assert len(world.done) >= 10, world.done
