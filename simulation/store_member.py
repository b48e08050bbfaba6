"""A member on a simulated store: the real core, its effects handed on as the node's shell does, and who talks
to it: a writer that knows the truth, and a source of copies.

Owns the order "effects to the store, then answers", and tells the model each thing that was acknowledged.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from moorage.node.replica import Replica
from moorage.node.segment import Run, RunKind
from moorage.node.store import Store
from moorage.quorum import choice
from moorage.quorum.lease import GrantedLease
from moorage.quorum.member import FLUSH, GAP, OK, WHOLE, Member
from moorage.quorum.orders import Append, Apply, Note, Pull, Sync
from moorage.quorum.record import HEAD_SIZE, ZERO_POSITION, Kind, Record, block_sum
from moorage.simulation.store_model import Key, Model, Wrong, contents, keys
from moorage.wire.errors import DeviceFailed, MoorageError, Stale

if TYPE_CHECKING:
    from moorage.simulation.store_history import StoreHistory

ROOM = 64 << 10
BATCH_KEYS = 7
WINDOW = 10  # records


class Shell:
    def __init__(
        self,
        history: StoreHistory,
        store: Store,
        model: Model,
        replica: Replica,
        *,
        created: bool = False,
    ) -> None:
        self.history = history
        self.rng = history.rng
        self.store = store
        self.model = model
        self.replica = replica
        self.core = Member(
            replica.state.clone(),
            sync=model.info.durability == "sync",
            now_ms=0,
            tail_from=lambda: replica.tail_from,
            restarted=not created,
            lease_ms=0,
        )
        replica.on_persisted = self.persisted
        self.session = 0
        self.next = 0  # LSN to be sent next; 0: not sealed
        self.over = False  # the member has refused something: its writer has to seal anew
        self.fresh = False  # it has answered that it is damaged, and was not ordered a fresh copy since
        self._pull: asyncio.Task[None] | None = None
        self._cursor = 0
        self._accounted = 0
        self.gone = False  # it is being dropped: from the order on it does nothing any more

    def stop(self) -> None:
        if self._pull is not None:
            self._pull.cancel()
        self._account(0)

    def drop(self) -> None:
        self.gone = True
        self.stop()

    def note(self, what: str) -> None:
        self.history.loop.note(f"replica {self.model.identity}: {what}")

    def status(self) -> str:
        core, model = self.core, self.model
        room = f"room {core.room} of {self.store.room()}, {self.store.free_slots} segments free"
        where = (
            f"{room}, epoch {core.state.epoch} of {model.epoch}, last {core.state.last} of {len(model.log)}"
        )
        commit = f"commit {core.state.commit} of {model.committed}"
        return f"{model.identity}: {where}, {commit}, copy {core.state.copy}"

    def damage(self, what: str) -> None:
        self.core.damage(what)
        self.drain()

    # -- effects and answers -----------------------------------------------------------------------------

    def drain(self) -> None:
        store, replica = self.store, self.replica
        if store.failed is not None:
            return
        for effect in self.core.take_effects():
            match effect:
                case Append():
                    store.append(replica, effect.records, effect.ticket)
                case Apply():
                    store.apply(replica, effect.lsn)
                case Note():
                    store.note(replica, effect.state, effect.ticket)
                case Sync():
                    store.sync(replica, effect.ticket)
                case Pull():
                    self._begin_pull(effect)

    def persisted(self, ticket: int) -> None:
        if not self.gone:
            self.core.persisted(ticket)
            self.drain()
            self.answer()

    def answer(self) -> None:
        model, group = self.model, self.history.told(self.store)
        found = self.core.take_seal_answer(0)
        if found is not None:
            session, answer = found
            self.note(f"answers {answer}")
            model.promised.tell(group, answer.epoch)
            if not answer.damaged and answer.vote < model.vote.sure(None):
                raise Wrong(
                    f"{model.identity}: a SEAL is answered {answer.vote}, below {model.vote.sure(None)}"
                )
            if session == self.session and answer.epoch == model.epoch:
                self.fresh = answer.damaged
                if not answer.damaged:
                    self.next = 1 + choice.matches_up_to(model.history, len(model.log), answer)
        ack = self.core.take_ack()
        if ack is not None:
            _, _, durable, _, _, flags = ack
            self.note(f"acknowledges {ack} of epoch {self.core.state.epoch}")
            if self.core.state.epoch == model.epoch and durable > model.acked.sure(None):
                model.acked.tell(group, durable)
                if flags & WHOLE:
                    model.vote.tell(group, max(model.vote.sure(None), model.position(durable)))
            if flags & WHOLE:
                model.whole.tell(group, True)
                model.suspect = False
        self.core.validate()

    # -- the writer ------------------------------------------------------------------------------------------

    def seal(self, new: bool) -> None:
        model, core = self.model, self.core
        if new or not model.epoch:
            model.new_epoch(self.rng)
        self.session += 1
        self.next = 0
        self.over = False
        model.sealed_epoch = model.epoch
        if core.seal(self.session, model.epoch, model.epoch, 0, GrantedLease(0)):
            self._account(0)
            self._grant()
            self.drain()
            self.answer()

    def write(self) -> None:
        """Unless its window is full: what is sent again is not charged, and must fit into the reserve."""
        model, core = self.model, self.core
        if core.state.epoch == model.epoch > 0 and len(model.log) - core.state.commit < WINDOW:
            self.model.write(self.history.writing.record(self.model))

    def send(self, most: int = 6) -> None:
        model, core, rng = self.model, self.core, self.rng
        if not self.next or core.state.epoch != model.epoch:
            return
        if rng.random() < 0.1:  # some again
            self.next = max(min(self.next, core.state.commit + 1), self.next - rng.randint(1, 3))
        self._grant()
        records = self._fitting(model.log[self.next - 1 : self.next - 1 + most])
        before = model.position(self.next - 1)
        flags = FLUSH if rng.random() < 0.3 else 0
        code = core.append(
            model.epoch, model.epoch, self.session, *before, model.committed, flags, list(records)
        )
        if code == OK:
            self.next += len(records)
            model.told_commit = max(model.told_commit, model.committed)
        elif code == GAP:
            self.next = core.matched + 1
        else:
            self.note(f"refuses: {code}")
            self.next = 0
            self.over = True
        self.drain()
        self.answer()

    def _fitting(self, records: list[Record]) -> list[Record]:
        """As many of them as there is room for: a writer keeps within what it was granted."""
        room = self.core.room
        for at, record in enumerate(records):
            if record.kind == Kind.WRITE and record.epoch == self.model.epoch:
                room -= HEAD_SIZE + len(record.sums) + len(record.data)
            if room < 0:
                return records[:at]
        return records

    def commit(self) -> None:
        """Others have it as well: more is committed, and this member hears of it now or later."""
        model = self.model
        model.commit(self.rng.randint(model.committed, len(model.log)))
        if self.rng.random() < 0.7:
            self.send(0)

    def _grant(self) -> None:
        core, store = self.core, self.store
        held = core.room
        core.grant(max(held, min(ROOM, held + store.room())), False)
        self._account(core.room)

    def _account(self, room: int) -> None:
        self.store.granted += room - self._accounted
        self._accounted = room

    # -- copies ------------------------------------------------------------

    def order_copy(self, fresh: bool) -> None:
        """``fresh``: also where it need not be, as of one that has forked."""
        model, core, state = self.model, self.core, self.core.state
        fresh = fresh or self.fresh
        if not core._answered or core._seal is not None or state.epoch != model.epoch:
            return
        first = 1 if fresh else state.commit + 1
        goes_on = (
            state.copy is not None and not fresh and (first > model.committed or self.rng.random() < 0.5)
        )
        if state.copy is not None and goes_on:  # perhaps with another source
            base = state.copy.base
        elif first > model.committed:
            return
        else:
            base = model.position(self.rng.randint(first, model.committed))
        history = [entry for entry in model.history if entry[1] <= base.lsn]
        floor = model.position(len(model.log)) if fresh else ZERO_POSITION
        self.session += 1
        self.note(f"copies behind {base}, fresh {fresh}, floor {floor}")
        try:
            core.copy(self.session, model.epoch, model.epoch, "", base, fresh, history, floor)
        except Stale as error:
            self.note(f"refuses: {error}")
            self.session -= 1
            self.over = True
            return
        self.fresh = False
        if state.copy is not None and not core.whole:
            model.acked.begin(0)
            model.whole.begin(False)
        model.told_commit = max(model.told_commit, base.lsn)
        self._account(0)
        self.next = core.matched + 1
        self.drain()

    def _begin_pull(self, pull: Pull) -> None:
        if self._pull is not None:
            self._pull.cancel()
        if not pull.resume:
            self._cursor = 0
        self._pull = asyncio.get_running_loop().create_task(self._pull_all(pull), name="pull")

    async def _pull_all(self, pull: Pull) -> None:
        """The source shows what is committed, a bit more with each piece."""
        model, core, rng = self.model, self.core, self.rng
        applied = rng.randint(pull.base.lsn, model.committed)
        while self._cursor < len(keys()):
            await asyncio.sleep(rng.choice((0, 1e-4, 1e-3)))
            applied = rng.randint(applied, model.committed)
            batch = keys()[self._cursor : self._cursor + BATCH_KEYS]
            runs, data = self._runs(batch, pull.above, applied)
            if not core.pulled(pull.number, model.position(applied)):
                return
            self.drain()
            if not await self._merge(runs, data):
                return
            self._cursor += len(batch)
        core.copied(pull.number)
        self.drain()

    async def _merge(self, runs: list[Run], data: list[bytes]) -> bool:
        """In pieces that fit into a segment."""
        for at in range(0, len(runs), BATCH_KEYS):
            piece = runs[at : at + BATCH_KEYS]
            size = sum(run.kind == RunKind.DATA for run in piece)
            if not await self._merge_piece(piece, data[:size]):
                return False
            data = data[size:]
        return True

    async def _merge_piece(self, runs: list[Run], data: list[bytes]) -> bool:
        done: asyncio.Future[MoorageError | None] = asyncio.get_running_loop().create_future()

        def logged(error: MoorageError | None) -> None:
            if not done.done():
                done.set_result(error)

        try:
            self.store.merge(self.replica, runs, list(data), logged)
        except DeviceFailed:
            return False
        return await done is None

    def _runs(self, batch: list[Key], above: int, applied: int) -> tuple[list[Run], list[bytes]]:
        told, snapshots = self.model.snapshots(applied)
        runs = [Run(RunKind.SNAPSHOTS, told, 0, tuple(snapshots), ())]
        data: list[bytes] = []
        for key in batch:
            shown = self.model.shown(key, applied)
            self.rng.shuffle(shown)
            for lsn, number in shown:
                if lsn <= above:
                    continue
                if number:
                    data.append(contents(number))
                    runs.append(Run(RunKind.DATA, *key, (lsn,), (block_sum(data[-1]),)))
                elif self._whole_chunk(lsn):
                    runs.append(Run(RunKind.CHUNKS, key[0], 1, (lsn,), ()))
                else:
                    runs.append(Run(RunKind.ZERO, *key, (lsn,), ()))
        return runs, data

    def _whole_chunk(self, lsn: int) -> bool:
        return self.model.log[lsn - 1].kind == Kind.ZERO_CHUNKS

    # -- the end ------------------------------------------------------------

    def bring_up(self) -> bool:
        """One more step to where it has all, when nothing goes wrong any more; whether it is there."""
        model, core = self.model, self.core
        if core.state.epoch != model.epoch or not core._answered or self.over:
            if core._seal is None:
                self.seal(new=True)
            return False
        model.commit(len(model.log))
        if self.fresh or self._stuck() or self._blocked():
            self.order_copy(fresh=False)
        if not self.next:
            self.next = core.matched + 1
        self.send(4)
        everything = len(model.log)
        return bool(core.whole) and self.replica.state.commit == everything == model.acked.sure(None)

    def _stuck(self) -> bool:
        """A copy that nobody pulls."""
        copy = self.core.state.copy
        return copy is not None and not copy.copied and (self._pull is None or self._pull.done())

    def _blocked(self) -> bool:
        """What comes next has no room, since others sit on it: a copy, which is not charged, skips it."""
        core, copy = self.core, self.core.state.copy
        rest = self.model.log[core.matched : core.matched + 1]
        return bool(rest) and (copy is None or copy.copied) and not self._fitting(rest)
