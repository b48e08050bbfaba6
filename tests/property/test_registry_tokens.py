"""Copies of a device's directory, restarted in every order: two never go on, and an old one never does.

A model of what a node does with its directory: it writes the next token before it asks, keeps the former
one until the registry has agreed, and reserves its heartbeat counts ahead, so that what it remembers is
at least what it sent.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV
from moorage.wire.errors import IdentityConflict

RESERVE = 4


@dataclass
class Directory:
    token: str = ""
    next_token: str = ""
    count: int = 0  # reserved: no heartbeat beyond it was sent
    promises: int = 0  # what the device has promised to writers, in effect its memory


class Cluster:
    def __init__(self) -> None:
        self.kv, self.machine, self.serial = KV(), RegistryMachine(), 0
        self.promised = 0  # by whoever was the device

    def propose(self, **command: Any) -> None:
        try:
            self.machine.apply(self.kv, command, 1)
        except IdentityConflict:
            self.kv.rollback()
            raise
        self.kv.commit()

    def start(self, directory: Directory, answered: bool) -> bool:
        """True: this copy is the device now. It must remember all that was ever promised."""
        self.serial += 1
        if not directory.next_token:
            directory.next_token = f"t{self.serial}"
        command = {
            "op": "start_device", "device": "d", "host": "h", "address": "a:1", "capacity": 1,
            "old_token": directory.token, "new_token": directory.next_token, "count": directory.count,
        }  # fmt: skip
        try:
            self.propose(**command)
        except IdentityConflict:
            return False
        if not answered:
            return False  # crashed before the answer: the next start asks for the same again
        directory.token, directory.next_token = directory.next_token, ""
        return True

    def run(self, directory: Directory, heartbeats: int, noted: bool) -> None:
        for _ in range(heartbeats):
            directory.count += 1
            directory.promises += 1
            self.promised = max(self.promised, directory.promises)
        sent = directory.count
        directory.count += RESERVE
        if noted:
            self.propose(op="note_counts", counts={"d": [directory.token, sent]})


STEP = st.tuples(st.sampled_from(["start", "copy", "crash-start"]), st.integers(0, 3), st.integers(1, 9))


@given(st.lists(STEP, max_size=30))
def test_an_old_copy_never_goes_on(steps: list[tuple[str, int, int]]) -> None:
    """Every run notes its last count here: the window in which it is not is the leader's few seconds."""
    cluster = Cluster()
    copies = [Directory()]
    for what, which, heartbeats in steps:
        directory = copies[which % len(copies)]
        if what == "copy":
            copies.append(deepcopy(directory))
        elif what == "crash-start":
            cluster.start(directory, answered=False)
        elif cluster.start(directory, answered=True):
            assert directory.promises == cluster.promised, "a copy that has forgotten promises is the device"
            cluster.run(directory, heartbeats + RESERVE, noted=True)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=12))
def test_of_copies_one_at_most_goes_on(order: list[int]) -> None:
    cluster = Cluster()
    first = Directory()
    assert cluster.start(first, answered=True)
    copies = [first, deepcopy(first), deepcopy(first)]
    winners = {which for which in order if cluster.start(copies[which], answered=True)}
    assert len(winners) == 1
