"""Histories of one store: random work on a few replicas, a device on which everything goes wrong, many lives.

Owns the work (what writers, sources of copies and metadata would ask of this device), the faults and the
checks. The replicas' members are real cores; only the network is missing. After each start all that was
acknowledged must be there, or, when synced bytes had changed, its replica must say that it is damaged;
whatever is shown is right, or Corrupt; accounts of space add up. At the end everything heals, and must be
well again.

One seed is one history::

    run_seed(7)     # raises Failed
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from moorage.node import checkpointer as checkpointer_module
from moorage.node import reader as reader_module
from moorage.node import replica as replica_module
from moorage.node import segment as segment_module
from moorage.node import store as store_module
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import FRAME_MAGIC, OFFSET_BITS, OFFSET_MASK
from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import BLOCK_SIZE, block_sum
from moorage.simulation.disk import SimLane
from moorage.simulation.loop import Process, SimLoop
from moorage.simulation.store_member import Shell
from moorage.simulation.store_model import CHUNKS, KEYS, Model, Writing, Wrong, contents
from moorage.simulation.world import World, world
from moorage.wire.errors import Corrupt, DeviceFailed, MoorageError

HOST = "device"
LIFE_S = 60.0  # of virtual time: more is a hang
KIB = 1 << 10
ASTRAY = 128  # group commits that one write can cover
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
        with history.staged():
            try:
                history.play()
            except Exception as error:
                raise Failed(seed, error, list(made.loop.story)) from error
        return made.loop.trace_hash()


class _SlowLane(SimLane):
    """Reads that take long enough for the store to change meanwhile."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        loop = self._process.loop
        delay_s = loop.rng.choice((0.0, 0.01, 0.05))
        loop.at(delay_s, lambda: super(_SlowLane, self).submit(work, done), process=self._process)


