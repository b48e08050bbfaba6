"""The owner of all tasks, only while this member leads: for each volume with work one that sees to its life
(creating, dropping), one for changes of its members, and one for its snapshots, since what is to be dropped
may be away for long.

Invariant: what a task works on is read from the committed state after a read barrier of this leadership, so a
decision that is acted on is one that no later leader can miss.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from functools import partial

from moorage.metadata import records
from moorage.metadata.objects.writers import Writers
from moorage.metadata.tasks.context import TaskContext
from moorage.metadata.tasks.create import create
from moorage.metadata.tasks.drop import drop
from moorage.metadata.tasks.heal import Healer
from moorage.metadata.tasks.objects import ObjectKeeper
from moorage.metadata.tasks.replace import replace
from moorage.metadata.tasks.snapshot import Snapshotting
from moorage.wire.errors import DeadlineExceeded, Fatal, MoorageError, NotLeader

log = logging.getLogger(__name__)


class TaskRunner:
    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._leading = False
        self._resume: asyncio.Task[None] | None = None
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}  # by kind and volume
        self._again: set[tuple[str, int]] = set()  # tasks that may be past what they were to look at
        self.healer = Healer(context)
        self.writers = Writers()
        self.objects = ObjectKeeper(context, self.writers)
        self.snapshots = Snapshotting(context)
        self._kinds: dict[str, Callable[[int], Coroutine[None, None, None]]] = {
            "life": self._see_to,
            "members": self._replace,
            "snapshots": self.snapshots.work,
        }
        self._ending: set[asyncio.Task[None]] = set()  # cancelled, not ended yet

    def lead(self) -> None:
        """Leadership begins: take up what the former leaders left."""
        self._leading = True
        self._context.term = self._context.replicated.term
        self._resume = asyncio.create_task(self._resume_all(), name="metadata-resume")
        self._resume.add_done_callback(_log_end)

    def follow(self) -> None:
        """Leadership ends: so does everything that was under way."""
        self._leading = False
        self._ending.update(self._tasks.values())
        self._tasks.clear()  # at once: the next leadership, maybe ours, begins its own
        self._again.clear()
        if self._resume is not None:
            self._ending.add(self._resume)
            self._resume = None
        for task in self._ending:
            task.cancel()
            task.add_done_callback(self._ending.discard)
        self._context.changes.wake_all()

    async def stop(self) -> None:
        self.follow()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def start_volume(self, volume_id: int) -> None:
        """See to this volume now, or once more when that is being done already."""
        for kind in self._kinds:
            self._start(kind, volume_id)

    def _start(self, kind: str, volume_id: int) -> None:
        if not self._leading:
            return
        if (kind, volume_id) in self._tasks:
            self._again.add((kind, volume_id))
            return
        task = asyncio.create_task(self._kinds[kind](volume_id), name=f"metadata-{kind}-{volume_id:x}")
        self._tasks[kind, volume_id] = task
        task.add_done_callback(partial(self._done, kind, volume_id))

    def volume_changed(self, volume_id: int) -> None:
        """A command that was applied here changed it, whoever leads."""
        self._context.changes.wake(volume_id)

    async def wait_until(self, volume: int, reached: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait for a volume to come somewhere; NotLeader when leadership ends before."""
        now = asyncio.get_running_loop().time
        end = now() + timeout
        while not reached():
            if not self._leading:
                raise NotLeader("leadership ended meanwhile", leader=self._context.replicated.leader)
            if (left := end - now()) <= 0:
                raise DeadlineExceeded(
                    f"{what} takes longer than {timeout:.1f} s; it goes on in the background"
                )
            await self._context.changes.next(volume, left)

    @property
    def repair_after_ms(self) -> int:
        """How long a device may be down before its replicas are placed anew."""
        return self._context.repair_after_ms

    @property
    def count(self) -> int:
        return len(self._tasks)

    async def _resume_all(self) -> None:
        while True:
            try:
                await self._context.replicated.read_barrier()
                if records.group(self._context.replicated.kv) is None:
                    await self._context.replicated.propose({"do": "found", "uid": secrets.token_hex(16)})
                break
            except NotLeader:
                return  # `follow` comes next
            except MoorageError as error:
                log.info("tasks wait for a majority of the metadata group: %s", error)
                await asyncio.sleep(self._context.retry_s)
        kv = self._context.replicated.kv
        dropping = {int(key.split("/")[1], 16) for key, _ in kv.scan(records.DROPS)}
        for volume in list(records.volumes(kv)):
            changes = records.wishes(volume) or records.snapshots_under_way(volume)
            if volume["state"] != records.READY or volume["id"] in dropping or changes:
                self.start_volume(volume["id"])
        async with asyncio.TaskGroup() as group:
            group.create_task(self.healer.run())
            group.create_task(self.objects.run())

    async def _replace(self, volume_id: int) -> None:
        volume = records.volume_by_id(self._context.replicated.kv, volume_id)
        if volume is not None and records.kind_of(volume) == records.BUCKET:
            await self.objects.replace(volume_id)
        else:
            await replace(self._context, volume_id)

    async def _see_to(self, volume_id: int) -> None:
        """One volume's work, step after step, until the state asks for no more."""
        kv = self._context.replicated.kv
        while (volume := records.volume_by_id(kv, volume_id)) is not None:
            try:
                if volume["state"] == records.CREATING:
                    await create(self._context, volume)
                elif volume["state"] == records.DELETING or records.drops(kv, volume_id):
                    await drop(self._context, volume_id)
                else:
                    return
            except (NotLeader, Fatal):
                raise
            except MoorageError as error:  # a proposal whose outcome is unknown: the state will tell
                log.info("volume %x: %s; looking again", volume_id, error)
                await asyncio.sleep(self._context.retry_s)

    def _done(self, kind: str, volume_id: int, task: asyncio.Task[None]) -> None:
        again = False
        if self._tasks.get((kind, volume_id)) is task:  # else: of a leadership that is over
            del self._tasks[kind, volume_id]
            again = (kind, volume_id) in self._again
            self._again.discard((kind, volume_id))
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, NotLeader):
            log.error("volume %x: its task ended, the next leader takes it up", volume_id, exc_info=error)
        elif again:
            self._start(kind, volume_id)


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("what metadata's leader does by itself ended, the next leader takes it up", exc_info=error)
