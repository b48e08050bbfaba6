"""Transcripts of one member: commands in, what comes of them out. ``MOORAGE_REWRITE=1`` writes the files
anew; review the difference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from moorage.quorum.lease import GrantedLease
from moorage.quorum.member import Member
from moorage.quorum.orders import Append, Apply, Note, Pull, Sync
from moorage.quorum.record import Kind, Position, Record
from moorage.quorum.state import MemberState
from moorage.wire.errors import MoorageError

FILES = sorted((Path(__file__).parent / "quorum_log").glob("*.txt"))
CODES = ("ok", "fenced", "no session", "gap", "no room", "behind")


def position(text: str) -> Position:
    epoch, lsn = text.split(",")
    return Position(int(epoch), int(lsn))


class Told:
    """A member that is told one line at a time, and tells what came of it."""

    def __init__(self) -> None:
        self.member = self.start(MemberState(1), sync=True)
        self.lease = GrantedLease()
        self.now_ms = 0

    def start(self, state: MemberState, sync: bool) -> Member:
        return Member(state, sync=sync, now_ms=0, tail_from=lambda: 1, restarted=False)

    def tell(self, line: str) -> list[str]:
        name, *words = line.split()
        values = dict(word.split("=") for word in words)
        try:
            said = getattr(self, "on_" + name)(values)
        except MoorageError as error:
            said = f"{type(error).__name__}: {error}"
        self.member.validate()
        return [*([said] if said else []), *self.outcome()]

    def outcome(self) -> list[str]:
        said = [self.effect(effect) for effect in self.member.take_effects()]
        found = self.member.take_seal_answer(self.now_ms)
        if found is not None:
            answer = found[1]
            flags = ("whole" if answer.whole else "not whole") + (" damaged" if answer.damaged else "")
            said.append(f"answer: vote {tuple(answer.vote)} commit {answer.commit} {answer.history} {flags}")
        ack = self.member.take_ack()
        if ack is not None:
            said.append("ack: session {} received {} durable {} applied {} flags {}".format(*ack[:4], ack[5]))
        return said

    def effect(self, effect: Any) -> str:
        if isinstance(effect, Append):
            return f"append {[tuple(record.position) for record in effect.records]} ticket {effect.ticket}"
        if isinstance(effect, Note | Sync):
            return f"{type(effect).__name__.lower()} ticket {effect.ticket}"
        if isinstance(effect, Apply):
            return f"apply {effect.lsn}"
        assert isinstance(effect, Pull)
        return f"pull from {effect.source} above {effect.above} base {tuple(effect.base)}"

    def on_mode(self, values: dict[str, str]) -> None:
        self.member = self.start(MemberState(1), sync=values["is"] == "sync")

    def on_seal(self, values: dict[str, str]) -> str:
        session, epoch, writer = (int(values[key]) for key in ("session", "epoch", "writer"))
        self.lease = GrantedLease()
        taken = self.member.seal(session, epoch, writer, self.now_ms, self.lease)
        self.member.grant(1 << 20, False)
        return "" if taken else "ignored"

    def on_append(self, values: dict[str, str]) -> str:
        prev = position(values["prev"])
        records = [
            Record(*position(at), Kind.ZERO, count=1) for at in values.get("records", "").split("|") if at
        ]
        writer, epoch = position(values["by"])
        code = self.member.append(
            writer,
            epoch,
            int(values["session"]),
            prev.epoch,
            prev.lsn,
            int(values.get("commit", 0)),
            int(values.get("flags", 0)),
            records,
        )
        return CODES[code]

    def on_persisted(self, values: dict[str, str]) -> None:
        self.member.persisted(int(values["ticket"]))

    def on_heartbeat(self, values: dict[str, str]) -> None:
        self.lease.renew(self.now_ms)

    def on_now(self, values: dict[str, str]) -> None:
        self.now_ms = int(values["ms"])

    def on_release(self, values: dict[str, str]) -> None:
        self.member.release(int(values["epoch"]), int(values["writer"]))

    def on_read(self, values: dict[str, str]) -> str:
        return CODES[self.member.may_read(int(values["epoch"]), int(values["lsn"]))]

    def on_copy(self, values: dict[str, str]) -> None:
        writer, epoch = position(values["by"])
        fresh = values.get("fresh") == "yes"
        self.member.copy(
            int(values["session"]), epoch, writer, values["source"], position(values["base"]), fresh
        )

    def on_pulled(self, values: dict[str, str]) -> str:
        taken = self.member.pulled(int(values["number"]), position(values["applied"]))
        return "taken" if taken else "dropped"

    def on_copied(self, values: dict[str, str]) -> None:
        self.member.copied(int(values["number"]))

    def on_damage(self, values: dict[str, str]) -> None:
        self.member.damage(values["what"])

    def on_restart(self, values: dict[str, str]) -> None:
        """From its state as it is now, as if all of it were durable."""
        state = MemberState.unpack(self.member.state.pack())
        sync = self.member.sync
        self.member = Member(state, sync=sync, now_ms=self.now_ms, tail_from=lambda: 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    told = Told()
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("> "):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            lines += ["> " + said for said in told.tell(line)]
    text = "\n".join(lines) + "\n"
    if os.environ.get("MOORAGE_REWRITE"):
        path.write_text(text)
    assert text == path.read_text()
