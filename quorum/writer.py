"""The writer of ONE replica group: it leads the group's log for one epoch, as a Raft leader leads a term.

Owns: which log is chosen (once), which LSN a record gets, what each member was sent and has, what is
committed and durable, the window of recent records, where reads may go. Must never: give an LSN to two
records, count anything below its barrier, send a record before the tail is read, read a clock (``tick``
brings the time).

Phases: SEALING (until a majority answered and a log is chosen) -> TAIL (reading the chosen tail) -> BARRIER
(sending it and the barrier) -> SERVING. ``ended`` is an error once the attachment is over (``Fenced``,
``AttachmentLost``): terminal in every phase.

The shell (one event loop) feeds events and drains what came of them once per loop turn:

* events: ``connected``/``disconnected`` (a connection to the member's device came up / ended), ``sealed``,
  ``refused``, ``tail``, ``ack``, ``nack``, ``lease_renewed``, ``tick`` (every ``TICK_MS``); from the
  application ``submit``, ``flush``; from metadata ``change``, ``change_committed``, ``change_refused``;
* drains: ``take_orders()``; for each member whose connection has room ``take_batch(replica, bytes_max)``
  until None; ``take_done()`` (tags in the order of their LSNs).

One writer serves one group. The shell serves nothing of a volume before *all* its groups are SERVING.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from moorage.quorum.majority import Configuration
from moorage.quorum.orders import Order, SealAnswer
from moorage.quorum.record import Buffer, Record
from moorage.wire.errors import MoorageError

TICK_MS = 10
WINDOW_BYTES = 64 << 20
WINDOW_RECORDS = 16_384
READ_MAP_CHUNKS = 8_192

# outcomes of ``submit``
WAIT = 0  # not now: the window is full, or too few members are there; try again after the next events
NO_SPACE = -1  # a majority of the members has no room: ENOSPC, nothing was sent


class Phase(IntEnum):
    SEALING = 1
    TAIL = 2
    BARRIER = 3
    SERVING = 4


class Batch:
    """One APPEND to send: ``pack_append(replica, writer, epoch, prev_epoch, prev_lsn, commit, session, count)
    + heads`` is the body, ``buffers`` the payload, ``flags`` the flags of the frame. The buffers must not
    change before they have left; ``heads`` and ``buffers`` may be shared with other members' batches."""

    __slots__ = (
        "buffers",
        "commit",
        "count",
        "flags",
        "heads",
        "prev_epoch",
        "prev_lsn",
        "records",
        "session",
    )

    session: int
    prev_epoch: int
    prev_lsn: int
    commit: int
    flags: int
    count: int
    heads: bytes
    buffers: list[Buffer]
    records: list[Record]  # the same, for who wants no bytes (the simulation)


