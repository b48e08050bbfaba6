"""Order between writes that meet on a block: a range lock with shared and exclusive holders.

Owns who may go and who waits. Whole-block writes share: the log orders them. A write of a part of a block
reads the block first, so it is exclusive there: else it would undo a write acknowledged between its read and
its place in the log. Waiting is first come, first served where ranges conflict, so nobody starves, and a
write that was reported as unknown is never overtaken (it holds its range until the log knows).

Invariant: two active holders overlap only when both are shared; a waiter conflicts with an active holder or
with an earlier waiter. Pure: no clock, no loop.
"""

from __future__ import annotations


class Holder:
    """A range of volume blocks ``[first, end)``. ``granted`` runs once, when the range is the holder's."""

    __slots__ = ("end", "exclusive", "first")

    first: int
    end: int
    exclusive: bool

    def granted(self) -> None:
        raise NotImplementedError


class BlockOrder:
    """Holders in order of arrival. Both fields are dicts for their order and their cheap removal."""

    __slots__ = ("active", "exclusive_count", "waiting")

    def __init__(self) -> None:
        self.active: dict[Holder, None] = {}
        self.waiting: dict[Holder, None] = {}
        self.exclusive_count = 0  # active ones; while 0 and nobody waits, a shared holder needs no search

    def acquire(self, holder: Holder) -> None:
        """Grant now or queue. May call ``holder.granted()`` before it returns."""
        if not self.waiting and not self.exclusive_count and not holder.exclusive:
            self.active[holder] = None
        elif _meets(holder, self.active) or _meets(holder, self.waiting):
            self.waiting[holder] = None
            return
        else:
            self._activate(holder)
        holder.granted()

    def release(self, holder: Holder) -> None:
        """Give the range back; those that only waited for it go now, in order of arrival."""
        del self.active[holder]
        self.exclusive_count -= holder.exclusive
        if self.waiting:
            self._promote()

    def abandon(self, holder: Holder) -> bool:
        """Take a waiter out of the queue; False when it is not waiting (any more)."""
        if holder not in self.waiting:
            return False
        del self.waiting[holder]
        self._promote()
        return True

    def validate(self) -> None:
        """Check the invariant over the whole state (tests)."""
        active, waiting = list(self.active), list(self.waiting)
        for at, holder in enumerate(active):
            assert not _meets(holder, dict.fromkeys(active[:at])), "conflicting holders are active"
        for at, holder in enumerate(waiting):
            assert _meets(holder, dict.fromkeys(active + waiting[:at])), "a waiter waits for nobody"
        assert self.exclusive_count == sum(holder.exclusive for holder in active)

    def _activate(self, holder: Holder) -> None:
        self.active[holder] = None
        self.exclusive_count += holder.exclusive

    def _promote(self) -> None:
        ready: list[Holder] = []
        still: dict[Holder, None] = {}
        for holder in self.waiting:
            if _meets(holder, self.active) or _meets(holder, still):
                still[holder] = None
            else:
                self._activate(holder)
                ready.append(holder)
        self.waiting = still
        for holder in ready:  # last: granted() may acquire and release again
            holder.granted()


def _meets(holder: Holder, others: dict[Holder, None]) -> bool:
    """True when ``holder`` overlaps one of ``others`` and one of the two is exclusive."""
    first, end, exclusive = holder.first, holder.end, holder.exclusive
    return any(other.first < end and first < other.end and (exclusive or other.exclusive) for other in others)
