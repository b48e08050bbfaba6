"""Read leases, both ends. A member promises to answer no higher SEAL for ``LEASE_MS``; the holder hands a
read to the application only while a majority of such promises, counted from when the heartbeats were *sent*,
still runs. Then a zombie reads nothing stale: a higher epoch starts to serve only after a majority has
answered its SEAL, and two majorities share a member.

Times are milliseconds of a clock that counts suspended time (CLOCK_BOOTTIME). The two ends never compare
clocks, only durations: rates may differ by ``DRIFT``, which the holder takes off its side.
"""

from __future__ import annotations

LEASE_MS = 1000
DRIFT_PER_MILLE = 20

HEARTBEAT_MS = 250  # three heartbeats may be lost before reads wait


def held_ms(lease_ms: int) -> int:
    """How long the holder counts on a lease, from when it sent the heartbeat."""
    return lease_ms - lease_ms * DRIFT_PER_MILLE // 1000


class GrantedLease:
    """The member's end: one for each connection of a holder, shared by all members that this connection
    sealed, so that one heartbeat renews them all.

    The shell must send NACK(FENCED) for a member on its former connection *before* it answers another
    heartbeat there: order on the connection is what tells the holder that this member no longer counts.
    """

    __slots__ = ("lease_ms", "until_ms")

    def __init__(self, lease_ms: int = LEASE_MS) -> None:
        self.lease_ms = lease_ms
        self.until_ms = 0

    def renew(self, now_ms: int) -> None:
        """A heartbeat arrived: the reply to it is the promise."""
        self.until_ms = now_ms + self.lease_ms
