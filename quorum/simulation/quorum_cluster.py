"""Whole quorum logs in simulation: replicas on devices, writers that come and go, a model of metadata.

Owns: the schedule of attachments, takeovers, membership changes and faults of one seed, and the checks that
need the whole picture (what a majority holds, liveness and agreement at the end). The checks after every step
are in ``quorum_checks``, called where state changes.
Must never: let a process look at more than its own state and messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from moorage.quorum.majority import Configuration, majority_in_all
from moorage.quorum.peer import Status
from moorage.quorum.record import Record
from moorage.quorum.simulation.kernel import Hooks, Kernel, Nemesis, Network, Plan, Violation
from moorage.quorum.simulation.quorum_checks import Observer, Operation
from moorage.quorum.simulation.quorum_client import SimClient
from moorage.quorum.simulation.quorum_node import SimNode
from moorage.quorum.simulation.quorum_store import BLOCKS, CHUNKS
from moorage.quorum.writer import Phase, Writer
from moorage.wire.errors import AttachmentLost, invariant

SETTLE_US = 9_000_000  # how long everything may take to be well again
STRAGGLE_US = 100_000  # so long others leave a holder alone that attaches again
CLIENTS = ("c1", "c2", "m")
BREEZE = Plan(every_us=(20_000, 300_000), down_max=99)
STORM = Plan(
    every_us=(2_000, 60_000),
    down_us=(1_000, 150_000),
    down_max=99,
    weights={
        "crash": 6,
        "pause": 4,
        "isolate": 2,
        "split": 2,
        "one_way": 3,
        "heal": 9,
        "weather": 3,
        "blackout": 1,
    },
)


# What people and metadata do when they do something, and how often. A history draws its own weights.
MOVES = {
    "take_over": 12,
    "detach": 8,
    "wish_change": 8,
    "cancel_change": 3,
    "rot": 8,
    "strand": 10,
    "power_loss": 6,
    "relive": 5,
    "amnesia": 6,
    "strike_copy": 10,
    "straggle": 4,
    "nothing": 40,
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What metadata hands to who attaches."""

    epoch: int
    writer: int
    members: Configuration
    learners: Configuration
    wish: Configuration | None


class Metadata:
    """Model of metadata: always there, decides at once."""

    def __init__(self, members: Configuration) -> None:
        self.epoch = 0
        self.version = 1
        self.writers = 0
        self.members = members
        self.wish: Configuration | None = None
        self.holder = ""
        self.applications: list[str] = []  # holders that run a workload, in order

    def attach(self, name: str, repairer: bool) -> Grant:
        self.epoch += 1
        self.writers += 1
        self.holder = name
        if not repairer:
            self.applications.append(name)
        learners = tuple(r for r in self.wish or () if r not in self.members)
        return Grant(self.epoch, self.writers, self.members, learners, self.wish)

    def commit(self, epoch: int, members: Configuration) -> str:
        """Compare-and-set of the configuration."""
        if self.members == members:
            return "committed"
        if epoch != self.epoch:
            return "fenced"
        if self.wish != members:
            return "cancelled"
        self.members = members
        self.version += 1
        self.wish = None
        return "committed"


