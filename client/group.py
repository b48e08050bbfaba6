"""What the volume's front asks of one replica group: the seam between addressing and replication.

Owns the interface only. :mod:`moorage.client.session` implements it over the quorum log; tests over memory.
Chunks are group-local (chunk ``i`` of a volume is ``i // G`` of group ``i % G``), everything is whole blocks
inside one chunk, and ``done`` follows the rules of :mod:`moorage.client.device`.
"""

from __future__ import annotations

from typing import Protocol

from moorage.client.device import Done
from moorage.quorum.record import Buffer


class GroupLog(Protocol):
    """One group of an attached volume. Order of calls is the order of the log."""

    def read(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """Fill ``into`` with whole blocks; sees every write whose ``done`` ran before. Gives up by itself
        after the io timeout, and never touches ``into`` after ``done``."""

    def look(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """As :meth:`read`, about data instead of with it: one byte for each block, 0 for a hole."""

    def stamps(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """As :meth:`read`, about data instead of with it: for each block the LSN, 8 bytes, at which it was
        written or discarded last, 0 for never."""

    def read_from(self, host: str, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """As :meth:`read`, but only from the replica on ``host``: Corrupt when its copy is bad (it is
        repaired from the others), Invalid when the group has none there."""

    def write(self, chunk: int, block: int, data: Buffer, done: Done, fua: bool) -> None:
        """Append one record. ``data`` must never change again: members may ask for it long after ``done``.
        ``done`` may come late (no quorum): the front, not the group, tells the caller of a timeout."""

    def zero(self, chunk: int, block: int, count: int, done: Done, fua: bool) -> None:
        """Blocks inside one chunk read as zeroes afterwards."""

    def zero_chunks(self, chunk: int, count: int, done: Done, fua: bool) -> None:
        """Whole consecutive group-local chunks read as zeroes afterwards."""

    def flush(self, done: Done) -> None:
        """``done`` when every write acknowledged before is on stable storage at a majority."""

    def waiting_for(self) -> str:
        """Whom the group waits for, as in "waiting for 2 of 3: host2 silent for 14 s"; "" when for nobody."""
