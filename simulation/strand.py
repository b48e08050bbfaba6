"""Strands: sequences of faults with an aim, each at something that storms seldom come to.

Owns the plots. A healthy cluster passes them all, at any pace; what they look for is in the history, or said
by an assertion of their own. Each gives up silently when the cluster is not in the state that it needs.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

from moorage.client.volume import Volume
from moorage.simulation import checks
from moorage.simulation.cluster import Machine
from moorage.simulation.network import Weather
from moorage.simulation.scene import PACE_S, Player, Plot, Scene
from moorage.simulation.workload import SIZE
from moorage.wire.errors import MoorageError, ShuttingDown
from moorage.wire.server import connect

if TYPE_CHECKING:
    from moorage.simulation.nemesis import Nemesis
    from moorage.simulation.workload import Workload

DEPTH = 4


async def zombie(scene: Scene) -> None:
    """A holder is left with one host alone, and goes on reading what the next one writes."""

    async def holds(player: Player) -> None:
        volume = await player.attach()
        if volume is not None:
            await player.write_all(volume)
            scene.held = True
            reads = [player.meanwhile(volume, lambda: False, player.read_all) for _ in range(DEPTH)]
            await asyncio.gather(*reads)
            await player.leave(volume)

    async def writes(player: Player) -> None:
        volume = await _takes(player)
        if volume is not None:
            await player.meanwhile(volume, lambda: False, player.write_all)
            await player.leave(volume)

    scene.play(scene.one, holds)
    scene.play(scene.other, writes)
    await scene.until(lambda: scene.held)
    await scene.sleep(scene.rng.uniform(0.1, 0.6))  # members promise leases
    scene.cut([scene.one, scene.follower()])
    scene.parted = True


async def late(scene: Scene) -> None:
    """What a holder sends is held up by the network, and arrives while the next one begins."""

    async def holds(player: Player) -> None:
        volume = await player.attach()
        if volume is not None:
            scene.held = True
            works = (
                player.meanwhile(volume, lambda: scene.taken, player.write_all) for _ in range(4 * DEPTH)
            )
            await asyncio.gather(*works)
            await player.leave(volume)

    async def begins(player: Player) -> None:
        volume = await _takes(player)
        if volume is not None:  # its log is shorter than what is held up
            await player.meanwhile(volume, lambda: False, lambda it: player.write(it, scene.blocks[0]))
            await player.leave(volume)

    scene.play(scene.one, holds)
    scene.play(scene.other, begins)
    await scene.until(lambda: scene.held)
    await scene.sleep(scene.rng.uniform(0.1, 0.4))
    undo = scene.hold_up(scene.one)
    scene.parted = True
    # The next one's SEALs are answered when the last lease is over, a second after the last heartbeat.
    if scene.rng.random() < 0.5:
        await scene.sleep(scene.rng.uniform(0.5, 0.9))
    else:
        await scene.until(lambda: scene.taken)
    undo()


async def _takes(player: Player) -> Volume | None:
    """Takes the volume over when it is time."""
    scene = player.scene
    await player.show(scene.volume)  # then it knows who leads, and need not try who does not answer
    await player.until(lambda: scene.parted)
    volume = await player.attach()
    if volume is not None:
        scene.taken = True
    return volume


async def flushed(scene: Scene) -> None:
    """All hosts, and the holder, lose power just after a flush has returned. Their disks were slow."""
    if scene.workload.history.durability[scene.volume] != "writeback":
        return

    async def writes(player: Player) -> None:
        volume = await player.attach()
        if volume is not None:
            await player.write_all(volume)
            if await player.flush(volume):
                scene.held = True
                for disk in scene.cluster.hosts:
                    disk.device.latency_s = (0.02, 0.06)
                await player.write_all(volume)
                scene.done = await player.flush(volume)

    async def looks(player: Player) -> None:
        volume = await player.attach()
        if volume is not None:
            await player.read_all(volume)
            await player.leave(volume)

    scene.play(scene.one, writes)
    await scene.until(lambda: scene.done)
    for machine in (*scene.cluster.hosts, scene.one):
        machine.lose_power()
    for host in scene.cluster.hosts:
        host.device.latency_s = scene.cluster.tunables.disk_s
    scene.play(scene.other, looks)


async def deposed(scene: Scene) -> None:
    """The leader of metadata sleeps, and another one is chosen; when it wakes up it is asked, cut off from
    the other hosts, before it can know."""
    leader = scene.leader()
    if leader is None:
        return
    others = [host for host in scene.cluster.masters if host is not leader]
    name = f"d{scene.rng.randrange(10**9)}"

    async def knows(player: Player) -> None:
        await player.create(name)
        scene.held = await player.show(name)
        asks = [asks_on(player) for _ in range(DEPTH)] if scene.held else []
        await asyncio.gather(*asks)

    async def asks_on(player: Player) -> None:
        while not scene.over:
            grown = scene.taken
            size = (await player.connected.show(name)).size
            assert size > SIZE or not grown, "metadata answers what was so before the last change"
            await asyncio.sleep(PACE_S)

    async def grows(player: Player) -> None:
        await player.connected.resize(name, 2 * SIZE)
        scene.taken = True

    scene.play(scene.one, knows)
    process = leader.process
    await scene.until(lambda: scene.held)
    if process is None or scene.leader() is not leader:
        return
    scene.cut([leader], list(others))  # who asks needs to hear from the registry where metadata is
    process.pause()
    scene.undo_later(process.resume)
    scene.play(scene.other, grows, ask=others)
    await scene.until(lambda: scene.taken)
    process.resume()


async def laggard(scene: Scene) -> None:
    """A holder has written past one host, and left; a reader comes, nearest to that host."""
    host = scene.follower()

    async def writes(player: Player) -> None:
        volume = await player.attach()
        if volume is not None:
            await player.write_all(volume)
            undo = scene.cut([scene.one], [host])
            await player.write_all(volume)
            await player.leave(volume)
            undo()
            scene.done = True

    async def reads(player: Player) -> None:
        for _ in range(2):
            volume = await player.look()
            if volume is not None:
                await player.read_all(volume)
                await player.leave(volume)

    scene.play(scene.one, writes)
    await scene.until(lambda: scene.done)
    scene.play(scene.other, reads, near=host.name)


async def fork(scene: Scene) -> None:
    """Two hosts have what a holder wrote last; one of them loses it with its power, as the holder does, and
    the other one, which has applied it, cannot be reached by the next holder: only by a reader."""
    if scene.workload.history.durability[scene.volume] != "writeback" or len(scene.cluster.hosts) != 3:
        return
    kept = scene.follower()
    hosts = [host for host in scene.cluster.hosts if host is not kept]
    losing, missing = hosts if checks.leads_metadata(hosts[1]) else hosts[::-1]
    last = next(each for each in scene.cluster.clients if each not in (scene.one, scene.other))

    async def writes(player: Player) -> None:
        volume = await player.attach()
        if volume is not None:
            await player.write_all(volume)
            if await player.flush(volume):
                losing.device.latency_s = (1.0, 1.0)
                scene.cut([scene.one], [missing])
                await player.write_all(volume)
                scene.held = True

    async def begins(player: Player) -> None:
        volume = await _takes(player)
        if volume is not None:
            await player.read_all(volume)
            await player.write(volume, scene.blocks[0])
            scene.done = True
            await player.until(lambda: False)
            await player.leave(volume)

    async def reads(player: Player) -> None:
        volume = await player.look()
        if volume is not None:
            for _ in range(3):
                await player.read_all(volume)
            await player.leave(volume)

    scene.play(scene.one, writes)
    scene.play(last, begins)
    await scene.until(lambda: scene.held)
    await scene.sleep(0.05)  # it hears that all is committed
    losing.lose_power()
    scene.one.lose_power()
    losing.device.latency_s = scene.cluster.tunables.disk_s
    scene.cut([kept], [each for each in scene.cluster.machines if each not in (kept, scene.other)])
    scene.parted = True
    await scene.until(lambda: scene.done)
    scene.play(scene.other, reads, near=kept.name)


def _slow_disks(scene: Scene) -> None:
    """Much is under way when the power fails; later they are as they were."""

    def undo() -> None:
        for host in scene.cluster.hosts:
            host.device.latency_s = scene.cluster.tunables.disk_s

    for host in scene.cluster.hosts:
        host.device.latency_s = (0.02, 0.06)
    scene.undo_later(undo)


async def recovered(scene: Scene) -> None:
    """A holder sleeps until a reader has brought its logs to an end, and hosts lose their power meanwhile.
    Nobody else came to write: it goes on, and what it was told stands."""
    began = scene.loop.now
    found: list[Volume] = []

    async def writes(player: Player) -> None:
        volume = await player.attach()
        if volume is None:
            return
        found.append(volume)
        await player.write_all(volume)
        scene.held = True

        blocks = scene.blocks[:2] * 2
        works = [player.meanwhile(volume, lambda: scene.done, work(player, block)) for block in blocks]
        await asyncio.gather(*works)
        await player.leave(volume)

    def work(player: Player, block: int) -> Callable[[Volume], Awaitable[None]]:
        """Two for each block, so that their order matters; what was lost is seen before the next write."""

        async def write_and_read(volume: Volume) -> None:
            await player.write(volume, block)
            await player.read(volume, block)

        return write_and_read

    async def looks(player: Player) -> None:
        await player.until(lambda: scene.parted)
        while not (scene.taken or scene.over):
            volume = await player.look()
            if volume is not None:
                scene.taken = volume.epoch > found[0].epoch
                if scene.taken:  # before, it would see what may be as old as anything: hard to judge
                    await player.read_all(volume)
                await player.leave(volume)
            await asyncio.sleep(PACE_S)

    def alone() -> bool:
        takes = [each for each in scene.workload.history.operations if each.kind == "take"]
        return not any(
            each.name == scene.volume
            and each.client.split(".")[0] != scene.other.name
            and (each.returned is None or each.returned > began)
            and each.found != first
            for each in takes
        )

    scene.play(scene.one, writes)
    await scene.until(lambda: scene.held)
    process, first = scene.one.process, found[0].epoch
    if process is None:
        return
    power_fails = scene.rng.random() < 0.6
    if power_fails:
        _slow_disks(scene)
    await scene.sleep(scene.rng.uniform(0.0, 0.3))
    # What it has sent may be there or not, and it does not hear of it before it is fenced.
    one: list[Machine] = [scene.one]
    hosts: list[Machine] = [*scene.cluster.hosts]
    sends, hears = (hosts, one) if scene.rng.random() < 0.5 else (one, hosts)
    undo = scene.nemesis.one_way(sends, hears, Weather(cut=True))
    scene.undo_later(undo)
    await scene.sleep(scene.rng.uniform(0.0, 0.02))
    process.pause()
    scene.undo_later(process.resume)
    scene.parted = True
    scene.play(scene.other, looks)
    if power_fails:
        await scene.sleep(scene.rng.choice((0.0, 0.02, 1.0)) * scene.rng.random())
        for host in scene.rng.choice((scene.cluster.hosts, scene.cluster.hosts[:2])):
            host.lose_power()
    await scene.until(lambda: scene.taken)
    scene.cluster.world.network.reset(process, True)
    undo()
    process.resume()
    await scene.sleep(scene.rng.uniform(0.3, 1.0))
    scene.done = True
    if process.alive and alone():
        ended = found[0].failed
        assert ended is None or isinstance(ended, ShuttingDown), (
            f"nobody came to write, and it ended: {ended}"
        )


async def forger(scene: Scene) -> None:
    """Somebody who may only read asks a device to promise an epoch that metadata has given to nobody."""

    async def forges(player: Player) -> None:
        writer = 1 + player.rng.randrange(1 << 32)
        who = {"host": player.client.name, "pid": 1, "program": "forger"}
        asked = {"mode": "ro", "force": False, "writer": writer, "holder": who}
        attached = await player.connected._call_owner(scene.volume, "metadata.attach", asked)
        member = player.rng.choice(player.rng.choice(attached["groups"])["members"])
        promise: dict[str, Any] = {"replica": member["replica"], "writer": writer, "session": 1}
        promise |= {"epoch": attached["epoch"] + 1, "capability": attached["capability"]}
        hello, secret = player.connected.hello, scene.cluster.secret
        conn = await connect(member["address"], hello=hello, secret=secret, timeout=2.0)
        try:
            await conn.call("node.seal", promise, timeout=2.0)
        except MoorageError:
            return
        finally:
            conn.close()
        raise AssertionError("a device promises an epoch to who may only read")

    scene.play(scene.one, forges)


async def old_copy(scene: Scene) -> None:
    """A device's directory is replaced by a copy that is older than its last start, as from a backup, and is
    started: the registry refuses it. Then the right one comes back."""
    host = scene.rng.choice(scene.cluster.masters)
    if not host.ready:
        return
    directory = scene.cluster.world.directory
    here, copy, aside = (directory / host.name / each for each in ("node", "copy", "aside"))
    host.kill()
    scene.undo_later(lambda: shutil.rmtree(copy, ignore_errors=True))
    shutil.copytree(here, copy)
    disk = host.device.disk.crash(None)
    await scene.until(lambda: host.ready)
    await scene.sleep(scene.rng.uniform(0.2, 0.6))  # it promises, and accepts
    host.kill()
    here.rename(aside)
    copy.rename(here)
    right, host.device.disk = host.device.disk, disk

    def put_back() -> None:
        host.kill()
        shutil.rmtree(here)
        aside.rename(here)
        host.device.disk = right

    scene.undo_later(put_back)
    await scene.until(lambda: checks.serves_blocks(host))
    raise AssertionError(f"an old copy of the device of {host.name} is accepted")


PLOTS: dict[str, tuple[Plot, float]] = {  # and how long each needs
    "zombie": (zombie, 2.6),
    "late": (late, 2.6),
    "flushed": (flushed, 3.4),
    "deposed": (deposed, 3.4),
    "laggard": (laggard, 3.2),
    "fork": (fork, 4.6),
    "forger": (forger, 0.5),
    "recovered": (recovered, 4.8),
    "old copy": (old_copy, 2.6),
}


def strand(kind: str, nemesis: Nemesis, workload: Workload, rng: Random) -> Callable[[], None]:
    scene = Scene(nemesis, workload, rng, "writeback" if kind in ("flushed", "fork") else "")
    scene.begin(PLOTS[kind][0])
    return scene.end
