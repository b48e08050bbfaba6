"""Raft messages between the members of a group: channels to the peers, who they are, how a group is born.

Owns: one channel per peer, the pins (name -> instance of the member that had this name first), the birth.
Must never: pass on a message of an instance that is not the pinned one. A member whose directory was wiped
comes back under its name with another instance: it has forgotten its votes, so it must not vote again.
Invariants: only members are pinned, so that a removed one, which may not know it, does not keep its name; a
pin is durable before anything is answered to who was pinned (the shell stores ``new_pins``).

A copy of a member's directory has the right instance, so that is not enough: when another process comes under
a name, the one that takes part is pinged. If it answers, the newcomer is refused; if it has hung up or stays
silent, its host lost power, and the newcomer takes its place. Until then the newcomer's frames are dropped.

Birth: a member with an empty directory takes part only after *all* members that the group begins with have
accepted its instance. Two wiped members of three can therefore never form an empty group beside the third.

A member may come back on another port: its handshake says where it is now (``extra["address"]``), and once
its instance is verified, our channel to it goes there, whatever the configuration or the operator said.

RAFT frame (ONEWAY): msgpack [group, name, instance, message], where message is one of
quorum/raft_types.py, or ["birth"] (asks to be accepted), ["accepted"], ["refused", text].
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from moorage.quorum.raft_types import Message, decode, encode
from moorage.wire import errors, frame
from moorage.wire.channel import Channel
from moorage.wire.connection import Connection, Reply
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

SILENT_S = 2.5  # a living process answers a PING within that
QUEUE_MAX = 8 << 20  # bytes towards one peer; beyond it messages are dropped, which Raft bears


class Receiver(Protocol):
    def received(self, source: str, message: Message) -> None: ...

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
        self.pins: dict[str, str] = {}
        self.new_pins: dict[str, str | None] = {}
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
                refusals = _Refusals(self)
                channel = Channel(address, hello=self._hello, secret=self._secret, endpoint=refusals)
                self.channels[name] = channel
                channel.start()
            else:
                channel.set_address(address)

    async def stop(self) -> None:
        await self.follow({})

    def forget(self, name: str) -> None:
        """A member has been removed: its name may come back as another instance."""
        self.heard_at.pop(name, None)
        if self.pins.pop(name, None) is not None:
            self.new_pins[name] = None

    # -- sending ----------------------------------------------------------------------------------

    def send(self, target: str, message: Message) -> None:
        self._send(target, encode(message))

    def _send(self, target: str, message: list[Any]) -> None:
        channel = self.channels.get(target)
        conn = None if channel is None else channel.conn
        if conn is None or conn.write_queue_size > QUEUE_MAX:
            self.dropped += 1
            return
        body = frame.pack([self.group, self.name, self.instance, message])
        conn.send(frame.ONEWAY, frame.RAFT, 0, body)

    def ask_to_be_born(self) -> None:
        for name in self.channels:
            if name not in self.accepted_by:
                self._send(name, ["birth"])

    def pins_stored(self, pins: Mapping[str, str | None]) -> None:
        """These pins are durable: what waited for that may be said."""
        for name, instance in pins.items():
            if self.new_pins.get(name, instance) == instance:
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
        self._refuse_on(conn, reason)

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
        self._refuse_on(conn, reason)

    def _refuse_on(self, conn: Connection, reason: str) -> None:
        body = frame.pack([self.group, self.name, self.instance, ["refused", reason]])
        conn.send(frame.ONEWAY, frame.RAFT, 0, body)

    def heard_from(self, name: str, instance: str, address: Any) -> None:
        """A verified member said where it is."""
        if not isinstance(address, str) or self.pins.get(name) != instance or name not in self.channels:
            return
        if self.heard_at.get(name) != address:
            self.heard_at[name] = address
            self.channels[name].set_address(address)

    def received(self, name: str, instance: str, message: Any) -> None:
        if type(message) is not list or not message:
            raise errors.ProtocolError("malformed RAFT frame")
        if message[0] == "refused":
            self.refused(name, str(message[1]))
            return
        pinned = self.pins.get(name)
        if pinned is None:
            log.info("raft %s: %s is instance %s", self.group, name, instance)
            self.pins[name] = self.new_pins[name] = instance
        elif pinned != instance:
            self._refuse(name, instance, pinned)
            return
        if message[0] == "birth":
            self._answer(name, ["accepted"])
        elif message[0] == "accepted":
            self.accepted_by.add(name)
        else:
            self._receiver.received(name, decode(message))

    def _answer(self, target: str, message: list[Any]) -> None:
        if self.new_pins:
            self._answers.append((target, message))
        else:
            self._send(target, message)

    def refused(self, by: str, reason: str) -> None:
        self._receiver.refused(by, reason)

    def _refuse(self, name: str, instance: str, pinned: str) -> None:
        log.warning("raft %s: refused %s: instance %s, known is %s", self.group, name, instance, pinned)
        reason = (
            f"{self.name} knows {name} in group {self.group} as instance {pinned}, not {instance}: its state"
            f" was wiped or replaced. Remove {name} from the group, clear its directory, and add it anew"
        )
        self._send(name, ["refused", reason])


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


class _Refusals:
    """What comes back on our own channels: a refusal of one process goes back on the connection that it
    made, since at the address of its name may be another."""

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
            case [self._transport.group, str(name), str(), ["refused", str(reason)]]:
                self._transport.refused(name, reason)

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
            case [str(group), str(name), str(instance), message]:
                transport = self.groups.get(group)
                if transport is None or name not in transport.channels:
                    return  # no member: it may have been removed and not know it
                if transport.pins.get(name) == instance and not transport.takes_part(name, conn):
                    return
                transport.received(name, instance, message)
                transport.heard_from(name, instance, conn.peer.extra.get("address"))
            case _:
                raise errors.ProtocolError(
                    "malformed RAFT frame: its body is [group, name, instance, message]"
                )


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
