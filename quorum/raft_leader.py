"""What a Raft leader knows and does while it leads: replication, commit, confirmed reads, handing over. Pure.

Owns: a ``Progress`` for each other member, the rounds that confirm reads, the hand-over under way. It
lives for one term of leadership and is thrown away with it.
Must never: count a learner, count an entry of an older term, or count itself for what its own disk does
not hold.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from moorage.quorum.majority import is_majority, reached_by_majority
from moorage.quorum.raft_types import (
    Append,
    AppendReply,
    ChunkRequest,
    Config,
    Heartbeat,
    Snapshot,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
)
from moorage.wire import errors
from moorage.wire.errors import invariant

if TYPE_CHECKING:
    from moorage.quorum.raft import Raft

PROMOTE_LAG_MAX = 256  # entries that a learner may lack when it becomes a voter
CHUNK_RESENT_MAX = 2


class Flow(Enum):
    PROBE = "probe"  # where the logs agree is not known: one empty Append at a time
    REPLICATE = "replicate"  # entries are sent ahead of their acknowledgements
    SNAPSHOT = "snapshot"  # the log no longer reaches back far enough


class Progress:
    """The leader's view of one member. ``match`` never falls; ``match < next``."""

    def __init__(self, next_index: int) -> None:
        self.match = 0
        self.next = next_index
        self.flow = Flow.PROBE
        self.inflight: list[int] = []  # last index of each Append with entries not acknowledged yet
        self.silent_ticks = 0
        self.round = 0  # the greatest that it echoed
        self.match_round = 0  # our round when ``match`` last grew: what has a greater one was sent after that
        self.snapshot: Snapshot | None = None
        self.attempt = 0
        self.seq = 0  # chunk of the snapshot to be acknowledged next
        self.chunk_ticks = 0  # since it was sent
        self.resent = 0

    def probe(self, next_index: int) -> None:
        self.flow = Flow.PROBE
        self.next = max(next_index, self.match + 1)
        self.inflight.clear()
        self.snapshot = None

    def acknowledged(self, index: int) -> None:
        self.match = max(self.match, index)
        self.next = max(self.next, index + 1)
        while self.inflight and self.inflight[0] <= index:
            self.inflight.pop(0)


class _Read(NamedTuple):
    context: int
    index: int  # type: ignore[assignment]
    round: int


