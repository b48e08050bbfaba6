"""The shell around the Raft core: one replicated state machine on LMDB, with its peers over wire channels.

Owns: the order of things between core, disk, network and state machine. A loop turn's inputs are drained in
one ``_pump``: messages that may go at once, committed commands applied, and one transaction at a time handed
to the storage's thread; what a promise rests on is durable before the promise is sent.
Must never: go on after a failed commit, a corrupt value or a command that raised what it must not: the member
stops (``failed``), and the others go on without it.
Commands may be proposed twice when an outcome was unknown, so they are written to be idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgpack

from moorage.quorum.raft import Raft, Settings
from moorage.quorum.raft_types import (
    COMMAND,
    CONFIG,
    ChunkRequest,
    Config,
    Entry,
    Member,
    Message,
    Ready,
    Snapshot,
)
from moorage.service import raft_transport
from moorage.service.embed import Route
from moorage.service.kv import KV
from moorage.service.options import NAME
from moorage.service.raft_storage import LmdbBase, RaftStorage, SnapshotReader, Work
from moorage.service.raft_transport import Transport
from moorage.wire import address as addresses
from moorage.wire import errors
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

TICK_S = 0.025  # heartbeat 3 ticks = 75 ms; election timeout 12 to 24 ticks = 300 to 600 ms
SETTINGS = Settings(election_ticks=12, heartbeat_ticks=3)
COMMAND_SIZE_MAX = 512 << 10  # with its neighbours in one frame of at most 1 MiB
WAITING_BYTES_MAX = 32 << 20
FLUSH_TICKS = 4  # the state is stored with the next commit after 100 ms, and by itself after them
LOG_KEEP = 2048  # entries behind the stored state, for members that were away for a moment
LOG_SIZE_MAX = 64 << 20  # bytes of entries in memory beyond which none are kept for them
BIRTH_TICKS = 4  # how often a member that may not take part yet asks to be accepted
ANNOUNCE_TICKS = 40  # how often one that takes part tells its life to who has not heard of it
MOVE_TICKS = 20  # members that moved are told to the group after at most half a second
HAND_OVER_S = 0.5
OUTGOING_TICKS_MAX = 400  # 10 s


class StateMachine(Protocol):
    """What a service decides. ``apply`` is deterministic: no clock, no randomness, no I/O."""

    def apply(self, kv: KV, command: dict[str, Any], index: int) -> Any:
        """Execute one committed command; the result goes to its proposer. A MoorageError rolls back this
        command's writes and goes to the proposer instead; Corrupt, Fatal and any other exception stop the
        member."""
        ...


@dataclass(slots=True)
class _Outgoing:
    """A snapshot on its way to one member."""

    attempt: int
    snapshot: Snapshot
    reader: SnapshotReader
    data: bytes = b""  # the chunk read last
    last: bool = False
    idle_ticks: int = 0


class Replicated:
    """One member of a replicated group. Everything is for the event loop's thread.

    ``peers``: name -> address of the members, with our own. An empty directory begins a group with them;
    without our own name in it, it waits to be added. Later they only tell where the members of the stored
    configuration are. Counters are plain attributes, for /metrics.
    """

    def __init__(
        self,
        *,
        directory: Path,
        group: str,
        name: str,
        peers: Mapping[str, str],
        machine: StateMachine,
        hello: Hello | Callable[[], Hello],
        secret: ClusterSecret,
        settings: Settings = SETTINGS,
    ) -> None:
        self.group = group
        self.name = name
        self.kv = KV()
        self.failed: errors.MoorageError | None = None
        self.on_leader_change: list[Callable[[bool], None]] = []
        self.on_failure: list[Callable[[errors.MoorageError], None]] = []
        self.proposals = self.applied_commands = self.entries_stored = self.snapshots_sent = 0
        self.leader_changes = 0
        self._addresses = dict(peers)
        self._machine = machine
        self._cluster = secret.cluster
        self._settings = settings
        self._storage = RaftStorage(directory, group)
        self._transport = Transport(group=group, name=name, hello=hello, secret=secret, receiver=self)
        self._core: Raft | None = None
        self._waiting: dict[int, tuple[int, asyncio.Future[Any]]] = {}  # index -> (term, proposal)
        self._reads: dict[int, asyncio.Future[None]] = {}
        self._contexts = 0
        self._outgoing: dict[str, _Outgoing] = {}
        self._storing: asyncio.Future[None] | None = None
        self._stored_applied = 0
        self._stored_base = 0
        self._ticks_since_flush = 0
        self._ticks_since_move = 0
        self._scheduled = False
        self._leads = False
        self._born = False
        self._started = False  # a peer has accepted this life of ours, and that is durable
        self._ticks = 0
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._follow_lock = asyncio.Lock()
        self._waiting_bytes = 0  # of proposals without an outcome

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the state and begin to take part. Raises Corrupt, IdentityConflict, VersionMismatch or
        DeviceFailed when that is impossible; each says what to do."""
        config = Config(())
        if self.name in self._addresses:
            config = Config(Member(name, address, True) for name, address in self._addresses.items())
        identity = {"cluster": self._cluster, "group": self.group, "name": self.name}
        try:
            loaded = await self._storage.open(identity, config)
        except BaseException:
            await self._storage.close()
            raise
        self.kv = KV(LmdbBase(self._storage.env, self._storage.kv_db, self._storage.where))
        self._transport.instance, self._transport.pins = loaded.instance, loaded.pins
        self._transport.life = loaded.life
        self._started = loaded.life.accepted
        self._stored_applied, self._stored_base = loaded.applied, loaded.log.base_index
        self._core = Raft(
            self.name, loaded.log, random.Random(), loaded.hard_state, loaded.applied, self._settings
        )
        # A member that has spoken in a term, or waits to be added, needs no birth.
        self._born = loaded.hard_state.term > 0 or self.name not in loaded.log.config.names
        config = loaded.log.config_at(loaded.applied)
        self._transport.members_are({each.name: each.since for each in config.members}, loaded.applied)
        await self._follow_peers()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    async def stop(self) -> None:
        """Hand leadership over if somebody can take it, store what is applied, close everything."""
        core = self._core
        self._stopping = True
        if core is not None and self.failed is None:
            await self._hand_over(core)
        if self._timer is not None:
            self._timer.cancel()
        self._end_waiting(errors.ShuttingDown(f"{self.name} is shutting down"))
        self._set_leads(False)
        self._core = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        raft_transport.unregister(self._transport)
        await self._transport.stop()
        await self._store_last(core)
        for name in list(self._outgoing):
            self._close_outgoing(name)
        await self._storage.close()

    async def _hand_over(self, core: Raft) -> None:
        if not core.is_leader or not core.transfer():
            return
        self._schedule()
        try:
            async with asyncio.timeout(HAND_OVER_S):
                while core.is_leader and self.failed is None:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log.info("raft %s: nobody took leadership over in %.1f s", self.group, HAND_OVER_S)

    async def _store_last(self, core: Raft | None) -> None:
        """Not needed for safety: it saves the next start the replay."""
        if self._storing is not None:
            results = await asyncio.gather(self._storing, return_exceptions=True)
            if results[0] is not None:
                return
        if core is None or self.failed is not None or core.log.persisted < core.applied or core.installing:
            return
        self.kv.stored()
        work = Work(applied=core.applied, batch=self.kv.take_batch())
        await asyncio.gather(self._storage.commit(work), return_exceptions=True)

    def _fail(self, error: errors.MoorageError) -> None:
        """The end of this member; the group goes on without it."""
        if self.failed is not None:
            return
        log.error("raft %s: %s stops: %s", self.group, self.name, error)
        self.failed = error
        if self._timer is not None:
            self._timer.cancel()
        self._end_waiting(error)
        self._set_leads(False)
        self._idle.set()
        self._spawn(self._follow_peers(), "stop following")
        for callback in self.on_failure:
            callback(error)

    def _end_waiting(self, error: errors.MoorageError) -> None:
        for _, future in self._waiting.values():
            _settle(future, errors.DeadlineExceeded(f"outcome unknown: {error}"))
        for read in self._reads.values():
            _settle(read, error)
        self._waiting, self._reads = {}, {}

    def _spawn(self, work: Any, what: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"raft {self.group}: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what the services use ------------------------------------------------------------------------

    async def propose(self, command: dict[str, Any], timeout: float = 5.0) -> Any:
        """Replicate and apply one command; its result, or the MoorageError that ``apply`` raised. NotLeader
        on a follower; DeadlineExceeded means that the outcome is unknown."""
        core = self._running()
        raw = msgpack.packb(command)
        if len(raw) > COMMAND_SIZE_MAX:
            raise errors.LimitExceeded(
                f"a command of {len(raw)} bytes: at most {COMMAND_SIZE_MAX} are possible"
            )
        if self._waiting_bytes + len(raw) > WAITING_BYTES_MAX:
            raise errors.Overloaded(f"{self._waiting_bytes} bytes of commands wait for a majority: try later")
        try:
            index, term = core.propose(raw)
        except errors.NotLeader as error:
            raise self._not_leader() from error
        self.proposals += 1
        self._waiting_bytes += len(raw)
        try:
            return await self._outcome(index, term, timeout)
        finally:
            self._waiting_bytes -= len(raw)

    async def _outcome(self, index: int, term: int, timeout: float) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[index] = (term, future)
        self._schedule()
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"group {self.group}: no answer in {timeout:g} s, outcome unknown; {self._whom_we_miss()}"
            ) from None
        finally:
            if self._waiting.get(index, (0, None))[1] is future:
                del self._waiting[index]

    async def read_barrier(self, timeout: float = 5.0) -> None:
        """After this, ``kv`` shows every command acknowledged before the call (leader only)."""
        core = self._running()
        self._contexts += 1
        context = self._contexts
        try:
            core.read(context)
        except errors.NotLeader as error:
            raise self._not_leader() from error
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reads[context] = future
        self._schedule()
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise errors.Unavailable(
                f"group {self.group}: leadership not confirmed in {timeout:g} s; {self._whom_we_miss()}"
            ) from None
        finally:
            self._reads.pop(context, None)

    def _running(self) -> Raft:
        if self.failed is not None:
            raise self.failed
        if self._core is None or self._stopping:
            raise errors.ShuttingDown(f"{self.name} does not run")
        return self._core

    def _not_leader(self) -> errors.NotLeader:
        leader = self.leader
        hint = f"ask {leader['name']} at {leader['address']}" if leader else "no leader is known: try again"
        return errors.NotLeader(f"{self.name} does not lead group {self.group}: {hint}", leader=leader)

    def _whom_we_miss(self) -> str:
        silent = [
            f"{name} silent for {channel.silent_for_s:.0f} s"
            if channel.conn is not None
            else f"{name}: {channel.last_error or 'not connected'}"
            for name, channel in self._transport.channels.items()
            if channel.conn is None or channel.silent_for_s > 1
        ]
        return "waiting for a majority: " + (", ".join(silent) or "all members are connected")

    @property
    def is_leader(self) -> bool:
        """Whether this member leads and ``kv`` holds everything that former leaders acknowledged."""
        return self._leads

    @property
    def is_served(self) -> bool:
        """Whether this member serves the group, or knows who else was chosen to. To be chosen is not enough:
        until the first entry of its term is committed, a leader refuses all that it is asked."""
        leader = self.leader
        return self._leads or (leader is not None and leader["name"] != self.name)

    @property
    def term(self) -> int:
        return self._core.term if self._core is not None else 0

    @property
    def leader(self) -> dict[str, Any] | None:
        """{"name", "address"} of the leader as known here, or None."""
        name = self._core.leader if self._core is not None else None
        if name is None or self.failed is not None:
            return None
        return {"name": name, "address": self._address_of(name)}

    @property
    def members(self) -> list[dict[str, Any]]:
        """[{"name", "address", "voter"}] of the current configuration."""
        found = self._core.log.config.members if self._core is not None else ()
        return [
            {"name": each.name, "address": self._address_of(each.name), "voter": each.voter} for each in found
        ]

    def _address_of(self, name: str) -> str:
        """What the member said itself, then what the operator said at the start, until the configuration
        changes: addresses move while the whole group is down, too."""
        known = self._transport.heard_at.get(name, self._addresses.get(name))
        member = self._core.log.config.find(name) if self._core is not None else None
        return known if known is not None else member.address if member is not None else ""

    def _peer_addresses(self) -> dict[str, str]:
        core, names = self._core, dict[str, None]()
        if core is not None:
            # Not only the newest: while a removal is not committed, the others may need who is being removed.
            configs = [config for index, config in core.log.configs if index > core.commit]
            configs.append(core.log.config_at(core.commit))
            names = dict.fromkeys(name for config in configs for name in config.names)
        if self.name not in names:  # not added yet, or removed: listen to whom we know
            names |= dict.fromkeys(self._addresses)
        return {name: self._address_of(name) for name in names if name != self.name}

    def status(self) -> dict[str, Any]:
        core = self._core
        return {
            "group": self.group,
            "name": self.name,
            "role": "failed"
            if self.failed is not None
            else core.role.value
            if core is not None
            else "stopped",
            "failed": str(self.failed) if self.failed is not None else None,
            "born": self._born,
            "accepted": self._started,
            "term": self.term,
            "leader": self.leader,
            "members": self.members,
            "commit_index": core.commit if core is not None else 0,
            "applied_index": core.applied if core is not None else 0,
            "stored_index": self._stored_applied,
            "first_index": core.log.first_index if core is not None else 0,
            "last_index": core.log.last_index if core is not None else 0,
            "proposals": self.proposals,
            "applied_commands": self.applied_commands,
            "entries_stored": self.entries_stored,
            "commits": self._storage.commits,
            "snapshots_sent": self.snapshots_sent,
            "messages_dropped": self._transport.dropped,
            "leader_changes": self.leader_changes,
        }

    # -- administration -------------------------------------------------------------------------------

    def register(self, router: Router) -> None:
        """Install the RAFT op and ``raft.GROUP.status|add_member|promote|remove_member|set_address``."""
        raft_transport.register(router, self._transport)
        prefix = f"raft.{self.group}."
        router.method(prefix + "status", self._rpc_status)
        router.method(prefix + "add_member", self._rpc_add)
        router.method(prefix + "promote", self._rpc_promote)
        router.method(prefix + "remove_member", self._rpc_remove)
        router.method(prefix + "set_address", self._rpc_set_address)

    def routes(self) -> list[Route]:
        """The same for the JSON API: what an operator needs to replace a member."""
        prefix = f"raft.{self.group}."
        return [
            Route("GET", prefix + "status", partial(self._rpc_status, None)),
            Route("POST", prefix + "add_member", partial(self._rpc_add, None)),
            Route("POST", prefix + "promote", partial(self._rpc_promote, None)),
            Route("POST", prefix + "remove_member", partial(self._rpc_remove, None)),
        ]

    async def _rpc_status(self, context: CallContext | None, params: dict[str, Any]) -> Any:
        """``leader`` true: the leader's word, not that of any member."""
        if params.get("leader") is True and not self.is_leader:
            raise self._not_leader()
        return self.status()

    async def _rpc_add(self, context: CallContext | None, params: dict[str, Any]) -> Any:
        await self.change_members(lambda config: _with_learner(config, params["name"], params["address"]))
        return {}

    async def _rpc_promote(self, context: CallContext | None, params: dict[str, Any]) -> Any:
        await self.change_members(
            lambda config: config.put(_known(config, params["name"])._replace(voter=True))
        )
        return {}

    async def _rpc_remove(self, context: CallContext | None, params: dict[str, Any]) -> Any:
        await self.change_members(lambda config: config.drop(_known(config, params["name"]).name))
        return {}

    async def _rpc_set_address(self, context: CallContext, params: dict[str, Any]) -> Any:
        await self.change_members(
            lambda config: config.put(
                _known(config, params["name"])._replace(address=_checked_address(params["address"]))
            )
        )
        return {}

    async def change_members(self, change: Callable[[Config], Config], timeout: float = 5.0) -> None:
        """Replace the configuration by ``change`` of it, by at most one voter; returns when committed."""
        core = self._running()
        try:
            wanted = change(core.log.config)
        except KeyError as error:
            raise errors.Invalid(f"parameter {error} is missing") from error
        if wanted.after(core.log.config, 0) == core.log.config:
            return
        try:
            index, term = core.propose_config(wanted)
        except errors.NotLeader as error:
            raise self._not_leader() from error
        await self._outcome(index, term, timeout)

    # -- inputs ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        core = self._core
        if core is None or self.failed is not None:
            return
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._ticks_since_flush += 1
        self._close_idle_outgoing()
        self._ticks += 1
        if self._takes_part(core):
            core.tick()
        if self._leads and self._ticks_since_move >= MOVE_TICKS:
            self._ticks_since_move = 0
            self._note_moves(core)
        self._ticks_since_move += 1
        self._schedule()

    def _note_moves(self, core: Raft) -> None:
        """Members that came back elsewhere get their new address into the configuration, which all learn."""
        moved = [
            member._replace(address=self._address_of(member.name))
            for member in core.log.config.members
            if (member.name == self.name or member.name in self._transport.heard_at)
            and self._address_of(member.name) not in ("", member.address)
        ]
        if moved:
            self._spawn(self._move(moved), "note addresses")

    async def _move(self, moved: list[Member]) -> None:
        try:
            for member in moved:
                log.info("raft %s: %s is at %s now", self.group, member.name, member.address)
                await self.change_members(partial(Config.put, member=member))
        except errors.MoorageError as error:
            log.info("raft %s: the move is noted later: %s", self.group, error)

    def _takes_part(self, core: Raft) -> bool:
        if not self._born:
            peers = {name for name in core.log.config.names if name != self.name}
            self._born = core.term > 0 or peers <= self._transport.accepted_by
        takes_part = self._born and self._started
        if self._ticks % (ANNOUNCE_TICKS if takes_part else BIRTH_TICKS) == 0:
            self._transport.announce(self._born)
        if not self._started and core.log.config.voters == (self.name,):
            self.accepted()  # it needs nobody
        return takes_part

    def accepted(self) -> None:
        """Somebody knows this life of ours now; when that is stored, we take part."""
        if not self._transport.life.accepted:
            self._transport.life = self._transport.life._replace(accepted=True)
            self._schedule()

    def received(self, source: str, message: Message) -> None:
        """A message of a peer that the transport has identified."""
        if self._core is None or self.failed is not None or not self._started:
            return
        try:
            self._core.step(source, message)
        except errors.InvariantViolation as error:
            self._fail(error)
            return
        self._schedule()

    def refused(self, by: str, reason: str) -> None:
        """A peer knows our name as another instance: our state is not the one that took part."""
        self._fail(errors.IdentityConflict(reason))

    # -- the pump -------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        core = self._core
        if core is None or self.failed is not None:
            return
        try:
            for target, message in core.take_messages():
                self._transport.send(target, message)
            self._apply_committed(core)
            self._answer_reads(core)
            for name, index in core.take_forgetful().items():
                self._transport.refuse_forgetful(name, index)
            for request in core.take_chunk_requests():
                self._send_chunk(core, request)
            if self._storing is None:
                self._store(core)
        except errors.MoorageError as error:
            self._fail(error)
            return
        except Exception as error:
            log.exception("raft %s: a command or the shell failed", self.group)
            self._fail(errors.Fatal(f"{type(error).__name__} in group {self.group}: {error}"))
            return
        self._see_leadership(core)
        self._idle.set()

    # -- applying -------------------------------------------------------------------------------------

    def _apply_committed(self, core: Raft) -> None:
        while entries := core.take_committed():
            for entry in entries:
                result = self._apply(entry)
                waiting = self._waiting.pop(entry.index, None)
                if waiting is not None:
                    term, future = waiting
                    # Another entry took its place: it can never be committed any more.
                    _settle(future, result if term == entry.term else self._not_leader())
                # While we stop, the services have stopped before us: leadership is only to be handed over.
                if entry.term == core.term and core.is_leader and not self._stopping:
                    self._set_leads(True)

    def _apply(self, entry: Entry) -> Any:
        if entry.kind == CONFIG:
            self._config_committed(Config.decode(entry.data), entry.index)
        if entry.kind != COMMAND:
            return None
        self.applied_commands += 1
        try:
            result = self._machine.apply(
                self.kv, msgpack.unpackb(entry.data, strict_map_key=False), entry.index
            )
        except (errors.Corrupt, errors.Fatal):
            raise
        except errors.MoorageError as error:
            self.kv.rollback()
            return error
        self.kv.commit()
        return result

    def _config_committed(self, config: Config, index: int) -> None:
        for member in config.members:
            if member.name != self.name and self._addresses.get(member.name) not in (None, member.address):
                self._addresses.pop(member.name)
        for name in list(self._addresses):
            if name in self._transport.members and name not in config.names:
                self._addresses.pop(name)
        self._transport.members_are({each.name: each.since for each in config.members}, index)
        self._spawn(self._follow_peers(), "follow configuration")

    async def _follow_peers(self) -> None:
        """One at a time: an older configuration must not be followed last."""
        async with self._follow_lock:
            await self._transport.follow({} if self.failed is not None else self._peer_addresses())

    def _answer_reads(self, core: Raft) -> None:
        for context, index in core.take_reads():
            future = self._reads.get(context)
            if future is not None:
                # Everything committed is applied by now, so ``index`` is.
                _settle(future, None if index is not None else self._not_leader())

    def _see_leadership(self, core: Raft) -> None:
        if self._leads and not core.is_leader:
            self._set_leads(False)

    def _set_leads(self, leads: bool) -> None:
        if leads == self._leads:
            return
        self._leads = leads
        self.leader_changes += 1
        log.info(
            "raft %s: %s %s in term %d", self.group, self.name, "leads" if leads else "follows", self.term
        )
        for callback in self.on_leader_change:
            callback(leads)

    # -- storing --------------------------------------------------------------------------------------

    def _store(self, core: Raft) -> None:
        """Hand one transaction to the storage: what the core wants durable, and now and then the state."""
        ready = core.ready()
        new_life = self._transport.life.accepted and not self._started
        if ready is not None and ready.nothing_to_store and not self._transport.new_pins:
            self._advance(core, ready)
            ready = core.ready()
        work = Work(pins=dict(self._transport.new_pins), life=self._transport.life if new_life else None)
        if ready is not None:
            work.hard_state, work.chunks = ready.hard_state, ready.chunks
            work.install, work.entries = ready.install, ready.entries
        # Not while a snapshot replaces the state: what is in the KV is older than that.
        if not core.installing:
            self._add_state(core, work)
        if ready is None and not work.pins and work.life is None and work.applied is None:
            return
        self._storing = self._storage.commit(work)
        self._storing.add_done_callback(lambda done: self._stored(core, ready, work, done))

    def _add_state(self, core: Raft, work: Work) -> None:
        if core.applied == self._stored_applied or self._ticks_since_flush < FLUSH_TICKS:
            return
        self._ticks_since_flush = 0
        work.applied, work.batch = core.applied, self.kv.take_batch()
        large = core.log.size_bytes > LOG_SIZE_MAX
        upto = min(self._stored_applied - (0 if large else LOG_KEEP), core.log.persisted)
        if upto - core.log.base_index >= (1 if large else LOG_KEEP):
            core.compact(upto)
        if core.log.base_index > self._stored_base:
            self._stored_base = core.log.base_index
            work.base = Snapshot(core.log.base_index, core.log.base_term, core.log.configs[0][1])

    def _stored(self, core: Raft, ready: Ready | None, work: Work, done: asyncio.Future[None]) -> None:
        self._storing = None
        if done.cancelled() or self._core is None:
            return
        error = done.exception()
        if error is not None:
            if not isinstance(error, errors.MoorageError):
                error = errors.DeviceFailed(
                    f"{self._storage.where}: writing failed: {error}; look at the disk"
                )
            self._fail(error)
            return
        self.entries_stored += len(work.entries)
        self._transport.pins_stored(work.pins)
        self._started = self._started or work.life is not None
        if work.applied is not None:
            self._stored_applied = work.applied
            self.kv.stored()
        if work.install is not None:
            self.kv.reset()
            self._stored_applied = self._stored_base = work.install.index
            self._config_committed(work.install.config, work.install.index)
        if ready is not None:
            self._advance(core, ready)
        self._schedule()

    def _advance(self, core: Raft, ready: Ready) -> None:
        for target, message in ready.messages:
            self._transport.send(target, message)
        core.advance(ready)
        self._schedule()

    # -- snapshots ------------------------------------------------------------------------------------

    def _send_chunk(self, core: Raft, request: ChunkRequest) -> None:
        """Give the core the chunk that it asks for: the next one, or once more the one read last."""
        if request.seq == 0:
            self._begin_snapshot(core, request)
        outgoing = self._outgoing.get(request.target)
        if outgoing is None or outgoing.attempt != request.attempt:
            return  # closed meanwhile: the core begins anew when nothing comes
        if request.seq == outgoing.reader.seq and not outgoing.last:
            outgoing.data, outgoing.last = outgoing.reader.chunk()
            if outgoing.last:
                outgoing.reader.close()
        if request.seq == outgoing.reader.seq - 1:
            core.provide_chunk(request, outgoing.snapshot, outgoing.data, outgoing.last)
            outgoing.idle_ticks = 0
            self._schedule()

    def _begin_snapshot(self, core: Raft, request: ChunkRequest) -> None:
        self._close_outgoing(request.target)
        reader = SnapshotReader(self._storage)
        term = core.log.term(reader.applied)
        if term is None:
            reader.close()
            errors.violated("stored state behind the log", applied=reader.applied, base=core.log.base_index)
        snapshot = Snapshot(reader.applied, term, core.log.config_at(reader.applied))
        self._outgoing[request.target] = _Outgoing(request.attempt, snapshot, reader)
        self.snapshots_sent += 1

    def _close_idle_outgoing(self) -> None:
        """A reader pins old pages: not for a member that died in the middle."""
        for name, outgoing in list(self._outgoing.items()):
            outgoing.idle_ticks += 1
            if outgoing.idle_ticks > OUTGOING_TICKS_MAX or not self._leads:
                self._close_outgoing(name)

    def _close_outgoing(self, target: str) -> None:
        outgoing = self._outgoing.pop(target, None)
        if outgoing is not None:
            outgoing.reader.close()


def _known(config: Config, name: str) -> Member:
    member = config.find(name)
    if member is None:
        raise errors.NotFound(f"{name} is not a member: members are {', '.join(config.names)}")
    return member


def _with_learner(config: Config, name: Any, address: Any) -> Config:
    """Add a learner, or give the one of that name another address. Not to a voter: it would lose its vote."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise errors.Invalid(
            "bad name of a member: use 1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit"
        )
    known = config.find(name)
    if known is not None and known.voter:
        raise errors.Invalid(
            f"{name} is a voter of this group already, at {known.address}: to replace it, remove it first"
        )
    return config.put(Member(name, _checked_address(address), False))


def _checked_address(address: Any) -> str:
    if not isinstance(address, str):
        raise errors.Invalid("a member's address is a text: give HOST:PORT, [IPV6]:PORT or unix:/path")
    found = addresses.parse(address)
    if isinstance(found, addresses.Tcp) and found.port == 0:
        raise errors.Invalid(f"bad address {address!r}: nobody can connect to port 0")
    return str(found)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
