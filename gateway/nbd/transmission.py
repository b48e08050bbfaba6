"""One NBD connection after the handshake: requests in, calls to a ``BlockDevice``, replies out.

Owns: the parsing of requests, the bound on what one client may have in flight, the order of its own replies.
Never: a task per request, a copy of a large payload, a reply before the device has answered.

How it is fast: one wake-up parses every request that has arrived; a large write payload is received straight
into the buffer that the device gets; a read reply is one buffer whose first bytes are the header and whose
rest the device fills; replies of one loop turn leave in one ``writelines``.

Invariants:

- ``_count`` requests hold ``_bytes`` of buffers, from parsing until their reply is with the transport. At a
  bound, or while the transport asks to pause, nothing more is parsed and the socket is not read: the client
  waits. So a connection holds at most ``bytes_in_flight_max`` + one payload + the transport's high-water
  mark;
- every request is answered exactly once, unless the connection is lost first;
- ``on_drained`` is called once: connection gone *and* no call to the device outstanding.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass

from moorage.client.device import BlockDevice
from moorage.gateway.nbd import protocol as p
from moorage.gateway.nbd.buffers import POOLED_SIZE_MIN, BufferPool, SentBuffers
from moorage.gateway.nbd.negotiation import Agreement
from moorage.gateway.nbd.replies import out_of_bounds, shortest_reply, status_reply, structured_error

log = logging.getLogger(__name__)

RECEIVE_SIZE = 256 * 1024
"""A wake-up reads at most this; above the 208 KiB that a unix socket holds by default."""

INLINE_SIZE_MAX = 32 * 1024
"""Payloads up to this are copied out of the receive buffer (2 us at the bound); larger ones get their own."""

_unpack_request = p.REQUEST.unpack_from
_pack_simple = p.SIMPLE_REPLY.pack


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a server. Those of a connection bound its memory, whatever the client does."""

    connections_max: int = 128
    requests_in_flight_max: int = 256
    bytes_in_flight_max: int = 64 * 1024 * 1024
    write_buffer_max: int = 4 * 1024 * 1024
    handshake_timeout_s: float = 20.0
    pooled_bytes_max: int = 64 * 1024 * 1024


class _Command:
    """A request in flight whose reply carries no data. ``size``: bytes of buffers that it holds."""

    __slots__ = ("connection", "cookie", "size")

    def __init__(self, connection: Transmission, cookie: int, size: int) -> None:
        self.connection = connection
        self.cookie = cookie
        self.size = size

    def done(self, error: BaseException | None) -> None:
        connection = self.connection
        if error is None:
            connection.replies.append(_pack_simple(p.SIMPLE_REPLY_MAGIC, 0, self.cookie))
        else:
            connection.report(self.cookie, error)
        connection.completed(self.size)


class _Read:
    """A read in flight. ``reply``: header, then the data that the device fills in."""

    __slots__ = ("connection", "cookie", "reply")

    def __init__(self, connection: Transmission, cookie: int, reply: bytearray) -> None:
        self.connection = connection
        self.cookie = cookie
        self.reply = reply

    def done(self, error: BaseException | None) -> None:
        connection = self.connection
        if error is not None:
            connection.report(self.cookie, error)
        elif connection.structured and not self.reply[-1]:
            connection.replies.append(shortest_reply(self.reply))
        else:
            connection.replies.append(self.reply)
        connection.completed(len(self.reply))


