"""Leases of holders: who may take a volume over unasked. A core: time is an argument, nothing is stored.

Owns the volatile table (volume -> end of the lease) of the metadata leader. It must never decide about
safety: the epoch fences, and a lease only says when others need no ``--force``. So it lives on the leader
alone, and starts afresh for every holder when leadership changes: an outage of metadata expires nobody
(DESIGN.md, quorum log 1). Invariant: a lease belongs to one (volume, epoch); a renewal of another epoch
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from moorage.wire.errors import Busy, Fenced


class Lease(NamedTuple):
    epoch: int
    ends_ms: int


class LeaseTable:
    """Leases by volume id. ``now_ms`` is a monotonic clock of the leader, the same one in every call."""

    def __init__(self, lease_ms: int) -> None:
        self.lease_ms = lease_ms
        self._leases: dict[int, Lease] = {}

    def restart(self, held: Iterable[tuple[int, int]], now_ms: int) -> None:
        """Leadership begins: every (volume, epoch) that has a holder gets a whole lease."""
        self._leases = {volume: Lease(epoch, now_ms + self.lease_ms) for volume, epoch in held}

    def clear(self) -> None:
        self._leases.clear()

    def grant(self, volume: int, epoch: int, now_ms: int) -> None:
        """Begin or renew; a lower epoch than the one that runs is a late message, and changes nothing."""
        running = self._leases.get(volume)
        if running is None or epoch >= running.epoch:
            self._leases[volume] = Lease(epoch, now_ms + self.lease_ms)

    def end(self, volume: int, epoch: int) -> None:
        """The holder let go, or the volume was deleted."""
        running = self._leases.get(volume)
        if running is not None and running.epoch <= epoch:
            del self._leases[volume]

    def remaining_ms(self, volume: int, epoch: int, now_ms: int) -> int:
        """Of the holder of ``epoch``, as the committed state names it; negative: over for so long. One that
        the table has not heard of attached just now (its handler has yet to grant) or under the former
        leader: it gets a whole lease."""
        running = self._leases.get(volume)
        if running is None or running.epoch < epoch:
            self.grant(volume, epoch, now_ms)
            return self.lease_ms
        if running.epoch > epoch:
            return 0
        return running.ends_ms - now_ms

    def __len__(self) -> int:
        return len(self._leases)


def describe_holder(holder: dict[str, Any]) -> str:
    what = "a recovery by " if holder["recovers"] else ""
    return f"{what}{holder['program']} on {holder['host']} (pid {holder['pid']})"


def check_takeover(
    volume: dict[str, Any], remaining_ms: int, force: bool, verb: str, grace_ms: int = 0
) -> None:
    """Raise :class:`Busy` when another holder's lease still runs, or has not been over for ``grace_ms``, and
    nobody said ``--force``. Who only recovers makes room for everybody.

    Never guesses from host and pid that a holder is gone: a process that was frozen looks the same.
    """
    holder = volume["holder"]
    if holder is None or force:
        return
    if holder["recovers"] and not grace_ms:
        return
    if remaining_ms <= (0 if holder["recovers"] else -grace_ms):
        return
    raise Busy(
        f"volume {volume['name']!r} is held by {describe_holder(holder)}; its lease runs "
        f"{max(0, remaining_ms) / 1000:.1f} s more, unless it renews: detach it there, wait, or {verb} with "
        "--force (its writes are refused from then on)",
        volume=volume["name"],
        holder=holder,
        remaining_ms=remaining_ms,
        epoch=volume["epoch"],
    )


def check_current(volume: dict[str, Any], epoch: int, writer: int, now_wall_ms: int) -> None:
    """Raise :class:`Fenced`, naming who took over and when, unless (epoch, writer) holds the volume."""
    holder = volume["holder"]
    if holder is not None and volume["epoch"] == epoch and holder["writer"] == writer:
        return
    name = volume["name"]
    details = {"volume": volume["id"], "epoch": volume["epoch"], "holder": holder}
    if volume["state"] == "deleting":
        raise Fenced(f"volume {name!r} was deleted{_ago(volume['ended_ms'], now_wall_ms)}", **details)
    if volume["epoch"] == epoch and holder is None:
        raise Fenced(f"volume {name!r} was detached: epoch {epoch} has ended; attach again", **details)
    if epoch > volume["epoch"]:
        raise Fenced(
            f"volume {name!r} never had epoch {epoch}, it is at {volume['epoch']}; attach again", **details
        )
    if holder is None:
        raise Fenced(
            f"volume {name!r} is at epoch {volume['epoch']} now, without a holder; attach again", **details
        )
    raise Fenced(
        f"volume {name!r} was taken over by {describe_holder(holder)}{_ago(holder['since_ms'], now_wall_ms)} "
        f"(epoch {volume['epoch']}, yours was {epoch})",
        **details,
    )


def check_succession(volume: dict[str, Any], succeeds: Iterable[int], now_wall_ms: int) -> None:
    """Raise :class:`Fenced` when somebody else came to write since the writers in ``succeeds``: who goes on
    with what an earlier life had in its caches must not do so over another's data."""
    # Volumes written by the first builds have no owner: their last writer may have been a recovery.
    if volume.get("owner", (volume["writers"] or [0])[-1]) in succeeds:
        return
    holder = volume["holder"]
    who = f" by {describe_holder(holder)}{_ago(holder['since_ms'], now_wall_ms)}" if holder else ""
    raise Fenced(
        f"volume {volume['name']!r} was taken over{who} (epoch {volume['epoch']}), and may have been written",
        volume=volume["id"],
        epoch=volume["epoch"],
        holder=holder,
    )


def _ago(since_ms: int, now_ms: int) -> str:
    return f" {max(0, now_ms - since_ms) / 1000:.1f} s ago"
