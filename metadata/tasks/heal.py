"""The leader's eye on the whole group, again and again: which replicas should move, and which volumes that
nobody holds are out of step (healing.py decides).

Owns the rounds and what the last one found to be blocked. It must never plan by a view that is old: what the
copy suggests is decided anew with one that is fetched for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from moorage.metadata import balance, healing, records
from moorage.metadata.scanning import ready_volumes
from moorage.metadata.tasks.context import TaskContext, wall_ms
from moorage.metadata.tasks.replace import settle
from moorage.wire.errors import MoorageError, NotLeader, StaleConfiguration

log = logging.getLogger(__name__)

ROUND_S = 1.0
CLEAR_S = 30.0  # a volume that was being created may have been placed by an older view
SURVEY_S = 10.0
SURVEY_SHARE = 20  # of its time at most one part in so many goes into surveys
ASK_AT_ONCE = 16  # devices
LAPSED_MS = 60_000  # a holder that has not detached may be well, and cut off from metadata only
SETTLE_AT_ONCE = 4  # volumes
SETTLE_PAUSE_MAX_S = 600.0


class Healer:
    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._flapping = healing.Flapping()
        self.blocked: list[healing.Blocked] = []  # as of the last round
        self.unevenness = ""  # as of the last survey, for people
        self._missing: set[int] = (
            set()
        )  # replicas that devices had lost, as of a survey; their ids stay unique
        self._clear: set[str] | None = None  # no volume has anything on these, nor is one changing
        self._clear_until = 0.0
        self._settling: set[asyncio.Task[None]] = set()
        self._patience: dict[int, tuple[float, float]] = {}  # volume -> not before, and the pause after that

    async def run(self) -> None:
        """Until leadership ends."""
        self._clear = None
        try:
            await self._go_on()
        finally:
            if self._settling:
                for task in self._settling:
                    task.cancel()
                await asyncio.wait(self._settling)

    async def _go_on(self) -> None:
        survey_at = 0.0
        while True:
            await asyncio.sleep(ROUND_S)
            try:
                await self._round()
                if (began := time.monotonic()) >= survey_at:
                    await self._survey()
                    took = time.monotonic() - began
                    survey_at = time.monotonic() + max(SURVEY_S, SURVEY_SHARE * took)
            except NotLeader:
                return
            except MoorageError as error:  # the registry or a majority is away: the next round will tell
                log.info("nothing is moved for now: %s", error)

    async def move(self, volume: dict[str, Any], device: str, to: str) -> healing.Decisions:
        """Begin to move what the volume has on a device; what could not be placed is in the answer."""
        context = self._context
        view = await context.directory.fetch_view()
        made = healing.move_off(view, volume, records.provisioned(context.replicated.kv), device, to)
        self._clear = None
        for move in made.moves:
            await self._begin(move)
        return made

    async def _round(self) -> None:
        context = self._context
        self._flapping.look(context.directory.view, int(time.monotonic() * 1000))
        going = set(healing.leaving(context.directory.view, context.repair_after_ms))
        if self._clear is not None and going <= self._clear and time.monotonic() < self._clear_until:
            return
        volumes = [volume async for volume in self._concerned(going)]
        if not volumes:
            self.blocked = []
            # Nothing is placed on them either: thousands of volumes need no look each second.
            self._clear, self._clear_until = going, time.monotonic() + CLEAR_S
            return
        self._clear = None
        view = await context.directory.fetch_view()
        kv = context.replicated.kv
        volumes = [found for each in volumes if (found := records.volume_by_id(kv, each["id"])) is not None]
        volumes = [volume for volume in volumes if volume["state"] == records.READY]
        made = healing.decide(
            view,
            volumes,
            records.provisioned(kv),
            self._flapping,
            context.repair_after_ms,
            self._missing,
        )
        for off in made.called_off:
            await self._call_off(off)
        for move in made.moves:
            await self._begin(move)
        self._tell_blocked(made.blocked)
        self.blocked = made.blocked

    def _tell_blocked(self, blocked: list[healing.Blocked]) -> None:
        known = {(each.volume, each.group, each.device) for each in self.blocked if each.text != healing.TURN}
        for each in blocked:
            if each.text != healing.TURN and (each.volume, each.group, each.device) not in known:
                where = f"{each.what}: its replica on {each.host}"
                text = f"{where} cannot move: {each.text}"
                self._context.directory.tell("move blocked", [each.name, each.host, each.device], text)

    async def _concerned(self, going: set[str]) -> AsyncIterator[dict[str, Any]]:
        """Volumes with a replica on a device to be left, or lost, or with a change under way."""
        async for volume in ready_volumes(self._context.replicated):
            leaves = not going.isdisjoint(records.devices(volume)) or self._has_missing(volume)
            if records.wishes(volume) or leaves:
                yield volume

    def _has_missing(self, volume: dict[str, Any]) -> bool:
        return bool(self._missing) and any(
            member["replica"] in self._missing for group in volume["groups"] for member in group["members"]
        )

    async def _survey(self) -> None:
        """Ask all devices that are up what they hold: volumes that nobody holds are led when they are out of
        step, what a device has lost is placed anew, and devices are evened out."""
        before = {volume["id"]: volume async for volume in ready_volumes(self._context.replicated)}
        if not before:
            self.unevenness = ""
            return
        view = self._context.directory.view
        told = await self._ask([device for device, row in view["devices"].items() if row["health"] == "up"])
        volumes = [volume async for volume in ready_volumes(self._context.replicated)]
        # Of those that have changed meanwhile the devices may have told something older.
        same = [volume for volume in volumes if volume == before.get(volume["id"])]
        self._lead_what_is_out_of_step(same, view, told)
        if found := healing.missing(same, told):
            self._missing, self._clear = found, None
        self.unevenness = await self._even_out(volumes, told)

    def _lead_what_is_out_of_step(
        self, volumes: list[dict[str, Any]], view: dict[str, Any], told: healing.Told
    ) -> None:
        """A member that was away while the last holder wrote would lack it until somebody holds the volume
        again."""
        for volume in volumes:
            stays = volume["epoch"] and not records.wishes(volume)
            if not stays or self._context.lapsed_ms(volume) < LAPSED_MS:
                continue
            if why := healing.out_of_step(volume, view, told):
                self._settle(volume, why)
            else:
                self._patience.pop(volume["id"], None)

    async def _ask(self, devices: list[str]) -> healing.Told:
        """By device and replica; without the devices that do not answer."""
        slots = asyncio.Semaphore(ASK_AT_ONCE)
        told: dict[str, dict[int, dict[str, Any]]] = {}

        async def ask(device: str) -> None:
            try:
                async with slots:
                    rows = await self._context.orders.list_replicas(device, self._context.order_timeout_s)
                    told[device] = {row["replica"]: row for row in rows}
            except MoorageError as error:
                log.debug("device %s: %s", device, error)

        await asyncio.gather(*map(ask, devices))
        return told

    async def _even_out(self, volumes: list[dict[str, Any]], told: healing.Told) -> str:
        """Fill devices alike, when nothing is at risk; what is done, or is in the way, for people."""
        context = self._context
        if not balance.is_uneven(context.directory.view):
            return ""
        view = await context.directory.fetch_view()
        if who := healing.paused_by(view):
            return f"paused by {who}"
        going = healing.leaving(view, context.repair_after_ms).keys()
        if not all(going.isdisjoint(records.devices(volume)) for volume in volumes):
            return "what is at risk, or on a device to be left, goes first"
        made = balance.decide(view, volumes, told)
        for move in made.moves:
            self._clear = None
            await self._begin(move)
        return made.text

    def _settle(self, volume: dict[str, Any], why: str) -> None:
        """Each time that it did not help it is tried later: a member may be full."""
        now, (not_before, pause_s) = time.monotonic(), self._patience.get(volume["id"], (0.0, SURVEY_S))
        if now < not_before or len(self._settling) >= SETTLE_AT_ONCE:
            return
        self._patience[volume["id"]] = (now + pause_s, min(2 * pause_s, SETTLE_PAUSE_MAX_S))
        task = asyncio.create_task(settle(self._context, volume, why), name=f"settle {volume['name']}")
        self._settling.add(task)
        task.add_done_callback(self._settled)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.log(logging.DEBUG if isinstance(error, NotLeader) else logging.ERROR, "%s: %r", task, error)

    async def _begin(self, move: healing.Move) -> None:
        command = {
            "do": "plan_replacement",
            "volume": move.volume,
            "group": move.group,
            "version": move.version,
            "old": move.old,
            "device": move.where.device,
            "host": move.where.host,
            "why": move.why,
            "now_ms": wall_ms(),
        }
        if not await self._changed(command):
            return
        where = f"{move.what}: a replica moves from {move.off} to {move.where.host}"
        text = f"{where}: {move.text}"
        log.info("%s", text)
        self._context.directory.tell("move", [move.name, move.off, move.where.host], text)

    async def _call_off(self, off: healing.CallOff) -> None:
        command = {
            "do": "cancel_replacement",
            "volume": off.volume,
            "group": off.group,
            "replica": off.replica,
        }
        if not await self._changed(command):
            return
        text = f"{off.what}: a move is called off: {off.text}"
        log.info("%s", text)
        self._context.directory.tell("move called off", [off.name], text)

    async def _changed(self, command: dict[str, Any]) -> bool:
        """False: the group is another one meanwhile, and the next round sees it."""
        try:
            await self._context.propose(command)
        except StaleConfiguration:
            return False
        return True
