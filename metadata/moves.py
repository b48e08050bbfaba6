"""What operators ask about replicas that move, and of one volume that they do.

Owns the calls ``metadata.moves``, ``metadata.check_departure`` and ``metadata.move_replica``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from moorage.metadata import healing, limits, records
from moorage.metadata.attachments import Attachments
from moorage.metadata.directory import Directory
from moorage.metadata.params import check_known, flag_of, remaining_s
from moorage.metadata.scanning import ready_volumes
from moorage.metadata.tasks.runner import TaskRunner
from moorage.service.replicated import Replicated
from moorage.wire.errors import Invalid, NotEnoughHosts, NotFound
from moorage.wire.rpc import CallContext

Params = dict[str, Any]
Reply = dict[str, Any]

ROWS_MAX: Final = 200  # of a list in a reply; the counts are of all
DEVICES_ASKED_MAX: Final = 1024


class Moves:
    def __init__(
        self, replicated: Replicated, directory: Directory, runner: TaskRunner, attachments: Attachments
    ) -> None:
        self._replicated = replicated
        self._directory = directory
        self._runner = runner
        self._attachments = attachments

    async def moves(self, context: CallContext | None, params: Params) -> Reply:
        """``devices``: ids, whose replicas are counted in ``left``, with those that are to be dropped yet."""
        check_known(params, "devices")
        devices = _devices_of(params)
        await self._replicated.read_barrier(remaining_s(context))
        left = dict.fromkeys(sorted(devices), 0)
        under_way: list[Reply] = []
        async for volume in ready_volumes(self._replicated):
            for group in volume["groups"]:
                for member in group["members"]:
                    if member["device"] in devices:
                        left[member["device"]] += 1
                if group["wish"] is not None:
                    under_way.append(self._row(volume, group))
        for _, drop in self._replicated.kv.scan(records.DROPS):
            if drop["device"] in devices:
                left[drop["device"]] += 1
        blocked = self._runner.healer.blocked
        return {
            "left": left,
            "moves": under_way[:ROWS_MAX],
            "blocked": [asdict(each) for each in blocked[:ROWS_MAX]],
            "unevenness": self._runner.healer.unevenness,
            "repair_after_ms": self._runner.repair_after_ms,
            "moves_count": len(under_way),
            "blocked_count": len(blocked),
        }

    def _row(self, volume: Params, group: Params) -> Reply:
        wish, holder = group["wish"], volume["holder"]
        (old,) = (member for member in group["members"] if member["replica"] == wish["replaces"])
        led_by = None
        if holder is not None and self._attachments.is_alive(volume):
            led_by = {"host": holder["host"], "program": holder["program"]}
        return {
            "volume": volume["name"],
            "group": group["group"],
            "from": old,
            "to": {key: wish[key] for key in ("replica", "device", "host")},
            "why": wish.get("why", ""),
            "since_ms": wish.get("since_ms", 0),
            "led_by": led_by,
        }

    async def move_replica(self, context: CallContext | None, params: Params) -> Reply:
        """What volume ``name`` has on ``device`` is to be elsewhere: on device ``to``, or where placement
        says. May be repeated. Raises NotEnoughHosts or so when nothing of it can be placed."""
        check_known(params, "name", "device", "to")
        name = limits.check_name(params.get("name"))
        (device,), to = _devices_of({"devices": [params.get("device")]}), params.get("to", "")
        if not isinstance(to, str):
            raise Invalid("to: give the id of a device")
        await self._replicated.read_barrier(remaining_s(context))
        volume = records.volume_by_name(self._replicated.kv, name)
        records.check_ready(volume)
        under_way = [
            group
            for group in records.wishes(volume)
            for member in group["members"]
            if (member["replica"], member["device"]) == (group["wish"]["replaces"], device)
        ]
        if not under_way and device not in records.devices(volume):
            raise NotFound(f"volume {name!r} has no replica on device {device}")
        made = await self._runner.healer.move(volume, device, to)
        if made.blocked and not made.moves:
            raise NotEnoughHosts(f"volume {name!r} cannot leave device {device}: {made.blocked[0].text}")
        return {
            "moves": len(made.moves) + len(under_way),
            "blocked": [asdict(each) for each in made.blocked],
        }

    async def check_departure(self, context: CallContext | None, params: Params) -> Reply:
        """What speaks against leaving ``devices``. ``at_once``: they are gone, and not copied from."""
        check_known(params, "devices", "at_once")
        devices, at_once = _devices_of(params), flag_of(params, "at_once")
        await self._replicated.read_barrier(remaining_s(context))
        view = await self._directory.fetch_view(remaining_s(context))
        concerned = [
            volume
            async for volume in ready_volumes(self._replicated)
            if not devices.isdisjoint(records.devices(volume))
        ]
        found = healing.check_departure(view, concerned, devices, at_once=at_once)
        return {
            "volumes": len(concerned),
            "blocked": [asdict(each) for each in found[:ROWS_MAX]],
            "blocked_count": len(found),
        }


def _devices_of(params: Params) -> set[str]:
    devices = params.get("devices", [])
    if not isinstance(devices, list | tuple) or not all(isinstance(each, str) for each in devices):
        raise Invalid("devices: give a list of device ids")
    if len(devices) > DEVICES_ASKED_MAX:
        raise Invalid(f"devices: give at most {DEVICES_ASKED_MAX}")
    return set(devices)