class QuorumCluster:
    """One history. See the module."""

    def __init__(self, seed: int, *, sync: bool | None = None, size: int | None = None) -> None:
        self.kernel = Kernel(seed)
        rng = self.kernel.rng
        self.sync = rng.random() < 0.6 if sync is None else sync
        size = size or rng.choice((1, 2, 3, 3, 3, 3, 4, 5))
        self.window_records = rng.choice((8, 16, 64))
        self.batch_bytes = rng.choice((1, 24, 1 << 20))
        self.pace_us = rng.choice((2_000, 6_000, 20_000))
        self.small = rng.random() < 0.15  # devices that fill up
        self.stormy = rng.random() < 0.6  # everything follows so closely that rare orders meet
        if self.stormy:
            self.pace_us = rng.choice((600, 1_500, 4_000))
        self.lease_ms = rng.choice((20, 20, 60, 60, 200, 1000)) if self.stormy else 1000
        self.read_us = rng.choice((3_000, 60_000)) if self.stormy else 60_000  # then another member is asked
        self.read_share = rng.choice((0.2, 0.4, 0.4, 0.8))
        self.chunks, self.blocks = rng.choice(((CHUNKS, BLOCKS), (CHUNKS, 1), (1, 1), (1, 2)))  # in use
        self.ambushes = rng.random() < 0.4  # members and writers that die in the middle of a recovery
        self.moves = _swarm(rng, MOVES, {"nothing"})
        self.call_us = rng.choice((20_000, 80_000)) if self.stormy else 250_000  # a call waits so long
        self.storm_us = 1_200_000 if self.stormy else 2_500_000  # how long faults last
        self.disk_us = rng.choice(((200, 2_000), (1_000, 30_000)))
        self.network = Network(self.kernel)
        self.observer = Observer(self.sync)
        self.healed = self.finished = False
        self._quiet_until_us = 0  # until then nobody but the nemesis does anything more
        self.writes = self.reads = self.refusals = self.takeovers = self.changes = self.copies = 0
        self.zeroes: set[int] = set()  # operations that discard
        self._numbers = 0
        self._replicas = 0
        self.nodes: dict[int, SimNode] = {}
        self.metadata = Metadata(tuple(self._new_node().replica for _ in range(size)))
        self.clients = {name: SimClient(self, name, repairer=name == "m") for name in CLIENTS}
        processes = {node.name: Hooks(node.crash, node.restart) for node in self.nodes.values()}
        for name, client in self.clients.items():
            processes[name] = Hooks(client.crash, client.restart)
        plan = STORM if self.stormy else BREEZE
        plan = replace(plan, weights=_swarm(rng, plan.weights, {"heal"}))
        self.nemesis = Nemesis(self.kernel, self.network, processes, self.storm_us, plan)
        self.clients["c1"].attach()
        self._schedule_management()

    def _new_node(self) -> SimNode:
        self._replicas += 1
        capacity = self.kernel.rng.randint(4, 12) if self.small else None
        node = SimNode(self, self._replicas, capacity)
        self.nodes[node.replica] = node
        if hasattr(self, "nemesis"):
            self.nemesis.processes[node.name] = Hooks(node.crash, node.restart)  # type: ignore[index]
        return node

    def begin(self, kind: str, blocks: tuple[int, ...]) -> Operation:
        self._numbers += 1
        return self.observer.begin(self._numbers, kind, blocks)

    # -- what people and metadata do ---------------------------------------------------------------------

    def _schedule_management(self) -> None:
        span_us = (4_000, 60_000) if self.stormy else (20_000, 250_000)
        self.kernel.later(self.kernel.rng.randint(*span_us), self._manage)

    def _manage(self) -> None:
        if self.nemesis.healed:
            self._make_well()
            return
        rng = self.kernel.rng
        holder = self.clients[self.metadata.holder]
        self._tell(holder)
        up = [name for name in CLIENTS if name not in self.nemesis.down]
        if self.kernel.now_us < self._quiet_until_us:
            pass
        elif holder.writer is None or holder.name in self.nemesis.down:
            if up and rng.random() < 0.7:
                self._take_over(rng.choice(up))
        else:
            names = list(self.moves)
            move = rng.choices(names, [self.moves[name] for name in names])[0]
            if move == "take_over":
                self._take_over(rng.choice(up))
            elif move == "detach":
                holder.detach()
            elif move in ("strand", "power_loss", "relive", "amnesia", "straggle"):
                getattr(self, "_" + move)(holder.name)
            elif move != "nothing":
                getattr(self, "_" + move)()
        self._schedule_management()

    def _strand(self, name: str, amnesia: bool = False) -> None:
        """Leave the holder alone with a minority of the members, and let another take over: a zombie, who
        goes on to read and write. ``amnesia``: the others restart just before."""
        rng = self.kernel.rng
        members = [f"r{replica}" for replica in self.metadata.members]
        minority = rng.sample(members, (len(members) - 1) // 2)
        others = [other for other in (*CLIENTS, *members) if other not in (name, *minority)]
        self.kernel.note(f"strands {name} with {minority}")
        self.network.split([name, *minority], others)
        if amnesia:
            for member in members:
                if member not in minority:
                    self._crash_briefly(member)
        up = [other for other in CLIENTS if other != name and other not in self.nemesis.down]
        at_work = [other for other in up if not self.clients[other].repairer]
        if up:
            self._take_over_later(rng.choice(at_work or up), 5_000 if amnesia else 0)
        if rng.random() < 0.7:
            self.kernel.later(self.lease_ms * 1000 + rng.randint(2_000, 60_000), self._mend)

    def _mend(self) -> None:
        """Every link works again, and connections come up at once where one was waited for."""
        self.nemesis.mend()
        for name, client in self.clients.items():
            if name not in self.nemesis.down:
                client.reconnect()

    def _amnesia(self, name: str) -> None:
        """Who has just promised a read lease restarts, and is asked at once to answer another writer."""
        self._strand(name, amnesia=True)

    def _crash_briefly(self, name: str) -> None:
        if name not in self.nemesis.down:
            self.nemesis.crash_one(name)
            self.kernel.later(self.kernel.rng.randint(200, 4_000), lambda: self.nemesis.restart_one(name))

    def _relive(self, name: str) -> None:
        """The holder dies, and its next life attaches at once."""
        self._crash_briefly(name)

        self._take_over_later(name, self.kernel.rng.randint(4_000, 20_000))

    def _take_over_later(self, name: str, delay_us: int) -> None:
        def attach() -> None:
            if name not in self.nemesis.down and not self.nemesis.healed:
                self._take_over(name)

        self.kernel.later(delay_us, attach)

    def _straggle(self, name: str) -> None:
        """The holder attaches again, in the same process, while what one member acknowledged in the former
        epoch is still under way: records that no other member has, and that this recovery does not see. The
        acknowledgements arrive before what that member is sent in the new epoch; another one is slow, too."""
        client, network = self.clients[name], self.network
        members = [f"r{replica}" for replica in self.metadata.members]
        if client.repairer or len(members) < 3:
            return
        alone, slow = self.kernel.rng.sample(members, 2)
        self.kernel.note(f"{name} will attach again while acknowledgements of {alone} are under way")
        self._quiet_until_us = self.kernel.now_us + STRAGGLE_US
        self._mend()

        def serves() -> bool:
            return client.writer is not None and client.writer.phase is Phase.SERVING

        def under_way() -> bool:
            return client.writer is not None and client.writer.window.last > client.writer.commit + 3

        def begin() -> None:
            client.depth = 8
            for other in members:
                if other != alone:
                    network.hold(name, other, "append")
            network.hold(alone, name, "ack")
            self._when(lambda: under_way() and network.held(alone, name) > 2, again)

        def again() -> None:
            for other in members:
                network.forget(name, other)
            if name in self.nemesis.down or self.nemesis.healed or self.metadata.holder != name:
                network.forget(alone, name)
                return
            network.hold(name, alone, "seal")
            self._take_over(name)
            self._when(serves, late)

        def late() -> None:
            network.release(name, alone)
            for other in (alone, slow):
                network.hold(name, other, "append")
                self.kernel.later(
                    self.kernel.rng.randint(5_000, 60_000), partial(network.release, name, other)
                )
            self._when(lambda: self._sends_to(client, alone), partial(network.release, alone, name))

        self._when(serves, begin)

    def _sends_to(self, client: SimClient, name: str) -> bool:
        peer = client.writer.peers.get(int(name[1:])) if client.writer is not None else None
        return peer is not None and peer.status is Status.STREAMING

    def _when(self, condition: Callable[[], bool], action: Callable[[], None], tries: int = 200) -> None:
        """As soon as it is so, within 100 ms; else then."""
        if condition() or not tries:
            action()
        else:
            self.kernel.later(500, lambda: self._when(condition, action, tries - 1))

    def _strike_copy(self) -> None:
        """A member dies in the middle of a copy, or its source does."""
        rng = self.kernel.rng
        copying = [node for node in self.nodes.values() if node.copying() and not node.dropped]
        if copying:
            victim = rng.choice(copying)
            name = rng.choice((victim.name, victim.name, victim.source()))
            self.kernel.note(f"strikes {name} in a copy")
            self._crash_briefly(name)

    def _ambush(self, client: SimClient) -> None:
        """Somebody dies while this client recovers the log: the member it has chosen, another one, itself."""
        writer = client.writer
        if writer is None or self.nemesis.healed or writer.phase not in (Phase.TAIL, Phase.BARRIER):
            return
        rng = self.kernel.rng
        chosen = f"r{writer._chosen}"
        victim = rng.choice((chosen, chosen, f"r{rng.choice(self.metadata.members)}", client.name))
        self.kernel.note(f"ambush on {victim}")
        if rng.random() < 0.5:
            self._crash_briefly(victim)
        elif victim not in self.nemesis.down:
            self.nemesis.crash_one(victim)

    def _power_loss(self, name: str) -> None:
        """Holder and members forget what was not synced, all but one, which nobody hears for a while."""
        if self.sync:
            return
        members = [f"r{replica}" for replica in self.metadata.members]
        survivor = self.kernel.rng.choice(members)
        self.kernel.note(f"power loss for {name} and all but {survivor}")
        self.network.isolate(survivor, [*members, *CLIENTS])
        for victim in (name, *members):
            if victim != survivor and victim not in self.nemesis.down:
                self.nemesis.crash_one(victim)

    def _take_over(self, name: str) -> None:
        self.takeovers += 1
        client = self.clients[name]
        client.detach()
        if self.kernel.rng.random() < 0.1:
            self.metadata.attach(name, client.repairer)  # the reply is lost: this epoch is never used
        client.attach()
        if self.ambushes:
            for _ in range(2):
                self.kernel.later(self.kernel.rng.randint(500, 20_000), lambda: self._ambush(client))

    def ended(self, client: SimClient, writer: Writer) -> None:
        """A writer is over. Fenced by a repairer, with no other holder since, its client attaches again by
        itself and issues again what was not acknowledged."""
        applications = self.metadata.applications
        own = bool(applications) and applications[-1] == client.name
        if isinstance(writer.ended, AttachmentLost):
            invariant(not self.sync, "nothing can be lost in sync mode")
        elif own and not client.repairer and self.metadata.holder == "m" and not self.nemesis.healed:
            client.attach(again=True)

    def _wish_change(self) -> None:
        """Replace a member, or grow or shrink by one."""
        metadata, rng = self.metadata, self.kernel.rng
        if metadata.wish is not None or any(n.member is None and not n.dropped for n in self.nodes.values()):
            return
        members = [*metadata.members]
        present = [self.nodes[replica] for replica in members]
        if not all(n.member is not None and n.member.whole and not n.rotten for n in present):
            return  # fewer members on top of a damaged one are more than must be survived
        kind = rng.choice(("replace", "replace", "grow", "shrink"))
        if kind != "grow" and len(members) > 1:
            members.remove(rng.choice(members))
        if kind != "shrink" and len(members) < 5:
            members.append(self._new_node().replica)
        if tuple(members) == metadata.members:
            return
        metadata.wish = tuple(members)
        self.kernel.note(f"metadata: wishes {metadata.wish} instead of {metadata.members}")
        self._tell(self.clients[metadata.holder])

    def _tell(self, holder: SimClient) -> None:
        """The holder hears of the configuration and of a wish when it renews its lease."""
        if holder.name not in self.nemesis.down:
            holder.hears(self.metadata.members, self.metadata.wish)

    def _cancel_change(self) -> None:
        metadata = self.metadata
        if metadata.wish is not None:
            self.kernel.note("metadata: cancels the change")
            metadata.wish = None

    def _rot(self) -> None:
        """One device will lose records; only while all others are well, as the promise is no more."""
        metadata = self.metadata
        if metadata.wish is not None or len(metadata.members) < 3:
            return
        members = [self.nodes[replica] for replica in metadata.members]
        if all(n.member is not None and n.member.whole and not n.rotten for n in members):
            victim = self.kernel.rng.choice(members)
            victim.rotten = True
            victim.forgetful = self.kernel.rng.random() < 0.5
            if victim.name not in self.nemesis.down:
                self.nemesis.crash_one(victim.name)

    def _drop_unused(self) -> None:
        """Replicas that are neither in the configuration nor wished for are dropped, on metadata's word."""
        wanted = {*self.metadata.members, *(self.metadata.wish or ())}
        for replica, node in self.nodes.items():
            if replica not in wanted and not node.dropped:
                node.drop()

    def _make_well(self) -> None:
        """After the storm: somebody holds the volume, and nothing more is done to it."""
        self.healed = True
        self._drop_unused()
        for node in self.nodes.values():
            node.rotten = False
            node.capacity = None
        holder = self.clients[self.metadata.holder]
        if holder.writer is None:
            self.clients["c1"].detach()
            self.clients["c1"].attach()
        self._tell(holder)
        if self.kernel.now_us > self.storm_us + 500_000:
            self.finished = True
        self.kernel.later(100_000, self._manage)

    # -- checks --------------------------------------------------------------------------------------------

    def check_held(self, record: Record, configurations: list[Configuration]) -> None:
        """A commit was counted: a majority really holds the record on stable storage (sync mode)."""
        if not self.sync:
            return
        holders = [r for r, node in self.nodes.items() if record.position in node.held]
        based = [r for r, node in self.nodes.items() if node.copied_to >= record.lsn]
        holds = majority_in_all([*holders, *based], configurations)
        invariant(holds, "counted as committed without a majority", record=record, holders=holders)

    def is_well(self) -> bool:
        """Everything is served, applied and in its configuration."""
        writer = self.clients[self.metadata.holder].writer
        if not self.finished or writer is None or writer.phase is not Phase.SERVING:
            return False
        if self.metadata.wish is not None or writer.commit != writer.window.last:
            return False
        if writer.configurations != [self.metadata.members]:
            return False
        if not self.clients[self.metadata.holder].idle():
            return False
        return all(
            writer.peers[r].status is Status.STREAMING and self._applied(r) == writer.commit
            for r in self.metadata.members
        )

    def _applied(self, replica: int) -> int:
        member = self.nodes[replica].member
        return member.state.commit if member is not None else -1

    def _check_agreement(self) -> None:
        for replica in self.metadata.members:
            index = self.nodes[replica].store.index
            for block in self.observer.versions:
                value = index.get(block, (0, 0))[1]
                self.observer.shows(replica, self.metadata.epoch, block, self.observer.last_committed, value)

    def run(self) -> str:
        """The whole history; its trace hash. Raises Violation."""
        well = self.kernel.run(self.storm_us + SETTLE_US, self.is_well)
        try:
            if not well:
                writer = self.clients[self.metadata.holder].writer
                raise AssertionError(f"not well again: {writer.status() if writer else 'nobody attached'}")
            self._check_agreement()
            self.observer.check_linearizable()
        except Exception as error:
            raise Violation(self.kernel.seed, self.kernel.now_us, error, list(self.kernel.story)) from error
        return self.kernel.trace_hash()


def _swarm(rng: Random, weights: Mapping[str, int], kept: set[str]) -> dict[str, int]:
    """Swarm testing (Groce et al. 2012): a history in which some faults are missing, and others frequent,
    sees what the average one does not."""
    factors = {name: 1 if name in kept else rng.choice((0, 1, 1, 1, 4)) for name in weights}
    return {name: weight * factors[name] for name, weight in weights.items()}


def run_seed(seed: int) -> str:
    """One history; its trace hash. Raises Violation."""
    return QuorumCluster(seed).run()
