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
from moorage.wire.log_messages import AT, PREFIX

FOR_EVER_MS = 1 << 62


class _Member:
    """A replica that is only read. A :class:`~moorage.client.nodes.LinkUser`, told apart from other
    readers of this process by a negative number in place of an epoch."""

    _count = 0

    def __init__(self, nodes: NodePool, row: dict[str, Any]) -> None:
        """``row``: as metadata describes the replica."""
        _Member._count -= 1
        self.replica: int = row["replica"]
        self.key: UserKey = (self.replica, _Member._count)
        self.link = nodes.link(row["device"], row["host"], row["address"] or "")
        self.target = Target(self.link, self.replica)

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

    def __init__(
        self,
        nodes: NodePool,
        sweep: ReadSweep,
        group: dict[str, Any],
        floor: Position,
        *,
        snapshot: int = 0,
    ) -> None:
        """``snapshot``: LSN of the one to read, instead of the log's end."""
        self.flags = PREFIX | (AT if snapshot else 0)
        self.snapshot = snapshot
        self.reads_until_ms = FOR_EVER_MS
        self.index: int = group["group"]
        self._nodes = nodes
        self._floor = floor
        self._version: int = group["version"]
        self.members = [_Member(nodes, row) for row in group["members"]]
        targets = [member.target for member in self.members]
        self._reader = reader = GroupReader(
            self,
            targets,
            sweep,
            rotation=self.index + targets[0].replica,
            repair=lambda chunk, block, count: None,  # the holder's business
        )
        self.read, self.look, self.stamps = reader.read, reader.look, reader.stamps
        self.read_from = reader.read_from
        for member in self.members:
            nodes.join(member, member.link)

    def heard(self, group: dict[str, Any]) -> None:
        """What metadata says of the group: where its members are, and which they are now. One that is none
        any more may never hear of a later write, and is about to be dropped."""
        rows = {row["replica"]: row for row in group["members"]}
        if group["version"] > self._version:
            self._version = group["version"]
            known = {member.replica: member for member in self.members}
            gone = [member for replica, member in known.items() if replica not in rows]
            come = [_Member(self._nodes, row) for replica, row in rows.items() if replica not in known]
            self.members = [*(known[each] for each in known if each in rows), *come]
            self._reader.set_targets([member.target for member in self.members])
            for member in come:
                self._nodes.join(member, member.link)
            for member in gone:
                member.target.readable = False
                self._nodes.leave(member, member.link)
        for member in self.members:
            if (row := rows.get(member.replica)) is not None:
                member.link.move(row["address"] or "")

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
        if not self.snapshot:  # one shows the same, whatever else a member has
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
                    "learner": False,
                    "state": member.link.trouble() or "current",
                    "behind": 0,
                }
                for member in self.members
            ],
        }
