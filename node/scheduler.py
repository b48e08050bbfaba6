"""How much background work a device does beside its users: one budget for copies, compaction and scrub.

Owns the arithmetic only (pure): time is an argument, in seconds of one clock. Must never keep a kind of work
below its due, whatever users feel, nor let all of it together past the ceiling that an operator has set.

* **Due**: bytes per second that a kind of work has whenever it asks: a floor, or what its deadline takes.
* **Budget**: for all of it together. It shrinks by a third when users wait longer than they do without
  background work, and grows again step by step (AIMD), at once when there is nobody.
* **Pause**: now and then only what is due goes on for a moment: else nobody knew what users would have
  without the rest, and "longer than" would creep up with the load.

Two accounts for each kind of work, its own for what is due and a common one for the rest of the budget.
Debts, not reservations: who finds one of them not overdrawn goes at once, and is charged all of it.
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
DEBT_S = 0.5  # of the budget: the most that the common account owes for what could not wait
SHRINK = 2 / 3
ALONE_S = 1.0  # without a user for so long, there is none
SAMPLES = 8  # fewer say nothing
PAUSE_EVERY_S, PAUSE_S, PAUSE_BLIND_S = 10.0, 0.4, 0.15  # what had begun before may still be felt in the last
LONGER = 1.6  # times what users have without background work ...
SLACK_S = 0.0002  # ... and this: below it nobody feels anything
# A turn of the loop with a piece of a MiB in it; timers are late by a millisecond anyhow.
LOOP_SLACK_S = 0.002
CAP = 4  # in a turn of ten operations two that are so late are enough for a complaint
PIECE_MIN, PIECE_MAX = 128 * KIB, MIB
PIECE_S = 0.005  # of the budget goes at once: that is what a user's write may find in front of it


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
    """One gauge: its mean in this turn, and what it is without background work. One operation counts for no
    more than ``CAP`` times that: a few very late ones come from elsewhere, and would drown all the others."""

    __slots__ = ("count", "idle", "slack_s", "sum")

    def __init__(self, slack_s: float) -> None:
        self.slack_s = slack_s
        self.sum = 0.0
        self.count = 0
        self.idle = 0.0  # 0: not known

    def add(self, took_s: float) -> None:
        self.sum += min(took_s, CAP * self.idle + self.slack_s) if self.idle else took_s
        self.count += 1

    def take(self, least: int = 1) -> float:
        """The mean of what came since, 0 when that is too little; it goes on being gathered then."""
        if self.count < least:
            return 0.0
        mean = self.sum / self.count
        self.sum, self.count = 0.0, 0
        return mean

    def learn(self, mean: float) -> None:
        """What was learned with background work still to be felt is too much: down faster than up."""
        weight = 1.0 if not self.idle else 0.5 if mean < self.idle else 0.3
        self.idle += (mean - self.idle) * weight

    def complains(self, mean: float) -> bool:
        return self.idle > 0 and mean > self.idle * LONGER + self.slack_s


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
        self._felt = {each: _Felt(LOOP_SLACK_S if each is Gauge.LOOP else SLACK_S) for each in Gauge}
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
        """Bytes per second that this work has whenever it asks."""
        return self._dues(now, work)[work]

    def _dues(self, now: float, work: Work | None = None) -> dict[Work, float]:
        """Of all that is being done, and of ``work``. Where the ceiling is below their sum, everybody gets
        his share of it."""
        dues = {each: self._wanted(each, now) for each in Work if each is work or self._is_at_it(each, now)}
        share = min(1.0, self.ceiling / max(1.0, sum(dues.values())))
        return {each: due * share for each, due in dues.items()}

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
        dues = self._dues(now)
        own, due, rest = self._own[work], dues[work], self._rest(dues)
        own.fill(due, now)
        self._common.fill(rest, now)
        if own.balance >= 0:
            own.balance -= size
        elif not spare or self._common.balance < 0 or not rest or self._pauses(now):
            return self._wait(own.balance, due, rest if spare else 0.0, now)
        else:
            self._common.balance -= size
        self._count(work, size)
        return 0.0

    def charge(self, work: Work, size: int, now: float) -> None:
        """Of what cannot wait: others wait for it."""
        self._turn(now)
        self._asked_at[work] = now
        self._common.fill(self._rest(self._dues(now)), now)
        self._common.balance = max(self._common.balance - size, -self.budget * DEBT_S)
        self._count(work, size)

    def _rest(self, dues: dict[Work, float]) -> float:
        """Bytes per second beyond what is due."""
        return max(0.0, self.budget - sum(dues.values()))

    def piece(self, now: float) -> int:
        """Bytes to do at once: small while users are at work, since theirs wait behind it."""
        if now - self._user_at >= ALONE_S:
            return PIECE_MAX
        return int(min(PIECE_MAX, max(PIECE_MIN, self.budget * PIECE_S)))

    def _count(self, work: Work, size: int) -> None:
        self._spent += size
        self.given[work] += size

    def _wait(self, own: float, due: float, rest: float, now: float) -> float:
        wait = -own / due
        if rest:
            common = -self._common.balance / rest
            if self._pauses(now):
                common = max(common, self._pause_at + PAUSE_S - now)
            wait = min(wait, common)
        return max(wait, 0.001)

    # -- users -------------------------------------------------------------------------------------

    def felt(self, gauge: Gauge, took_s: float, now: float) -> None:
        """An operation of a user took so long; the loop's lateness is nobody's operation."""
        self._turn(now)
        self._felt[gauge].add(took_s)
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
                felt.learn(mean)  # better than nothing, for as long as a pause takes to begin
                self._pause_at = min(self._pause_at, self._turn_at)
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