class Writer:
    """See the module. ``members``: replica ids of the configuration; ``learners``: replicas that a membership
    change has already created; ``sync``: durability mode of the volume."""

    phase: Phase
    ended: MoorageError | None
    commit: int  # greatest committed LSN: every record up to it is done
    durable: int  # greatest LSN that a majority holds durably (in sync mode the same)

    def __init__(
        self,
        *,
        epoch: int,
        writer: int,
        members: Configuration,
        learners: Configuration = (),
        sync: bool,
        window_bytes: int = WINDOW_BYTES,
        window_records: int = WINDOW_RECORDS,
    ) -> None:
        raise NotImplementedError

    # -- events from members -------------------------------------------------------------------------

    def connected(self, replica: int) -> None:
        """A new connection to this member's device is up: a Seal order with a new session follows."""
        raise NotImplementedError

    def disconnected(self, replica: int) -> None:
        """Its connection ended: nothing of that session counts any more, but for what it had acknowledged."""
        raise NotImplementedError

    def sealed(self, replica: int, session: int, answer: SealAnswer) -> None:
        """The answer to a Seal order."""
        raise NotImplementedError

    def refused(self, replica: int, session: int, error: MoorageError) -> None:
        """A Seal, ReadTail or CopyOrder failed. ``Fenced`` ends the writer; ``NoReplica`` counts as dead; for
        all others a new Seal order follows after a while, if still connected."""
        raise NotImplementedError

    def tail(self, replica: int, session: int, records: list[Record]) -> None:
        """Records asked for with ReadTail, a piece in order, at least one record each."""
        raise NotImplementedError

    def ack(
        self,
        replica: int,
        epoch: int,
        received: int,
        durable: int,
        applied: int,
        limit: int,
        session: int,
        flags: int,
    ) -> None:
        """An ACK (same order of fields as on the wire). Of an old session or epoch: ignored."""
        raise NotImplementedError

    def nack(self, replica: int, epoch: int, promised: int, received: int, session: int, code: int) -> None:
        """A NACK (same order of fields as on the wire)."""
        raise NotImplementedError

    def lease_renewed(self, replica: int, session: int, sent_ms: int) -> None:
        """The heartbeat sent at ``sent_ms`` on this session's connection was answered."""
        raise NotImplementedError

    def tick(self, now_ms: int) -> None:
        """Time passes: commit notices, probes, retries, copies."""
        raise NotImplementedError

    # -- the application -----------------------------------------------------------------------------

    def submit(
        self, kind: int, chunk: int, block: int, count: int, sums: Buffer, data: Buffer, tag: Any
    ) -> int:
        """Give a record the next LSN and queue it for all members. Returns the LSN, WAIT or NO_SPACE. ``tag``
        comes back from ``take_done`` when it is committed (None: nobody asks). ``sums`` and ``data`` must
        stay unchanged as long as the window holds the record: hand them over. Only while SERVING."""
        raise NotImplementedError

    def flush(self, tag: Any, lsn: int = 0) -> None:
        """``tag`` comes back from ``take_done`` once all that is committed now, or all up to ``lsn`` (FUA),
        is durable at a majority. At once in sync mode, when ``lsn`` is not given."""
        raise NotImplementedError

    def take_done(self) -> list[Any]:
        """Tags of records that were committed and of flushes that are complete."""
        raise NotImplementedError

    def take_unfinished(self) -> list[Any]:
        """After ``ended``: the tags that never came back, writes in the order of their LSNs, then flushes.
        Their outcome is unknown."""
        raise NotImplementedError

    def read_lsn(self, chunk: int) -> int:
        """The LSN that a read in this chunk must see (the last write acknowledged there, at least the
        barrier)."""
        raise NotImplementedError

    def readable(self) -> list[int]:
        """Replicas that may be asked for reads now: sealed, whole, and not far behind."""
        raise NotImplementedError

    def reads_until_ms(self) -> int:
        """Until when reads may be handed to the application: a majority's read leases run so long. Check with
        the clock *after* the answer of the read arrived."""
        raise NotImplementedError

    # -- drains ------------------------------------------------------------------------------------------

    def take_orders(self) -> list[Order]:
        """Control messages to send."""
        raise NotImplementedError

    def take_batch(self, replica: int, bytes_max: int) -> Batch | None:
        """The next APPEND for this member: at most ``bytes_max`` bytes of data (at least one record), or a
        notice without records; None when there is nothing to send now."""
        raise NotImplementedError

    # -- membership change -----------------------------------------------------------------------------

    def change(self, members: Configuration) -> None:
        """Metadata wishes this configuration: new replicas become learners; once they are caught up the
        writer needs both majorities, and orders ConfigurationReady when a record was committed that way."""
        raise NotImplementedError

    def change_committed(self) -> None:
        """Metadata committed it: the new configuration alone counts from now on."""
        raise NotImplementedError

    def change_refused(self) -> None:
        """Metadata certainly did not and will not commit it: back to the old one."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """For people: phase, positions, and per member its state and since when ("waiting for ...")."""
        raise NotImplementedError

    def validate(self) -> None:
        """Whole-state check, for tests and simulation."""
        raise NotImplementedError
