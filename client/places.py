"""Hosts and devices as an operator moves them: empty one, give one up, see what is under way.

Owns the questions to all metadata groups, and the refusals that need their answers. Nothing here moves a
replica: the registry notes the wish, and the leaders of the metadata groups act on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moorage.wire.errors import Invalid, NotEnoughHosts, NotFound

Kind = Literal["host", "device"]
AskRegistry = Callable[[str, dict[str, Any]], Awaitable[Any]]
AskGroups = Callable[[str, dict[str, Any]], Awaitable[list[Any]]]

NAMED_MAX = 3  # of the volumes and buckets that speak against something


@dataclass(frozen=True)
class Moves:
    """``left``: replicas on each device that was asked about. ``moves``: changes under way, each ``{volume,
    group, from, to, why, since_ms, led_by}``. ``blocked``: replicas that should move and cannot for now,
    each ``{name, kind, group, host, device, text}``. The lists may be cut; the counts are of all.
    ``repair_after_ms``: how long a device may be down before its replicas are placed anew. ``unevenness``:
    what is done, or is in the way, where devices are not filled alike; empty when they are."""

    left: dict[str, int]
    moves: list[dict[str, Any]]
    blocked: list[dict[str, Any]]
    moves_count: int
    blocked_count: int
    repair_after_ms: int
    unevenness: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Places:
    """``by``: who asks, for others to read."""

    def __init__(self, registry: AskRegistry, groups: AskGroups, by: str) -> None:
        self._registry = registry
        self._groups = groups
        self._by = by

    async def devices(self, kind: Kind, name: str) -> list[str]:
        """The devices of a host (by name), or the one. NotFound."""
        view = await self._registry("registry.view", {})
        if name not in view[f"{kind}s"]:
            known = ", ".join(sorted(view[f"{kind}s"])[:10])
            raise NotFound(f"there is no {kind} {name!r}: there are {known or 'none'}", name=name)
        if kind == "device":
            return [name]
        return sorted(device for device, row in view["devices"].items() if row["host"] == name)

    async def drain(self, kind: Kind, name: str, *, to: str = "", force: bool = False, by: str = "") -> None:
        """Begin to empty it; :meth:`moves` tells how far it is. ``to``: a device that takes all of it over.
        ``by``: who asks, or what for, for others to read; this program if it is "". Raises NotEnoughHosts,
        naming what could be placed nowhere else, unless ``force``: that stays."""
        devices = await self.devices(kind, name)
        if not force:
            await self._check(devices, at_once=False, what=f"{kind} {name} cannot be emptied")
        params = {"kind": kind, "name": name, "drain": True, "to": to, "by": by or self._by}
        await self._registry("registry.set_drain", params)

    async def undrain(self, kind: Kind, name: str, *, by: str = "") -> None:
        """Stop emptying it; what is under way is called off, what has moved stays where it is."""
        await self.devices(kind, name)
        params = {"kind": kind, "name": name, "drain": False, "to": "", "by": by or self._by}
        await self._registry("registry.set_drain", params)

    async def pause_balance(self) -> None:
        """Nothing moves any more only so that devices are filled alike; what does is called off."""
        await self._registry("registry.set_balance", {"paused": True, "by": self._by})

    async def resume_balance(self) -> None:
        await self._registry("registry.set_balance", {"paused": False, "by": self._by})

    async def evict(self, kind: Kind, name: str, *, force: bool = False) -> list[str]:
        """It is gone for good: it will be refused from now on, and its replicas are placed anew from the
        others. Returns the devices. Raises NotEnoughHosts when a group would be left without a majority, and
        Invalid when it lives: drain it instead; ``force`` skips both."""
        devices = await self.devices(kind, name)
        if not force:
            view = await self._registry("registry.view", {})
            alive = [each for each in devices if view["devices"][each]["health"] == "up"]
            if alive:
                raise Invalid(
                    f"device {alive[0]} is up: drain it, which keeps its copies until there are others;"
                    " --force evicts it all the same"
                )
            await self._check(devices, at_once=True, what=f"{kind} {name} cannot be given up")
        for device in devices:
            await self._registry("registry.evict_device", {"device": device, "by": self._by})
        return devices

    async def forget(self, kind: Kind, name: str, devices: list[str]) -> None:
        """Of what was evicted, and holds nothing any more, the registry need not know. ``devices``: those of
        the host, or the one. Raises Invalid while replicas are placed there."""
        found = await self.moves(devices)
        if left := sum(found.left.values()):
            raise Invalid(f"{kind} {name} still counts for {left} replicas: wait until they are elsewhere")
        for device in devices:
            await self._registry("registry.forget", {"kind": "device", "name": device})
        if kind == "host":
            await self._registry("registry.forget", {"kind": "host", "name": name})

    async def _check(self, devices: list[str], *, at_once: bool, what: str) -> None:
        answers = await self._groups("metadata.check_departure", {"devices": devices, "at_once": at_once})
        blocked = [each for answer in answers for each in answer["blocked"]]
        if not blocked:
            return
        count = sum(answer["blocked_count"] for answer in answers)
        named = "; ".join(
            f"{each.get('kind') or 'volume'} {each['name']!r} group {each['group']}: {each['text']}"
            for each in blocked[:NAMED_MAX]
        )
        more = f"; and {count - NAMED_MAX} more" if count > NAMED_MAX else ""
        raise NotEnoughHosts(f"{what}: {named}{more}", blocked=blocked)

    async def moves(self, devices: list[str] | None = None) -> Moves:
        """What is under way in all metadata groups."""
        answers = await self._groups("metadata.moves", {"devices": devices or []})
        left = dict.fromkeys(devices or [], 0)
        for answer in answers:
            for device, count in answer["left"].items():
                left[device] += count
        return Moves(
            left=left,
            moves=[each for answer in answers for each in answer["moves"]],
            blocked=[each for answer in answers for each in answer["blocked"]],
            moves_count=sum(answer["moves_count"] for answer in answers),
            blocked_count=sum(answer["blocked_count"] for answer in answers),
            repair_after_ms=max([answer["repair_after_ms"] for answer in answers], default=0),
            unevenness=sorted({answer["unevenness"] for answer in answers if answer["unevenness"]}),
        )
