"""Who uses the mount of a volume on this host, and what follows for it. The core: no clock, no file.

Each user has an id: Docker gives one to each start of a container, ``moorage dvdi run`` one to each process.
``dvdcli`` gives none, and asks once to unmount for however many times it asked to mount: all of its users are
one, with the id "". What has been noted is compared with what is seen of the mount, which is the truth; notes
are written before anything is done, so after a crash at any step the next call finds one of these rows.

================ =================== ========================================================= ========
asked            seen                users afterwards                                          to do
================ =================== ========================================================= ========
mount, or again  nothing, dead       this one: others used a mount that is no more             mount
mount, or again  opening             and this one                                              wait
mount, or again  serving             and this one                                              answer
mount, or again  broken              this one                                                  replace
unmount          any, others use it  without this one                                          answer
unmount          nothing             none                                                      answer
unmount          anything else       none                                                      unmount
put right        nothing             none                                                      answer
put right        dead                none                                                      unmount
put right        anything else       those who may still use it                                answer
put right        anything else       none was left                                             unmount
================ =================== ========================================================= ========

To wait is to look again: that row is met with another thing seen. An unmount by an id that is not noted takes
nothing away from others; with no others it ends what a crash left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

Users = frozenset[str]


class Seen(Enum):
    """What there is of a volume's mount at its place on this host."""

    NOTHING = "nothing"
    OPENING = "opening"  # by somebody who may be dead by now: it comes to an end without him
    SERVING = "serving"
    BROKEN = "broken"  # lost to another host, or unmounted by hand: no I/O of old users succeeds
    DEAD = "dead"  # its keeper is gone: to be cleaned up


class Do(Enum):
    ANSWER = "answer"
    WAIT = "wait"
    MOUNT = "mount"
    REPLACE = "replace"  # unmount, then mount
    UNMOUNT = "unmount"


@dataclass(frozen=True)
class Entry:
    """What is noted of a volume. ``options``: of its mounts on this host, as its Create said; ``engines``:
    the processes that asked for some of its users."""

    users: Users = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not self.users and not self.options

    def without(self, user: str) -> Entry:
        return replace(self, users=self.users - {user})

    def asked_for(self, user: str, engine: str) -> Entry:
        return replace(self, engines={**self.engines, user: engine}) if engine else self


def mount(entry: Entry, user: str, seen: Seen) -> tuple[Entry, Do]:
    alone, beside = replace(entry, users=frozenset({user})), replace(entry, users=entry.users | {user})
    return {
        Seen.NOTHING: (alone, Do.MOUNT),
        Seen.DEAD: (alone, Do.MOUNT),
        Seen.OPENING: (beside, Do.WAIT),
        Seen.SERVING: (beside, Do.ANSWER),
        Seen.BROKEN: (alone, Do.REPLACE),
    }[seen]


def unmount(entry: Entry, user: str, seen: Seen) -> tuple[Entry, Do]:
    left = entry.without(user)
    if left.users or seen is Seen.NOTHING:
        return left, Do.ANSWER
    return left, Do.UNMOUNT


def put_right(entry: Entry, seen: Seen, lives: Callable[[str], bool]) -> tuple[Entry, Do]:
    """``lives``: whether an id is of somebody who may still use it."""
    none = replace(entry, users=frozenset())
    if seen is Seen.NOTHING:
        return none, Do.ANSWER
    if seen is Seen.DEAD:
        return none, Do.UNMOUNT
    left = replace(entry, users=frozenset(user for user in entry.users if lives(user)))
    return left, Do.ANSWER if left.users else Do.UNMOUNT
