"""Who is alive: the registry leader's volatile view of devices. A core: time and identities are arguments.

Owns the last heartbeat of each device and the verdict on it. Starts afresh with each leadership
(:meth:`HealthBoard.restart`): a new leader knows nothing, and says so ("suspect", not "up") until a
device reports. Must never refuse a device for a late message: a heartbeat that was delayed on an old
connection is not a copy of the device.

====================================== ========= ============================================
what was heard                         health    reason says
====================================== ========= ============================================
the device is refused in the state     refused   why, for ever
it says that its disk failed           failed    what the device said
nothing for ``down_ms``                down      for how long
nothing for ``suspect_ms``             suspect   for how long
nothing yet under this leader          suspect   since when the leader leads
a heartbeat                            up        ""
====================================== ========= ============================================

A count that goes back means that an older copy of the process or its memory is running (a reverted
virtual machine, a clone). On the connection that carried the greater count, messages cannot overtake:
refused at once. On another one, what is late looks the same for a moment: it is told Behind, and refused
when it goes on for ``suspect_ms``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

HEALTHS = ("up", "suspect", "down", "refused", "failed")


class Verdict(Enum):
    ACCEPTED = "accepted"
    LATE = "late"  # a lower count, perhaps only delayed: not counted as a sign of life
    WENT_BACK = "went back"  # to be refused for good


@dataclass(frozen=True)
class Timings:
    heartbeat_ms: int = 1000
    suspect_ms: int = 3000
    down_ms: int = 10_000


@dataclass(frozen=True)
class Health:
    health: str
    reason: str
    since_ms: int  # for how long it has been so


@dataclass(slots=True)
class _Device:
    token: str
    count: int
    source: int  # the connection that carried the greatest count
    first_ms: int  # first heartbeat without a silence since
    last_ms: int
    used: int
    capacity: int
    failed: str
    failed_since_ms: int
    low_since_ms: int  # -1, or when a lower count was first heard with nothing greater since


class HealthBoard:
    def __init__(self, timings: Timings) -> None:
        self.timings = timings
        self._since_ms = 0
        self._devices: dict[str, _Device] = {}
        self._noted: dict[str, int] = {}
        self._told: dict[str, str] = {}

    def restart(self, now_ms: int) -> None:
        """A new leadership begins."""
        self._since_ms = now_ms
        self._devices.clear()
        self._noted.clear()
        self._told.clear()

    def started(self, device: str) -> None:
        """The device moved to a new token: what was heard under the old one is of the past."""
        self._devices.pop(device, None)
        self._noted.pop(device, None)

    def heartbeat(
        self,
        device: str,
        *,
        token: str,
        count: int,
        noted: int,
        source: int,
        used: int,
        capacity: int,
        failed: str,
        now_ms: int,
    ) -> Verdict:
        """``noted``: the greatest count in the replicated state. The caller has compared the token."""
        seen = self._devices.get(device)
        if seen is None or seen.token != token:
            seen = _Device(token, noted, -1, now_ms, -1, 0, 0, "", 0, -1)
        if count < seen.count:
            verdict = self._lower(seen, source, now_ms)
            self._devices[device] = seen
            return verdict
        if seen.last_ms >= 0 and now_ms - seen.last_ms >= self.timings.suspect_ms:
            seen.first_ms = now_ms
        if failed and not seen.failed:
            seen.failed_since_ms = now_ms
        seen.count, seen.source, seen.last_ms, seen.low_since_ms = count, source, now_ms, -1
        seen.used, seen.capacity, seen.failed = used, capacity, failed
        self._devices[device] = seen
        return Verdict.ACCEPTED

    def _lower(self, seen: _Device, source: int, now_ms: int) -> Verdict:
        if source == seen.source:
            return Verdict.WENT_BACK
        if seen.low_since_ms < 0:
            seen.low_since_ms = now_ms
        gone_on = now_ms - seen.low_since_ms >= self.timings.suspect_ms
        return Verdict.WENT_BACK if gone_on else Verdict.LATE

    def last_heard(self, device: str) -> tuple[int, int] | None:
        """(now_ms of the last accepted heartbeat, its connection), or None under this leader."""
        seen = self._devices.get(device)
        return None if seen is None or seen.last_ms < 0 else (seen.last_ms, seen.source)

    def usage(self, device: str) -> tuple[int, int] | None:
        """(used, capacity) as last reported."""
        seen = self._devices.get(device)
        return None if seen is None or seen.last_ms < 0 else (seen.used, seen.capacity)

    def health(self, device: str, refused: str, now_ms: int) -> Health:
        seen = self._devices.get(device)
        if refused:
            return Health("refused", refused, now_ms - self._since_ms)
        if seen is None or seen.last_ms < 0:
            return self._unheard(now_ms)
        if seen.failed:
            return Health("failed", seen.failed, now_ms - seen.failed_since_ms)
        silent_ms = now_ms - seen.last_ms
        timings = self.timings
        reason = f"silent for {silent_ms / 1000:.0f} s"
        if seen.low_since_ms >= 0:
            reason += ", and a process with an older count reports in its place"
        if silent_ms >= timings.down_ms:
            return Health("down", reason, silent_ms - timings.down_ms)
        if silent_ms >= timings.suspect_ms:
            return Health("suspect", reason, silent_ms - timings.suspect_ms)
        return Health("up", "", now_ms - seen.first_ms)

    def _unheard(self, now_ms: int) -> Health:
        age_ms = now_ms - self._since_ms
        reason = f"silent since this leader began, {age_ms / 1000:.0f} s ago"
        if age_ms >= self.timings.down_ms:
            return Health("down", reason, age_ms - self.timings.down_ms)
        return Health("suspect", reason, age_ms)

    def counts_to_note(self) -> dict[str, list[Any]]:
        """device -> [token, count] of those that grew since the last call; give back with :meth:`not_noted`
        what could not be committed."""
        grown = {
            device: [seen.token, seen.count]
            for device, seen in sorted(self._devices.items())
            if seen.last_ms >= 0 and self._noted.get(device, -1) < seen.count
        }
        for device in grown:
            self._noted[device] = self._devices[device].count
        return grown

    def not_noted(self, counts: dict[str, list[Any]]) -> None:
        for device in counts:
            self._noted.pop(device, None)

    def changes(self, refused: dict[str, str], now_ms: int) -> list[tuple[str, Health]]:
        """Devices whose health is another than at the last call. ``refused``: device -> reason or "", of
        all."""
        found = []
        for device, reason in sorted(refused.items()):
            health = self.health(device, reason, now_ms)
            if self._told.get(device) != health.health:
                self._told[device] = health.health
                found.append((device, health))
        return found


def host_health(devices: list[Health]) -> Health:
    """A host is as well as its best device; one without devices has nobody who could tell."""
    if not devices:
        return Health("suspect", "no device of this host has ever started", 0)
    return min(devices, key=lambda each: (HEALTHS.index(each.health), -each.since_ms))
