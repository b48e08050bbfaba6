"""Connections to devices: one per (client process, device), shared by all volumes and groups.

Owns the channels, their heartbeats (one per connection renews the read leases of every replica behind it),
and the dispatch of what devices send unasked. It knows nothing of logs: users do.

Invariants: a link lives exactly as long as it has users; a peer that is not the device asked for (ports are
reused) never comes up; a lease is counted from when its heartbeat was *sent*, and only when the answer
comes on the connection that is up now; reads wait only while ``READING_MAX`` bytes are asked for, so each
wait ends with an answer or with the connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from moorage.client.reader import MemberHealth
from moorage.quorum.lease import HEARTBEAT_MS
from moorage.wire.channel import Channel
from moorage.wire.connection import Connection, Reply
from moorage.wire.errors import IdentityConflict, MoorageError
from moorage.wire.frame import ACK, HEARTBEAT, NACK
from moorage.wire.handshake import Hello
from moorage.wire.log_messages import pack_heartbeat, unpack_ack, unpack_heartbeat_reply, unpack_nack
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)
# Bytes of reads asked of one device, by all volumes: it queues the answers, and ends a connection with 64 MiB
# queued. What it still owes to reads that were cancelled comes on top.
READING_MAX = 16 << 20
BEAT_SOON_S = 0.002  # more than the clock's unit, so that "after" is certain; also gathers the groups' wishes
UserKey = tuple[int, int]  # (replica, epoch): one process may be fenced by itself
AckFields = tuple[int, int, int, int, int, int, int, int]
NackFields = tuple[int, int, int, int, int, int]


def boot_clock_ms() -> int:
    """Milliseconds that also pass while the machine sleeps: a lease must not outlive a suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class LinkUser(Protocol):
    """One member of one group of one attachment, as its device's link sees it."""

    key: UserKey

    def link_up(self, conn: Connection) -> None: ...

    def link_down(self, error: MoorageError) -> None: ...

    def acknowledged(self, fields: AckFields) -> None:
        """The fields of an ACK, as ``Writer.ack`` takes them."""

    def refused(self, fields: NackFields) -> None:
        """The fields of a NACK, as ``Writer.nack`` takes them."""

    def lease_promised(self, sent_ms: int) -> None:
        """The heartbeat sent at ``sent_ms`` on the connection that is up now was answered."""


