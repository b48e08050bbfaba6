"""The metadata state against a plain model: random commands, replay, and a state restored from a snapshot."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from moorage.metadata import records
from moorage.metadata.invariants import validate
from moorage.metadata.state import StateMachine
from moorage.service.kv import KV
from moorage.wire.errors import MoorageError

MIB = 1 << 20
HOSTS = 5
STEPS = 250
SEEDS = range(12)


class Model:
    """What a volume's name leads to, kept without any of the state's records. ``volumes`` by id."""

    def __init__(self) -> None:
        self.volumes: dict[int, dict[str, Any]] = {}

    def by_name(self, name: str) -> dict[str, Any] | None:
        return next((v for v in self.volumes.values() if v["name"] == name and not v["released"]), None)

    def applied(self, command: dict[str, Any], result: Any) -> None:
        """Only for commands that succeeded."""
        do, found = command["do"], self.volumes.get(command.get("volume", 0))
        if do == "create":
            known = self.volumes.get(result["id"])
            self.volumes[result["id"]] = known or {
                "name": command["name"],
                "size": command["size"],
                "state": "creating",
                "epoch": 0,
                "writer": None,
                "ceilings": {key: command.get(key, 0) for key in ("iops", "bw")},
                "released": False,
                "left": {m["replica"] for g in result["groups"] for m in g["members"]},
            }
        elif do == "delete" and found is None:
            assert result["released"]
        elif found is None:
            assert do in ("released", "dropped")
        else:
            self._changed(do, found, command)

    def _changed(self, do: str, volume: dict[str, Any], command: dict[str, Any]) -> None:
        if do == "ready":
            volume["state"] = "ready"
        elif do == "attach" and volume["writer"] != command["writer"]:
            volume.update(epoch=volume["epoch"] + 1, writer=command["writer"])
        elif do == "detach":
            volume["writer"] = None
        elif do == "resize":
            assert command["size"] >= volume["size"]
            volume["size"] = command["size"]
        elif do == "set_ceilings":
            given = {key: command[key] for key in ("iops", "bw") if command[key] is not None}
            volume["ceilings"] = volume["ceilings"] | given
        elif do in ("delete", "abandon") and volume["state"] != "deleting":
            volume.update(epoch=volume["epoch"] + 1, writer=None, state="deleting")
        elif do == "dropped" and volume["state"] == "deleting":
            volume["left"] -= set(command["replicas"])
        elif do == "released" and volume["state"] == "deleting":
            volume["released"] = True
        if volume["state"] == "deleting" and volume["released"] and not volume["left"]:
            del self.volumes[command["volume"]]

    def check(self, kv: KV) -> None:
        seen = {volume["id"]: volume for volume in records.volumes(kv)}
        assert seen.keys() == self.volumes.keys()
        for number, volume in self.volumes.items():
            real = seen[number]
            assert (real["name"], real["size"], real["state"]) == (
                volume["name"],
                volume["size"],
                volume["state"],
            )
            assert real["epoch"] == volume["epoch"]
            assert {key: real.get(key, 0) for key in ("iops", "bw")} == volume["ceilings"]
            assert (real["holder"] or {}).get("writer") == volume["writer"]
        names = {v["name"]: number for number, v in self.volumes.items() if not v["released"]}
        assert {key.removeprefix("name/"): value for key, value in kv.scan("name/")} == names


def random_command(rng: random.Random, model: Model) -> dict[str, Any]:
    """Often sensible, sometimes late or wrong: what clients, tasks and late messages send."""
    do = rng.choice(
        ["create"] * 3 + ["ready", "ready", "attach", "attach", "attach", "detach", "resize"]
        + ["delete", "dropped", "dropped", "released", "abandon", "set_ceilings"]
    )  # fmt: skip
    name = f"v{rng.randint(1, 6)}"
    number = rng.choice(list(model.volumes) or [0]) if rng.random() < 0.95 else 12345
    volume = model.volumes.get(number, {"epoch": 0, "name": name, "left": set(), "writer": None})
    epoch = volume["epoch"] if rng.random() < 0.8 else rng.randint(0, 5)
    request = f"r{rng.randint(1, 400)}"
    hosts = rng.sample(range(1, HOSTS + 1), 3)
    placement = [[{"device": f"d{n}", "host": f"h{n}"} for n in hosts] for _ in range(rng.randint(1, 3))]
    writer = rng.choice([volume["writer"] or 1, rng.randint(1, 30)])
    fields: dict[str, dict[str, Any]] = {
        "create": {"name": name, "request": request, "size": rng.randint(1, 40) * MIB, "replicas": 3}
        | {"durability": "sync", "placement": placement, "created_ms": 0}
        | rng.choice([{}, {"iops": 5}, {"bw": 1 << 20, "principal": "a"}]),
        "set_ceilings": {"iops": rng.choice([None, 0, 9]), "bw": rng.choice([None, 0, MIB, 1])},
        "attach": {"epoch": epoch, "writer": writer, "holder": {"host": "h", "pid": 1, "program": "p"}}
        | {"recovers": rng.random() < 0.2},
        "detach": {"epoch": epoch, "writer": writer},
        "resize": {"size": rng.randint(1, 80) * MIB},
        "delete": {"epoch": epoch, "request": rng.choice(["", request]), "name": volume["name"]},
        "dropped": {"replicas": [r for r in sorted(volume["left"]) if rng.random() < 0.7]},
        "abandon": {"error": {"code": 51, "message": "full", "details": {}}},
    }
    return {"do": do, "volume": number, "now_ms": 0, **fields.get(do, {})}


def apply(machine: StateMachine, kv: KV, command: dict[str, Any], index: int) -> Any:
    """As the member does: what raises leaves nothing."""
    try:
        result = machine.apply(kv, command, index)
    except MoorageError as error:
        kv.rollback()
        return error
    kv.commit()
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_random_commands_against_the_model(seed: int) -> None:
    rng, model, kv, machine = random.Random(seed), Model(), KV(), StateMachine("m1")
    log: list[dict[str, Any]] = []
    refused = 0
    for index in range(1, STEPS + 1):
        command = random_command(rng, model)
        if command["do"] == "dropped" and model.volumes.get(command["volume"], {}).get("state") != "deleting":
            command["replicas"] = []  # tasks drop what `drop/` names, nothing else
        log.append(copy.deepcopy(command))
        result = apply(machine, kv, command, index)
        if isinstance(result, MoorageError):
            refused += 1
        else:
            model.applied(command, result)
        validate(kv)
        model.check(kv)
    assert 0 < refused < STEPS * 0.9
    _replay_gives_the_same(log, kv)
    _snapshot_goes_on_the_same(rng, log, kv, model)


def _replay_gives_the_same(log: list[dict[str, Any]], kv: KV) -> None:
    again, machine = KV(), StateMachine("m1")
    for index, command in enumerate(log, 1):
        apply(machine, again, copy.deepcopy(command), index)
    assert list(again.scan("")) == list(kv.scan(""))


def _snapshot_goes_on_the_same(rng: random.Random, log: list[dict[str, Any]], kv: KV, model: Model) -> None:
    """A member restored from a snapshot (the KV alone) goes on as one that lived through it all."""
    restored = KV()
    for key, value in kv.scan(""):
        restored.put(key, value)
    restored.commit()
    old, new = StateMachine("m1"), StateMachine("m1")
    for index in range(len(log) + 1, len(log) + 100):
        command = random_command(rng, model)
        first = apply(old, kv, copy.deepcopy(command), index)
        second = apply(new, restored, copy.deepcopy(command), index)
        if isinstance(first, MoorageError):
            assert (type(first), str(first)) == (type(second), str(second))
        else:
            assert first == second
    assert list(restored.scan("")) == list(kv.scan(""))


@pytest.mark.parametrize("seed", SEEDS)
def test_epochs_never_go_back_and_are_given_to_one_writer(seed: int) -> None:
    rng, model, kv, machine = random.Random(seed + 1000), Model(), KV(), StateMachine("m1")
    given: dict[tuple[int, int], int] = {}
    greatest: dict[int, int] = {}
    for index in range(1, STEPS + 1):
        command = random_command(rng, model)
        if command["do"] == "dropped":
            continue
        result = apply(machine, kv, command, index)
        if isinstance(result, MoorageError):
            continue
        model.applied(command, result)
        if command["do"] == "attach":
            owner = given.setdefault((result["id"], result["epoch"]), command["writer"])
            assert owner == command["writer"]
        for volume in records.volumes(kv):
            assert volume["epoch"] >= greatest.get(volume["id"], 0)
            greatest[volume["id"]] = volume["epoch"]
    assert given
