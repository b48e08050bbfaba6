"""Raft messages between the members of a group: channels to the peers, who they are, how a group is born.

Owns: one channel per peer, the pins (name -> instance of the member that had this name first), the birth.
Must never: pass on a message of an instance that is not the pinned one. A member whose directory was wiped
comes back under its name with another instance: it has forgotten its votes, so it must not vote again.
Invariants: only members are pinned, so that a removed one, which may not know it, does not keep its name; a
pin is durable before anything is answered to who was pinned (the shell stores ``new_pins``); the ``since`` of
a pin never falls.

A name may be removed and added again, for another instance. What tells the two apart is ``since``, the log
index that added the member: a greater one replaces a pin, a smaller one is of the past. A member learns its
own from a leader, stores it as its pin of itself, and claims it in every frame. One that was away meanwhile
thus does not refuse the new member for the old one's sake, and hears members that it has not heard of.

A copy of a member's directory has the right instance, so that is not enough: when another process comes under
a name, the one that takes part is pinged. If it answers, the newcomer is refused; if it has hung up or stays
silent, its host lost power, and the newcomer takes its place. Until then the newcomer's frames are dropped.

Nor is it enough that the first process is gone: a directory restored from a backup has the right instance,
and has forgotten what it promised since. So each start begins a life (raft_storage.py has the chain), which a
member announces until each peer has accepted it. A peer that knows a later life, or another one of the same
number, refuses; until a first peer has accepted, the shell neither ticks the core nor gives it messages.

Birth: a member with an empty directory takes part only after *all* members that the group begins with have
accepted its instance. Two wiped members of three can therefore never form an empty group beside the third.

A member may come back on another port: its handshake says where it is now (``extra["address"]``), and once
its instance is verified, our channel to it goes there, whatever the configuration or the operator said.

RAFT frame (ONEWAY): msgpack [group, name, instance, since, your since, message]; both are nil while they are
not known. The message is one of quorum/raft_types.py, or ["birth" or "start", number of the life, its token,
token of the former] (asks to be accepted), ["accepted", token], ["refused", text].
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from moorage.quorum.raft_types import (
    INDEX_MAX,
    Append,
    Heartbeat,
    Message,
    SnapshotChunk,
    decode,
    encode,
)
from moorage.service.options import NAME
from moorage.service.raft_storage import Life, Pin
from moorage.wire import errors, frame
from moorage.wire.channel import Channel
from moorage.wire.connection import Connection, Reply
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

SILENT_S = 2.5  # a living process answers a PING within that
STRANGERS_MAX = 16  # members that we have not heard of, so far behind are we
QUEUE_MAX = 8 << 20  # bytes towards one peer; beyond it messages are dropped, which Raft bears


class Receiver(Protocol):
    def received(self, source: str, message: Message) -> None: ...

    def accepted(self) -> None: ...

    def refused(self, by: str, reason: str) -> None: ...


class Transport:
    def __init__(
        self,
        *,
        group: str,
        name: str,
        hello: Hello | Callable[[], Hello],
        secret: ClusterSecret,
        receiver: Receiver,
    ) -> None:
        self.group = group
        self.name = name
        self.instance = ""
        self.life = Life(0, "", "", True)
        self.pins: dict[str, Pin] = {}  # with our own: since when we are a member
        self.new_pins: dict[str, Pin | None] = {}
        self.members: dict[str, int] = {}  # of the committed configuration: name -> since
        self.config_index = 0  # where it stands in the log
        self.channels: dict[str, Channel] = {}
        self.dropped = 0
        self.accepted_by: set[str] = set()
        self.heard_at: dict[str, str] = {}  # name -> address that the member itself named last
        self._processes: dict[str, Connection] = {}  # name -> the connection that its process used last
        self._newcomers: WeakKeyDictionary[Connection, _Asked] = WeakKeyDictionary()
        self._hello = hello
        self._secret = secret
        self._receiver = receiver
        self._answers: list[tuple[str, list[Any]]] = []  # to be sent once the pins are durable

    # -- peers ------------------------------------------------------------------------------------

    async def follow(self, addresses: Mapping[str, str]) -> None:
        """Have a channel to exactly these peers."""
        for name in [name for name in self.channels if name not in addresses]:
            await self.channels.pop(name).stop()
        for name, address in addresses.items():
            channel = self.channels.get(name)
            if channel is None:
                answers = _Answers(self)
                channel = Channel(address, hello=self._hello, secret=self._secret, endpoint=answers)
                self.channels[name] = channel
                channel.start()
            else:
                channel.set_address(address)

    async def stop(self) -> None:
        await self.follow({})

    def members_are(self, members: Mapping[str, int], index: int) -> None:
        """The committed configuration, which stands at ``index``: who was pinned before it under the name of
        one that was removed, or removed and added again, is not that member."""
        self.members, self.config_index = dict(members), index
        for name, pin in list(self.pins.items()):
            if name != self.name and pin.since < members.get(name, index):
                self._unpin(name)

    def _unpin(self, name: str) -> None:
        del self.pins[name]
        self.new_pins[name] = None
        self.heard_at.pop(name, None)
        self._processes.pop(name, None)
        self.accepted_by.discard(name)

    def _pin(self, name: str, since: int, instance: str) -> None:
        if name in self.pins:
            self._unpin(name)
        log.info("raft %s: %s is instance %s, a member since %d", self.group, name, instance, since)
        self.pins[name] = self.new_pins[name] = Pin(since, instance)

    # -- sending ----------------------------------------------------------------------------------

    def send(self, target: str, message: Message) -> None:
        self._send(target, encode(message))

    def _send(self, target: str, message: list[Any]) -> None:
        channel = self.channels.get(target)
        # Who is a member only according to itself is answered where it spoke.
        conn = self._processes.get(target) if channel is None else channel.conn
        if conn is None or conn.write_queue_size > QUEUE_MAX:
            self.dropped += 1
            return
        self._send_on(conn, target, message)

    def _send_on(self, conn: Connection, target: str, message: list[Any]) -> None:
        own = self.pins.get(self.name)
        since = None if own is None else own.since
        body = frame.pack([self.group, self.name, self.instance, since, self.members.get(target), message])
        conn.send(frame.ONEWAY, frame.RAFT, 0, body)

    def announce(self, born: bool) -> None:
        """Tell our life to who has not accepted it yet."""
        life = self.life
        for name in self.channels:
            if name not in self.accepted_by:
                self._send(name, ["start" if born else "birth", life.number, life.token, life.former])

    def pins_stored(self, pins: Mapping[str, Pin | None]) -> None:
        """These pins are durable: what waited for that may be said."""
        for name, pin in pins.items():
            if self.new_pins.get(name, pin) == pin:
                self.new_pins.pop(name, None)
        if not self.new_pins:
            answers, self._answers = self._answers, []
            for target, message in answers:
                self._send(target, message)

    # -- receiving --------------------------------------------------------------------------------

    def takes_part(self, name: str, conn: Connection) -> bool:
        """Whether the process of ``conn`` is the one that lives under this name. A second process waits until
        the first has hung up, answers, or has been silent for ``SILENT_S``."""
        first = self._processes.get(name)
        if first is None or first.closed or first.peer.instance == conn.peer.instance:
            self._processes[name] = conn
            return True
        asked = self._newcomers.get(conn)
        if asked is None or asked.first is not first:
            self._newcomers[conn] = _Asked(first)
        elif asked.answered:
            del self._newcomers[conn]
            self._refuse_twin(name, first, conn)
        elif asked.silent:
            del self._newcomers[conn]
            self._processes[name] = conn
            return True
        return False

    def _refuse_twin(self, name: str, first: Connection, conn: Connection) -> None:
        where = first.peer.extra.get("address", first.address)
        log.warning("raft %s: refused a second process of %s; the first is at %s", self.group, name, where)
        reason = (
            f"{self.name} hears {name} of group {self.group} from another process, at {where}: a member has"
            " one process and one directory. Stop that one, or clear this directory and choose another name"
        )
        self._send_on(conn, name, ["refused", reason])

    def refuse_forgetful(self, name: str, index: int) -> None:
        """Its directory is older than what it acknowledged to us: say so to the process that it has now."""
        conn = self._processes.get(name)
        if conn is None:
            return  # it refuses again with the next heartbeat
        log.warning(
            "raft %s: refused %s: it has lost what it acknowledged, up to %d", self.group, name, index
        )
        reason = (
            f"{name} acknowledged entries of group {self.group} up to {index} to {self.name} and has them no"
            f" more: this directory is older, such as one restored from a backup. Remove {name} from"
            " the group, clear its directory, and add it anew"
        )
        self._send_on(conn, name, ["refused", reason])

    def received(
        self, conn: Connection, name: str, instance: str, since: int | None, own: int | None, raw: Any
    ) -> None:
        """One frame of ``name``, which says that it is a member since ``since``, and we since ``own``."""
        if type(raw) is not list or not raw:
            raise errors.ProtocolError("malformed RAFT frame")
        if name == self.name:
            return  # a former address of a peer is ours now
        if raw[0] == "refused":
            self.refused(name, str(raw[-1]))
        elif (
            self._may_be_member(name, since)
            and self._is_known(conn, name, instance, since, raw[0])
            and self.takes_part(name, conn)
        ):
            self._heard_from(name, conn.peer.extra.get("address"))
            self._take(conn, name, own, raw)

    def _may_be_member(self, name: str, since: int | None) -> bool:
        """No frame of a stranger is taken, unless it was added behind the configuration that we know."""
        if name in self.channels or name in self.pins:
            return True
        if since is None or since <= self.config_index or NAME.fullmatch(name) is None:
            return False
        return sum(each not in self.members for each in self.pins) < STRANGERS_MAX

    def _is_known(self, conn: Connection, name: str, instance: str, since: int | None, kind: Any) -> bool:
        """Whether this is the instance that has the name, which it gets if it is free, or if it is a member
        since later than the one that had it."""
        pin, member_since = self.pins.get(name), self.members.get(name, 0)
        if kind == "birth" and since is None:
            since = 0  # it believes that it begins the group
        if pin is not None and pin.instance == instance:
            if since is not None and since > pin.since:
                self.pins[name] = self.new_pins[name] = pin._replace(since=since)
            return True
        if since is not None and since < (member_since if pin is None else max(member_since, pin.since)):
            if kind == "birth":
                self._refuse_birth(conn, name)
            return False  # an old message, or a process that nobody told that it has been replaced
        if pin is None or (since is not None and since > pin.since):
            self._pin(name, max(since or 0, member_since), instance)
            return True
        if (
            since is not None
        ):  # else no leader has spoken to it: we may be the one who knows the former member
            self._refuse(conn, name, instance, pin)
        return False

    def _take(self, conn: Connection, name: str, own: int | None, raw: list[Any]) -> None:
        match raw:
            case ["birth" | "start", int(number), str(token), str(former)]:
                self._hear_life(conn, name, number, token, former)
            case ["accepted", str(token)]:
                if token == self.life.token:
                    self.accepted_by.add(name)
                    self._receiver.accepted()
            case _:
                message = decode(raw)
                if own is not None and isinstance(message, Append | Heartbeat | SnapshotChunk):
                    self._learn_since(own)  # only a leader says this: it knows all members
                self._receiver.received(name, message)

    def _hear_life(self, conn: Connection, name: str, number: int, token: str, former: str) -> None:
        pin = self.pins[name]
        known = (pin.life, pin.token)
        if known != (number, token):
            if pin.life >= number - 1 and known != (number - 1, former):
                self._refuse_life(conn, name, number, pin)
                return
            self.pins[name] = self.new_pins[name] = pin._replace(life=number, token=token)
        self._answer(name, ["accepted", token])

    def _learn_since(self, since: int) -> None:
        known = self.pins.get(self.name)
        if known is None or known.since < since:
            self.pins[self.name] = self.new_pins[self.name] = Pin(since, self.instance)

    def _heard_from(self, name: str, address: Any) -> None:
        """A verified member said where it is."""
        if isinstance(address, str) and name in self.channels and self.heard_at.get(name) != address:
            self.heard_at[name] = address
            self.channels[name].set_address(address)

    def _answer(self, target: str, message: list[Any]) -> None:
        if self.new_pins:
            self._answers.append((target, message))
        else:
            self._send(target, message)

    def refused(self, by: str, reason: str) -> None:
        self._receiver.refused(by, reason)

    def _refuse(self, conn: Connection, name: str, instance: str, pin: Pin) -> None:
        log.warning("raft %s: refused %s: instance %s, known is %s", self.group, name, instance, pin.instance)
        reason = (
            f"{self.name} knows {name} in group {self.group} as instance {pin.instance}, not {instance}: its"
            f" state was wiped or replaced. Remove {name} from the group, clear its directory, and add it"
            " anew"
        )
        self._send_on(conn, name, ["refused", reason])

    def _refuse_life(self, conn: Connection, name: str, number: int, pin: Pin) -> None:
        log.warning("raft %s: refused %s: its life %d is not the known one", self.group, name, number)
        reason = (
            f"{self.name} knows life {pin.life} of {name} in group {self.group}, and life {number} does not"
            " follow from it: this directory is older, such as one restored from a backup, or a copy of"
            f" another. Remove {name} from the group, clear its directory, and add it anew"
        )
        self._send_on(conn, name, ["refused", reason])

    def _refuse_birth(self, conn: Connection, name: str) -> None:
        reason = (
            f"group {self.group} exists, and {name} has been added to it: start it as one that joins, with"
            " peers that do not name itself"
        )
        self._send_on(conn, name, ["refused", reason])


class _Asked:
    """A PING to the process that had a name when another one of that name came. Only its answer is a sign of
    life: what else comes from it may have been on the way since before its host lost power."""

    def __init__(self, first: Connection) -> None:
        self.first = first
        self.answered = False
        self._since = asyncio.get_running_loop().time()
        first.request(frame.PING, b"", (), self._on_reply)

    def _on_reply(self, reply: Reply | errors.MoorageError) -> None:
        self.answered = isinstance(reply, Reply)

    @property
    def silent(self) -> bool:
        return asyncio.get_running_loop().time() - self._since >= SILENT_S


class _Answers:
    """What comes back on our own channels: a refusal of one process goes back on the connection that it made,
    since at the address of its name may be another; so does what we are told by who has no channel to us."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def frame_received(
        self,
        conn: Connection,
        kind: int,
        op: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        if op != frame.RAFT:
            return
        match frame.unpack(body):
            case [self._transport.group, str(name), str(instance), since, own, message]:
                self._transport.received(conn, name, instance, _index(since), _index(own), message)

    def connection_lost(self, conn: Connection, error: errors.MoorageError) -> None:
        pass


