"""The epoch history of a log: which epoch wrote the record at an LSN, as a short list of
(epoch, first LSN of that epoch), both ascending.

By *Prefix*, two logs that have the same epoch at the same LSN are equal up to there: so two histories are
enough to find where two logs part, without reading a record. A history may begin late (older entries are
dropped); what it does not cover has the unknown epoch 0. An epoch's records are one run without a gap.
"""

from __future__ import annotations

from moorage.quorum.record import Position
from moorage.wire.errors import violated

History = list[tuple[int, int]]

UNKNOWN = 0
KEPT = 256  # entries kept below the commit LSN: one for each attachment that left a record


def epoch_at(history: History, lsn: int) -> int:
    """Epoch of the record at ``lsn`` (the caller knows that the log reaches so far), or ``UNKNOWN``."""
    for epoch, first in reversed(history):
        if first <= lsn:
            return epoch
    return UNKNOWN


def position_at(history: History, lsn: int) -> Position:
    return Position(epoch_at(history, lsn), lsn)


def reach(history: History, position: Position) -> int | None:
    """The first LSN at which this log is not before ``position``, if its history has one. What a recovery has
    cut off somewhere else is before all that was recovered then, however long it is."""
    if not position.epoch:
        return position.lsn
    for at, (epoch, first) in enumerate(history):
        if epoch > position.epoch:
            return first
        if epoch == position.epoch:
            lsn = max(first, position.lsn)
            if at + 1 == len(history) or lsn < history[at + 1][1]:
                return lsn
    return None


def extend(history: History, epoch: int, lsn: int) -> None:
    """Note that the record at ``lsn``, the next one of the log, has ``epoch``."""
    if not history or history[-1][0] < epoch:
        history.append((epoch, lsn))
    elif history[-1][0] > epoch:
        violated("an epoch falls within a log", epoch=epoch, lsn=lsn, last=history[-1])


def cut(history: History, lsn: int) -> None:
    """Forget the records at ``lsn`` and behind."""
    while history and history[-1][1] >= lsn:
        history.pop()


def trim(history: History, commit: int) -> None:
    """Bound what is kept below the commit LSN; everything above it, and the entry that covers it, stays."""
    if len(history) > KEPT:
        covering = max((at for at, (_, first) in enumerate(history) if first <= commit), default=0)
        del history[: min(covering, len(history) - KEPT)]


def common(ours: History, our_last: int, theirs: History, their_last: int, floor: int) -> int:
    """The greatest LSN at which both logs are known to be equal, at least ``floor`` (known to be common).

    Walks the runs of equal epoch from the end. Unknown epochs match nothing.
    """
    lsn = min(our_last, their_last)
    while lsn > floor:
        our_epoch, their_epoch = epoch_at(ours, lsn), epoch_at(theirs, lsn)
        if our_epoch == their_epoch != UNKNOWN:
            return lsn
        if UNKNOWN in (our_epoch, their_epoch):
            return floor
        # the run with the greater epoch starts later in any log that has it: nothing of it is common
        newer = ours if our_epoch > their_epoch else theirs
        lsn = min(lsn, _first_of(newer, max(our_epoch, their_epoch)) - 1)
    return max(floor, lsn)


def _first_of(history: History, epoch: int) -> int:
    return next(first for found, first in history if found == epoch)
