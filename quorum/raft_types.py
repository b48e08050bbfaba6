"""What Raft talks about: members, configurations, log entries, messages, and what must be stored. Pure
values.

Messages carry their sender's term and no sender: the shell knows from whom a message came, and checks that.
The wire form is a flat list (``encode``, ``decode``) inside msgpack; a list that is not exactly what this
file says is a ProtocolError (docs/raft.md has the table).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgpack

from moorage.wire import errors

NOOP, COMMAND, CONFIG = 0, 1, 2  # kinds of entries


class Member(NamedTuple):
    name: str
    address: str
    voter: bool  # False: a learner, which receives everything and counts for nothing
    since: int = 0  # log index that added it; greater when the name was removed and added again


class Config:
    """The members of the group, ordered by name. Immutable."""

    __slots__ = ("members", "names", "voters")

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = tuple(sorted(members))
        self.names = tuple(member.name for member in self.members)
        self.voters = tuple(member.name for member in self.members if member.voter)

    def find(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def put(self, member: Member) -> Config:
        return Config([*(each for each in self.members if each.name != member.name), member])

    def drop(self, name: str) -> Config:
        return Config(each for each in self.members if each.name != name)

    def after(self, former: Config, index: int) -> Config:
        """This one as the entry at ``index`` behind ``former``: members stay what they were, others join."""
        return Config(
            each._replace(since=index if (known := former.find(each.name)) is None else known.since)
            for each in self.members
        )

    def voters_changed(self, other: Config) -> int:
        """How many voters are in one of the two only. At most one keeps every two majorities overlapping."""
        return len(set(self.voters) ^ set(other.voters))

    def encode(self) -> bytes:
        raw: bytes = msgpack.packb([list(member) for member in self.members])
        return raw

    @staticmethod
    def decode(raw: bytes) -> Config:
        try:
            rows = msgpack.unpackb(raw)
            members = [
                Member(str(name), str(address), bool(voter), _number(since))
                for name, address, voter, since in rows
            ]
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise errors.ProtocolError(f"not a raft configuration: {error}") from error
        return Config(members)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.members == other.members

    def __hash__(self) -> int:
        return hash(self.members)

    def __repr__(self) -> str:
        shown = ",".join(f"{each.name}{'' if each.voter else '?'}" for each in self.members)
        return f"Config({shown})"


class Entry(NamedTuple):
    term: int
    index: int  # type: ignore[assignment]
    kind: int
    data: bytes


class HardState(NamedTuple):
    """What a member must never forget, apart from its log."""

    term: int
    vote: str | None


class Snapshot(NamedTuple):
    """Names a state of the state machine: everything up to ``index`` is applied, and nothing else."""

    index: int  # type: ignore[assignment]
    term: int
    config: Config


class VoteRequest(NamedTuple):
    term: int  # for a pre-vote the term that the sender would campaign for
    last_term: int
    last_index: int
    pre: bool
    transfer: bool  # the leader asked for it: no waiting for it to fall silent


class VoteReply(NamedTuple):
    term: int
    pre: bool
    granted: bool


class Append(NamedTuple):
    term: int
    prev_index: int
    prev_term: int
    commit: int
    round: int  # echoed; a majority that echoes r confirms that the sender led when it began round r
    entries: tuple[Entry, ...]


class AppendReply(NamedTuple):
    term: int
    ok: bool
    # ok: stored, and equal to the leader's log, up to here; else the prev_index that was refused.
    index: int  # type: ignore[assignment]
    hint_index: int  # not ok: the greatest index where the logs may agree, and its term
    hint_term: int
    round: int


class Heartbeat(NamedTuple):
    """For a member that is receiving a snapshot; the others get an Append without entries."""

    term: int
    round: int


class HeartbeatReply(NamedTuple):
    term: int
    round: int


class SnapshotChunk(NamedTuple):
    term: int
    snapshot: Snapshot
    attempt: int  # of this leader; chunks of two attempts never mix, even for the same index
    seq: int  # from 0, without gaps
    last: bool
    data: bytes  # opaque to the core


class SnapshotReply(NamedTuple):
    term: int
    attempt: int
    next_seq: int  # the chunk that the receiver waits for


class TimeoutNow(NamedTuple):
    """Campaign at once: the leader hands over."""

    term: int


Message = (
    VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | SnapshotChunk
    | SnapshotReply
    | TimeoutNow
)
Outbox = list[tuple[str, Message]]

# Wire codes (docs/raft.md). A code is never given to another message.
_CODES: dict[int, Any] = {
    1: VoteRequest,
    2: VoteReply,
    3: Append,
    4: AppendReply,
    5: Heartbeat,
    6: HeartbeatReply,
    7: SnapshotChunk,
    8: SnapshotReply,
    9: TimeoutNow,
}
_CODE_OF = {cls: code for code, cls in _CODES.items()}
INDEX_MAX = (1 << 63) - 1


def encode(message: Message) -> list[Any]:
    fields = list(message)
    if isinstance(message, Append):
        # Indices follow from prev_index.
        fields[-1] = [[entry.term, entry.kind, entry.data] for entry in message.entries]
    elif isinstance(message, SnapshotChunk):
        snapshot = message.snapshot
        fields[1] = [snapshot.index, snapshot.term, snapshot.config.encode()]
    return [_CODE_OF[type(message)], *fields]


def decode(raw: Any) -> Message:
    try:
        cls = _CODES[raw[0]]
        fields = list(raw[1:])
        if cls is Append:
            prev = fields[1]
            fields[-1] = tuple(
                Entry(_number(term), prev + 1 + at, _number(kind), _bytes(data))
                for at, (term, kind, data) in enumerate(fields[-1])
            )
        elif cls is SnapshotChunk:
            index, term, config = fields[1]
            fields[1] = Snapshot(_number(index), _number(term), Config.decode(_bytes(config)))
            _bytes(fields[-1])
        if len(fields) != len(cls._fields):
            raise ValueError(f"{len(fields)} fields")
        for value in fields:
            if type(value) is int:
                _number(value)
            elif type(value) not in (bool, tuple, Snapshot, bytes):
                raise ValueError(f"a field of type {type(value).__name__}")
        message: Message = cls(*fields)
        _number(message.term)
        return message
    except (LookupError, ValueError, TypeError) as error:
        raise errors.ProtocolError(f"not a raft message: {error}") from error


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= INDEX_MAX:
        raise ValueError("a number is out of range")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError("bytes expected")
    return value


class Ready:
    """What must be durable, in this order, before ``messages`` may be sent: the hard state; snapshot chunks
    (seq 0 empties what was staged); ``install``: the staged chunks become the state, and the stored log
    becomes empty at that index; ``entries``: they replace every stored entry from the first one's index on.
    """

    __slots__ = ("chunks", "entries", "hard_state", "install", "messages")

    def __init__(
        self,
        hard_state: HardState | None,
        chunks: list[SnapshotChunk],
        install: Snapshot | None,
        entries: list[Entry],
        messages: Outbox,
    ) -> None:
        self.hard_state = hard_state
        self.chunks = chunks
        self.install = install
        self.entries = entries
        self.messages = messages

    @property
    def nothing_to_store(self) -> bool:
        return not (self.hard_state or self.chunks or self.install or self.entries)


class ChunkRequest(NamedTuple):
    """The shell is to read a chunk for ``target`` and give it to ``Raft.provide_chunk``. With seq 0 the shell
    chooses a new snapshot, at least as new as the log's start."""

    target: str
    attempt: int
    seq: int
