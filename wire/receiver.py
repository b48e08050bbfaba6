"""Bytes to frames: where received bytes go, and where one frame ends and the next begins.

A core without sockets: the owner asks :meth:`get_buffer` where to put bytes and says with
:meth:`buffer_updated` how many came. Small frames are parsed out of a scratch buffer that all receivers of a
thread share (a parse never spans two wake-ups: what is left over, less than ``DIRECT_SIZE``, is kept);
the rest of a large one is received straight into its destination. One ring buffer per connection that gets
compacted was rejected: it moves every large payload once more, and costs memory per connection.

Invariants: memory held per receiver <= one frame of the limits in force; a frame is delivered only after its
check was right; after an error no further frame is delivered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from moorage.wire.buffers import payload_buffer
from moorage.wire.errors import ProtocolError
from moorage.wire.frame import HEADER, HEADER_SIZE, KIND_OF_TAG, check_of, kind_of

SCRATCH_SIZE: Final = 256 << 10
DIRECT_SIZE: Final = 32 << 10  # an incomplete frame of this size or more goes to a buffer of its own
# After a large frame probably comes another: read little before its header is known, since what is read
# ahead of the header has to be copied to its destination.
WINDOW_AFTER_DIRECT: Final = 8 << 10
assert SCRATCH_SIZE > 2 * (HEADER_SIZE + DIRECT_SIZE)

# kind, op, flags, request_id, deadline_ms, body, payload, owned
Deliver = Callable[[int, int, int, int, int, memoryview, memoryview, bool], None]

_unpack_header = HEADER.unpack_from
_EMPTY: Final = memoryview(b"")


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.scratch = bytearray(SCRATCH_SIZE)


_per_thread = _PerThread()


class _Large:
    """A large frame on its way: its header, and its body once that is complete."""

    __slots__ = ("body", "check", "deadline_ms", "flags", "head", "kind", "op", "payload_size", "request_id")

    def __init__(self, head: bytes) -> None:
        fields = _unpack_header(head)
        tag, self.op, self.flags, _, self.payload_size, self.request_id, self.deadline_ms, self.check = fields
        self.head = head
        self.kind = kind_of(tag)
        self.body: memoryview | None = None


class FrameReceiver:
    """``deliver`` is called for each frame. ``stopped`` ends the parse after the frame at hand."""

    def __init__(self, deliver: Deliver, body_max: int, payload_max: int) -> None:
        self._deliver = deliver
        self._body_max = body_max
        self._payload_max = payload_max
        self._stopped = False
        self._scratch = _per_thread.scratch
        self._scratch_view = memoryview(self._scratch)
        self._tail = b""  # start of a frame whose rest has not come yet
        self._window = SCRATCH_SIZE
        self._large: _Large | None = None
        self._direct = _EMPTY  # where the large frame's body or payload goes
        self._filled = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._large is not None:
            return self._direct[self._filled :]
        tail = self._tail
        if tail:
            size = len(tail)
            self._scratch_view[:size] = tail
            return self._scratch_view[size:]
        return self._scratch_view[: self._window]

    def buffer_updated(self, nbytes: int) -> None:
        """Take the next ``nbytes`` from the buffer handed out last. Raises :class:`ProtocolError`."""
        if self._stopped:
            return
        if self._large is not None:
            self._filled += nbytes
            if self._filled == len(self._direct):
                self._direct_full(self._large)
            return
        end = len(self._tail) + nbytes
        self._tail = b""
        if end >= self._window:
            self._window = SCRATCH_SIZE
        self._parse(end)

    @property
    def in_frame(self) -> bool:
        """Whether the bytes so far end in the middle of a frame."""
        return bool(self._tail) or self._large is not None

    def _parse(self, end: int) -> None:
        scratch, view, deliver = self._scratch, self._scratch_view, self._deliver
        start = 0
        while end - start >= HEADER_SIZE:
            tag, op, flags, body_size, payload_size, request_id, deadline_ms, check = _unpack_header(
                scratch, start
            )
            kind = KIND_OF_TAG.get(tag) or kind_of(tag)
            if body_size > self._body_max or payload_size > self._payload_max:
                raise self._too_large(body_size, payload_size)
            body_at = start + HEADER_SIZE
            payload_at = body_at + body_size
            frame_end = payload_at + payload_size
            if frame_end > end:
                if frame_end - start < DIRECT_SIZE or (payload_at > end and body_size < DIRECT_SIZE):
                    break
                self._begin_large(start, payload_at, end)
                return
            if check_of(scratch[start : start + 28] + scratch[body_at:payload_at]) & 0xFFFFFFFF != check:
                raise _bad_check()
            deliver(
                kind,
                op,
                flags,
                request_id,
                deadline_ms,
                view[body_at:payload_at],
                view[payload_at:frame_end],
                False,
            )
            if self._stopped:
                return
            deliver = self._deliver
            start = frame_end
        if start < end:
            self._tail = bytes(view[start:end])

    def _too_large(self, body_size: int, payload_size: int) -> ProtocolError:
        return ProtocolError(
            f"frame announces {body_size} bytes of body and {payload_size} of payload; "
            f"allowed here are {self._body_max} and {self._payload_max}"
        )

    # -- large frames ----------------------------------------------------------------------------------

    def _begin_large(self, start: int, payload_at: int, end: int) -> None:
        body_at = start + HEADER_SIZE
        large = _Large(bytes(self._scratch_view[start:body_at]))
        if payload_at > end:
            self._large = large
            self._receive_into(memoryview(bytearray(payload_at - body_at)), self._scratch_view[body_at:end])
        else:
            self._body_complete(large, memoryview(bytes(self._scratch_view[body_at:payload_at])))
            self._receive_into(self._direct, self._scratch_view[payload_at:end])

    def _receive_into(self, direct: memoryview, begin: memoryview) -> None:
        self._direct = direct
        self._filled = len(begin)
        direct[: self._filled] = begin

    def _body_complete(self, large: _Large, body: memoryview) -> None:
        if check_of(large.head[:28] + body) & 0xFFFFFFFF != large.check:
            raise _bad_check()
        large.body = body
        self._large = large
        if large.payload_size:
            self._direct = self._destination(large.kind, large.request_id, large.payload_size)
            self._filled = 0

    def _direct_full(self, large: _Large) -> None:
        if large.body is None:
            self._body_complete(large, self._direct)
            if large.payload_size:
                return
            payload = _EMPTY
        else:
            payload = self._direct
        body = large.body
        assert body is not None
        self._large, self._direct = None, _EMPTY
        self._window = WINDOW_AFTER_DIRECT
        self._deliver(
            large.kind, large.op, large.flags, large.request_id, large.deadline_ms, body, payload, True
        )

    def _destination(self, kind: int, request_id: int, size: int) -> memoryview:
        """Where a large payload goes; the connection overrides it for replies with an ``into``."""
        return payload_buffer(size)

    def _divert(self, kind: int, request_id: int) -> None:
        """Let go of the destination of this frame, whose owner does not want it any more."""
        large = self._large
        if (
            large is not None
            and large.body is not None
            and (large.kind, large.request_id) == (kind, request_id)
        ):
            self._direct = memoryview(bytearray(len(self._direct)))


def _bad_check() -> ProtocolError:
    return ProtocolError("frame check is wrong: the bytes were damaged on the way, or are not frames")
