"""One replica group of a read-only attachment: no seal, no lease, no log of its own.

Owns the floor below which reads of this group never go back: the greatest position that a read has shown, or
to which the log was recovered when nobody held the volume, and no earlier epoch than metadata told. What is
read is a prefix of the writer's log, beside a writer perhaps not the newest one.

Why the epoch: in ``writeback`` a member may have applied records that the power took from all others. If the
next writer's recovery does not reach it, it knows of no loss, and its LSNs may be as great as the new ones.
But its last record is of an earlier epoch than the barrier of that recovery.
"""

from __future__ import annotations

from typing import Any

from moorage.client.device import Done
from moorage.client.nodes import AckFields, NackFields, NodePool, UserKey
from moorage.client.reads import GroupReader, ReadSweep, Target
from moorage.quorum.record import Buffer, Position
from moorage.wire.connection import Connection
from moorage.wire.errors import Fenced, MoorageError, ReadOnly
from moorage.wire.log_messages import PREFIX

FOR_EVER_MS = 1 << 62


class _Member:
    """A replica that is only read. A :class:`~moorage.client.nodes.LinkUser`, told apart from other
    readers of this process by a negative number in place of an epoch."""

    _count = 0

    def __init__(self, nodes: NodePool, replica: int, device: str, host: str, address: str) -> None:
        _Member._count -= 1
        self.key: UserKey = (replica, _Member._count)
        self.replica = replica
        self.link = nodes.link(device, host, address)
        self.target = Target(self.link, replica)

    def link_up(self, conn: Connection) -> None:
        self.target.readable = True

    def link_down(self, error: MoorageError) -> None:
        self.target.readable = False

    def acknowledged(self, fields: AckFields) -> None:
        """Never sent to a reader."""

    def refused(self, fields: NackFields) -> None:
        """Never sent to a reader."""

    def lease_promised(self, sent_ms: int) -> None:
        """A prefix needs no lease."""


class ReadOnlyGroup:
    """A :class:`~moorage.client.group.GroupLog` that refuses to write, and a source of reads."""

    def __init__(self, nodes: NodePool, sweep: ReadSweep, group: dict[str, Any], floor: Position) -> None:
        self.flags = PREFIX
        self.reads_until_ms = FOR_EVER_MS
        self.index: int = group["group"]
        self._nodes = nodes
        self._floor = floor
        self.members = [
            _Member(nodes, row["replica"], row["device"], row["host"], row["address"] or "")
            for row in group["members"]
        ]
        targets = [member.target for member in self.members]
        reader = GroupReader(
            self,
            targets,
            sweep,
            rotation=self.index + targets[0].replica,
            repair=lambda chunk, block, count: None,  # the holder's business
        )
        self.read, self.look, self.read_from = reader.read, reader.look, reader.read_from
        for member in self.members:
            nodes.join(member, member.link)

    def write(self, chunk: int, block: int, data: Buffer, done: Done, fua: bool) -> None:
        done(ReadOnly("attached read-only"))

    def zero(self, chunk: int, block: int, count: int, done: Done, fua: bool) -> None:
        done(ReadOnly("attached read-only"))

    def zero_chunks(self, chunk: int, count: int, done: Done, fua: bool) -> None:
        done(ReadOnly("attached read-only"))

    def flush(self, done: Done) -> None:
        done(None)

    @property
    def epoch(self) -> int:
        return self._floor.epoch

    def read_lsn(self, chunk: int) -> int:
        return self._floor.lsn

    def showed(self, epoch: int, applied: int) -> None:
        self._floor = max(self._floor, Position(epoch, applied))

    def refused_by(self, error: Fenced) -> None:
        """A prefix stays one, whoever writes."""

    def waiting_for(self) -> str:
        troubles = [text for text in (member.link.trouble() for member in self.members) if text]
        if not troubles:
            return ""
        return f"waiting for {len(troubles)} of {len(self.members)}: {', '.join(troubles)}"

    def leave(self) -> None:
        for member in self.members:
            self._nodes.leave(member, member.link)

    def describe(self) -> dict[str, Any]:
        return {
            "group": self.index,
            "phase": "reading",
            "commit": self._floor.lsn,
            "waiting_for": self.waiting_for(),
            "queued": 0,
            "members": [
                {
                    "host": member.link.host,
                    "device": member.link.device,
                    "replica": member.target.replica,
                    "state": member.link.trouble() or "current",
                    "behind": 0,
                }
                for member in self.members
            ],
        }