class _Dispatcher:
    """The RAFT op of one router: several groups may share it."""

    def __init__(self) -> None:
        self.groups: dict[str, Transport] = {}

    def __call__(
        self,
        conn: Connection,
        kind: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        match frame.unpack(body):
            case [str(group), str(name), str(instance), since, own, message]:
                transport = self.groups.get(group)
                if transport is not None:
                    transport.received(conn, name, instance, _index(since), _index(own), message)
            case _:
                raise errors.ProtocolError(
                    "malformed RAFT frame: its body is [group, name, instance, since, your since, message]"
                )


def _index(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value <= INDEX_MAX):
        raise errors.ProtocolError("malformed RAFT frame: since is a log index or nil")
    return value


_DISPATCHERS: WeakKeyDictionary[Router, _Dispatcher] = WeakKeyDictionary()


def register(router: Router, transport: Transport) -> None:
    """Receive the RAFT frames of this group on this router."""
    dispatcher = _DISPATCHERS.get(router)
    if dispatcher is None:
        dispatcher = _DISPATCHERS[router] = _Dispatcher()
        router.op(frame.RAFT, dispatcher)
    dispatcher.groups[transport.group] = transport


def unregister(transport: Transport) -> None:
    for dispatcher in _DISPATCHERS.values():
        if dispatcher.groups.get(transport.group) is transport:
            del dispatcher.groups[transport.group]
