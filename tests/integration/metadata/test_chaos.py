"""Clients at work while leaders change, replies get lost, nodes refuse, the registry is away.

Then all heals, and all that know of a volume must agree: the state, the registry's names, the nodes'
replicas.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from moorage.metadata import records
from moorage.wire.errors import CannotConnect, MoorageError, NoSpace

CLIENTS = 6
TROUBLE_S = 1.2
NAMES = ("a", "b", "c", "d")


class Chaos:
    def __init__(self, cluster: Any, log: Any, seed: int) -> None:
        self.cluster = cluster
        self.log = log
        self.rng = random.Random(seed)
        self.epochs: dict[tuple[int, int], int] = {}  # (volume, epoch) -> writer
        self.done: dict[str, int] = {}
        self.failed: dict[str, int] = {}

    async def client(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + TROUBLE_S
        turn = 0
        while loop.time() < end:
            turn += 1
            name = self.rng.choice(NAMES)
            do = self.rng.choice(["create", "create", "delete", "attach", "attach", "resize", "list"])
            try:
                await getattr(self, f"_{do}")(name, number * 100_000 + turn)
                self.done[do] = self.done.get(do, 0) + 1
            except MoorageError as error:  # any is right in such a world, as long as all agree in the end
                kind = type(error).__name__
                self.failed[kind] = self.failed.get(kind, 0) + 1
                await asyncio.sleep(self.rng.uniform(0, 0.01))

    async def _create(self, name: str, number: int) -> None:
        replicas = self.rng.choice([1, 3])
        created = await self.cluster.create(name, request=f"r{number}", replicas=replicas, timeout=3.0)
        assert created["state"] == "ready"

    async def _delete(self, name: str, number: int) -> None:
        params = {"name": name, "force": self.rng.random() < 0.5, "request": f"d{number}"}
        await self.cluster.call("delete_volume", 3.0, **params)

    async def _attach(self, name: str, number: int) -> None:
        held = await self.cluster.attach(name, number, force=self.rng.random() < 0.5, timeout=2.0)
        key = held["volume"]["id"], held["epoch"]
        assert self.epochs.setdefault(key, number) == number, "an epoch serves one writer"
        params = {"volume": key[0], "epoch": key[1], "writer": number}
        await self.cluster.call("renew", 2.0, **params)
        if self.rng.random() < 0.5:
            await self.cluster.call("detach", 2.0, **params)

    async def _resize(self, name: str, number: int) -> None:
        await self.cluster.call("resize_volume", 2.0, name=name, size=(number % 1000 + 1) << 30)

    async def _list(self, name: str, number: int) -> None:
        await self.cluster.call("list_volumes", 2.0)

    async def trouble(self) -> None:
        """Until it is cancelled: something new every few milliseconds."""
        rng, cluster = self.rng, self.cluster
        self.log.loses_reply = lambda: rng.random() < 0.05
        while True:
            await asyncio.sleep(rng.uniform(0.002, 0.05))
            kind = rng.randrange(5)
            if kind == 0:
                self.log.elect(None)
                await asyncio.sleep(rng.uniform(0, 0.02))
                self.log.elect(rng.choice(["host1", "host2", "host3"]))
            elif kind == 1:
                self.log.elect(rng.choice(["host1", "host2", "host3"]))
            elif kind == 2:
                refusals = [None, None, NoSpace("full"), CannotConnect("no")]
                rng.choice(cluster.nodes).refusing = rng.choice(refusals)
            elif kind == 3:
                gate = rng.choice(cluster.nodes).gate
                gate.clear() if rng.random() < 0.4 else gate.set()
            else:
                cluster.registry.failing = CannotConnect("away") if rng.random() < 0.3 else None

    def heal(self) -> None:
        self.log.loses_reply = lambda: False
        self.cluster.registry.failing = None
        for node in self.cluster.nodes:
            node.refusing = None
            node.gate.set()
        self.log.elect("host2")

    def settled(self) -> bool:
        kv = self.log.members["host2"].kv
        sizes = {volume["name"]: volume["size"] for volume in records.volumes(kv)}
        ready = all(volume["state"] == "ready" for volume in records.volumes(kv))
        return ready and not list(kv.scan(records.DROPS)) and self.cluster.registry.sizes == sizes

    def check(self) -> None:
        kv = self.log.members["host2"].kv
        volumes = list(records.volumes(kv))
        assert self.cluster.registry.names == {
            volume["name"]: ("m1", "volume", volume["id"]) for volume in volumes
        }
        expected: dict[str, set[int]] = {node.device: set() for node in self.cluster.nodes}
        for volume in volumes:
            for group in volume["groups"]:
                for member in group["members"]:
                    expected[member["device"]].add(member["replica"])
        assert {node.device: set(node.replicas) for node in self.cluster.nodes} == expected
        states = [list(member.kv.scan("")) for member in self.log.members.values()]
        assert states[0] == states[1] == states[2]


FAST = range(2)
SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20)]


@pytest.mark.parametrize("seed", [*FAST, *SLOW])
async def test_everybody_agrees_after_the_trouble(cluster: Any, fake_log: Any, seed: int) -> None:
    chaos = Chaos(cluster, fake_log, seed)
    trouble = asyncio.create_task(chaos.trouble())
    await asyncio.gather(*(chaos.client(number) for number in range(CLIENTS)))
    trouble.cancel()
    await asyncio.gather(trouble, return_exceptions=True)
    chaos.heal()
    async with asyncio.timeout(15):
        while not chaos.settled():
            await asyncio.sleep(0.01)
    chaos.check()
    assert len(fake_log.commands) > 20, (chaos.done, chaos.failed)  # something did happen
    assert not any(node.created_again for node in cluster.nodes)