class Transmission(asyncio.BufferedProtocol):
    """The transmission phase of one connection. ``replies``, ``report``, ``completed``: for its own
    requests.
    """

    def __init__(
        self,
        agreement: Agreement,
        limits: Limits,
        pool: BufferPool,
        peer: str,
        on_drained: Callable[[Transmission], None],
    ) -> None:
        self.structured = agreement.structured
        self.replies: list[bytes | bytearray] = []
        self._name = agreement.name
        self._device: BlockDevice = agreement.device
        self._allocation = agreement.allocation
        self._limits = limits
        self._pool = pool
        self._sent = SentBuffers(pool)
        self._peer = peer
        self._on_drained = on_drained
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._buffer = bytearray(RECEIVE_SIZE)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._skip = 0  # bytes of a refused write's payload still to be thrown away
        self._refusal = b""  # its reply, due when they have come
        self._payload: memoryview | None = None  # a large write payload being received
        self._payload_filled = 0
        self._payload_write: tuple[int, int, bool] = (0, 0, False)  # cookie, offset, fua
        self._count = 0
        self._bytes = 0
        self._completed_count = 0
        self._completed_bytes = 0
        self._flush_pending = False
        self._reading = True
        self._writing_paused = False
        self._ending = False
        self._lost = False
        self._drained = False
        self._errors_seen: set[type[BaseException]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, transport: asyncio.Transport, received: bytes) -> None:
        """Take over the transport; ``received`` are bytes that came right behind the handshake."""
        self._transport = transport
        transport.set_write_buffer_limits(high=self._limits.write_buffer_max)
        self._view[: len(received)] = received
        self._end = len(received)
        if received:
            self._parse_and_flush()

    def finish(self) -> None:
        """Take no more requests; close when those in flight are answered."""
        if self._ending or self._lost:
            return
        self._ending = True
        self._stop_reading()
        self._abandon_payload()
        self._flush_soon()

    def abort(self) -> None:
        """Close now, unanswered requests or not."""
        self._ending = True
        if not self._lost:
            self._transport.abort()

    # -- asyncio.BufferedProtocol --------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._payload is not None:
            return self._payload[self._payload_filled :]
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._payload is None:
            self._end += nbytes
            self._parse_and_flush()
            return
        self._payload_filled += nbytes
        if self._payload_filled == len(self._payload):
            self._flush_pending = True
            self._write_payload(self._payload)
            self._flush()

    def eof_received(self) -> bool:
        """A client that only shut down its sending half still gets its answers."""
        self.finish()
        return True

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._abandon_payload()
        for task in self._tasks:
            task.cancel()
        self._flush_soon()

    # -- requests ------------------------------------------------------------------------------------

    def _blocked(self) -> bool:
        limits = self._limits
        return (
            self._count >= limits.requests_in_flight_max
            or self._bytes >= limits.bytes_in_flight_max
            or self._writing_paused
        )

    def _parse_and_flush(self) -> None:
        self._flush_pending = True
        self._parse()
        self._flush()

    def _parse(self) -> None:
        """Start every whole request in the receive buffer, until a bound is hit or the buffer needs more."""
        position, end, buffer = self._start, self._end, self._buffer
        while not self._ending:
            if self._skip:
                skipped = min(self._skip, end - position)
                self._skip -= skipped
                position += skipped
                if not self._skip:
                    self.replies.append(self._refusal)
            if end - position < 28:
                break
            if self._blocked():
                self._stop_reading()
                break
            magic, flags, command, cookie, offset, length = _unpack_request(buffer, position)
            if magic != p.REQUEST_MAGIC:
                self._protocol_error(f"bad request magic 0x{magic:08x}")
                return
            if command == p.CMD_READ:
                position += 28
                self._read(flags, cookie, offset, length)
            elif command == p.CMD_WRITE:
                consumed = self._write(flags, cookie, offset, length, position + 28, end)
                if not consumed:
                    break
                position += consumed
            else:
                position += 28
                self._other(command, flags, cookie, offset, length)
        self._keep_rest(position, end)

    def _keep_rest(self, position: int, end: int) -> None:
        """Move the unparsed rest to the front: less than one small request, except right at a bound."""
        rest = end - position
        if rest and position:
            self._view[:rest] = self._view[position:end]
        self._start, self._end = 0, rest

    def _read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        allowed = 5 if self.structured else 1  # FUA and, in structured replies only, DF
        if flags & ~allowed or not 0 < length <= p.PAYLOAD_SIZE_MAX or offset + length > self._device.size:
            self._refuse_read(flags & ~allowed, cookie, offset, length)
            return
        start = 28 if self.structured else 16
        size = start + length
        reply = bytearray(size) if size < POOLED_SIZE_MIN else self._pool.take(size)
        if self.structured:
            p.DATA_CHUNK.pack_into(
                reply,
                0,
                p.STRUCTURED_REPLY_MAGIC,
                p.REPLY_FLAG_DONE,
                p.CHUNK_OFFSET_DATA,
                cookie,
                length + 8,
                offset,
            )
        else:
            p.SIMPLE_REPLY.pack_into(reply, 0, p.SIMPLE_REPLY_MAGIC, 0, cookie)
        self._count += 1
        self._bytes += size
        self._device.read_nowait(offset, memoryview(reply)[start:], _Read(self, cookie, reply).done)

    def _write(self, flags: int, cookie: int, offset: int, length: int, at: int, end: int) -> int:
        """Start a write whose payload begins at ``at``. How many bytes it took; 0: wait for the rest of
        it.
        """
        device = self._device
        if (
            flags & ~p.CMD_FLAG_FUA
            or not 0 < length <= p.PAYLOAD_SIZE_MAX
            or offset + length > device.size
            or device.read_only
        ):
            self._refuse_write(flags & ~p.CMD_FLAG_FUA, cookie, offset, length)
            return 28
        have = end - at
        if length <= INLINE_SIZE_MAX:
            if have < length:
                return 0
            data = memoryview(bytes(self._view[at : at + length]))
            self._count += 1
            self._bytes += length
            device.write_nowait(offset, data, _Command(self, cookie, length).done, bool(flags))
            return 28 + length
        self._count += 1
        self._bytes += length
        payload = memoryview(bytearray(length))
        self._payload_write = (cookie, offset, bool(flags))
        taken = min(have, length)
        payload[:taken] = self._view[at : at + taken]
        if taken == length:
            self._write_payload(payload)
        else:
            self._payload, self._payload_filled = payload, taken
        return 28 + taken

    def _write_payload(self, payload: memoryview) -> None:
        self._payload = None
        cookie, offset, fua = self._payload_write
        data = payload.toreadonly()  # and never written again: the device may keep it without a copy
        self._device.write_nowait(offset, data, _Command(self, cookie, len(data)).done, fua)

    def _other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        if command == p.CMD_DISC:
            self.finish()
            return
        refusal = self._why_not(command, flags, offset, length)
        if refusal is not None:
            self._refuse(cookie, *refusal)
            return
        request = _Command(self, cookie, 0)
        self._count += 1
        fua = bool(flags & p.CMD_FLAG_FUA)
        if command == p.CMD_FLUSH:
            self._device.flush_nowait(request.done)
        elif command == p.CMD_BLOCK_STATUS:
            self._start_block_status(request, flags, offset, length)
        elif command == p.CMD_CACHE or not length:
            request.done(None)  # a hint that there is nothing to do for; a range of no bytes
        else:
            # Zeroes are records over ranges, fast at any length: FAST_ZERO has nothing to refuse.
            discard = command == p.CMD_TRIM or not flags & p.CMD_FLAG_NO_HOLE
            self._device.zero_nowait(offset, length, request.done, discard, fua)

    def _why_not(self, command: int, flags: int, offset: int, length: int) -> tuple[int, str] | None:
        """The refusal of a command other than READ, WRITE and DISC, or None when it is in order."""
        allowed = p.COMMAND_FLAGS.get(command)
        if allowed is None:
            return errno.EINVAL, f"unknown command {command}"
        if flags & ~allowed:
            return errno.EINVAL, f"command {command} does not take flags 0x{flags & ~allowed:x}"
        if command == p.CMD_FLUSH:
            return (errno.EINVAL, "a flush takes no offset and no length") if offset or length else None
        if command == p.CMD_BLOCK_STATUS and not (self._allocation and length):
            return errno.EINVAL, "block status needs a length, and base:allocation selected in the handshake"
        changes = command in (p.CMD_TRIM, p.CMD_WRITE_ZEROES)
        if changes and self._device.read_only:
            return errno.EPERM, "the export is read-only"
        if offset + length > self._device.size:
            number = errno.ENOSPC if command == p.CMD_WRITE_ZEROES else errno.EINVAL
            return number, out_of_bounds(offset, length, self._device.size)
        return None

    # -- block status --------------------------------------------------------------------------------

    def _start_block_status(self, request: _Command, flags: int, offset: int, length: int) -> None:
        task = self._loop.create_task(
            self._block_status(request, bool(flags & p.CMD_FLAG_REQ_ONE), offset, length),
            name=f"nbd-block-status:{self._name}",
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _block_status(self, request: _Command, only_one: bool, offset: int, length: int) -> None:
        try:
            extents = await self._device.block_status(offset, length)
            self.replies.append(status_reply(request.cookie, extents, length, only_one))
        except asyncio.CancelledError:
            pass  # only ``connection_lost`` cancels: nobody is left to be answered
        except Exception as error:
            self.report(request.cookie, error)
        self.completed(0)

    # -- replies -------------------------------------------------------------------------------------

    def completed(self, size: int) -> None:
        """A request that held ``size`` bytes has put its reply into ``replies``."""
        self._completed_count += 1
        self._completed_bytes += size
        if not self._flush_pending:
            self._flush_pending = True
            self._loop.call_soon(self._flush)

    def report(self, cookie: int, error: BaseException) -> None:
        """Answer a request that the device failed."""
        number = p.error_number(error)
        if type(error) not in self._errors_seen:  # once per kind: a full device fails thousands of writes
            self._errors_seen.add(type(error))
            log.warning(
                "nbd export %s, client %s: %s (%s), answered with %s; further ones are not logged",
                self._name,
                self._peer,
                error,
                type(error).__name__,
                errno.errorcode[number],
            )
        self._refuse(cookie, number, str(error))

    def _refuse(self, cookie: int, number: int, message: str) -> None:
        self.replies.append(self._error_reply(cookie, number, message))

    def _error_reply(self, cookie: int, number: int, message: str) -> bytes:
        if self.structured:
            return structured_error(cookie, number, message)
        return _pack_simple(p.SIMPLE_REPLY_MAGIC, number, cookie)

    def _refuse_read(self, bad_flags: int, cookie: int, offset: int, length: int) -> None:
        if bad_flags:
            self._refuse(cookie, errno.EINVAL, f"a read does not take flags 0x{bad_flags:x}")
        elif length > p.PAYLOAD_SIZE_MAX:
            self._refuse(cookie, errno.EINVAL, f"a read of {length} bytes is over {p.PAYLOAD_SIZE_MAX}")
        elif offset + length > self._device.size:
            self._refuse(cookie, errno.EINVAL, out_of_bounds(offset, length, self._device.size))
        elif self.structured:  # of no bytes: nothing to carry, and a data chunk must not be empty
            self.replies.append(
                p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, p.REPLY_FLAG_DONE, p.CHUNK_NONE, cookie, 0)
            )
        else:
            self.replies.append(_pack_simple(p.SIMPLE_REPLY_MAGIC, 0, cookie))

    def _refuse_write(self, bad_flags: int, cookie: int, offset: int, length: int) -> None:
        """Throw away the payload of a write that does not reach the device, then answer it.

        Not before: a client may not look for the reply to a request that it has not finished sending (libnbd
        takes an early one for a mistake of the server and gives up).
        """
        if not length:
            self.replies.append(_pack_simple(p.SIMPLE_REPLY_MAGIC, 0, cookie))
            return
        self._skip = length
        if bad_flags:
            refusal = errno.EINVAL, f"a write does not take flags 0x{bad_flags:x}"
        elif self._device.read_only:
            refusal = errno.EPERM, "the export is read-only"
        elif length > p.PAYLOAD_SIZE_MAX:
            refusal = errno.EINVAL, f"a write of {length} bytes is over {p.PAYLOAD_SIZE_MAX}"
        else:
            refusal = errno.ENOSPC, out_of_bounds(offset, length, self._device.size)
        self._refusal = self._error_reply(cookie, *refusal)

    def _flush_soon(self) -> None:
        if not self._flush_pending:
            self._flush_pending = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what was answered in this turn, then see whether to go on, to close, or to say farewell."""
        self._flush_pending = False
        replies = self.replies
        if replies:
            self.replies = []
            if not self._lost:
                self._send(replies)
        self._count -= self._completed_count
        self._bytes -= self._completed_bytes
        self._completed_count = self._completed_bytes = 0
        if self._reading:
            if self._lost:
                self._say_farewell()
        elif self._ending or self._lost:
            self._close_when_idle()
        elif not self._blocked():
            self._loop.call_soon(self._resume)

    def _send(self, replies: list[bytes | bytearray]) -> None:
        transport, sent = self._transport, self._sent
        sent.recycle(transport.get_write_buffer_size())
        for reply in replies:
            sent.note(reply)
        transport.writelines(replies)

    # -- flow and end --------------------------------------------------------------------------------

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Parse what was left in the buffer at the bound, then read on."""
        if self._reading or self._ending or self._lost or self._blocked():
            return
        self._reading = True
        self._transport.resume_reading()
        self._parse_and_flush()

    def _protocol_error(self, reason: str) -> None:
        """The stream has no meaning any more: no reply can be placed, so the connection ends."""
        log.warning("nbd export %s, client %s: %s, connection ended", self._name, self._peer, reason)
        self._start = self._end = 0
        self.abort()

    def _abandon_payload(self) -> None:
        if self._payload is not None:
            self._count -= 1
            self._bytes -= len(self._payload)
            self._payload = None

    def _close_when_idle(self) -> None:
        if self._lost:
            self._say_farewell()
        elif self._count == 0:
            self._transport.close()

    def _say_farewell(self) -> None:
        if self._count == 0 and not self._drained:
            self._drained = True
            self._on_drained(self)
