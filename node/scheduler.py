"""How much background work a device does beside its users: one budget for copies, compaction and scrub.

Owns the arithmetic only (pure): time is an argument, in seconds of one clock. Must never keep a kind of work
below its due, whatever users feel, nor let all of it together past the ceiling that an operator has set.

* **Due**: bytes per second that a kind of work has whenever it asks: a floor, or what its deadline takes.
* **Budget**: for all of it together. It shrinks by a third when users wait longer than they do without
  background work, and grows again step by step (AIMD), at once when there is nobody.
* **Pause**: now and then only what is due goes on for a moment: else nobody knew what users would have
  without the rest, and "longer than" would creep up with the load.

Debts, not reservations: who asks while his account is not overdrawn goes at once, and is charged all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

KIB, MIB = 1 << 10, 1 << 20
FLOOR = 2 * MIB  # bytes/s of each kind: 7 GiB an hour, and no more than 1 % of what a disk of today does
START = 32 * MIB  # bytes/s, before anything is known
STEP = 8 * MIB  # bytes/s more after each turn in which users had nothing to complain about: 80 in a second
ALL = 1 << 40  # bytes/s: as good as no limit
TURN_S = 0.1
BURST_S = 0.1  # of its rate an account holds when nobody has asked for a while
DEBT_S = 0.5  # the most that the common account owes for what was due
SHRINK = 2 / 3
ALONE_S = 1.0  # without a user for so long, there is none
SAMPLES = 4  # fewer say nothing
PAUSE_EVERY_S, PAUSE_S, PAUSE_BLIND_S = 10.0, 0.3, 0.1  # what had begun before may still be felt in the last
LONGER = 1.5  # times what users have without background work ...
SLACK_S = 0.0002  # ... and this: below it nobody feels anything
PIECE_MIN, PIECE_MAX = 128 * KIB, MIB
PIECE_S = 0.02  # of the budget goes at once: that is what a user's write may find in front of it


class Work(IntEnum):
    COPY = 0  # blocks pulled from another member
    SERVE = 1  # blocks that another member pulls
    COMPACT = 2
    SCRUB = 3
    CHECKPOINT = 4


class Gauge(IntEnum):
    """What users feel; each is compared with itself only."""

    WRITE = 0
    LARGE_WRITE = 1
    READ = 2
    LARGE_READ = 3
    LOOP = 4  # lateness of the event loop: what a message may wait before anybody looks at it


class _Felt:
    """One gauge: its mean in this turn, and what it is without background work."""

    __slots__ = ("count", "idle", "sum")

    def __init__(self) -> None:
        self.sum = 0.0
        self.count = 0
        self.idle = 0.0  # 0: not known

    def take(self, least: int = 1) -> float:
        """The mean of what came since, 0 when that is too little; it goes on being gathered then."""
        if self.count < least:
            return 0.0
        mean = self.sum / self.count
        self.sum, self.count = 0.0, 0
        return mean

    def learn(self, mean: float) -> None:
        self.idle = mean if not self.idle else self.idle + (mean - self.idle) * 0.3

    def complains(self, mean: float) -> bool:
        return self.idle > 0 and mean > self.idle * LONGER + SLACK_S


@dataclass(slots=True)
class _Account:
    """``rate`` bytes/s come in; who finds it not overdrawn may spend."""

    balance: float = 0.0
    at: float = 0.0

    def fill(self, rate: float, now: float) -> None:
        self.balance = min(rate * BURST_S, self.balance + rate * max(0.0, now - self.at))
        self.at = now


@dataclass(slots=True)
class _Due:
    rate: float
    until: float


class Scheduler:
    """``admit`` before each piece of background work, ``felt`` after each operation of a user."""

    def __init__(self, now: float, ceiling: float = 0.0) -> None:
        self.ceiling = ceiling or float(ALL)
        self.budget = min(float(START), self.ceiling)
        self.given = dict.fromkeys(Work, 0)  # bytes so far
        self._own = {work: _Account(0.0, now) for work in Work}
        self._common = _Account(0.0, now)
        self._due: dict[Work, dict[object, _Due]] = {work: {} for work in Work}
        self._asked_at = dict.fromkeys(Work, -ALONE_S)
        self._felt = {gauge: _Felt() for gauge in Gauge}
        self._user_at = now - ALONE_S
        self._turn_at = now
        self._spent = 0  # bytes in this turn
        self._quiet_turns = 0  # turns without background work
        self._pause_at = now + PAUSE_EVERY_S

    # -- what is due -------------------------------------------------------------------------------

    def set_due(self, work: Work, who: object, rate: float, until: float) -> None:
        """``who`` needs ``rate`` bytes/s of this work up to a time; said again as that changes."""
        if rate > 0:
            self._due[work][who] = _Due(rate, until)
        else:
            self._due[work].pop(who, None)

    def due(self, work: Work, now: float) -> float:
        """Bytes per second. Where the ceiling is below what is due in all, everybody gets his share of it."""
        wanted = {each: self._wanted(each, now) for each in Work if each is work or self._is_at_it(each, now)}
        total = sum(wanted.values())
        return wanted[work] * min(1.0, self.ceiling / total)

    def _wanted(self, work: Work, now: float) -> float:
        dues = self._due[work]
        for who in [who for who, due in dues.items() if due.until < now]:
            del dues[who]
        return max(float(FLOOR), sum(due.rate for due in dues.values()))

    def _is_at_it(self, work: Work, now: float) -> bool:
        return now - self._asked_at[work] < ALONE_S

    # -- background work ---------------------------------------------------------------------------

    def admit(self, work: Work, size: int, now: float, *, spare: bool = True) -> float:
        """0: go, ``size`` bytes are charged. Else seconds after which to ask again. ``spare``: it may have
        more than is due, out of what users leave."""
        self._turn(now)
        self._asked_at[work] = now
        due = self.due(work, now)
        own = self._own[work]
        own.fill(due, now)
        self._fill_common(now)
        if own.balance >= 0:
            own.balance -= size
        elif not spare or self._common.balance < 0 or self._pauses(now):
            return self._wait(own, due, now, spare)
        self._charge(work, size)
        return 0.0

    def charge(self, work: Work, size: int, now: float) -> None:
        """Of what cannot wait: others wait for it."""
        self._turn(now)
        self._asked_at[work] = now
        self._fill_common(now)
        self._charge(work, size)

    def piece(self, now: float) -> int:
        """Bytes to do at once: small while users are at work, since theirs wait behind it."""
        if now - self._user_at >= ALONE_S:
            return PIECE_MAX
        return int(min(PIECE_MAX, max(PIECE_MIN, self.budget * PIECE_S)))

    def _charge(self, work: Work, size: int) -> None:
        self._common.balance = max(self._common.balance - size, -self.budget * DEBT_S)
        self._spent += size
        self.given[work] += size

    def _fill_common(self, now: float) -> None:
        self._common.fill(self.budget, now)

    def _wait(self, own: _Account, due: float, now: float, spare: bool) -> float:
        wait = -own.balance / due
        if spare:
            common = -self._common.balance / self.budget
            if self._pauses(now):
                common = max(common, self._pause_at + PAUSE_S - now)
            wait = min(wait, common)
        return max(wait, 0.001)

    # -- users -------------------------------------------------------------------------------------

    def felt(self, gauge: Gauge, took_s: float, now: float) -> None:
        """An operation of a user took so long; the loop's lateness is nobody's operation."""
        self._turn(now)
        felt = self._felt[gauge]
        felt.sum += took_s
        felt.count += 1
        if gauge is not Gauge.LOOP:
            self._user_at = now

    def _pauses(self, now: float) -> bool:
        """Whether users, if there are any, are to be seen without what is more than due."""
        return now - self._user_at < ALONE_S and self._pause_at <= now < self._pause_at + PAUSE_S

    def _turn(self, now: float) -> None:
        if now - self._turn_at < TURN_S:
            return
        took = now - self._turn_at
        rate, self._spent, self._turn_at = self._spent / took, 0, now
        self._quiet_turns = self._quiet_turns + 1 if not rate else 0
        paused_s = now - self._pause_at
        if now - self._user_at >= ALONE_S:
            self._forget()
            self._grow(2 * self.budget, rate)
        elif self._quiet_turns > 1 or PAUSE_BLIND_S + TURN_S <= paused_s <= PAUSE_S:
            self._learn()
        elif paused_s >= 0:
            self._forget()  # partly of the pause, partly not
        else:
            self._judge(rate)
        if now >= self._pause_at + PAUSE_S:
            self._pause_at = now + PAUSE_EVERY_S

    def _forget(self) -> None:
        for felt in self._felt.values():
            felt.take()

    def _learn(self) -> None:
        """This turn shows users without background work."""
        for felt in self._felt.values():
            if mean := felt.take():
                felt.learn(mean)

    def _judge(self, rate: float) -> None:
        complains = judged = False
        for felt in self._felt.values():
            mean = felt.take(SAMPLES)
            if not mean:
                continue
            judged = True
            if not felt.idle:
                felt.learn(mean)  # better than nothing, until the next pause
            elif felt.complains(mean):
                complains = True
        if complains and rate:
            floor = min(self.ceiling, float(FLOOR))
            self.budget = max(floor, min(self.budget, 2 * rate) * SHRINK)
        elif judged and not complains:
            self._grow(self.budget + STEP, rate)

    def _grow(self, budget: float, rate: float) -> None:
        """Never far past what is used: it would take long to come down from there."""
        used = max(2 * rate, float(START), self.budget if rate else 0.0)
        self.budget = max(min(budget, self.ceiling, used), min(float(FLOOR), self.ceiling))
