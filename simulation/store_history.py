"""Histories of one store: random work on a few replicas, a device on which everything goes wrong, many lives.

Owns the lives and the work: what writers, sources of copies and metadata would ask of this device. The
replicas' members are real cores; only the network is missing. After each start all that was acknowledged must
be there, or, when synced bytes had changed, its replica must say that it is damaged; whatever is shown is
right, or Corrupt; accounts of space add up. At the end everything heals, and must be well again.

One seed is one history::

    run_seed(7)     # raises Failed
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from unittest.mock import patch

from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.store import Store, StoreConfig
from moorage.simulation.loop import Process
from moorage.simulation.store_checks import Checks
from moorage.simulation.store_faults import FREE, Faults
from moorage.simulation.store_member import Shell
from moorage.simulation.store_model import Model, Writing, Wrong, keys
from moorage.simulation.store_stage import KIB, staged
from moorage.simulation.world import World, world
from moorage.wire.errors import Corrupt, DeviceFailed, MoorageError

HOST = "device"
LIFE_S = 60.0  # of virtual time: more is a hang
DEVICE = b"0123456789abcdef"


class Failed(AssertionError):
    """A history in which the store was wrong. ``cause`` says how; ``seed`` gives it again."""

    def __init__(self, seed: int, cause: BaseException, story: list[str]) -> None:
        self.seed = seed
        self.cause = cause
        self.story = story
        super().__init__(f"seed {seed}: {type(cause).__name__}: {cause}")


def run_seed(seed: int) -> str:
    """One history; its trace hash. Raises :class:`Failed`."""
    with world(seed) as made:
        history = StoreHistory(made)
        with staged(made.loop, history.device, history.segment, lambda: history.quiet):
            try:
                history.play()
            except Exception as error:
                raise Failed(seed, error, list(made.loop.story)) from error
        return made.loop.trace_hash()


class StoreHistory:
    def __init__(self, made: World) -> None:
        self.world = made
        self.loop = made.loop
        self.rng = rng = made.rng
        self.device = made.device(HOST)
        self.writing = Writing(rng)
        self.models: dict[int, Model] = {}
        self.shells: dict[int, Shell] = {}
        self.store: Store | None = None
        self.group = 0  # the newest that was durable when somebody was told something
        self.calm = False
        self._identities = 0
        self.quiet = False  # nothing is to be done any more
        # Sizes small enough that each life fills segments, makes checkpoints and compacts.
        self.segment = rng.choice((64, 64, 128, 256)) * KIB
        slots = rng.choice((32, 48))
        self.config = StoreConfig(
            made.directory / "store",
            DEVICE,
            capacity=(8 << 20) + slots * self.segment,
            segment_size=self.segment,
            seed=rng.getrandbits(63),
            index_pages_max=rng.choice((1, 4, 1000)),
            checkpoint_bytes=rng.choice((16, 64, 1000)) * KIB,
            checkpoint_pages=rng.choice((2, 1000)),
            checkpoint_seconds=rng.choice((0.005, 0.02, 0.2, 1e9)),
            scrub_period_s=rng.choice((0.0, 0.01, 0.2)),
            background_rate=rng.choice((0, 0, 1 << 20)),
        )
        self.config.directory.mkdir()
        self.device.disk.free = FREE
        self.device.latency_s = rng.choice(((20e-6, 200e-6), (50e-6, 2e-3), (500e-6, 8e-3)))
        self.weights = {name: rng.choice(choice) for name, choice in WORK.items()}
        self.faults = Faults(made.loop, self.device)
        self.checks = Checks(self.device, rng)

    # -- lives ----------------------------------------------------------------------------------------

    def play(self) -> None:
        for _ in range(self.rng.randint(2, 6)):
            self._life()
        self.calm = True
        self._heal()
        self._life()

    def _heal(self) -> None:
        self.device.disk.free = FREE
        self.loop.note("all quiet")

    def _life(self) -> None:
        """One process on this device, up to its death."""
        loop, rng, device = self.loop, self.rng, self.device
        process = Process(loop, "store", HOST)
        self.faults.begin_life()
        power = rng.random() < 0.5

        def die() -> None:
            process.kill()
            if power:
                device.lost_power()

        process.on_death = die
        if not self.calm and rng.random() < 0.85:
            # also in the middle of a start
            process.dies_at = rng.choice((rng.randint(1, 40), rng.randint(1, 400), rng.randint(1, 1500)))
        ended: list[asyncio.Task[Any]] = []
        task = process.start(self._main, "life")
        task.add_done_callback(ended.append)
        reached = loop.run(lambda: bool(ended) or not process.alive or bool(loop.failures), loop.now + LIFE_S)
        if loop.failures:
            raise loop.failures[0][1]
        if not reached:
            raise Wrong("a life without an end: something waits for ever")
        self.store, self.shells = None, {}
        if process.alive:
            die()
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _main(self) -> None:
        store = self.store = Store(self.config)
        store.on_damage = self._damaged
        store.on_failed = self._failed
        store.scrubber.on_bad = self._bad
        try:
            report = await store.open()
        except (Corrupt, DeviceFailed, OSError) as error:
            self._may_not_start(error)
            return
        self.loop.note(f"starts with {report.groups} groups, damaged {sorted(report.damaged)}")
        await self._look(store)
        for _ in range(self.rng.randint(20, 80)):
            if store.failed is not None:
                return
            await self._work(store)
        if self.calm:
            await self._settle(store)
            return
        if self.rng.random() < 0.5:
            for shell in self.shells.values():
                shell.stop()
            await store.close(checkpoint=self.rng.random() < 0.5)

    def _may_not_start(self, error: BaseException) -> None:
        """Nor is it wrong to refuse, when the disk has failed, is full, or has changed."""
        self.loop.note(f"does not start: {type(error).__name__}")
        self.loop.tell(str(error))
        if isinstance(error, Corrupt) and not self.device.damaged:
            raise Wrong(f"a start refused: {error}")
        if self.calm and not self.device.damaged:
            raise Wrong(f"a start failed: {error}")

    def _damaged(self, replica: Replica, what: str) -> None:
        if not self.device.damaged:
            raise Wrong(f"replica {replica.info.replica} is called damaged: {what}")
        shell = self.shells.get(replica.info.replica)
        if shell is not None:
            shell.damage(what)

    def _bad(self, replica: Replica) -> None:
        bad = self.store.scrubber.check(replica).bad if self.store is not None else {}
        self.loop.note(f"replica {replica.info.replica} has {len(bad)} bad blocks")
        if bad and not self.device.damaged:
            raise Wrong(f"blocks of replica {replica.info.replica} are called bad: {bad}")

    def _failed(self, error: DeviceFailed) -> None:
        if "input/output error" not in str(error):
            raise Wrong(f"it gave up by itself: {error}")

    # -- what a start found ------------------------------------------------------------------------------

    async def _look(self, store: Store) -> None:
        before = self.faults.sure_before(self.group)
        for identity in list(self.models):
            model, replica = self.models[identity], store.replicas.get(identity)
            if replica is None:
                if model.there.sure(before) and not model.leaving and not self.device.damaged:
                    raise Wrong(f"replica {identity} is gone")
                model.gone.tell(self.group, True)
                continue
            if model.gone.sure(before) and not replica.damaged:
                raise Wrong(f"replica {identity} was dropped, and is back")
            model.gone.begin(False)  # the order to drop it is what was lost
            await self._look_at(store, model, replica, before)
        for identity in store.replicas.keys() - self.models.keys():
            raise Wrong(f"a replica {identity} that nobody has ordered")
        self.checks.accounts(store)

    async def _look_at(self, store: Store, model: Model, replica: Replica, before: int | None) -> None:
        replica.validate()
        state = replica.state
        if replica.damaged:
            if not self.device.damaged and not model.suspect:
                raise Wrong(f"replica {model.identity} is damaged: {replica.damaged}")
            promised = model.promised.sure(before)
            if not state.promise_lost and state.epoch < promised:
                raise Wrong(
                    f"replica {model.identity} is damaged, and offered with a promise below {promised}"
                )
            model.found_damaged()
            if state.promise_lost:
                info = model.info
                model.sealed_epoch = max(model.sealed_epoch, model.epoch)
                store.fold.promise_again(replica, info, model.epoch, model.epoch)
        else:
            model.check_state(state, before)
            model.suspect = False
        model.recovered(state, self.group, before)
        shell = self.shells[model.identity] = Shell(self, store, model, replica)
        if shell.core.whole:
            self.checks.index(store, model, replica)
            await self.checks.all(store, model, replica)

    # -- work --------------------------------------------------------------------------------------------

    async def _work(self, store: Store) -> None:
        rng = self.rng
        if self.faults.kinds and not self.calm and rng.random() < 0.05:
            self.faults.strike(store)
        shells = [shell for shell in self.shells.values() if not shell.model.leaving]
        names = list(self.weights)
        name = rng.choices(names, [self.weights[each] for each in names])[0]
        if name == "create" or not shells:
            if len(shells) < 3:
                self._create(store)
        else:
            await getattr(self, "_do_" + name)(store, rng.choice(shells))
        if rng.random() < 0.6:
            await asyncio.sleep(rng.choice((0, 0, 1e-4, 1e-3, 5e-3)))

    def _create(self, store: Store) -> None:
        self._identities += 1
        identity = self._identities
        durability = self.rng.choice(("sync", "sync", "writeback"))
        model = self.models[identity] = Model(ReplicaInfo(identity, identity, 0, durability, 3))

        def done(error: MoorageError | None) -> None:
            if error is None:
                model.there.tell(self.told(store), True)
                self.shells[identity] = Shell(self, store, model, store.replica(identity), created=True)

        with suppress(DeviceFailed):
            store.create(model.info, done)

    async def _do_drop(self, store: Store, shell: Shell) -> None:
        model = shell.model

        def done(error: MoorageError | None) -> None:
            if error is None:
                model.gone.tell(self.told(store), True)
                self.shells.pop(model.identity, None)

        model.leaving = True
        shell.drop()
        with suppress(DeviceFailed):
            store.drop(model.identity, done)

    async def _do_seal(self, store: Store, shell: Shell) -> None:
        shell.seal(new=self.rng.random() < 0.7)

    async def _do_append(self, store: Store, shell: Shell) -> None:
        for _ in range(self.rng.choice((1, 1, 2, 6))):
            shell.write()
        shell.send()

    async def _do_churn(self, store: Store, shell: Shell) -> None:
        """Segments fill, are compacted and freed, while slow reads of them are under way."""
        for _ in range(10):
            for _ in range(4):
                shell.write()
            shell.send()
            shell.commit()
            if self.rng.random() < 0.5:
                await self._do_read(store, shell)
            await asyncio.sleep(1e-3)
            if store.failed is not None or shell.model.leaving:
                return

    async def _do_commit(self, store: Store, shell: Shell) -> None:
        shell.commit()

    async def _do_copy(self, store: Store, shell: Shell) -> None:
        shell.order_copy(fresh=self.rng.random() < 0.4)

    async def _do_read(self, store: Store, shell: Shell) -> None:
        rng, replica = self.rng, shell.replica
        if shell.core.whole and not replica.damaged:
            chunk, block = rng.choice(keys())
            snapshot = rng.choice((0, *replica.table.snapshots))
            read = self.checks.read(store, shell.model, replica, chunk, block, rng.randint(1, 8), snapshot)
            if rng.random() < 0.3:
                await read
            else:
                self._spawn(read)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.loop.failures.append((None, error))

        asyncio.get_running_loop().create_task(work).add_done_callback(ended)

    async def _do_check(self, store: Store, shell: Shell) -> None:
        if shell.core.whole and not shell.replica.damaged:
            self.checks.index(store, shell.model, shell.replica)
            await self.checks.tail(store, shell.model, shell.replica)

    async def _do_flush(self, store: Store, shell: Shell) -> None:
        await store.flushed()

    def told(self, store: Store) -> int:
        """Somebody is told something now: the last group commit that it may rest on."""
        self.group = max(self.group, store.log.group)
        return store.log.group

    # -- the end ------------------------------------------------------------------------------------------

    async def _settle(self, store: Store) -> None:
        """Everything is well: all members become whole, hold all of their logs, and show it."""
        for _ in range(4000):  # 20 s: some stores get a segment every 0.1 s, and compaction takes its share
            staying = [shell for shell in self.shells.values() if not shell.model.leaving]
            if all([shell.bring_up() for shell in staying]):
                break
            await asyncio.sleep(5e-3)
        else:
            raise Wrong(f"not well again: {[shell.status() for shell in self.shells.values()]}")
        await store.flushed()
        for shell in staying:
            self.checks.index(store, shell.model, shell.replica)
            await self.checks.all(store, shell.model, shell.replica)
            await self.checks.tail(store, shell.model, shell.replica)
        await self._scrub(store, [shell.replica for shell in staying])
        self.quiet = True
        with patch.object(store, "_keep_up_once", _nothing):
            await asyncio.sleep(1.0)  # its last round ends
            await self._account_for_all(store)

    async def _scrub(self, store: Store, asked: list[Replica]) -> None:
        """Each block that the disk has lost by now is known after one more pass, and no other."""
        self.faults.rot_before_a_scrub(store)
        for replica in asked:
            store.scrubber.ask(replica)
        for _ in range(1000):
            await asyncio.sleep(0.02)
            if not any(store.scrubber.check(each).asked for each in asked if not each.damaged):
                break
        else:
            raise Wrong("a scrub that does not end")
        self.checks.scrubbed(store, asked)

    async def _account_for_all(self, store: Store) -> None:
        await store.checkpoint()
        await store.checkpoint()
        self.checks.accounts(store, whole=True)


async def _nothing() -> None:
    pass


# What is done to a store, and how much of each a history has.
WORK: dict[str, tuple[int, ...]] = {
    "create": (1, 3),
    "drop": (0, 0, 1),
    "seal": (2, 6),
    "append": (20, 30),
    "commit": (4, 12),
    "churn": (0, 0, 4),
    "copy": (0, 1, 3),
    "read": (3,),
    "check": (1,),
    "flush": (0, 2),
}
