"""The Raft core: elections, the log, commit. Sans-IO: messages and ticks in, messages and what to store out.

Owns: term, vote, role, log, commit and applied index of one member. After Ongaro's thesis ("Consensus:
bridging theory and practice"), shaped like etcd's raft: pre-vote, check-quorum, read-index reads, snapshots
in chunks, one-voter-at-a-time membership changes with learners, hand-over.
Must never: send a promise before it is durable (``Ready``), vote twice in a term, forget a committed entry.

The shell's loop: ``step``, ``tick``, ``propose``, ``read``; then
``take_messages`` (may go out at once), ``ready`` (store, then send its messages, then ``advance``; one at
a time), ``take_committed`` (apply, in order), ``take_reads``, ``take_chunk_requests``, ``take_forgetful``.
Why some messages may overtake storing: a leader's Append says nothing about its own disk, for which it
counts only what ``advance`` reported (thesis, section 10.2.1). While term or vote are not durable nothing
goes out at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from moorage.quorum.majority import is_majority
from moorage.quorum.raft_leader import Leadership
from moorage.quorum.raft_log import Log
from moorage.quorum.raft_types import (
    COMMAND,
    CONFIG,
    NOOP,
    Append,
    AppendReply,
    ChunkRequest,
    Config,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Outbox,
    Ready,
    Snapshot,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from moorage.wire import errors
from moorage.wire.errors import invariant


class Rng(Protocol):
    def randrange(self, start: int, stop: int, /) -> int: ...


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"  # asks whether it could win, without disturbing anybody's term
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Settings:
    """In ticks and counts. An election timeout is drawn from [election_ticks, 2 * election_ticks)."""

    election_ticks: int = 12
    heartbeat_ticks: int = 3
    chunk_ticks: int = 40  # a snapshot chunk without an answer is sent again after this
    inflight_max: int = 32  # Appends with entries that one member may have unanswered
    append_bytes_max: int = 256 << 10
    uncommitted_max: int = 4096  # entries; beyond it proposals are refused
    log_max: int = 32_768  # entries kept for members that are slow; who needs more gets a snapshot


NEW_STATE = HardState(0, None)
DEFAULTS = Settings()


class Raft:
    def __init__(
        self,
        name: str,
        log: Log,
        rng: Rng,
        hard_state: HardState = NEW_STATE,
        applied: int = 0,
        settings: Settings = DEFAULTS,
    ) -> None:
        """``log`` and ``hard_state`` as read from the disk; ``applied`` is what the durable state covers."""
        self.name = name
        self.log = log
        self.settings = settings
        self.term, self.vote = hard_state
        self.role = Role.FOLLOWER
        self.leader: str | None = None
        self.commit = self.applied = applied
        self.lead: Leadership | None = None
        self._rng = rng
        self._votes: dict[str, bool] = {}
        self._elapsed = 0
        self._timeout = 0
        self._stored_state = hard_state  # the durable one
        self._now: Outbox = []
        self._after: Outbox = []
        self._reads: list[tuple[int, int | None]] = []
        self._chunks: list[SnapshotChunk] = []  # received, to be stored
        self._incoming = (0, 0)  # term and attempt of the snapshot being received
        self._next_seq = 0
        self._install: Snapshot | None = None  # complete, not yet known to be stored
        self._outstanding: Ready | None = None
        self._draw_timeout()

    @property
    def is_leader(self) -> bool:
        return self.lead is not None

    @property
    def promotable(self) -> bool:
        """Whether this member may ask for votes: a voter whose state is not just being replaced. One that is
        being removed stays one until that is committed: the others may need its log (thesis, section 4.2.2).
        It does not count its own vote then."""
        current = [config for since, config in self.log.configs if since > self.commit]
        current.append(self.log.config_at(self.commit))
        return self._install is None and any(self.name in config.voters for config in current)

    @property
    def installing(self) -> bool:
        """A snapshot is about to replace the state: what the state machine holds is of the past."""
        return self._install is not None

    @property
    def stored_term(self) -> int:
        """The term that is durable; nothing of a later one has left this member."""
        return self._stored_state.term

    # -- inputs -----------------------------------------------------------------------------------

    def tick(self) -> None:
        self._elapsed += 1
        if self.lead is not None:
            self._tick_leader(self.lead)
        elif self.promotable and (self._elapsed >= self._timeout or self.log.config.voters == (self.name,)):
            self._campaign(pre=True)

    def _tick_leader(self, lead: Leadership) -> None:
        if self._elapsed >= self.settings.election_ticks:
            self._elapsed = 0
            if not lead.quorum_heard():
                self._follow(self.term, None)
                return
        lead.tick()

    def propose(self, data: bytes) -> tuple[int, int]:
        """Append a command; (index, term) identify it. It is done when the entry at that index is applied
        with that term, and can never be done any more when one of another term is. NotLeader, Overloaded."""
        return self._propose(COMMAND, data)

    def propose_config(self, config: Config) -> tuple[int, int]:
        """Change the members, by at most one voter; ``since`` is not the caller's to say. Busy, Invalid,
        Unavailable, NotLeader."""
        self._leadership().check_change(config)
        return self._propose(CONFIG, config.after(self.log.config, self.log.last_index + 1).encode())

    def _propose(self, kind: int, data: bytes) -> tuple[int, int]:
        lead = self._leadership()
        if lead.transfer_to is not None:
            raise errors.NotLeader("leadership is being handed over: try again", leader=None)
        if self.log.last_index - self.commit >= self.settings.uncommitted_max:
            raise errors.Overloaded(
                f"{self.settings.uncommitted_max} commands wait for a majority: try later"
            )
        entry = Entry(self.term, self.log.last_index + 1, kind, data)
        self._append_own(entry)
        return entry.index, entry.term

    def _append_own(self, entry: Entry) -> None:
        self.log.append(entry)
        if entry.kind == CONFIG and self.lead is not None:
            self.lead.follow_config(self.log.config)

    def read(self, context: int) -> None:
        """Ask for the index that a linearizable read must see; the answer comes with ``take_reads``."""
        self._leadership().read(context)

    def transfer(self, target: str | None = None) -> bool:
        """Hand leadership over; proposals are refused meanwhile. False: there is nobody to take it."""
        return self._leadership().transfer(target)

    def compact(self, index: int) -> None:
        """The durable state covers ``index``: entries up to there may go. What living members still need
        stays, within ``log_max``; ``log.base_index`` tells how far it went."""
        invariant(index <= self.applied, "compaction of what is not applied", index=index)
        if self.lead is not None:
            kept = max(self.lead.needed_from(), self.log.last_index - self.settings.log_max)
            index = min(index, kept)
        self.log.compact(index)

    def provide_chunk(self, request: ChunkRequest, snapshot: Snapshot, data: bytes, last: bool) -> None:
        """The answer to a chunk request. One attempt reads one snapshot, from seq 0 on."""
        if self.lead is not None:
            self.lead.provide_chunk(request, snapshot, data, last)

    def _leadership(self) -> Leadership:
        if self.lead is None:
            raise errors.NotLeader(f"{self.name} does not lead", leader=self.leader)
        return self.lead

    # -- messages ---------------------------------------------------------------------------------

    def step(self, source: str, message: Message) -> None:
        """One message of a peer. Anything may come, late, twice or in any order."""
        if message.term > self.term:
            if isinstance(message, VoteRequest):
                if self._hears_leader() and not message.transfer:
                    return  # a leader is alive: whoever cannot hear it must not depose it
                if not message.pre:
                    self._follow(message.term, None)
            elif isinstance(message, VoteReply) and message.pre and message.granted:
                pass  # granted for the term that we would campaign for
            else:
                self._follow(message.term, None)
        elif message.term < self.term:
            self._step_stale(source, message)
            return
        self._dispatch(source, message)

    def _hears_leader(self) -> bool:
        return self.leader is not None and self._elapsed < self.settings.election_ticks

    def _step_stale(self, source: str, message: Message) -> None:
        """Tell who lives in an older term of ours, so that it does not stay there."""
        if isinstance(message, VoteRequest):
            self._after.append((source, VoteReply(self.term, message.pre, False)))
        elif isinstance(message, Append | Heartbeat | SnapshotChunk):
            self._after.append((source, AppendReply(self.term, False, 0, 0, 0, 0)))

    def _dispatch(self, source: str, message: Message) -> None:
        match message:
            case VoteRequest():
                self._on_vote_request(source, message)
            case VoteReply():
                self._on_vote_reply(source, message)
            case Append():
                self._obey(source)
                self._on_append(source, message)
            case Heartbeat():
                self._obey(source)
                self._after.append((source, HeartbeatReply(self.term, message.round)))
            case SnapshotChunk():
                self._obey(source)
                self._on_chunk(source, message)
            case TimeoutNow():
                if self.lead is None and self.promotable:
                    self._campaign(pre=False, transfer=True)
            case _:
                self._dispatch_to_leader(source, message)

    def _dispatch_to_leader(self, source: str, message: Message) -> None:
        if self.lead is None:
            return
        match message:
            case AppendReply():
                self.lead.on_append_reply(source, message)
            case HeartbeatReply():
                self.lead.on_round(source, message.round)
            case SnapshotReply():
                self.lead.on_snapshot_reply(source, message)

    def _obey(self, source: str) -> None:
        """A message that only the leader of this term sends: follow it."""
        invariant(self.lead is None, "two leaders in one term", term=self.term, us=self.name, other=source)
        if self.role is not Role.FOLLOWER:
            self._follow(self.term, source)
        self.leader = source
        self._elapsed = 0

    # -- elections --------------------------------------------------------------------------------

    def _draw_timeout(self) -> None:
        self._elapsed = 0
        low = self.settings.election_ticks
        self._timeout = self._rng.randrange(low, 2 * low)

    def _follow(self, term: int, leader: str | None) -> None:
        if term != self.term:
            self.term, self.vote = term, None
        self.role = Role.FOLLOWER
        self.leader = leader
        self._votes = {}
        if self.lead is not None:
            self.lead.end()
            self.lead = None
        self._draw_timeout()

    def _campaign(self, pre: bool, transfer: bool = False) -> None:
        self._draw_timeout()
        self.leader = None
        self._votes = {self.name: True}
        if pre:
            self.role = Role.PRE_CANDIDATE
        else:
            self.role = Role.CANDIDATE
            self.term, self.vote = self.term + 1, self.name
        if self._won():
            self._win(transfer)
            return
        term = self.term + 1 if pre else self.term
        request = VoteRequest(term, self.log.last_term, self.log.last_index, pre, transfer)
        for name in self.log.config.voters:
            if name != self.name:
                self._after.append((name, request))

    def _won(self) -> bool:
        return is_majority(self._votes.get(name, False) for name in self.log.config.voters)

    def _lost(self) -> bool:
        return is_majority(not self._votes.get(name, True) for name in self.log.config.voters)

    def _win(self, transfer: bool) -> None:
        if self.role is Role.PRE_CANDIDATE:
            self._campaign(pre=False, transfer=transfer)
        else:
            self._become_leader()

    def _become_leader(self) -> None:
        self.role = Role.LEADER
        self.leader = self.name
        self._elapsed = 0
        self.lead = Leadership(self)
        # Entries of older terms are committed by the first one of this term only.
        self._append_own(Entry(self.term, self.log.last_index + 1, NOOP, b""))
        self.lead.broadcast()

    def _on_vote_request(self, source: str, request: VoteRequest) -> None:
        free = self.vote == source or (self.vote is None and self.leader is None)
        may = free or (request.pre and request.term > self.term)
        if may and self.log.up_to_date(request.last_term, request.last_index):
            self._after.append((source, VoteReply(request.term, request.pre, True)))
            if not request.pre:
                self.vote = source
                self._elapsed = 0
        else:
            self._after.append((source, VoteReply(self.term, request.pre, False)))

    def _on_vote_reply(self, source: str, reply: VoteReply) -> None:
        wanted = Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE
        if self.role is not wanted or (reply.granted and reply.pre and reply.term != self.term + 1):
            return
        self._votes.setdefault(source, reply.granted)
        if self._won():
            self._win(transfer=False)
        elif self._lost():
            self._follow(self.term, None)

    # -- following --------------------------------------------------------------------------------

    def _on_append(self, source: str, message: Append) -> None:
        if message.prev_index < self.commit:
            # An old message. What is committed here is in every leader's log.
            self._after.append((source, AppendReply(self.term, True, self.commit, 0, 0, message.round)))
            return
        if self.log.term(message.prev_index) != message.prev_term:
            self._refuse(source, message)
            return
        self.log.merge(message.entries, self.commit)
        matched = message.prev_index + len(message.entries)
        self.commit_to(min(message.commit, matched))
        self._after.append((source, AppendReply(self.term, True, matched, 0, 0, message.round)))

    def _refuse(self, source: str, message: Append) -> None:
        hint = self.log.agree_below(message.prev_index, message.prev_term)
        hint_term = self.log.term(hint) or 0
        self._after.append(
            (source, AppendReply(self.term, False, message.prev_index, hint, hint_term, message.round))
        )

    def _on_chunk(self, source: str, chunk: SnapshotChunk) -> None:
        snapshot = chunk.snapshot
        if snapshot.index <= self.commit or self.log.term(snapshot.index) == snapshot.term:
            # Nothing to gain: our log reaches that far and agrees.
            self.commit_to(snapshot.index)
            self._after.append((source, AppendReply(self.term, True, self.commit, 0, 0, 0)))
            return
        attempt = (chunk.term, chunk.attempt)
        if chunk.seq == 0 and attempt > self._incoming:
            self._incoming, self._next_seq = attempt, 0
        if attempt == self._incoming and chunk.seq == self._next_seq:
            self._chunks.append(chunk)
            self._next_seq += 1
            if chunk.last:
                self._restore(snapshot)
                self._after.append((source, AppendReply(self.term, True, snapshot.index, 0, 0, 0)))
                return
        next_seq = self._next_seq if attempt == self._incoming else 0
        self._after.append((source, SnapshotReply(self.term, chunk.attempt, next_seq)))

    def _restore(self, snapshot: Snapshot) -> None:
        self.log.restore(snapshot)
        self.commit = self.applied = snapshot.index
        self._incoming = (0, 0)
        self._install = snapshot

    # -- what the leader's part needs ---------------------------------------------------------------

    def send_now(self, target: str, message: Message) -> None:
        self._now.append((target, message))

    def read_done(self, context: int, index: int | None) -> None:
        self._reads.append((context, index))

    def commit_to(self, index: int) -> None:
        if index <= self.commit:
            return
        invariant(
            index <= self.log.last_index, "commit behind the log", index=index, last=self.log.last_index
        )
        self.commit = index
        if self.lead is not None and self.log.config_index <= index and not self.promotable:
            self._follow(self.term, None)  # we have been removed, and everybody who counts knows

    # -- outputs ----------------------------------------------------------------------------------

    def take_messages(self) -> Outbox:
        """Messages that may go out at once. None while term and vote are not durable: a lone voter would
        speak in a term that it forgets in a crash, and use again for something else."""
        if self._stored_state != (self.term, self.vote):
            return []
        if self.lead is not None:
            self.lead.flush()
        messages, self._now = self._now, []
        return messages

    def take_reads(self) -> list[tuple[int, int | None]]:
        """(context, index): readable once that index is applied; None: leadership was lost, ask elsewhere."""
        reads, self._reads = self._reads, []
        return reads

    def take_chunk_requests(self) -> list[ChunkRequest]:
        if self.lead is None or not self.lead.chunk_requests:
            return []
        requests, self.lead.chunk_requests = self.lead.chunk_requests, []
        return requests

    def take_forgetful(self) -> dict[str, int]:
        """Members that refuse what they had acknowledged, up to that index: their state is an older one."""
        if self.lead is None or not self.lead.forgetful:
            return {}
        found, self.lead.forgetful = self.lead.forgetful, {}
        return found

    def take_committed(self, count_max: int = 1024) -> list[Entry]:
        """The next committed entries to apply; taking them counts as having applied them."""
        if self._install is not None or self.applied >= self.commit:
            return []
        first = self.applied - self.log.base_index
        end = min(self.commit, self.applied + count_max)
        entries = self.log.entries[first : end - self.log.base_index]
        self.applied = end
        return entries

    def ready(self) -> Ready | None:
        """What to store and then to send, or None: nothing, or the last one has not been advanced yet."""
        if self._outstanding is not None:
            return None
        state = HardState(self.term, self.vote)
        changed = state if state != self._stored_state else None
        if not (changed or self._after or self._chunks or self.log.has_unstored):
            return None
        install = self._install
        ready = Ready(changed, self._chunks, install, self.log.take_unstored(), self._after)
        self._chunks, self._after = [], []
        self._outstanding = ready
        return ready

    def advance(self, ready: Ready) -> None:
        """Everything in ``ready`` is durable (and its messages are sent, or will be)."""
        invariant(ready is self._outstanding, "advance without its ready")
        self._outstanding = None
        if ready.hard_state is not None:
            self._stored_state = ready.hard_state
        if ready.install is not None and ready.install is self._install:
            self._install = None
        if ready.entries:
            self.log.stored(ready.entries[-1])
            if self.lead is not None:
                self.lead.maybe_commit()

    # -- checks -----------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check the whole state; for tests and simulation."""
        self.log.validate()
        log = self.log
        invariant(
            log.base_index <= self.applied <= self.commit <= log.last_index,
            "applied, commit, last",
            at=self.applied,
        )
        invariant(log.last_term <= self.term, "log of a future term", last_term=log.last_term, term=self.term)
        invariant(
            (self.role is Role.LEADER) == (self.lead is not None), "role and leadership", role=self.role
        )
        if self.lead is not None:
            invariant(self.leader == self.name, "a leader that follows", leader=self.leader)
            invariant(self.vote == self.name, "a leader that did not vote for itself", vote=self.vote)
            self.lead.validate()
        if self.role is Role.CANDIDATE:
            invariant(self.vote == self.name, "a candidate that voted for another", vote=self.vote)
