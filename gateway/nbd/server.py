"""The NBD server: listeners, connections, and their end.

Owns: every connection from accept to close, graceful stop.
Never: decides about data; that is :mod:`moorage.gateway.nbd.transmission`, one object per connection.

Invariants: after ``stop`` returns there is no listener, no connection and no socket file of this server; each
connection is in exactly one of ``_handshakes`` and ``_transmissions`` from accept until it is drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import cast

from moorage.client.device import BlockDevice
from moorage.gateway.nbd.buffers import BufferPool
from moorage.gateway.nbd.listener import Listener
from moorage.gateway.nbd.negotiation import Negotiation
from moorage.gateway.nbd.transmission import Limits, Transmission

log = logging.getLogger(__name__)

HANDSHAKE_RECEIVE_SIZE = 16 * 1024


class NbdServer:
    """Serves ``exports`` (name to device) to NBD clients. Many connections per export are one device each
    time.

    The mapping is looked at in each handshake, so that an owner may add and remove exports while it runs.
    """

    def __init__(self, exports: Mapping[str, BlockDevice], *, limits: Limits | None = None) -> None:
        self._exports = exports
        self._limits = limits or Limits()
        self._pool = BufferPool(self._limits.pooled_bytes_max)
        self._listeners: list[Listener] = []
        self._handshakes: set[_Handshake] = set()
        self._transmissions: set[Transmission] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def connections(self) -> int:
        """Connections now, those in their handshake included."""
        return len(self._handshakes) + len(self._transmissions)

    async def serve(self, address: str) -> str:
        """Listen on ``unix:PATH`` or ``tcp:HOST:PORT``; the bound address (port 0 replaced). May be called
        again.

        A unix socket gets mode 0600; a left-over socket file is replaced, unless somebody listens on it.
        Raises ``Invalid`` for a bad address, ``CannotBind`` when it cannot be bound.
        """
        listener = Listener(address)
        await listener.start(lambda: _Handshake(self))
        self._listeners.append(listener)
        log.info("nbd server listens on %s, exports: %s", listener.address, ", ".join(sorted(self._exports)))
        return listener.address

    async def stop(self, timeout: float = 10.0) -> None:
        """Stop listening, answer the requests in flight, close. After ``timeout`` seconds, close anyway."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        for handshake in list(self._handshakes):
            handshake.abort()
        for transmission in list(self._transmissions):
            transmission.finish()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            log.warning("nbd server: %d connections did not end in %.0f s", self.connections, timeout)
            for transmission in list(self._transmissions):
                transmission.abort()
            with contextlib.suppress(TimeoutError):  # sockets close at once; a device may still owe an answer
                await asyncio.wait_for(self._idle.wait(), 1.0)

    # -- called by connections -----------------------------------------------------------------------

    def admit(self, handshake: _Handshake) -> Negotiation | None:
        """A place for a new connection, or None at the bound."""
        if self.connections >= self._limits.connections_max:
            log.warning("nbd server: refused a connection, %d are open", self.connections)
            return None
        self._handshakes.add(handshake)
        self._idle.clear()
        return Negotiation(self._exports)

    def agreed(self, handshake: _Handshake, negotiation: Negotiation, transport: asyncio.Transport) -> None:
        """Hand the transport over from the handshake to the transmission phase."""
        agreement = negotiation.agreed
        assert agreement is not None
        self._handshakes.discard(handshake)
        transmission = Transmission(agreement, self._limits, self._pool, handshake.peer, self._drained)
        self._transmissions.add(transmission)
        log.info("nbd export %s: client %s connected", agreement.name, handshake.peer)
        transport.set_protocol(transmission)
        if handshake.writing_paused:  # the transmission hears of the end of the pause, so also of its begin
            transport.resume_reading()
            transmission.pause_writing()
        transmission.start(transport, negotiation.rest())

    def handshake_over(self, handshake: _Handshake) -> None:
        self._handshakes.discard(handshake)
        self._note_idle()

    def _drained(self, transmission: Transmission) -> None:
        self._transmissions.discard(transmission)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self.connections:
            self._idle.set()

    @property
    def limits(self) -> Limits:
        return self._limits


class _Handshake(asyncio.BufferedProtocol):
    """The shell around one :class:`Negotiation`: ends it when the peer is slow, stops when the peer does not
    read.
    """

    def __init__(self, server: NbdServer) -> None:
        self.peer = "?"
        self.writing_paused = False
        self._server = server
        self._negotiation: Negotiation | None = None
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = bytearray(HANDSHAKE_RECEIVE_SIZE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.peer = _peer_name(self._transport)
        self._negotiation = self._server.admit(self)
        if self._negotiation is None:
            self._transport.abort()
            return
        timeout = self._server.limits.handshake_timeout_s
        self._timer = asyncio.get_running_loop().call_later(timeout, self._too_slow)
        self._transport.write(self._negotiation.greeting())

    def abort(self) -> None:
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._negotiation is not None:
            self._negotiation.feed(memoryview(self._buffer)[:nbytes])
            self._advance(self._negotiation)

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._transport.resume_reading()
        if self._negotiation is not None:
            self._advance(self._negotiation)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._negotiation is not None:
            self._server.handshake_over(self)

    def _advance(self, negotiation: Negotiation) -> None:
        while not self.writing_paused:
            answer = negotiation.step()
            if answer is None:
                break
            self._transport.write(answer)
        if negotiation.agreed is not None:
            self._stop_timer()
            self._server.agreed(self, negotiation, self._transport)
        elif negotiation.ended is not None:
            log.info("nbd handshake with %s ended: %s", self.peer, negotiation.ended)
            self._transport.close()

    def _too_slow(self) -> None:
        log.warning("nbd handshake with %s was not finished in time", self.peer)
        self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _peer_name(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unix"