class NodeLink:
    """The connection to one device. ``device`` and ``host`` name it in messages for people."""

    def __init__(
        self, device: str, host: str, address: str, hello: Hello, secret: ClusterSecret, distance: int
    ) -> None:
        self.device = device
        self.host = host
        self.health = MemberHealth(distance)
        self.reading = 0  # bytes of reads that are asked for and not answered
        self.reads_waiting: deque[Callable[[], None]] = deque()  # each asks, or does nothing when not needed
        self._loop = asyncio.get_running_loop()
        self._users: dict[UserKey, LinkUser] = {}
        self._heartbeat: asyncio.TimerHandle | None = None
        self._soon = False
        self.channel = Channel(
            address,
            hello=hello,
            secret=secret,
            endpoint=self,
            expect=self._expect,
            on_up=self._up,
            on_down=self._down,
        )
        self.channel.start()

    @property
    def conn(self) -> Connection | None:
        return self.channel.conn

    def add(self, user: LinkUser) -> None:
        self._users[user.key] = user
        if self.channel.conn is not None:
            user.link_up(self.channel.conn)

    def remove(self, user: LinkUser) -> bool:
        """True when nobody uses the link any more."""
        self._users.pop(user.key, None)
        return not self._users

    def move(self, address: str) -> None:
        """The device listens elsewhere now (a restart may change its port)."""
        if address:
            self.channel.set_address(address)

    def next_reads(self) -> None:
        """A read was answered, refused or cancelled: those that wait may go."""
        waiting = self.reads_waiting
        while waiting and self.reading < READING_MAX:
            waiting.popleft()()

    def trouble(self) -> str:
        """ "" when all is well, else as in "host2 silent for 14 s"."""
        silent_s = self.channel.silent_for_s
        if self.channel.conn is None:
            why = self.channel.last_error
            return f"{self.host} cannot be reached" + (f" ({why})" if why else "")
        return f"{self.host} silent for {silent_s:.0f} s" if silent_s >= 1.5 else ""

    # -- from the channel ----------------------------------------------------------------------------

    def _expect(self, peer: Hello) -> None:
        found = peer.extra.get("device")
        if found != self.device:
            raise IdentityConflict(f"{peer} is device {found}, not {self.device}: the port is reused")

    def _up(self, conn: Connection) -> None:
        self.health.up = True
        self.health.heard(self._loop.time())
        for user in list(self._users.values()):
            user.link_up(conn)
        self._beat()

    def _down(self, error: MoorageError) -> None:
        self.health.up = False
        for user in list(self._users.values()):
            user.link_down(error)

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
        """Acknowledgements and refusals; those of an attachment that is gone are dropped."""
        if conn is not self.channel.conn or op not in (ACK, NACK):
            return
        if op == ACK:
            ack = unpack_ack(body)
            if (user := self._users.get(ack[:2])) is not None:
                user.acknowledged(ack)
        else:
            nack = unpack_nack(body)
            if (user := self._users.get(nack[:2])) is not None:
                user.refused(nack)

    def connection_lost(self, conn: Connection, error: MoorageError) -> None:
        """The channel tells with ``on_down``."""

    # -- heartbeats ----------------------------------------------------------------------------------

    def beat_soon(self) -> None:
        """A replica was sealed here: its reads wait for a heartbeat that was sent after that."""
        if not self._soon and self._heartbeat is not None:
            self._soon = True
            self._heartbeat.cancel()
            self._heartbeat = self._loop.call_later(BEAT_SOON_S, self._beat)

    def _beat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        conn = self.channel.conn
        if conn is None:
            return

        def answered(reply: Reply | MoorageError) -> None:
            if conn is not self.channel.conn or isinstance(reply, MoorageError):
                return
            self.health.heard(self._loop.time())
            sent_ms, _ = unpack_heartbeat_reply(reply.body)
            for user in list(self._users.values()):
                user.lease_promised(sent_ms)

        conn.request(HEARTBEAT, pack_heartbeat(boot_clock_ms()), (), answered)
        self._soon = False
        self._heartbeat = self._loop.call_later(HEARTBEAT_MS / 1000, self._beat)

    async def close(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        await self.channel.stop()


WATCHES_MAX = 64


class NodePool:
    """Links by device, made and ended on demand. ``hello.name`` is the host that this process runs on."""

    def __init__(self, hello: Hello, secret: ClusterSecret) -> None:
        self._hello = hello
        self._secret = secret
        self._links: dict[str, NodeLink] = {}
        # Of all attachments that use this, so many wait at metadata for a change of their snapshots: each is
        # a call on one connection, which carries not many more.
        self.watches = asyncio.Semaphore(WATCHES_MAX)
        self._closing: set[asyncio.Task[None]] = set()

    def link(self, device: str, host: str, address: str) -> NodeLink:
        """The link to ``device``, new or shared; follow with :meth:`join` in the same loop turn."""
        link = self._links.get(device)
        if link is None:
            distance = 0 if host == self._hello.name else 1
            link = NodeLink(device, host, address, self._hello, self._secret, distance)
            self._links[device] = link
        else:
            link.move(address)
        return link

    def join(self, user: LinkUser, link: NodeLink) -> None:
        """Use the link; ``user.link_up`` follows when it is connected (maybe at once)."""
        link.add(user)

    def leave(self, user: LinkUser, link: NodeLink) -> None:
        """Stop using the link; the last user's end closes it."""
        if link.remove(user) and self._links.get(link.device) is link:
            del self._links[link.device]
            task = asyncio.get_running_loop().create_task(link.close(), name=f"close {link.device}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def __len__(self) -> int:
        return len(self._links)

    async def close(self) -> None:
        """End all connections, also those that still have users."""
        links, self._links = self._links, {}
        await asyncio.gather(*(link.close() for link in links.values()), *self._closing)
