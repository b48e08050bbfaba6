"""A Raft group in simulation: members with disks, a workload, and checks from outside after every step.

Owns: the simulated shell around the core (``SimMember``) and the checks (``RaftCluster``): election safety,
log matching, leader completeness, durability of what is committed, state-machine safety, linearizable reads,
one configuration change at a time, and liveness once everything is healed.
Must never: let a member look at more than its own disk and messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moorage.quorum.majority import majority
from moorage.quorum.raft import Raft, Settings
from moorage.quorum.raft_log import Log
from moorage.quorum.raft_types import (
    COMMAND,
    ChunkRequest,
    Config,
    Entry,
    HardState,
    Member,
    Ready,
    Snapshot,
    SnapshotChunk,
    decode,
    encode,
)
from moorage.quorum.simulation.kernel import Hooks, Journal, Kernel, Nemesis, Network, Plan
from moorage.wire import errors

KEEP_MAX = 12  # entries kept behind the durable state: small, so that snapshots are frequent
QUIET_US = 4_000_000  # after healing, everything must be well within this
STORM = Plan(
    every_us=(5_000, 120_000),
    down_us=(1_000, 300_000),
    weights={
        "crash": 6,
        "pause": 4,
        "isolate": 3,
        "split": 3,
        "one_way": 3,
        "heal": 8,
        "weather": 4,
        "blackout": 2,
    },
)
NAMES = ("a", "b", "c", "d", "e", "f")


class Disk:
    """What one member has stored: operations in a journal, and the state that the durable ones add up to."""

    def __init__(self, journal: Journal, config: Config) -> None:
        self.journal = journal
        self.folded = 0
        self.state = HardState(0, None)
        self.base = Snapshot(0, 0, config)
        self.entries: list[Entry] = []
        self.applied = 0
        self.commands: tuple[bytes, ...] = ()
        self.staged: list[SnapshotChunk] = []

    def write(self, ready: Ready, checkpoint: tuple[int, tuple[bytes, ...]] | None) -> None:
        self.journal.append((ready, checkpoint))

    def fold(self) -> None:
        """Take in what has become durable."""
        for ready, checkpoint in self.journal.items[self.folded : self.journal.synced]:
            self._fold_one(ready)
            if checkpoint is not None and checkpoint[0] > self.applied:
                self.applied, self.commands = checkpoint
        self.folded = self.journal.synced

    def _fold_one(self, ready: Ready) -> None:
        self.state = ready.hard_state or self.state
        for chunk in ready.chunks:
            if chunk.seq == 0:
                self.staged = []
            self.staged.append(chunk)
        if ready.install is not None:
            self.base, self.entries, self.applied = ready.install, [], ready.install.index
            self.commands = tuple(each for chunk in self.staged for each in unpack_chunk(chunk.data))
        if ready.entries:
            del self.entries[ready.entries[0].index - self.base.index - 1 :]
            self.entries += ready.entries

    def compact(self, snapshot: Snapshot) -> None:
        """Losing a compaction in a crash is harmless, so it is durable at once here."""
        del self.entries[: snapshot.index - self.base.index]
        self.base = snapshot

    def crash(self) -> None:
        self.journal.crash()
        self.fold()

    def holds(self, index: int, term: int) -> bool:
        if index <= self.base.index:
            return True
        at = index - self.base.index - 1
        return at < len(self.entries) and self.entries[at].term == term


def pack_chunk(commands: tuple[bytes, ...]) -> bytes:
    return b"".join(command.ljust(8) for command in commands)


def unpack_chunk(data: bytes) -> list[bytes]:
    return [data[at : at + 8].rstrip() for at in range(0, len(data), 8)]


@dataclass(slots=True)
class Pending:
    """A proposal or read of the workload, at the member that took it."""

    term: int
    floor: int = 0


class SimMember:
    """The simulated shell of one member; one life from ``start`` to ``crash``."""

    def __init__(self, cluster: RaftCluster, name: str, config: Config) -> None:
        self.cluster = cluster
        self.name = name
        self.disk = Disk(Journal(cluster.kernel, name, cluster.disk_us), config)
        self.core: Raft | None = None
        self.commands: list[bytes] = []
        self.proposals: dict[int, Pending] = {}
        self.reads: dict[int, Pending] = {}
        self.snapshots: dict[str, tuple[Snapshot, tuple[bytes, ...]]] = {}
        self.tick_us = cluster.tick_us * cluster.kernel.rng.randint(90, 110) // 100

    def start(self) -> None:
        disk = self.disk
        log = Log(disk.base, list(disk.entries))
        self.core = Raft(
            self.name, log, self.cluster.kernel.rng, disk.state, disk.applied, self.cluster.settings
        )
        self.commands = list(disk.commands)
        self.proposals, self.reads, self.snapshots = {}, {}, {}
        self.cluster.network.attach(self.name, self.receive)
        self.cluster.restarted(self)
        self._tick_later()

    def crash(self) -> None:
        self.core = None
        self.cluster.network.detach(self.name)
        self.disk.crash()

    def _tick_later(self) -> None:
        self.cluster.kernel.later(self.tick_us, self._tick, self.name)

    def _tick(self) -> None:
        assert self.core is not None
        self.core.tick()
        self._tick_later()
        self.pump()

    def receive(self, source: str, message: object) -> None:
        assert self.core is not None
        self.core.step(source, decode(message))
        self.pump()

    def pump(self) -> None:
        """Do everything that the core asks for now."""
        core = self.core
        assert core is not None
        self.cluster.touched[self.name] = None
        while True:
            for target, message in core.take_messages():
                self.cluster.network.send(self.name, target, encode(message))
            self._apply(core)
            self._answer_reads(core)
            if forgetful := core.take_forgetful():
                self.cluster._fail(f"{forgetful} have lost nothing, and are told so by {self.name}")
            for request in core.take_chunk_requests():
                self._read_chunk(core, request)
            ready = core.ready()
            if ready is None:
                return
            if ready.nothing_to_store:
                self._stored(core, ready)
            else:
                self._store(core, ready)

    def _store(self, core: Raft, ready: Ready) -> None:
        rng = self.cluster.kernel.rng
        # Never beside an install: the commands in memory are still those of the state before it.
        takes = not core.installing and rng.random() < 0.4
        self.disk.write(ready, (core.applied, tuple(self.commands)) if takes else None)
        self.disk.journal.sync(lambda: self._synced(core, ready))

    def _synced(self, core: Raft, ready: Ready) -> None:
        self.disk.fold()
        if ready.install is not None:
            self.commands = list(self.disk.commands)
            self.cluster.check_commands(self, ready.install.index)
        self._stored(core, ready)
        self._compact(core)
        self.pump()

    def _stored(self, core: Raft, ready: Ready) -> None:
        for target, message in ready.messages:
            self.cluster.network.send(self.name, target, encode(message))
        core.advance(ready)

    def _compact(self, core: Raft) -> None:
        upto = self.disk.applied - self.cluster.kernel.rng.randint(0, KEEP_MAX)
        if upto - core.log.base_index > KEEP_MAX // 2 and upto <= core.log.persisted:
            core.compact(upto)
            self.disk.compact(Snapshot(core.log.base_index, core.log.base_term, core.log.configs[0][1]))

    def _apply(self, core: Raft) -> None:
        for entry in core.take_committed():
            if entry.kind == COMMAND:
                self.commands.append(entry.data)
            self.cluster.check_applied(self, entry)
            pending = self.proposals.pop(entry.index, None)
            if pending is not None and pending.term == entry.term:
                self.cluster.acknowledged(entry)

    def _answer_reads(self, core: Raft) -> None:
        for context, index in core.take_reads():
            pending = self.reads.pop(context)
            if index is not None:
                self.cluster.check_read(self, index, pending.floor)

    def _read_chunk(self, core: Raft, request: ChunkRequest) -> None:
        disk = self.disk
        if request.seq == 0:
            log = core.log
            term = log.term(disk.applied)
            if term is None:
                return
            snapshot = Snapshot(disk.applied, term, log.config_at(disk.applied))
            self.snapshots[request.target] = (snapshot, disk.commands)
        snapshot, commands = self.snapshots[request.target]
        # Chunks of two snapshots have different borders: taking one for the other shows.
        size = 2 + snapshot.index % 3
        start = request.seq * size
        piece = commands[start : start + size]
        last = start + size >= len(commands)
        core.provide_chunk(request, snapshot, pack_chunk(piece), last)


class RaftCluster:
    """The group, its workload, and what an observer who sees everything checks."""

    def __init__(self, seed: int, stormy: bool | None = None) -> None:
        """``stormy``: elections and restarts follow so closely that rare orders meet; by default half of the
        seeds are."""
        self.kernel = Kernel(seed)
        rng = self.kernel.rng
        self.network = Network(self.kernel)
        self.settings = Settings(
            election_ticks=rng.choice((6, 8, 12)),
            heartbeat_ticks=rng.choice((1, 2, 3)),
            chunk_ticks=rng.choice((4, 10)),
            inflight_max=rng.choice((1, 2, 8)),
            append_bytes_max=rng.choice((1, 16, 1000)),
            log_max=rng.choice((150, 600)),
            uncommitted_max=rng.choice((8, 64)),
        )
        stormy = rng.random() < 0.5 if stormy is None else stormy
        self.plan = STORM if stormy else Plan()
        if stormy:
            self.settings = replace(self.settings, election_ticks=4, heartbeat_ticks=1)
        self.tick_us = 10_000 if stormy else 25_000
        self.work_us = (500, 10_000) if stormy else (1_000, 25_000)
        self.disk_us = rng.choice(((200, 2_000), (200, 20_000)))
        self.touched: dict[str, None] = {}
        self.leader_of: dict[int, str] = {}
        self.entry_of: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.committed: list[Entry] = []  # entry i at place i - 1
        self.committed_in: list[int] = []  # the term in which that became so
        self.acknowledged_index = 0
        self.acknowledged_count = 0
        self.reads_done = 0
        self.quiet = False
        self.changes = 0
        self._seen_log: dict[str, tuple[int, int, int, int]] = {}
        self._seen_commit: dict[str, int] = {}
        self._contexts = 0
        self._commands = 0
        count = rng.choice((1, 2, 3, 3, 3, 5))
        config = Config(Member(name, f"{name}:1", True) for name in NAMES[:count])
        self.members: dict[str, SimMember] = {}
        self.hooks: dict[str, Hooks] = {}
        for name in config.names:
            self._add(name, config)
        self.kernel.checks.append(self.check)

    def _add(self, name: str, config: Config) -> None:
        member = self.members[name] = SimMember(self, name, config)
        self.hooks[name] = Hooks(member.crash, member.start)
        member.start()

    # -- workload ---------------------------------------------------------------------------------

    def run(self, chaos_us: int = 2_500_000) -> str:
        """One history: faults for ``chaos_us``, then quiet, then everything must be well. The trace hash."""
        nemesis = Nemesis(self.kernel, self.network, self.hooks, chaos_us, self.plan)
        self._work_later()
        self.kernel.run(chaos_us + 1)
        assert nemesis.healed
        self._require_liveness(chaos_us)
        return self.kernel.trace_hash()

    def _work_later(self) -> None:
        self.kernel.later(self.kernel.rng.randint(*self.work_us), self._work)

    def _work(self) -> None:
        self._work_later()
        rng = self.kernel.rng
        live = [each for each in self.members.values() if each.core and not self.kernel.paused(each.name)]
        leaders = [each for each in live if each.core and each.core.is_leader]
        if not leaders:
            return
        member = rng.choice(leaders)
        chance = rng.random()
        try:
            if chance < 0.6 or self.quiet:
                self._propose(member)
            elif chance < 0.9:
                self._read(member)
            elif chance < 0.98:
                self._change(member)
            elif member.core:
                member.core.transfer()
        except errors.MoorageError as refusal:
            if isinstance(refusal, errors.InvariantViolation):
                raise
            return
        member.pump()

    def _propose(self, member: SimMember) -> None:
        assert member.core
        self._commands += 1
        index, term = member.core.propose(b"c%d" % self._commands)
        member.proposals[index] = Pending(term)

    def _read(self, member: SimMember) -> None:
        assert member.core
        self._contexts += 1
        member.reads[self._contexts] = Pending(member.core.term, self.acknowledged_index)
        member.core.read(self._contexts)

    def _change(self, member: SimMember) -> None:
        """Add a learner, promote one, remove or demote somebody, at random."""
        assert member.core
        rng, config = self.kernel.rng, member.core.log.config
        name = rng.choice(NAMES)
        known = config.find(name)
        if known is None:
            wanted = config.put(Member(name, f"{name}:1", False))
        elif not known.voter:
            wanted = config.put(known._replace(voter=True)) if rng.random() < 0.8 else config.drop(name)
        elif rng.random() < 0.5:
            wanted = config.drop(name)
        else:
            wanted = config.put(known._replace(voter=False))
        member.core.propose_config(wanted)
        self.changes += 1
        if name not in self.members:
            self._add(name, Config(()))

    # -- liveness ---------------------------------------------------------------------------------

    def _require_liveness(self, since_us: int) -> None:
        """With everything healed: proposals get through, and every member of the configuration catches up."""
        before = self.acknowledged_index
        self.quiet = True
        self.work_us = (5_000, 25_000)
        for member in self.members.values():
            member.disk.journal.latency_us = (200, 2_000)  # a slow disk and a short timeout elect nobody
        limit = since_us + QUIET_US
        if not self.kernel.run(limit, lambda: self.acknowledged_index > before and self._converged()):
            self._fail("no progress, or members that do not catch up, after everything was healed")

    def _converged(self) -> bool:
        leader = next(
            (each.core for each in self.members.values() if each.core and each.core.is_leader), None
        )
        if leader is None or not leader.log.config.voters:
            return False
        cores = [self.members[name].core for name in leader.log.config.names]
        return all(core is not None and leader.commit - core.commit <= 16 for core in cores)

    def _fail(self, what: str) -> None:
        raise errors.InvariantViolation(f"{what} (seed {self.kernel.seed})")

    # -- checks -----------------------------------------------------------------------------------

    def restarted(self, member: SimMember) -> None:
        self._seen_log.pop(member.name, None)
        self._seen_commit.pop(member.name, None)
        self.touched[member.name] = None

    def check(self) -> None:
        touched, self.touched = self.touched, {}
        for name in touched:
            member = self.members[name]
            if member.core is not None:
                member.core.validate()
                self._check_log(member, member.core)
                self._check_commit(member, member.core)
                self._check_leader(member, member.core)

    def _check_log(self, member: SimMember, core: Raft) -> None:
        """Log matching: an (index, term) names one entry, and one term before it."""
        log = core.log
        # A lone voter may crash, and lead the same term again, before that term is stored: what it had in it
        # never left its memory.
        told = core.stored_term
        seen = (log.base_index, log.last_index, log.last_term, told)
        if self._seen_log.get(member.name) == seen:
            return
        self._seen_log[member.name] = seen
        previous = log.base_term
        for entry in log.entries:
            if entry.term > told:
                break
            found = (previous, entry.kind, entry.data)
            if self.entry_of.setdefault((entry.index, entry.term), found) != found:
                self._fail(f"log matching: {member.name} has another entry {entry}")
            previous = entry.term

    def _check_commit(self, member: SimMember, core: Raft) -> None:
        """State-machine safety: what one member knows to be committed at an index, all others agree on."""
        seen = self._seen_commit.get(member.name, core.log.base_index)
        if core.commit < seen:
            self._fail(f"commit index of {member.name} fell from {seen} to {core.commit}")
        for index in range(max(seen, core.log.base_index) + 1, core.commit + 1):
            entry = core.log.entry(index)
            if index <= len(self.committed):
                if self.committed[index - 1] != entry:
                    self._fail(f"{member.name} commits {entry}, committed was {self.committed[index - 1]}")
            else:
                self._check_durable(entry, core)
                self.committed.append(entry)
                self.committed_in.append(core.term)
        self._seen_commit[member.name] = core.commit
        base = core.log.base_index
        if base and base <= len(self.committed) and self.committed[base - 1].term != core.log.base_term:
            self._fail(f"{member.name} starts its log at what was never committed")

    def _check_durable(self, entry: Entry, core: Raft) -> None:
        """A new commit is on the disks of a majority of the voters; the leader is the first to know it."""
        voters = core.log.config.voters
        led = self.leader_of.get(core.term) == core.name
        steps_down = led and core.name not in voters and core.log.config_index <= core.commit
        if not core.is_leader and not steps_down:
            self._fail(f"{core.name} commits {entry} before any leader did")
        holding = [name for name in voters if self.members[name].disk.holds(entry.index, entry.term)]
        if len(holding) < majority(len(voters)):
            self._fail(f"{entry} is committed, and only {holding} of {voters} hold it")

    def _check_leader(self, member: SimMember, core: Raft) -> None:
        """Election safety, leader completeness, one configuration change at a time."""
        if not core.is_leader or core.stored_term < core.term:
            return  # see _check_log: a lone voter leads nobody before its term is stored
        first = core.term not in self.leader_of
        if self.leader_of.setdefault(core.term, core.name) != core.name:
            self._fail(f"two leaders in term {core.term}: {core.name}, {self.leader_of[core.term]}")
        log = core.log
        changes = [at for at, _ in log.configs if at > core.commit and log.term(at) == core.term]
        if len(changes) > 1:
            self._fail(f"{core.name} has begun two configuration changes at once: {changes}")
        if first:
            # A member that was frozen may hear late that it won an old term: only earlier terms count.
            known = list(zip(self.committed, self.committed_in, strict=True))
            for entry, term in known[log.base_index :]:
                if term < core.term and log.term(entry.index) != entry.term:
                    self._fail(f"leader {core.name} of term {core.term} lacks committed {entry}")

    def check_applied(self, member: SimMember, entry: Entry) -> None:
        if entry.index > len(self.committed):
            self._check_commit(member, member.core)  # type: ignore[arg-type]
        if self.committed[entry.index - 1] != entry:
            self._fail(f"{member.name} applies {entry}, not {self.committed[entry.index - 1]}")
        if entry.index % 16 == 0:
            self.check_commands(member, entry.index)

    def check_commands(self, member: SimMember, index: int) -> None:
        """The state is what the committed commands up to here add up to."""
        expected = [entry.data for entry in self.committed[:index] if entry.kind == COMMAND]
        if member.commands != expected:
            self._fail(f"state of {member.name} at {index} is not the sum of the committed commands")

    def acknowledged(self, entry: Entry) -> None:
        self.acknowledged_count += 1
        self.acknowledged_index = max(self.acknowledged_index, entry.index)

    def check_read(self, member: SimMember, index: int, floor: int) -> None:
        """Linearizability: a read sees what was acknowledged before it began."""
        self.reads_done += 1
        if index < floor:
            self._fail(f"stale read at {member.name}: index {index}, acknowledged before it: {floor}")


def run_seed(seed: int) -> str:
    """One history; its trace hash. Raises Violation."""
    return RaftCluster(seed).run()
