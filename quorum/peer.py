"""What the writer knows about one member. A value with a few questions; the writer changes it."""

from __future__ import annotations

from enum import IntEnum

from moorage.quorum.orders import SealAnswer
from moorage.quorum.record import ZERO_POSITION, Position


class Status(IntEnum):
    """What each allows is in docs/quorum-log.md, with the table of transitions."""

    DOWN = 1  # no connection
    SEALING = 2  # a SEAL is under way
    REFUSED = 3  # it was refused; sealed again after a while
    SEALED = 4  # answered; waits for the log to be chosen
    LAGGING = 5  # needs a copy: it is further behind than the window, forked or damaged
    ORDERED = 6  # a copy was ordered
    COPYING = 7  # is being copied to; records behind the base stream in, and count for nothing
    STREAMING = 8  # whole: gets records and counts


class Peer:
    """``received``/``durable``: its log equals ours up to there (in memory / on disk). ``value``: what counts
    for the commit LSN. ``limit_end``: cumulative cost up to which it granted space; ``limit_base``: that at
    the begin of the session. ``next``: LSN to send next. Invariant: received < next while it is sent to."""

    __slots__ = (
        "answer",
        "applied",
        "avoided",
        "base",
        "blocked_ms",
        "commit_sent",
        "durable",
        "floor",
        "flush_sent",
        "fresh",
        "full",
        "lease_until_ms",
        "limit_base",
        "limit_end",
        "next",
        "notice",
        "progressed",
        "progressed_ms",
        "reason",
        "received",
        "replica",
        "retry_ms",
        "rewound",
        "seal_session",
        "session",
        "source",
        "status",
        "value",
        "whole",
    )

    def __init__(self, replica: int) -> None:
        self.replica = replica
        self.status = Status.DOWN
        self.reason = "not connected"
        self.session = 0
        self.seal_session = 0
        self.answer: SealAnswer | None = None
        self.received = self.durable = self.applied = self.value = 0
        self.whole = False
        self.next = 0
        self.commit_sent = self.flush_sent = 0
        self.notice = False
        self.rewound = False
        self.progressed = False
        self.progressed_ms = 0
        self.retry_ms = 0
        self.limit_base = self.limit_end = 0
        self.full = False
        self.blocked_ms = 0  # since when it is full and owed a record; 0: it is not
        self.lease_until_ms = 0
        self.base: Position = ZERO_POSITION  # of its copy
        self.source = 0  # replica that it is copied from; 0: none
        self.avoided = 0  # a source that failed it
        self.floor = ZERO_POSITION  # what a member that needs a fresh copy may have acknowledged
        self.fresh = False  # its copy must begin with an empty index

    @property
    def answered(self) -> bool:
        return self.status >= Status.SEALED

    @property
    def sends(self) -> bool:
        """Whether records are sent to it now."""
        return self.status >= Status.COPYING
