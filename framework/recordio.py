"""RecordIO, in which a Mesos master frames its events: bytes in, records out. Pure.

A record is its length in decimal, a line feed, and that many bytes (docs/mesos-api.md). The bytes may come
cut anywhere: chunks of HTTP and records need not coincide. Must never hold more than one record and what was
fed last, nor guess where the next record begins after bytes that are no length.
"""

from __future__ import annotations

from moorage.wire.errors import ProtocolError

# The largest event is OFFERS of a whole cluster: some KiB for each agent, so this is far above ten thousand.
RECORD_SIZE_MAX = 64 << 20
_DIGITS_MAX = len(str(RECORD_SIZE_MAX))


class RecordReader:
    """``feed()`` what came, then take records until there is none."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._size: int | None = None  # of the record that comes; None: its length has not come whole

    @property
    def inside(self) -> bool:
        """Once ``next_record()`` has returned None: whether a record has begun, so that more must come."""
        return self._size is not None or bool(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_record(self) -> bytes | None:
        """The next record that has come whole, without its length. Raises ProtocolError for what is no
        length, and for one above RECORD_SIZE_MAX: after the records before it, and then for ever."""
        if self._size is None:
            self._size = self._length()
        if self._size is None or len(self._buffer) < self._size:
            return None
        record = bytes(self._buffer[: self._size])
        del self._buffer[: self._size]
        self._size = None
        return record

    def _length(self) -> int | None:
        """Take the line that says the length; None when it has not come whole."""
        end = self._buffer.find(b"\n", 0, _DIGITS_MAX + 1)
        line = bytes(self._buffer[: end if end >= 0 else _DIGITS_MAX + 1])
        if end < 0 and not line:
            return None
        if not line.isdigit() or len(line) > _DIGITS_MAX:
            raise ProtocolError(f"where a record's length should be there is {line!r}")
        if end < 0:
            return None
        if int(line) > RECORD_SIZE_MAX:
            raise ProtocolError(f"a record of {int(line)} bytes: the most is {RECORD_SIZE_MAX}")
        del self._buffer[: end + 1]
        return int(line)
