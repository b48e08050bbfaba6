"""What one record costs in the cores of the quorum log: ``python -m moorage.bench.quorum_cost``.

One writer and three members in one process, no sockets, no disk: 4 KiB writes in turns of 32, as a client at
that depth makes them. Times are CPU per record; the best of several rounds, since machines are busy.
"""

from __future__ import annotations

import argparse
import sys
import time

from moorage.quorum.lease import GrantedLease
from moorage.quorum.member import Member
from moorage.quorum.orders import Append, Seal
from moorage.quorum.record import BLOCK_SIZE, Kind, Record, block_sums, decode_batch
from moorage.quorum.state import MemberState
from moorage.quorum.writer import Batch, Writer
from moorage.wire import log_messages

DEPTH = 32
TURNS = 300
ROUNDS = 7
REPLICAS = (1, 2, 3)


class Group:
    """A writer, its members, and how much time each part took."""

    def __init__(self, sync: bool) -> None:
        self.writer = Writer(epoch=1, writer=1, members=REPLICAS, sync=sync)
        self.members = {r: Member(MemberState(r), sync=sync, now_ms=0, tail_from=lambda: 1) for r in REPLICAS}
        self.writer_s = self.member_s = self.decode_s = 0.0
        for replica in REPLICAS:
            self.writer.connected(replica)
        while self.writer.commit == 0:
            self.turn()

    def turn(self) -> None:
        clock = time.process_time
        for order in self.writer.take_orders():
            if isinstance(order, Seal):
                self.members[order.replica].seal(order.session, 1, 1, 0, GrantedLease())
                self.members[order.replica].grant(1 << 50, False)
        for replica, member in self.members.items():
            began = clock()
            batches: list[Batch] = []
            while (batch := self.writer.take_batch(replica, 1 << 20)) is not None:
                batches.append(batch)
                body = self._pack(replica, batch)
            self.writer_s += clock() - began
            for batch in batches:
                began = clock()
                records = decode_batch(body[log_messages.APPEND_SIZE :], b"".join(batch.buffers))
                self.decode_s += clock() - began
                self._member(member, batch, records)
            self._answer(replica, member)

    def _pack(self, replica: int, batch: Batch) -> bytes:
        return (
            log_messages.pack_append(
                replica, 1, 1, batch.prev_epoch, batch.prev_lsn, batch.commit, batch.session, batch.count
            )
            + batch.heads
        )

    def _member(self, member: Member, batch: Batch, records: list[Record]) -> None:
        began = time.process_time()
        member.append(
            1, 1, batch.session, batch.prev_epoch, batch.prev_lsn, batch.commit, batch.flags, records
        )
        self.member_s += time.process_time() - began

    def _answer(self, replica: int, member: Member) -> None:
        began = time.process_time()
        for effect in member.take_effects():
            if isinstance(effect, Append) or hasattr(effect, "ticket"):
                member.persisted(effect.ticket)
        ack = member.take_ack()
        self.member_s += time.process_time() - began
        answer = member.take_seal_answer(0)
        if answer is not None:
            self.writer.sealed(replica, *answer)
        if ack is not None:
            session, received, durable, applied, limit, flags = ack
            began = time.process_time()
            self.writer.ack(replica, 1, received, durable, applied, limit, session, flags)
            self.writer_s += time.process_time() - began


def measure(sync: bool) -> tuple[float, float, float]:
    """Microseconds per record: (writer with three members, decoding at one member, one member)."""
    group = Group(sync)
    data = bytes(BLOCK_SIZE)
    sums = block_sums(data)
    group.writer_s = group.member_s = group.decode_s = 0.0
    for turn in range(TURNS):
        began = time.process_time()
        for tag in range(1, DEPTH + 1):
            group.writer.submit(Kind.WRITE, turn & 63, tag, 1, sums, data, tag)
        group.writer_s += time.process_time() - began
        group.turn()
        began = time.process_time()
        group.writer.take_done()
        group.writer_s += time.process_time() - began
    records = TURNS * DEPTH / 1e6
    return group.writer_s / records, group.decode_s / records / 3, group.member_s / records / 3


def main() -> None:
    argparse.ArgumentParser(description="what the cores of the quorum log cost, without any I/O").parse_args()
    for sync in (True, False):
        rounds = [measure(sync) for _ in range(ROUNDS)]
        writer, decode, member = (min(column) for column in zip(*rounds, strict=True))
        mode = "sync" if sync else "writeback"
        sys.stdout.write(
            f"{mode:9}  writer {writer:.2f} us/record (submit, pack for 3, 3 acks)  "
            f"member {member:.2f} us/record  decoding {decode:.2f} us/record\n"
        )


if __name__ == "__main__":
    main()
