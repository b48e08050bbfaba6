"""Strands: sequences of faults with an aim, each at something that storms seldom come to.

Owns the plots. A healthy cluster passes them all, at any pace; what they look for is in the history, or said
by an assertion of their own. Each gives up silently when the cluster is not in the state that it needs.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from moorage.client.volume import Volume
from moorage.simulation import checks
from moorage.simulation.cluster import Machine
from moorage.simulation.network import Weather
from moorage.simulation.scene import PACE_S, Player, Plot, Scene, Script
from moorage.simulation.workload import SIZE, VOLUMES
from moorage.wire.errors import MoorageError, ShuttingDown
from moorage.wire.server import connect

if TYPE_CHECKING:
    from moorage.simulation.nemesis import Nemesis
    from moorage.simulation.workload import Workload

DEPTH = 4
SILENT_S = 1.0  # no read waits so long for a member that does not answer while others do
HEADLESS_S = 4.6  # two leases, or more than one where they are longer
SETS = 4


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
        await player.resize(name, 2 * SIZE)
        scene.taken = (await player.connected.show(name)).size > SIZE

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
        wrong = "a device promises an epoch to who may only read"
        await _is_refused(player, member["address"], "node.seal", promise, wrong)

    scene.play(scene.one, forges)


async def stranger(scene: Scene) -> None:
    """Who is not metadata orders a device to drop a replica."""

    async def orders(player: Player) -> None:
        info = await player.connected.show(scene.volume)
        member = player.rng.choice(player.rng.choice(info.groups)["members"])
        address = (await player.connected.status())["devices"][member["device"]]["address"]
        order = {"replica": member["replica"], "volume": info.id, "metadata": "m1", "term": 1 << 40}
        wrong = "a device drops a replica by the word of who is not metadata"
        await _is_refused(player, address, "node.drop_replica", order, wrong)

    scene.play(scene.one, orders)


async def _is_refused(player: Player, address: str, method: str, params: dict[str, Any], wrong: str) -> None:
    """By a device that is asked directly."""
    connected = player.connected
    conn = await connect(address, hello=connected.hello, secret=connected._secret, timeout=2.0)
    try:
        await conn.call(method, params, timeout=2.0)
    except MoorageError:
        return
    finally:
        conn.close()
    raise AssertionError(wrong)


def _all_current(volume: Volume) -> bool:
    return all(each["state"] == "current" and not each["behind"] for each in volume.members())


async def frozen(scene: Scene) -> None:
    """A host sleeps whose connections stay open, the nearest one to a reader: it is answered by others."""
    host = scene.follower()

    async def reads(player: Player) -> None:
        volume = await player.attach()
        if volume is None:
            return
        await player.write_all(volume)
        await player.read_all(volume)
        await player.until(lambda: _all_current(volume))
        scene.held = True
        await player.meanwhile(volume, lambda: scene.done, player.read_all)
        await player.leave(volume)

    scene.play(scene.one, reads, near=host.name)
    await scene.until(lambda: scene.held)
    process = host.process
    if process is None or not all(each.ready for each in scene.cluster.hosts):
        return
    began = scene.loop.now
    process.pause()
    scene.undo_later(process.resume)
    await scene.sleep(1.5)
    for each in scene.operations("read", since=began):
        took = (scene.loop.now if each.returned is None else each.returned) - each.invoked
        assert took < SILENT_S and not each.gone, f"a read waits for a host that sleeps: {each}"
    scene.done = True
    process.resume()


async def headless(scene: Scene) -> None:
    """The hosts do not hear each other for more than a lease: nobody leads metadata, nor the registry. A
    holder goes on meanwhile, nothing of what it asks fails; and when somebody leads again its lease runs."""
    found: list[Volume] = []

    async def holds(player: Player) -> None:
        volume = await player.attach()
        if volume is None:
            return
        await player.write_all(volume)
        found.append(volume)
        await player.until(lambda: _all_current(volume))
        scene.held = True
        works = (player.write_all, player.read_all)
        await asyncio.gather(*(player.meanwhile(volume, lambda: scene.done, work) for work in works))
        await player.leave(volume)

    async def comes(player: Player) -> None:
        await player.until(lambda: scene.parted)
        while not (scene.done or scene.over):
            with suppress(MoorageError):
                await player.connected.attach(scene.volume, timeout=0.5)
                scene.taken = True
                return
            await asyncio.sleep(PACE_S)

    scene.play(scene.one, holds)
    scene.play(scene.other, comes)
    await scene.until(lambda: scene.held)
    hosts = scene.cluster.hosts
    process = scene.one.process
    if not all(host.ready for host in hosts):
        return
    began = scene.loop.now
    undo = [scene.cut([host], [each for each in hosts if each is not host]) for host in hosts]
    await scene.sleep(HEADLESS_S)
    asked = scene.operations("read", "write", since=began)
    if process is None or not process.alive:
        return
    late = scene.loop.now - SILENT_S
    failed = [each for each in asked if each.gone or (each.returned is None and each.invoked < late)]
    assert not failed and found[0].failed is None, (
        f"while nobody led metadata: {found[0].failed} {failed[:3]}"
    )
    for each in undo:
        each()
    scene.parted = True
    await scene.sleep(1.0)
    alive = process.alive and scene.one.process is process
    assert not (scene.taken and alive), "a holder that lives has lost its volume to who did not force it"
    scene.done = True


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


async def apart(scene: Scene) -> None:
    """Two write to one volume each, and a third one has snapshots made of both at one moment, of which one of
    the two hears late: who has heard must not go on before."""
    snapshots = scene.workload.snapshots
    if snapshots is None or not scene.reserve_all():
        return
    asks = next(each for each in scene.cluster.clients if each not in (scene.one, scene.other))
    held: set[str] = set()

    def holds(name: str) -> Script:
        async def holds_one(player: Player) -> None:
            volume = await player.attach_other(name)
            if volume is not None:
                held.add(name)
                works = [
                    player.meanwhile(volume, lambda: False, partial(_write_one, player, block))
                    for block in scene.blocks
                ]
                await asyncio.gather(*works)
                await player.leave(volume)

        return holds_one

    async def creates(player: Player) -> None:
        for _ in range(SETS):
            if not scene.over:
                await snapshots.create(player.client, player.connected, *VOLUMES)

    for client, name in zip((scene.one, scene.other), VOLUMES, strict=True):
        scene.play(client, holds(name))
    await scene.until(lambda: len(held) == len(VOLUMES))
    leader = scene.leader()
    if leader is not None and scene.rng.random() < 0.5:
        # It goes on writing by the other hosts: as long as others wait for it, or a moment longer.
        undo = scene.nemesis.one_way([leader], [scene.other], Weather(cut=True))
        scene.undo_later(undo)
        scene.play(asks, creates)
        await scene.sleep(scene.rng.uniform(1.9, 2.4))
        undo()
    else:
        slow = Weather(delay_s=(0.02, scene.rng.choice((0.05, 0.2))))
        scene.undo_later(scene.nemesis.both([scene.other], list(scene.cluster.hosts), slow))
        scene.play(asks, creates)


async def kept(scene: Scene) -> None:
    """All hosts, and the holder, lose power just after a snapshot was created. Their disks were slow."""
    snapshots = scene.workload.snapshots
    if snapshots is None or scene.workload.history.durability[scene.volume] != "writeback":
        return

    async def writes(player: Player) -> None:
        volume = await player.attach()
        if volume is not None:
            await player.write_all(volume)
            scene.held = True
            await player.meanwhile(volume, lambda: scene.done, player.write_all)

    async def creates(player: Player) -> None:
        scene.done = await snapshots.create(player.client, player.connected, scene.volume)

    scene.play(scene.one, writes)
    await scene.until(lambda: scene.held)
    _slow_disks(scene)
    scene.play(scene.other, creates)
    await scene.until(lambda: scene.done)
    for machine in (*scene.cluster.hosts, scene.one):
        machine.lose_power()


async def _write_one(player: Player, block: int, volume: Volume) -> None:
    await player.write(volume, block)


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
    "frozen": (frozen, 2.6),
    "stranger": (stranger, 0.5),
    "headless": (headless, HEADLESS_S + 2.0),
    "apart": (apart, 3.4),
    "kept": (kept, 3.0),
}


def strand(kind: str, nemesis: Nemesis, workload: Workload, rng: Random) -> Callable[[], None]:
    scene = Scene(nemesis, workload, rng, "writeback" if kind in ("flushed", "fork", "kept") else "")
    scene.begin(PLOTS[kind][0])
    return scene.end
