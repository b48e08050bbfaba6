"""TCP between simulated hosts: ordered streams that are slow, stall, and break; links that are cut one way
or both.

Owns listeners, connections and the state of each link (source host, target host). A stream loses nothing
and keeps its order, as TCP's does: a lost packet is a delay, a cut link is silence until it heals, a peer
that died answers with a reset, a host without power does not answer at all. Must never deliver a byte to a
process otherwise than through the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moorage.simulation.loop import Killed, Process, SimLoop, current

RETRANSMIT_S = (0.05, 0.4)  # until what was lost, or held back by a cut, comes
SEGMENT = 64 << 10
DATA, END, RESET = "data", "end", "reset"


@dataclass
class Weather:
    """Of one link, one way. ``loss``: share of the sends that are delayed by a retransmission."""

    delay_s: tuple[float, float] = (30e-6, 300e-6)
    loss: float = 0.0
    bytes_per_s: float = 1e9
    cut: bool = False


class SimServer:
    """What ``create_server`` gives."""

    def __init__(self, network: Network, process: Process, port: int, factory: Callable[[], Any]) -> None:
        self.network = network
        self.process = process
        self.port = port
        self.factory = factory
        self.sockets = [self]
        process.resources.append(self)

    def getsockname(self) -> tuple[str, int]:
        return self.process.host, self.port

    def release(self) -> None:
        self.network.listeners.pop((self.process.host, self.port), None)

    close = release

    async def wait_closed(self) -> None:
        pass


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: Network, process: Process, protocol: Any, number: int) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.protocol = protocol
        self.number = number
        self.peer: SimTransport
        self.gone = False  # no more for our process
        self.dead = False  # our end does not exist any more: whoever sends to it gets a reset
        self._closing = False
        self._reading = True
        self._ended = False
        self._incoming: deque[tuple[str, bytes]] = deque()
        self._in_flight = 0
        self._high = 64 << 10
        self._paused_writing = False
        self._arrives = 0.0  # when the last thing sent will have come
        self._held: list[tuple[str, bytes]] = []  # by a cut
        process.resources.append(self)

    # -- asyncio.Transport ---------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Any) -> None:
        raw = b"".join(bytes(each) for each in list_of_data)
        if self._closing or self.gone or not raw:
            return
        self.process.effect()
        self.network.bytes += len(raw)
        self._in_flight += len(raw)
        rng = self.network.loop.rng
        while raw:
            size = min(len(raw), SEGMENT if rng.random() < 0.9 else rng.randint(1, len(raw)))
            self._send(DATA, raw[:size])
            raw = raw[size:]
        if self._in_flight > self._high and not self._paused_writing:
            self._paused_writing = True
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._in_flight

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is not None:
            self._high = high

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send(END, b"")
            self.network.loop.call_soon(self._lose, None, context=self.process.context)

    def abort(self) -> None:
        if not self.gone:
            self._closing = True
            self._send(RESET, b"")
            self.network.loop.call_soon(self._lose, None, context=self.process.context)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.network.loop.call_soon(self._drain, context=self.process.context)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_reading(self) -> bool:
        return self._reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # -- the way out -----------------------------------------------------------------------------------------

    def _send(self, kind: str, data: bytes) -> None:
        network, loop = self.network, self.network.loop
        weather = network.weather(self.process.host, self.peer.process.host)
        if weather.cut or self._held:
            self._held.append((kind, data))
            network.held[self] = None
            return
        delay = loop.rng.uniform(*weather.delay_s) + len(data) / weather.bytes_per_s
        if weather.loss and loop.rng.random() < weather.loss:
            delay += loop.rng.uniform(*RETRANSMIT_S)
        self._arrives = max(self._arrives, loop.now + delay)
        loop.at(self._arrives - loop.now, self.peer._arrive, kind, data)

    def link_healed(self) -> None:
        """Called by the network until nothing is held any more."""
        if self.network.weather(self.process.host, self.peer.process.host).cut:
            return
        self.network.held.pop(self, None)
        held, self._held = self._held, []
        for kind, data in held:
            self._send(kind, data)

    # -- the way in ------------------------------------------------------------------------------------------

    def _arrive(self, kind: str, data: bytes) -> None:
        """Outside of any process: the kernel of the host takes it."""
        if not self.network.powered(self.process.host):
            self.network.lost.append(self)  # reset once the host is back
            return
        if self.dead:
            if kind != RESET:
                self._send(RESET, b"")
            return
        self._incoming.append((kind, data))
        self.network.loop.at(0.0, self._drain, process=self.process)

    def _drain(self) -> None:
        """In the process."""
        while self._incoming and self._reading and not self.gone:
            kind, data = self._incoming.popleft()
            if kind == DATA:
                self.peer._taken(len(data))
                self._deliver(data)
            elif kind == RESET:
                self._lose(ConnectionResetError(104, "connection reset by peer"))
            elif not self._ended:
                self._ended = True
                if not self.protocol.eof_received():
                    self.close()

    def _deliver(self, data: bytes) -> None:
        protocol = self.protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            protocol.data_received(data)
            return
        while data and not self.gone:
            into = memoryview(protocol.get_buffer(-1))
            size = min(len(into), len(data))
            into[:size] = data[:size]
            protocol.buffer_updated(size)
            data = data[size:]

    def _taken(self, size: int) -> None:
        """The peer has read: the kernel tells our process with the next acknowledgement."""
        self._in_flight -= size
        if self._paused_writing and self._in_flight <= self._high // 4:
            self.network.loop.at(100e-6, self._resume, process=self.process)

    def _resume(self) -> None:
        if self._paused_writing and self._in_flight <= self._high // 4 and not self.gone:
            self._paused_writing = False
            self.protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if self.gone:
            return
        self.gone = self.dead = self._closing = True
        if self in self.process.resources:
            self.process.resources.remove(self)
        self.protocol.connection_lost(error)

    def release(self) -> None:
        """The process is dead: its kernel closes the connection, if there still is a kernel."""
        self.gone = self.dead = True
        if self.network.powered(self.process.host):
            self._send(RESET, b"")


class Network:
    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        loop.network = self
        self.listeners: dict[tuple[str, int], SimServer] = {}
        self.off: set[str] = set()
        self.held: dict[SimTransport, None] = {}
        self.lost: list[SimTransport] = []
        self.bytes = 0
        self._weather: dict[tuple[str, str], Weather] = {}
        self._default = Weather()
        self._numbers = 0

    def weather(self, source: str, target: str) -> Weather:
        return self._weather.get((source, target), self._default)

    def set_weather(self, source: str, target: str, weather: Weather) -> None:
        """``source`` and ``target``: hosts; one way."""
        self._weather[source, target] = weather
        if not weather.cut:
            for transport in list(self.held):
                self.loop.at(self.loop.rng.uniform(*RETRANSMIT_S), transport.link_healed)

    def heal(self) -> None:
        self._weather.clear()
        self._default = Weather()
        for transport in list(self.held):
            self.loop.at(self.loop.rng.uniform(*RETRANSMIT_S), transport.link_healed)

    def reset(self, process: Process, both: bool) -> None:
        """Something between forgets the connections of this process, and says so to it, or to both ends."""
        for each in list(process.resources):
            if isinstance(each, SimTransport) and not each.gone and each.protocol is not None:
                error = ConnectionResetError(104, "connection reset by peer")
                self.loop.at(0.0, each._lose, error, process=process)
                if both and each.peer.protocol is not None:
                    self.loop.at(0.0, each.peer._lose, error, process=each.peer.process)

    def powered(self, host: str) -> bool:
        return host not in self.off

    def power_off(self, host: str) -> None:
        self.off.add(host)

    def power_on(self, host: str) -> None:
        """Who still sends to what was there before is told, by and by."""
        self.off.discard(host)
        lost, self.lost = self.lost, []
        for transport in lost:
            if transport.process.host == host:
                self.loop.at(self.loop.rng.uniform(0.01, 0.5), transport._send, RESET, b"")
            else:
                self.lost.append(transport)

    # -- connections -----------------------------------------------------------------------------------------

    def listen(self, factory: Callable[[], Any], host: str, port: int) -> SimServer:
        process = current.get()
        assert process is not None
        while not port or (process.host, port) in self.listeners:
            if port:
                raise OSError(98, "address already in use")
            port = self.loop.rng.randint(20_000, 60_000)
        server = self.listeners[process.host, port] = SimServer(self, process, port, factory)
        return server

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[SimTransport, Any]:
        process = current.get()
        assert process is not None
        process.effect()
        answer: asyncio.Future[tuple[SimTransport, Any]] = self.loop.create_future()
        self._syn(process, factory, host, port, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result()[0].abort()
            raise

    def _syn(
        self, process: Process, factory: Callable[[], Any], host: str, port: int, answer: asyncio.Future[Any]
    ) -> None:
        """Outside of the process; again and again while nobody answers."""
        if answer.done() or not process.alive:
            return
        rng = self.loop.rng
        there, back = self.weather(process.host, host), self.weather(host, process.host)
        lost = rng.random() < max(there.loss, back.loss)
        if there.cut or back.cut or lost or not self.powered(host):
            self.loop.at(rng.uniform(0.2, 1.0), self._syn, process, factory, host, port, answer)
            return
        self.loop.at(rng.uniform(*there.delay_s), self._accept, process, factory, host, port, answer)

    def _accept(
        self, process: Process, factory: Callable[[], Any], host: str, port: int, answer: asyncio.Future[Any]
    ) -> None:
        if answer.done() or not process.alive or not self.powered(host):
            return
        delay = self.loop.rng.uniform(*self.weather(host, process.host).delay_s)
        server = self.listeners.get((host, port))
        if server is None:
            self.loop.at(delay, _refuse, answer, process=process)
            return
        self._numbers += 1
        # The kernel accepts; the processes hear of it when they run.
        ours = SimTransport(self, process, None, self._numbers)
        theirs = SimTransport(self, server.process, None, self._numbers)
        ours.peer, theirs.peer = theirs, ours
        ours._reading = theirs._reading = False
        self.loop.at(0.0, self._accepted, server, theirs, process=server.process)
        self.loop.at(delay, self._connected, factory, ours, answer, process=process)

    def _accepted(self, server: SimServer, transport: SimTransport) -> None:
        transport.protocol = server.factory()
        transport.protocol.connection_made(transport)
        transport.resume_reading()

    def _connected(
        self, factory: Callable[[], Any], transport: SimTransport, answer: asyncio.Future[Any]
    ) -> None:
        if answer.done():
            transport.protocol = _Nobody()
            transport.abort()
            return
        transport.protocol = factory()
        transport.protocol.connection_made(transport)
        transport.resume_reading()
        answer.set_result((transport, transport.protocol))


class _Nobody(asyncio.Protocol):
    pass


def _refuse(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(ConnectionRefusedError(111, "connection refused"))


__all__ = ["Killed", "Network", "SimServer", "SimTransport", "Weather"]
