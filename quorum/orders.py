"""What crosses the border between the cores of the quorum log and their shells, apart from the hot
messages: effects of a member, orders of a writer, and the answer to a SEAL. Values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moorage.quorum.history import History
from moorage.quorum.record import LSN_MAX, Position, Record

# -- effects of a member, for the store, in the order in which they must happen ------------------------


class Append:
    """Log these records. One with an LSN that the store has pending replaces that one and all pending ones
    behind it. In ``sync`` mode make them durable soon; in ``writeback`` at the next ``Sync`` or ``Note``.
    Once durable: ``member.persisted(ticket)``."""

    __slots__ = ("records", "ticket")

    def __init__(self, ticket: int, records: list[Record]) -> None:
        self.ticket = ticket
        self.records = records


@dataclass(slots=True)
class Note:
    """Log this packed ``MemberState`` behind all that came before, make everything up to it durable soon (in
    both modes), then ``member.persisted(ticket)``. On replay: pending records outside of the state's
    ``base < lsn <= last`` are forgotten, those of the rest up to ``commit`` are applied. Live and on replay:
    the index is dropped first when ``state.drops_index(former)``."""

    ticket: int
    state: bytes


@dataclass(slots=True)
class Sync:
    """Make everything handed over so far durable soon, then ``member.persisted(ticket)``."""

    ticket: int


@dataclass(slots=True)
class Apply:
    """Put the pending records up to ``lsn`` into the index: they are committed."""

    lsn: int


@dataclass(slots=True)
class Pull:
    """Copy from ``source`` every block and chunk whose LSN is above ``above``; replaces a former ``Pull``.

    ``fresh``: first drop the whole index, durably (the state in it may contain lost records).
    ``base``: refuse a source that has not applied this LSN yet.
    For every answer: first ``member.pulled(number, position)`` with the position that the source had
    applied *after* it read the blocks (False: this pull was replaced, drop the answer); drain effects; then
    log the blocks behind them. At the end ``member.copied(number)``. ``resume``: the same copy as before, a
    cursor that is still known may be continued.
    """

    number: int
    source: Any
    base: Position
    above: int
    fresh: bool
    resume: bool


Effect = Append | Note | Sync | Apply | Pull


# -- the answer to a SEAL --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SealAnswer:
    """What a member says about itself once its promise is durable and former read leases have run out.

    ``vote``: the position that counts when a log is chosen. ``last``: position of the last record of its
    log, the same as ``vote`` unless it is copying. ``history``: epochs of that log from at least the commit
    LSN up. ``newest``: the greatest position that may have left a trace in its index. ``tail_from``: the
    lowest LSN that it can still hand out as a record. ``base``: position behind which its log begins when
    it is being copied. ``space_limit``: see ``Member.grant``.
    """

    epoch: int
    vote: Position
    last: Position
    commit: int
    history: History
    newest: Position
    whole: bool
    damaged: bool
    base: Position
    tail_from: int
    space_limit: int
    full: bool

    def pack(self) -> list[Any]:
        """A msgpack-able list."""
        history = [list(entry) for entry in self.history]
        positions = [list(self.vote), list(self.last), list(self.newest), list(self.base)]
        flags = [self.whole, self.damaged, self.full]
        return [self.epoch, positions, self.commit, history, flags, self.tail_from, self.space_limit]

    @classmethod
    def unpack(cls, packed: Any) -> SealAnswer:
        """Raises ValueError for what is no list of :meth:`pack`: who asked knows whom to blame."""
        try:
            epoch, (vote, last, newest, base), commit, history, flags, tail_from, space_limit = packed
            whole, damaged, full = flags
            return cls(
                epoch=_number(epoch),
                vote=_position(vote),
                last=_position(last),
                commit=_number(commit),
                history=[(each.epoch, each.lsn) for each in map(_position, history)],
                newest=_position(newest),
                whole=bool(whole),
                damaged=bool(damaged),
                base=_position(base),
                tail_from=_number(tail_from),
                space_limit=_number(space_limit),
                full=bool(full),
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"an answer to SEAL makes no sense: {error}") from None


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LSN_MAX:
        raise ValueError("a number is out of range")
    return value


def _position(value: Any) -> Position:
    epoch, lsn = value
    return Position(_number(epoch), _number(lsn))


# -- orders of a writer, for the client's shell ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seal:
    """Send SEAL(replica, epoch, writer, session) on the connection of this replica; give the answer to
    ``writer.sealed`` or the error to ``writer.refused``."""

    replica: int
    session: int


@dataclass(frozen=True, slots=True)
class ReadTail:
    """Read the records ``from_lsn..to_lsn`` from this member, in as many calls as it takes; give each
    piece to ``writer.tail``, an error to ``writer.refused``."""

    replica: int
    session: int
    from_lsn: int
    to_lsn: int


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """Send ``copy`` to this member: success goes to ``writer.copy_started``, an error to ``writer.refused``.
    ``session`` is the new session that it begins. ``source`` is a replica id: the shell adds its address.
    ``history``: epochs of the log up to the base, which the copy must know to compare logs later.
    ``floor``: position that its log must reach before it is whole."""

    replica: int
    session: int
    source: int
    base: Position
    fresh: bool
    history: tuple[tuple[int, int], ...]
    floor: Position


@dataclass(frozen=True, slots=True)
class ConfigurationReady:
    """A record was committed in the old *and* in the new configuration: metadata may now commit the new
    one by compare-and-set on (epoch, version). Then ``writer.change_committed`` or ``change_refused``;
    while the outcome is unknown: neither."""

    members: tuple[int, ...]


Order = Seal | ReadTail | CopyOrder | ConfigurationReady
