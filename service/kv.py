"""The key-value state that a replicated state machine works on: ordered string keys, msgpack values.

Owns: layers of not yet stored writes above a base (LMDB, or memory). Writes are seen at once by every
reader of this KV; the shell stores them later, together with the log index that they come from
(``take_batch``, ``stored``). Must never: hand out a value that aliases state (each ``get`` unpacks anew),
or do I/O other than reading the base. Invariants: a command's writes are all there or not at all
(``commit``, ``rollback``); ``scan`` is in order of the encoded key, and tolerates writes while
it runs (it may or may not show those).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, Protocol

import msgpack

from moorage.wire import errors

KEY_SIZE_MAX = 500  # LMDB allows 511 bytes
VALUE_SIZE_MAX = 960 << 10  # a frame takes 1 MiB
SCAN_BATCH = 128

Batch = dict[bytes, bytes | None]  # None: deleted


class Base(Protocol):
    """Where stored values live."""

    def get(self, key: bytes) -> bytes | None: ...

    def page(self, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` items with key >= start that have the prefix, in order."""
        ...


class MemoryBase:
    """A base without a disk, for tests and for simulation."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def page(self, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        at = bisect_left(self._keys, start)
        found = []
        for key in self._keys[at : at + limit]:
            if not key.startswith(prefix):
                break
            found.append((key, self._values[key]))
        return found

    def write(self, batch: Batch) -> None:
        for key, value in batch.items():
            if value is None:
                if self._values.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if key not in self._values:
                    insort(self._keys, key)
                self._values[key] = value


class KV:
    """Read view for everybody, write view for ``StateMachine.apply`` only. ``KV()`` lives in memory."""

    def __init__(self, base: Base | None = None) -> None:
        self._memory = MemoryBase() if base is None else None
        self._base: Base = base if base is not None else self._memory  # type: ignore[assignment]
        self._command: Batch = {}  # of the command being applied
        self._active: Batch = {}  # applied, not yet given to the store
        self._flushing: Batch = {}  # given to the store, not yet known to be in it

    # -- reading ----------------------------------------------------------------------------------

    def get(self, key: str) -> Any | None:
        """The value of a key, or None. A fresh object each time: changing it changes nothing here."""
        raw = self._raw(_encode(key))
        return None if raw is None else msgpack.unpackb(raw, strict_map_key=False)

    def _raw(self, key: bytes) -> bytes | None:
        for layer in (self._command, self._active, self._flushing):
            if key in layer:
                return layer[key]
        return self._base.get(key)

    def scan(self, prefix: str, start: str = "") -> Iterator[tuple[str, Any]]:
        """All (key, value) whose key starts with ``prefix``, in order; those below ``start`` are left out."""
        return self.scan_from(prefix.encode(), start.encode())

    def scan_from(self, prefix: bytes, start: bytes, batch: int = SCAN_BATCH) -> Iterator[tuple[str, Any]]:
        """The same by encoded keys, of which a part need not be text. ``batch``: how many to fetch first."""
        for key, raw in self.scan_raw(prefix, start, batch):
            yield key.decode(), msgpack.unpackb(raw, strict_map_key=False)

    def scan_raw(
        self, prefix: bytes, first: bytes = b"", batch: int = SCAN_BATCH
    ) -> Iterator[tuple[bytes, bytes]]:
        start: bytes | None = max(prefix, first)
        while start is not None:
            page = self._base.page(start, prefix, batch)
            # A short page was the last one; a full page says nothing about keys behind its last.
            end = page[-1][0] if len(page) == batch else None
            yield from self._merge(page, prefix, start, end)
            start = None if end is None else end + b"\0"
            batch = min(4 * batch, SCAN_BATCH)

    def _merge(
        self, page: list[tuple[bytes, bytes]], prefix: bytes, start: bytes, end: bytes | None
    ) -> list[tuple[bytes, bytes]]:
        merged: Batch = dict(page)
        for layer in (self._flushing, self._active, self._command):
            for key, value in layer.items():
                if key.startswith(prefix) and key >= start and (end is None or key <= end):
                    merged[key] = value
        return sorted((key, value) for key, value in merged.items() if value is not None)

    # -- writing (inside of apply) ----------------------------------------------------------------

    def put(self, key: str, value: Any) -> None:
        """Raises LimitExceeded for a value that would not fit into a message of a snapshot."""
        raw = msgpack.packb(value)
        if len(raw) > VALUE_SIZE_MAX:
            text = f"what is kept under one key is {len(raw)} bytes: {VALUE_SIZE_MAX} at most"
            raise errors.LimitExceeded(text, key=key[:64])
        self._command[_encode(key)] = raw

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens when it is not there."""
        self._command[_encode(key)] = None

    # -- the shell's side ---------------------------------------------------------------------------

    def commit(self) -> None:
        """The command is applied: its writes stay."""
        if self._memory is not None:
            self._memory.write(self._command)
        else:
            self._active.update(self._command)
        self._command = {}

    def rollback(self) -> None:
        """The command failed: its writes never were."""
        self._command = {}

    def take_batch(self) -> Batch:
        """Writes to store now. One batch at a time: ``stored`` or ``reset`` comes before the next."""
        if self._flushing:
            errors.violated("one batch of the KV is being stored already")
        self._flushing, self._active = self._active, {}
        return self._flushing

    def stored(self) -> None:
        """The batch is in the base."""
        self._flushing = {}

    def reset(self) -> None:
        """The base was replaced by a snapshot: whatever was not stored is of the past."""
        self._command, self._active, self._flushing = {}, {}, {}


def _encode(key: str) -> bytes:
    raw = key.encode()
    if not 0 < len(raw) <= KEY_SIZE_MAX:
        raise errors.LimitExceeded(
            f"key of {len(raw)} bytes: 1 to {KEY_SIZE_MAX} are possible", key=key[:64], size=len(raw)
        )
    return raw
