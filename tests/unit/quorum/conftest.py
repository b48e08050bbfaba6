"""Members and writers without a shell: small hands to move them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from moorage.quorum.lease import GrantedLease
from moorage.quorum.member import Member
from moorage.quorum.orders import Append, Apply, Note, Sync
from moorage.quorum.record import Kind, Record
from moorage.quorum.state import MemberState

ROOM = 1 << 20


class Hands:
    """One member, sealed by (epoch, writer 1) when asked; everything it hands to the store becomes durable
    only in ``sync``."""

    def __init__(self, sync: bool = True, state: MemberState | None = None, now_ms: int = 0) -> None:
        self.member = Member(
            state or MemberState(1),
            sync=sync,
            now_ms=now_ms,
            tail_from=lambda: 1,
            restarted=state is not None,
        )
        self.tickets: list[int] = []
        self.applied = 0
        self.lease = GrantedLease()
        self.session = 0

    def seal(self, epoch: int, writer: int = 1, now_ms: int = 0, session: int = 0) -> Any:
        self.session = session or self.session + 1
        self.lease = GrantedLease()
        assert self.member.seal(self.session, epoch, writer, now_ms, self.lease)
        self.member.grant(ROOM, False)
        self.sync()
        found = self.member.take_seal_answer(now_ms)
        return found and found[1]

    def append(self, *positions: tuple[int, int], epoch: int, **other: Any) -> int:
        records = [Record(e, lsn, Kind.ZERO, count=1) for e, lsn in positions]
        prev = other.get("prev", (positions[0][0], positions[0][1] - 1) if positions else (0, 0))
        return self.member.append(
            other.get("writer", 1),
            epoch,
            other.get("session", self.session),
            prev[0],
            prev[1],
            other.get("commit", 0),
            other.get("flags", 0),
            records,
        )

    def effects(self) -> list[str]:
        said = []
        for effect in self.member.take_effects():
            if isinstance(effect, Append | Note | Sync):
                self.tickets.append(effect.ticket)
            if isinstance(effect, Append):
                said.append(f"append {[tuple(r.position) for r in effect.records]}")
            elif isinstance(effect, Apply):
                self.applied = effect.lsn
                said.append(f"apply {effect.lsn}")
            else:
                said.append(type(effect).__name__.lower())
        self.member.validate()
        return said

    def sync(self) -> list[str]:
        said = self.effects()
        for ticket in self.tickets:
            self.member.persisted(ticket)
        self.tickets.clear()
        return said

    def log(self, history: Sequence[tuple[int, int]], epoch: int, commit: int = 0) -> None:
        """Seal and append records of these (epoch, LSN), one message each, then sync."""
        self.seal(epoch)
        before = 0
        for position in history:
            assert self.append(position, epoch=epoch, prev=(before, position[1] - 1), commit=commit) == 0
            before = position[0]
        self.sync()


@pytest.fixture
def hands() -> Callable[..., Hands]:
    return Hands
