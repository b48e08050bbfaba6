"""What metadata wishes of a volume's snapshots, carried out by who leads its logs.

Owns the watch on metadata, and the records that say which snapshots there are. Each lists *all* snapshots of
its group, so that it may be written again by whoever comes next; a new one is of the time of its record. The
records of all groups are put in one turn of the event loop, without a write in between: what was acknowledged
before is in all of them, what is asked for later in none.

A *set* is of several volumes, which others may hold. Nothing is acknowledged from this volume's records on,
before all of them have theirs: else a program could see an acknowledgement here, which the snapshot lacks,
and then write there what the snapshot has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moorage.wire.errors import Fenced, MoorageError, NotFound

if TYPE_CHECKING:
    from moorage.client.session import GroupSession, Shared

log = logging.getLogger(__name__)

CREATING, READY, DELETING = "creating", "ready", "deleting"
WATCH_S = 20.0
ASK_S = 5.0
RETRY_S = 0.2
NOT_YET_S = 0.01  # a group is issuing again what a former epoch had acknowledged
LOOK_S = 1.0  # at whether the epoch goes on
HOLD_S = 2.0

Snapshot = dict[str, Any]  # as metadata describes it


class SnapshotKeeper:
    """Of one epoch of an attachment. ``volume``: as metadata described it with the attach."""

    def __init__(self, shared: Shared, sessions: Sequence[GroupSession], volume: dict[str, Any]) -> None:
        self._shared = shared
        self._sessions = sessions
        self._epoch, self._writer = shared.epoch, shared.writer
        self._listed: list[Snapshot] = volume.get("snapshots", [])
        self._version: int = volume.get("snapshots_version", 0)
        self._sets: dict[int, bool] = {}
        self._put: dict[int, list[int]] = {}  # by id: LSNs of those that are in the logs, in each group
        self._late: set[int] = set()  # of these, those that must not come to be
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Until the epoch is over."""
        while self._current:
            try:
                if any(each["state"] != READY for each in self._listed):
                    await self._carry_out()
                await self._watch()
            except Fenced as error:
                if self._current:
                    self._shared.suspect(error)
                return
            except NotFound as error:  # a metadata service of an older version does not serve the method
                log.debug("volume %s: %s", self._shared.name, error)
                await asyncio.sleep(WATCH_S)
            except MoorageError as error:
                log.info("volume %s: metadata does not answer about snapshots: %s", self._shared.name, error)
                await asyncio.sleep(RETRY_S)
            except (KeyError, TypeError, ValueError, IndexError) as nonsense:
                text = "volume %s: metadata answered what cannot be understood about snapshots: %r"
                log.warning(text, self._shared.name, nonsense)
                await asyncio.sleep(WATCH_S)

    @property
    def _current(self) -> bool:
        return self._shared.epoch == self._epoch and all(each.failed is None for each in self._sessions)

    async def _ask(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        about = {"volume": self._shared.volume, "epoch": self._epoch, "writer": self._writer}
        return await self._shared.ask(method, about | params, timeout)

    def renewed(self, version: int) -> None:
        """A renewal of the lease says which version of its snapshots metadata has."""
        if version != self._version:
            self._moved.set()

    async def _watch(self) -> None:
        """Until there is something else, or for a while. A connection carries so many calls at once, so that
        of many volumes some hear of it with the next renewal."""
        slots = self._shared.pool.watches
        if slots.locked():
            self._moved.clear()
            await self._moved.wait()
            await self._look(0.0)
        else:
            async with slots:
                await self._look(WATCH_S)

    async def _look(self, wait_s: float) -> None:
        params = {"seen": self._version, "wait_ms": int(1000 * wait_s)}
        answer = await self._ask("metadata.watch", params, wait_s + ASK_S)
        self._version, self._listed = answer["version"], answer["snapshots"]
        self._sets = {int(number): bool(put) for number, put in answer["sets"].items()}

    async def _carry_out(self) -> None:
        """Once: what is wished for later is heard of later."""
        # One of a set that a former epoch has put is not taken again: the others' are of that time.
        creating = [
            each
            for each in self._listed
            if each["state"] == CREATING and not (each["put"] and each["id"] not in self._put)
        ]
        deleting = [each["id"] for each in self._listed if each["state"] == DELETING]
        if not creating and not deleting:
            return
        fresh = [each for each in creating if each["id"] not in self._put]
        in_set = {each["id"]: each["set"] for each in fresh if each["set"]}
        lsns, done = await self._write_lists(bool(fresh))
        held = [session.hold() if in_set else 0 for session in self._sessions]  # in the same turn
        self._put |= {each["id"]: lsns for each in fresh}
        if in_set:
            await self._wait_for_others(in_set, done, held)
        await self._committed(done)
        ours = [each["id"] for each in creating if each["id"] not in self._late]
        params = {"created": [[each, self._put[each]] for each in ours], "deleted": deleting}
        await self._ask("metadata.snapshots_done", params, ASK_S)

    async def _write_lists(self, new: bool) -> tuple[list[int], list[asyncio.Future[None]]]:
        """The LSN of each group's record, and what tells that it is committed, and durable."""
        while True:
            done = [asyncio.get_running_loop().create_future() for _ in self._sessions]
            if lsns := self._put_all(new, done):
                return lsns, done
            await asyncio.sleep(NOT_YET_S)
            if not self._current:
                raise Fenced(f"epoch {self._epoch} is over")

    async def _committed(self, done: list[asyncio.Future[None]]) -> None:
        """Of an epoch that is over nobody tells."""
        while (await asyncio.wait(done, timeout=LOOK_S))[1]:
            if not self._current:
                raise Fenced(f"epoch {self._epoch} is over")

    def _put_all(self, new: bool, done: list[asyncio.Future[None]]) -> list[int]:
        """In one step; empty when a group could not take its record: then all are put again."""
        lsns = []
        for session, future in zip(self._sessions, done, strict=True):
            known = {each[session.index] for each in (*self._reported(), *self._waiting())}
            lsn = session.set_snapshots(sorted(known), new, _settle(future))
            if not lsn:
                return []
            lsns.append(lsn)
        return lsns

    def _reported(self) -> list[list[int]]:
        """LSNs of those of which metadata knows them; of a set, one may wait for the others there."""
        return [each["lsns"] for each in self._listed if each["lsns"] and each["state"] != DELETING]

    def _waiting(self) -> list[list[int]]:
        """LSNs of those that are in the logs, and may have yet to be reported."""
        creating = [each["id"] for each in self._listed if each["state"] == CREATING]
        return [self._put[each] for each in creating if each in self._put]

    async def _wait_for_others(
        self, in_set: dict[int, int], done: list[asyncio.Future[None]], held: list[int]
    ) -> None:
        """Hold acknowledgements back until all volumes of the sets have their records (``in_set``: of each of
        ours, which set), but not for long. If it took too long, or metadata could not be asked, or another
        epoch has begun, they are none of ours any more, and metadata gives them up: what is acknowledged from
        now on may be in some of them and not in others."""
        self._late |= in_set.keys()
        wanted = set(in_set.values())
        try:
            async with asyncio.timeout(HOLD_S):
                await asyncio.wait(done)
                await self._ask("metadata.snapshots_put", {"ids": sorted(in_set)}, ASK_S)
                while not all(self._sets.get(number, False) for number in wanted & self._open_sets()):
                    await self._look(HOLD_S)
            if all(session.holds(number) for session, number in zip(self._sessions, held, strict=True)):
                self._late -= in_set.keys()
        except TimeoutError:
            log.warning("volume %s: a set of snapshots was not made in time", self._shared.name)
        finally:
            for session, number in zip(self._sessions, held, strict=True):
                session.release_held(number)

    def _open_sets(self) -> set[int]:
        return {each["set"] for each in self._listed if each["state"] == CREATING}


def _settle(future: asyncio.Future[None]) -> Any:
    def done(error: BaseException | None) -> None:
        if not future.done():
            future.set_result(None) if error is None else future.set_exception(error)

    return done
