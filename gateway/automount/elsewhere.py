"""Who else has a mounted device mounted, in this mount namespace or in another one.

Owns the question that an idle volume is asked before it is unmounted: the kernel counts the users of one
mount, not those of a bind of it in a container. A mount that goes by itself with ours (it sits in a copy of
the same directory, that mounts and unmounts propagate to) is no other user.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GROUP = re.compile(r"(shared|master):(\d+)")


@dataclass(frozen=True)
class Seen:
    """A line of a mountinfo. ``sends``: peer groups that hear of what is mounted in it; ``hears``: those that
    it hears from."""

    id: str
    parent: str
    device: str
    target: str
    sends: frozenset[str]
    hears: frozenset[str]


def read(text: str) -> list[Seen]:
    found = []
    for line in text.splitlines():
        fields = line.partition(" - ")[0].split()
        groups = _GROUP.findall(" ".join(fields[6:]))
        sends = frozenset(number for kind, number in groups if kind == "shared")
        hears = frozenset(number for _, number in groups)
        found.append(Seen(fields[0], fields[1], fields[2], fields[4], sends, hears))
    return found


def other_mounts(device: tuple[int, int], ours: set[str]) -> list[str]:
    """Where else a device is mounted than at ``ours``, paths of this namespace."""
    here = read(Path("/proc/self/mountinfo").read_text())
    number = f"{device[0]}:{device[1]}"
    found = [each.target for each in here if each.device == number and each.target not in ours]
    parents = {each.id: each for each in here}
    groups = {
        group
        for each in here
        if each.device == number and each.parent in parents
        for group in parents[each.parent].sends
    }
    for pid, text in _other_namespaces():
        there = read(text)
        parents = {each.id: each for each in there}
        found += [
            f"{each.target} (mount namespace of pid {pid})"
            for each in there
            if each.device == number and not (each.parent in parents and parents[each.parent].hears & groups)
        ]
    return found


def _other_namespaces() -> Iterator[tuple[str, str]]:
    seen = {os.readlink("/proc/self/ns/mnt")}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            name = os.readlink(directory / "ns" / "mnt")
            if name not in seen:
                text = (directory / "mountinfo").read_text()
                seen.add(name)
                yield directory.name, text
