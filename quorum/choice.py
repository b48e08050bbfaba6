"""Recovery decisions of the writer, as pure functions: which log is chosen, where a member's log parts from
it, and whether a member's index contains what was lost. Sources: Raft section 5.4.1 (election argument)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moorage.quorum import history as epochs
from moorage.quorum.history import History
from moorage.quorum.majority import Configuration, majority_in_all
from moorage.quorum.orders import SealAnswer


def choose(answers: Mapping[int, SealAnswer], configurations: Sequence[Configuration]) -> int | None:
    """The replica whose log is taken, or None while too few have answered.

    Every majority that answered contains a member with every committed record, and the greatest vote of a
    majority is at or above those. So any whole member will do whose vote no member of *some* answering
    majority exceeds; the greatest of them is taken. A damaged member does not know what it had: it counts in
    no majority. One that is being copied counts with its old position, but has no log to give.
    """
    counted = {replica: answer for replica, answer in answers.items() if not answer.damaged}
    best: int | None = None
    for replica in sorted(counted):
        answer = counted[replica]
        if not answer.whole:
            continue
        below = [other for other, its in counted.items() if its.vote <= answer.vote]
        if majority_in_all(below, configurations) and (
            best is None or (answer.vote, answer.commit) > (counted[best].vote, counted[best].commit)
        ):
            best = replica
    return best


def tail_begin(chosen: SealAnswer, others: Sequence[SealAnswer], records_max: int) -> int:
    """First LSN of the tail to read: everything that may not be committed, and what others lack, as far as
    the chosen member has it and ``records_max`` from the end go; who lacks more is copied to."""
    lowest = min((known_common(chosen, other) for other in others), default=chosen.commit)
    wanted = max(lowest, chosen.last.lsn - records_max, chosen.tail_from - 1)
    return min(wanted, chosen.commit) + 1


def known_common(chosen: SealAnswer, other: SealAnswer) -> int:
    floor = min(other.commit, chosen.last.lsn)
    return epochs.common(chosen.history, chosen.last.lsn, other.history, other.last.lsn, floor)


def matches_up_to(history: History, last: int, answer: SealAnswer) -> int:
    """The LSN up to which a member's log equals the writer's. What it knows to be committed is equal (unless
    ``is_forked``)."""
    return epochs.common(history, last, answer.history, answer.last.lsn, min(answer.commit, last))


def is_forked(history: History, last: int, answer: SealAnswer, sync: bool) -> bool:
    """Whether its index may contain a record that is not in the writer's log: in writeback one that it had
    applied and the others lost. In sync mode that would be an invariant broken. An epoch that the history
    does not reach back to proves nothing: in writeback the safe side is a copy."""
    newest = answer.newest
    if not newest.lsn:
        return False
    if newest.lsn > last:
        return True
    epoch = epochs.epoch_at(history, newest.lsn)
    return not sync if epoch == epochs.UNKNOWN else epoch != newest.epoch
