"""Have the snapshots of a volume come and go. Whoever holds it writes them into its logs, and hears of them
by itself; when nobody does, the logs are led here. What does not come in time is given up: for a set, writes
wait meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from moorage.metadata import records
from moorage.metadata.attachments import RECOVERY_GRACE_MS
from moorage.metadata.lease import describe_holder
from moorage.metadata.tasks.context import TaskContext
from moorage.metadata.tasks.lead import lead
from moorage.wire.errors import Busy, Fatal, MoorageError, NotLeader

log = logging.getLogger(__name__)

Volume = dict[str, Any]
Snapshot = dict[str, Any]

# Writes to the volumes of a set wait meanwhile: much longer, and programs would notice.
SET_S: Final = 2.5
ALONE_S: Final = 20.0  # who asked has given up long before: nothing is to come to be out of the blue
POLL_S: Final = 1.0  # between looks at a lease that may be over, and between tries to lead


class Snapshotting:
    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._trouble: dict[int, str] = {}  # why a volume that nobody holds cannot be led here

    async def work(self, volume_id: int) -> None:
        """Until all of the volume's snapshots are ready."""
        context, loop = self._context, asyncio.get_running_loop()
        since: dict[int, float] = {}  # when this leader saw it first
        leading: asyncio.Task[str] | None = None
        lead_at = 0.0
        try:
            while (volume := self._under_way(volume_id)) is not None:
                now = loop.time()
                creating = self._looked_after(volume)
                since = {entry["id"]: since.get(entry["id"], now) for entry in creating}
                left = {entry["id"]: since[entry["id"]] + _patience_s(entry) - now for entry in creating}
                if late := [entry for entry in creating if left[entry["id"]] <= 0]:
                    await self._give_up_late(volume, late)
                    continue
                if leading is not None and leading.done():
                    self._trouble[volume_id], leading = leading.result(), None
                    lead_at = now + POLL_S if self._trouble[volume_id] else now
                if leading is None and now >= lead_at and self._is_free(volume):
                    leading = asyncio.create_task(self._lead(volume), name=f"lead {volume['name']}")
                    leading.add_done_callback(lambda _: context.changes.wake(volume_id))
                await context.changes.next(volume_id, min([POLL_S, *left.values()]))
            if leading is not None:
                await leading  # it lets go
        finally:
            self._trouble.pop(volume_id, None)
            if leading is not None:  # also one that has just ended: somebody has to hear of it
                leading.cancel()
                await asyncio.gather(leading, return_exceptions=True)

    async def _give_up_late(self, volume: Volume, late: list[Snapshot]) -> None:
        try:
            for entry in late:
                await self.give_up(volume, entry)
        except (NotLeader, Fatal):
            raise
        except MoorageError as error:  # a proposal whose outcome is unknown: the state will tell
            log.info("volume %s: %s; looking again", volume["name"], error)
            await asyncio.sleep(self._context.retry_s)

    async def _lead(self, volume: Volume) -> str:
        log.info("volume %s: nobody holds it, its snapshots are written here", volume["name"])
        return await lead(self._context, volume, lambda: self._under_way(volume["id"]) is None)

    def _looked_after(self, volume: Volume) -> list[Snapshot]:
        """What is being created, and may have to be given up; of a set, that is up to its first volume."""
        kv = self._context.replicated.kv
        return [
            entry
            for entry in records.snapshots(volume)
            if entry["state"] == records.CREATING
            and (not entry["set"] or records.snapshot_set(kv, entry["set"])[0] == volume["id"])
        ]

    def _under_way(self, volume_id: int) -> Volume | None:
        volume = records.volume_by_id(self._context.replicated.kv, volume_id)
        return volume if volume is not None and records.snapshots_under_way(volume) else None

    def _is_free(self, volume: Volume) -> bool:
        """Whether metadata may take it: one whose holder did not detach may be held still."""
        holder, lapsed_ms = volume["holder"], self._context.lapsed_ms(volume)
        return lapsed_ms > 0 and (holder is None or holder["recovers"] or lapsed_ms >= RECOVERY_GRACE_MS)

    async def give_up(self, volume: Volume, entry: Snapshot) -> None:
        """It takes too long, or who asked for it waits no more."""
        kv = self._context.replicated.kv
        members = [
            (other, each)
            for number in (records.snapshot_set(kv, entry["set"]) or [volume["id"]])
            if (other := records.volume_by_id(kv, number)) is not None
            for each in records.snapshots(other)
            if each["id"] == entry["id"] or (entry["set"] and each["set"] == entry["set"])
        ]
        late = [other for other, each in members if entry["set"] and not each["put"]]
        late = late or [other for other, each in members if not each["lsns"]]
        why = "; ".join(map(self._why, late))
        text = f"snapshot {entry['name']!r} of volume {volume['name']!r} is given up, nothing is kept: {why}"
        log.warning("%s", text)
        self._context.directory.tell("snapshot given up", [volume["name"]], text)
        error = records.error_record(
            Busy(f"{text}; try again", volume=volume["name"], snapshot=entry["name"])
        )
        command = {"do": "abandon_snapshots", "volume": volume["id"], "ids": [entry["id"]], "error": error}
        await self._context.propose(command)

    def _why(self, volume: Volume) -> str:
        """It is not there in time."""
        name, holder = f"volume {volume['name']!r}", volume["holder"]
        if holder is None or self._is_free(volume):
            trouble = self._trouble.get(volume["id"]) or "its logs are being brought to an end first"
            return f"{name} is held by nobody, and was not led here in time: {trouble}"
        lapsed_s = self._context.lapsed_ms(volume) / 1000
        silent = f", which metadata has not heard of for {lapsed_s:.0f} s" if lapsed_s else ""
        return (
            f"{name} was not done in time by {describe_holder(holder)}{silent}: perhaps no majority of one "
            "of its groups answers there, or its program is too old for snapshots"
        )


def _patience_s(entry: Snapshot) -> float:
    return SET_S if entry["set"] else ALONE_S