class Leadership:
    def __init__(self, core: Raft) -> None:
        self.core = core
        self.progress: dict[str, Progress] = {}
        self.silence_max = core.settings.election_ticks
        self.round = 0
        self.heartbeat_elapsed = 0
        self.waiting: list[int] = []  # reads that came before the first commit of this term
        self.reads: list[_Read] = []
        self.round_due = False
        self.attempts = 0
        self.transfer_to: str | None = None
        self.transfer_ticks = 0
        self.chunk_requests: list[ChunkRequest] = []
        self.forgetful: dict[str, int] = {}  # members that lost what they had acknowledged up to that index
        self.follow_config(core.log.config)

    def follow_config(self, config: Config) -> None:
        for name in config.names:
            if name != self.core.name and name not in self.progress:
                self.progress[name] = Progress(self.core.log.last_index + 1)
        for name in list(self.progress):
            if name not in config.names:
                del self.progress[name]

    # -- time -------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.heartbeat_elapsed += 1
        if self.heartbeat_elapsed >= self.core.settings.heartbeat_ticks:
            self.heartbeat_elapsed = 0
            self.round += 1  # so that an answer to it cannot be taken for one to the last
            self.broadcast()
        for name, progress in self.progress.items():
            progress.silent_ticks += 1
            if progress.flow is Flow.SNAPSHOT:
                self._tick_snapshot(name, progress)
        if self.transfer_to is not None:
            self.transfer_ticks += 1
            if self.transfer_ticks > self.core.settings.election_ticks:
                self.transfer_to = None

    def quorum_heard(self) -> bool:
        """Whether a majority of the voters was heard lately: else another may lead by now."""
        me = self.core.name
        return is_majority(
            name == me or self._heard(self.progress[name]) for name in self.core.log.config.voters
        )

    def _heard(self, progress: Progress) -> bool:
        return progress.silent_ticks <= self.silence_max

    # -- sending ----------------------------------------------------------------------------------

    def broadcast(self) -> None:
        """A sign of life to everybody; it also finds out what got lost."""
        for name, progress in self.progress.items():
            if progress.flow is Flow.SNAPSHOT:
                self.core.send_now(name, Heartbeat(self.core.term, self.round))
            else:
                self._send_append(name, progress, with_entries=False)

    def flush(self) -> None:
        """Send what is new: entries to whoever has room for them, and a round for new reads."""
        if self.round_due:
            self.round_due = False
            self.round += 1
            self.heartbeat_elapsed = 0
            self.broadcast()
            self._confirm_reads()
        last = self.core.log.last_index
        for name, progress in self.progress.items():
            while (
                progress.flow is Flow.REPLICATE
                and progress.next <= last
                and len(progress.inflight) < self.core.settings.inflight_max
            ):
                self._send_append(name, progress, with_entries=True)

    def _send_append(self, name: str, progress: Progress, with_entries: bool) -> None:
        log, settings = self.core.log, self.core.settings
        prev = progress.next - 1
        prev_term = log.term(prev)
        if prev_term is None:
            self._start_snapshot(name, progress)
            return
        entries = (
            tuple(log.slice(progress.next, log.last_index, settings.append_bytes_max)) if with_entries else ()
        )
        if entries:
            progress.next = entries[-1].index + 1
            progress.inflight.append(entries[-1].index)
        message = Append(self.core.term, prev, prev_term, self.core.commit, self.round, entries)
        self.core.send_now(name, message)

    # -- snapshots --------------------------------------------------------------------------------

    def _start_snapshot(self, name: str, progress: Progress) -> None:
        progress.flow = Flow.SNAPSHOT
        progress.inflight.clear()
        progress.snapshot = None
        self.attempts += 1
        progress.attempt, progress.resent = self.attempts, 0
        self._request_chunk(name, progress, 0)

    def _tick_snapshot(self, name: str, progress: Progress) -> None:
        """Send a chunk again when nothing comes back, and begin anew when that does not help: the receiver
        has restarted, and waits for another chunk than this one. Nothing of it towards a silent member.
        The first chunk is never sent again: asked for it, the shell chooses another snapshot."""
        progress.chunk_ticks += 1
        if progress.chunk_ticks <= self.core.settings.chunk_ticks or not self._heard(progress):
            return
        if progress.seq > 0 and progress.resent < CHUNK_RESENT_MAX:
            progress.resent += 1
            self._request_chunk(name, progress, progress.seq)
        else:
            self._start_snapshot(name, progress)

    def _request_chunk(self, name: str, progress: Progress, seq: int) -> None:
        progress.seq = seq
        progress.chunk_ticks = 0
        self.chunk_requests.append(ChunkRequest(name, progress.attempt, seq))

    def provide_chunk(self, request: ChunkRequest, snapshot: Snapshot, data: bytes, last: bool) -> None:
        target, attempt, seq = request
        progress = self.progress.get(target)
        if progress is None or progress.flow is not Flow.SNAPSHOT:
            return
        if (progress.attempt, progress.seq) != (attempt, seq):
            return  # overtaken by an answer
        invariant(snapshot.index <= self.core.applied, "snapshot of the future", index=snapshot.index)
        progress.snapshot = snapshot
        self.core.send_now(target, SnapshotChunk(self.core.term, snapshot, attempt, seq, last, data))

    def on_snapshot_reply(self, source: str, reply: SnapshotReply) -> None:
        progress = self.progress.get(source)
        if progress is None or progress.flow is not Flow.SNAPSHOT or progress.snapshot is None:
            return
        progress.silent_ticks = 0
        if reply.attempt != progress.attempt or reply.next_seq == progress.seq:
            return
        if reply.next_seq == progress.seq + 1:
            progress.resent = 0
            self._request_chunk(source, progress, reply.next_seq)

    def needed_from(self) -> int:
        """Entries up to here are not needed to bring a living member up to date: one that gets a snapshot
        goes on from its index (else it would need the next snapshot when it has this one)."""
        needed = self.core.log.last_index
        for progress in self.progress.values():
            if self._heard(progress):
                snapshot = progress.snapshot
                needed = min(needed, progress.match if snapshot is None else snapshot.index)
        return needed

    # -- acknowledgements -------------------------------------------------------------------------

    def on_round(self, source: str, round_: int) -> None:
        progress = self.progress.get(source)
        if progress is None:
            return
        progress.silent_ticks = 0
        if round_ > progress.round:
            progress.round = round_
            self._confirm_reads()

    def on_append_reply(self, source: str, reply: AppendReply) -> None:
        progress = self.progress.get(source)
        if progress is None:
            return
        self.on_round(source, reply.round)
        if reply.ok:
            self._on_match(source, progress, reply.index)
        else:
            self._on_refusal(source, progress, reply)

    def _on_match(self, source: str, progress: Progress, index: int) -> None:
        advanced = index > progress.match
        if advanced:
            progress.match_round = self.round
        progress.acknowledged(index)
        if progress.flow is not Flow.REPLICATE and progress.match >= self.core.log.base_index:
            progress.flow = Flow.REPLICATE
            progress.next = progress.match + 1
            progress.snapshot = None
            progress.inflight.clear()
        elif progress.snapshot is not None and progress.match >= progress.snapshot.index:
            self._start_snapshot(source, progress)  # it has this one, and the log has moved on
        if advanced:
            self.maybe_commit()
            self._maybe_hand_over(source, progress)

    def _on_refusal(self, source: str, progress: Progress, reply: AppendReply) -> None:
        if reply.index <= progress.match and reply.round > progress.match_round:
            # It was asked after it had acknowledged that, and only a leader of a later term may cut it.
            self.forgetful[source] = progress.match
            return
        # A refusal of something at or below match, or (while probing) of another probe, is an old message.
        if progress.flow is Flow.SNAPSHOT or reply.index <= progress.match:
            return
        if progress.flow is Flow.PROBE and reply.index != progress.next - 1:
            return
        agreed = self.core.log.agree_below(reply.hint_index, reply.hint_term)
        progress.probe(min(agreed + 1, reply.index))
        # The next probe goes out at once: a member far behind is found in a few round trips, not heartbeats.
        self._send_append(source, progress, with_entries=False)

    def counted(self) -> list[int]:
        """How far each voter's log is known to be durable and equal to ours."""
        me, log = self.core.name, self.core.log
        return [log.persisted if name == me else self.progress[name].match for name in log.config.voters]

    def maybe_commit(self) -> None:
        """Only an entry of this term is committed by counting; it commits those before it (section 5.4.2)."""
        index = reached_by_majority(self.counted())
        if index > self.core.commit and self.core.log.term(index) == self.core.term:
            self.core.commit_to(index)
            if self.core.lead is not self:
                return  # that removed us
            waiting, self.waiting = self.waiting, []
            for context in waiting:
                self.read(context)

    # -- reads (section 6.4 of the thesis) ---------------------------------------------------------

    def committed_in_term(self) -> bool:
        return self.core.log.term(self.core.commit) == self.core.term

    def read(self, context: int) -> None:
        if not self.committed_in_term():
            # The commit index may lack what the former leader had acknowledged.
            self.waiting.append(context)
            return
        self.reads.append(_Read(context, self.core.commit, self.round + 1))
        self.round_due = True

    def _confirm_reads(self) -> None:
        if not self.reads:
            return
        me = self.core.name
        rounds = [
            self.round if name == me else self.progress[name].round for name in self.core.log.config.voters
        ]
        confirmed = reached_by_majority(rounds)
        while self.reads and self.reads[0].round <= confirmed:
            read = self.reads.pop(0)
            self.core.read_done(read.context, read.index)

    def end(self) -> None:
        """Leadership is over: no read is confirmed any more."""
        for context in [read.context for read in self.reads] + self.waiting:
            self.core.read_done(context, None)

    # -- configuration and hand-over ---------------------------------------------------------------

    def check_change(self, config: Config) -> None:
        """Refuse a configuration change that is not safe now (docs/raft.md: why one voter at a time)."""
        log = self.core.log
        if log.config_index > self.core.commit:
            raise errors.Busy("a configuration change is under way: try again when it is committed")
        if not self.committed_in_term():
            raise errors.Unavailable("the leader is new and has committed nothing yet: try again")
        if not config.voters:
            raise errors.Invalid("a group needs at least one voter")
        if log.config.voters_changed(config) > 1:
            raise errors.Invalid("add or remove one voter at a time")
        for name in config.voters:
            if name not in log.config.voters:
                self._check_promotion(name)

    def _check_promotion(self, name: str) -> None:
        progress = self.progress.get(name)
        if progress is None:
            raise errors.Invalid(f"{name} is not a member: add it as a learner first")
        lag = self.core.commit - progress.match
        if lag > PROMOTE_LAG_MAX:
            raise errors.Busy(f"learner {name} is {lag} entries behind: wait until it has caught up")

    def transfer(self, target: str | None) -> bool:
        """Begin to hand over, to the most up-to-date voter if none is named; False when there is nobody."""
        voters = [name for name in self.core.log.config.voters if name in self.progress]
        if target is None and voters:
            target = max(
                voters, key=lambda name: (self._heard(self.progress[name]), self.progress[name].match, name)
            )
        if target not in voters:
            return False
        self.transfer_to = target
        self.transfer_ticks = 0
        self._maybe_hand_over(target, self.progress[target])
        return True

    def _maybe_hand_over(self, source: str, progress: Progress) -> None:
        if source == self.transfer_to and progress.match == self.core.log.last_index:
            self.core.send_now(source, TimeoutNow(self.core.term))

    def validate(self) -> None:
        core = self.core
        expected = [name for name in core.log.config.names if name != core.name]
        invariant(
            sorted(self.progress) == expected, "progress of exactly the members", have=sorted(self.progress)
        )
        for name, progress in self.progress.items():
            invariant(progress.match <= core.log.last_index, "match behind the log", name=name)
            invariant(progress.match < progress.next, "next at or below match", name=name)
            invariant(progress.next <= core.log.last_index + 1, "next behind the log", name=name)
            invariant(len(progress.inflight) <= core.settings.inflight_max, "too much in flight", name=name)
            invariant(progress.round <= self.round, "echo of a round that never was", name=name)