class _Story(logging.Handler):
    """What the store logs is part of the story."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__(logging.WARNING)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        cause = f" [{record.exc_info[1]!r}]" if record.exc_info else ""
        self._loop.story.append(f"{self._loop.now:.6f} {record.getMessage()}{cause}")


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
        self._rotted = self._misdirected = False  # in this life
        self._quiet = False
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
        )
        self.config.directory.mkdir()
        self.device.disk.free = 1 << 40
        self.device.latency_s = rng.choice(((20e-6, 200e-6), (50e-6, 2e-3), (500e-6, 8e-3)))
        self.weights = {name: rng.choice(choice) for name, choice in WORK.items()}
        self.faults = {name: weight for name, weight in FAULTS.items() if rng.random() < 0.6}
        self.rots = rng.random() < 0.5  # bytes that were synced change

    @contextmanager
    def staged(self) -> Iterator[None]:
        rng = self.rng
        small: list[tuple[Any, str, Any]] = [
            (store_module, "ENTRY_BYTES_MAX", self.segment // 4),
            (store_module, "UPKEEP_SECONDS", rng.choice((0.002, 0.01, 0.1))),
            (store_module, "READY_SEGMENTS", rng.choice((1, 3))),
            (replica_module, "TAIL_KEPT", rng.choice((0, 16, 1024)) - 60),
            (segment_module, "DIRECT_BYTES", rng.choice((8, 256)) * KIB),
            (segment_module, "DIRECT_PIECE", 4 * KIB),
        ]
        if rng.random() < 0.3:
            small.append((reader_module, "Lane", _SlowLane))
            self.device.disk.cached = False
        if rng.random() < 0.6:  # compaction is due all the time
            small.append((Store, "_short_of_space", lambda store: not self._quiet and rng.random() < 0.7))
        if rng.random() < 0.6:
            small.append((checkpointer_module, "PAGES_PER_TRANSACTION", rng.choice((1, 2))))
        logger, handler = logging.getLogger("moorage"), _Story(self.loop)
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        try:
            with ExitStack() as stack:
                for target, name, value in small:
                    stack.enter_context(patch.object(target, name, value))
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]

    # -- lives ----------------------------------------------------------------------------------------

    def play(self) -> None:
        for _ in range(self.rng.randint(2, 6)):
            self._life()
        self.calm = True
        self._heal()
        self._life()

    def _heal(self) -> None:
        self.device.disk.free = 1 << 40
        self.loop.note("all quiet")

    def _life(self) -> None:
        """One process on this device, up to its death."""
        loop, rng, device = self.loop, self.rng, self.device
        process = Process(loop, "store", HOST)
        device.fails_at = device.misdirects_at = 0  # what is to come is for a life
        self._rotted = False
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
        self.loop.note(f"does not start: {error!r}")
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

    def _failed(self, error: DeviceFailed) -> None:
        if "input/output error" not in str(error):
            raise Wrong(f"it gave up by itself: {error}")

    # -- what a start found ------------------------------------------------------------------------------

    async def _look(self, store: Store) -> None:
        before = self._sure_before()
        self._misdirected = False
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
        self.check_accounts(store)

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
            self.check_index(store, model, replica)
            await self.check_all(store, model, replica)

    # -- work --------------------------------------------------------------------------------------------

    async def _work(self, store: Store) -> None:
        rng = self.rng
        if self.faults and not self.calm and rng.random() < 0.05:
            names = sorted(self.faults)
            name = rng.choices(names, [self.faults[each] for each in names])[0]
            getattr(self, "_fault_" + name)()
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
            chunk, block = rng.choice(KEYS)
            read = self.check_read(store, shell.model, replica, chunk, block, rng.randint(1, 8))
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
            self.check_index(store, shell.model, shell.replica)
            await self.check_tail(store, shell.model, shell.replica)

    async def _do_flush(self, store: Store, shell: Shell) -> None:
        await store.flushed()

    def told(self, store: Store) -> int:
        """Somebody is told something now: the last group commit that it may rest on."""
        self.group = max(self.group, store.log.group)
        return store.log.group

    # -- faults -----------------------------------------------------------------------------------------

    def _fault_fails(self) -> None:
        self.device.fails_at = self.rng.randint(1, 10)

    def _fault_full(self) -> None:
        disk = self.device.disk
        disk.free = 0

        def undo() -> None:
            disk.free = 1 << 40

        self.loop.at(self.rng.uniform(0.01, 0.3), undo)

    def _fault_rot(self) -> None:
        """One in a life: several may take the last group commits all at once, and nobody could tell."""
        if self.rots and not self._rotted:
            self._rotted = self.device.rot(self.rng)

    def _fault_rot_late(self) -> None:
        """In the front of one of the last frames, which a replay will meet."""
        store = self.store
        current = store.log.current if store is not None else None
        if not self.rots or self._rotted or current is None:
            return
        file = self.device.disk.files[current.name]
        frames = [at for at in range(512, current.end, 512) if file.synced[at : at + 4] == FRAME_MAGIC]
        if frames:
            at = self.rng.choice(frames[-12:]) + self.rng.randrange(200)
            self._rotted = self.device.damaged = True
            file.now[at] ^= 1
            file.synced[at] ^= 1
            self.loop.note(f"byte {at} of {current.name} rots, in the front of a frame")

    def _fault_rot_alive(self) -> None:
        """In a block that an index refers to."""
        store = self.store
        if not self.rots or self._rotted or store is None:
            return
        places = [
            location
            for replica in store.replicas.values()
            for page in replica.table.pages.values()
            for location in page.cells[:32]
            if location
        ]
        if places:
            location = self.rng.choice(places)
            segment = store.log.segments.get(location >> OFFSET_BITS)
            if segment is None:
                raise Wrong(f"segment {location >> OFFSET_BITS} is referred to, and gone")
            file = self.device.disk.files[segment.name]
            at = (location & OFFSET_MASK) + self.rng.randrange(BLOCK_SIZE)
            self._rotted = self.device.damaged = True
            file.now[at] ^= 1
            file.synced[at] ^= 1
            self.loop.note(f"byte {at} of {segment.name} rots, in a block that is alive")

    def _fault_rot_index(self) -> None:
        """In a page that a checkpoint has stored."""
        store = self.store
        if not self.rots or self._rotted or store is None or store.index_store is None:
            return
        env = store.index_store._env
        with env.begin(write=True, db=store.index_store._pages) as txn:
            stored = list(txn.cursor())
            if stored:
                key, value = self.rng.choice(stored)
                rotten = bytearray(value)
                rotten[self.rng.randrange(len(rotten))] ^= 1 << self.rng.randrange(8)
                txn.put(key, bytes(rotten))
                self._rotted = self.device.damaged = True
                self.loop.note(f"page {key.hex()} of the index rots")

    def _fault_misdirected(self) -> None:
        if self.rots and not self._rotted:
            self._rotted = self._misdirected = True
            self.device.misdirects_at = self.rng.randint(1, 5)

    def _sure_before(self) -> int | None:
        """The group commit before which all is sure. A write gone astray may have come down on several."""
        if not self.device.damaged:
            return None
        return max(0, self.group - ASTRAY) if self._misdirected else self.group

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
            self.check_index(store, shell.model, shell.replica)
            await self.check_all(store, shell.model, shell.replica)
            await self.check_tail(store, shell.model, shell.replica)
        self._quiet = True
        with patch.object(store, "_keep_up_once", _nothing):
            await asyncio.sleep(1.0)  # its last round ends
            await self._account_for_all(store)

    async def _account_for_all(self, store: Store) -> None:
        await store.checkpoint()
        await store.checkpoint()
        self.check_accounts(store, whole=True)

    # -- checks ------------------------------------------------------------

    async def check_all(self, store: Store, model: Model, replica: Replica) -> None:
        for chunk in range(CHUNKS):
            for first, count in ((0, 6), (30, 6), (63, 2), (1022, 2)):
                await self.check_read(store, model, replica, chunk, first, count)

    async def check_read(
        self, store: Store, model: Model, replica: Replica, chunk: int, block: int, count: int
    ) -> None:
        count = min(count, 1024 - block)
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lsn = replica.state.commit
        wanted = [model.version((chunk, block + at), lsn)[1] for at in range(count)]
        store.reader.read(replica, chunk, block, count, got.set_result)
        found = await got
        if isinstance(found, MoorageError):
            if isinstance(found, Corrupt) and not self.device.damaged:
                raise Wrong(f"a read of {chunk}/{block} of replica {model.identity}: {found}")
            return
        sums, data = found
        for at, number in enumerate(wanted):
            right = contents(number) if number else bytes(BLOCK_SIZE)
            check = int.from_bytes(sums[at * 8 : at * 8 + 8], "little")
            shown = (
                bytes(data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE])
                if data is not None
                else bytes(BLOCK_SIZE)
            )
            if shown != right or check != (block_sum(right) if number else 0):
                seen = int.from_bytes(shown[:8], "little")
                where = f"{chunk}/{block + at} of replica {model.identity} at LSN {lsn}"
                raise Wrong(f"a read of {where} shows {seen}, not {number}")

    async def check_tail(self, store: Store, model: Model, replica: Replica) -> None:
        try:
            records = await store.reader.records(replica, replica.tail_from, replica.state.last, 1 << 30)
        except Corrupt as error:
            if not self.device.damaged:
                raise Wrong(f"the tail of replica {model.identity}: {error}") from error
            return
        for record in records:
            known = model.given[record.position][1]
            if bytes(record.data) != bytes(known.data) or record.kind != known.kind:
                raise Wrong(f"record {record!r} of replica {model.identity} is another one")

    def check_index(self, store: Store, model: Model, replica: Replica) -> None:
        """LSN by LSN, and what somebody who has all up to ``above`` would be sent."""
        lsn, above = replica.state.commit, self.rng.randint(0, replica.state.commit)
        try:
            ranges = list(replica.table.tombstones)
            sent: dict[tuple[int, int], tuple[int, bool]] = {}
            for first, end, discard in ranges:
                for key in KEYS:
                    if first <= key[0] < end and discard > above:
                        sent[key] = (discard, False)
            following: int | None = 0
            while following is not None:
                cells, following = store.newer_blocks(replica, above, following, 4)
                for chunk, block, location, _, at in cells:
                    if at > sent.get((chunk, block), (0, False))[0]:
                        sent[chunk, block] = (at, bool(location))
        except Corrupt as error:
            if not self.device.damaged:
                raise Wrong(f"the index of replica {model.identity}: {error}") from error
            return
        for key in KEYS:
            written, number = model.version(key, lsn)
            if written > above and sent.get(key) != (written, bool(number)):
                what = f"{key} of replica {model.identity} at LSN {lsn}, above {above}"
                raise Wrong(f"who copies {what} hears {sent.get(key)}, written {written}")
            if written <= above and key in sent:
                raise Wrong(f"{key} of replica {model.identity} has LSN {sent[key][0]}, not {written}")

    def check_accounts(self, store: Store, whole: bool = False) -> None:
        """What is counted as live is what the indexes refer to; ``whole``: nothing is left over anywhere."""
        alive: dict[int, int] = {}
        for replica in store.replicas.values():
            if not whole:
                replica.validate()
            try:
                for chunk in range(CHUNKS):
                    for location, _, _ in store.index.find(replica.table, chunk, 0, 1024):
                        if location:
                            number = location >> OFFSET_BITS
                            alive[number] = alive.get(number, 0) + BLOCK_SIZE
            except Corrupt:
                if not self.device.damaged:
                    raise
                return
        counted = {number: size for number, size in store.index.live.items() if size}
        for number, size in alive.items():
            if counted.get(number, 0) < size:
                raise Wrong(
                    f"segment {number} holds {size} bytes alive, counted are {counted.get(number, 0)}"
                )
            if number not in store.log.segments and not self.device.damaged:
                raise Wrong(f"segment {number} is referred to, and gone")
        if whole:
            self._check_whole(store, alive, counted)

    def _check_whole(self, store: Store, alive: dict[int, int], counted: dict[int, int]) -> None:
        log = store.log
        if counted != alive:
            raise Wrong(f"live bytes {counted}, referred to are {alive}")
        known = [each.name for each in (*log.segments.values(), *log.free, *log._leaving)]
        if sorted(known) != sorted(store.all_files):
            raise Wrong(f"segment files {sorted(store.all_files)}, accounted for are {sorted(known)}")
        held = {
            location >> OFFSET_BITS for each in store.replicas.values() for _, location in each.tail.values()
        }
        for number in log.segments:
            if number < store.checkpointer.segment and number not in alive and number not in held:
                raise Wrong(f"segment {number} is kept for nothing")


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
FAULTS = {"fails": 2, "full": 2, "rot": 4, "rot_alive": 4, "rot_late": 6, "rot_index": 4, "misdirected": 2}
