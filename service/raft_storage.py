"""The LMDB environment of one Raft member: hard state, log, and the state machine's key-value state.

Owns: the format (docs/raft.md), one worker thread in which every write happens, and the rule that one
transaction holds everything of a ``Work``: entries, and the state that they led to, never come apart.
Must never: retry a failed commit (LMDB syncs inside of it), or open what the check did not pass.
Invariants: every value is sealed with its key; the stored applied index is at most the last stored entry's.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgpack

from moorage.quorum.raft_log import Log
from moorage.quorum.raft_types import Config, Entry, HardState, Snapshot, SnapshotChunk
from moorage.service.kv import Batch
from moorage.service.lmdb_check import check_in_child, seal, unseal
from moorage.service.lmdb_file import make_environment
from moorage.wire import errors

FORMAT = 2
MAP_SIZE = 64 << 30  # sparse; a bound on the state, not an allocation
CHUNK_SIZE = 128 << 10
_INDEX = struct.Struct(">Q")  # big-endian: LMDB orders keys as bytes
ADVICE = (
    "this member's copy cannot be trusted: remove it from the group (raft.GROUP.remove_member), move the"
    " directory aside and add it anew; the other members hold the data"
)


class Life(NamedTuple):
    """From one start of a member, if a peer accepted it, to the next such start. Its number, a random token,
    and the token of the life before make a chain; a copy of the directory, when it starts, begins another."""

    number: int
    token: str
    former: str  # token of life ``number - 1``
    accepted: bool  # by a peer, or there was nobody to ask: it may have taken part


class Pin(NamedTuple):
    """Who a member is: the instance of the directory that had its name first, since it was added at that log
    index; and the life of it that was heard of last (0: none yet)."""

    since: int
    instance: str
    life: int = 0
    token: str = ""


@dataclass(slots=True)
class Work:
    """One transaction. Order: hard state, chunks, install, entries, state, compaction."""

    hard_state: HardState | None = None
    chunks: list[SnapshotChunk] = field(default_factory=list)
    install: Snapshot | None = None
    entries: list[Entry] = field(default_factory=list)
    applied: int | None = None
    batch: Batch = field(default_factory=dict)
    base: Snapshot | None = None  # the log up to here may go
    pins: dict[str, Pin | None] = field(default_factory=dict)  # None: unpinned
    life: Life | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found at the start."""

    instance: str
    hard_state: HardState
    log: Log
    applied: int
    pins: dict[str, Pin]
    life: Life


class LmdbBase:
    """The stored part of the KV. Each call reads in a transaction of its own: nothing pins old pages."""

    def __init__(self, env: lmdb.Environment, db: lmdb._Database, where: str) -> None:
        self._env = env
        self._db = db
        self._where = where

    def get(self, key: bytes) -> bytes | None:
        with self._env.begin(db=self._db, buffers=True) as txn:
            value = txn.get(key)
            return None if value is None else self._unseal(key, value)

    def _unseal(self, key: bytes, value: bytes | memoryview) -> bytes:
        try:
            return unseal(key, value, self._where)
        except errors.Corrupt as error:
            raise errors.Corrupt(f"{error}; {ADVICE}") from error

    def page(self, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        with self._env.begin(db=self._db, buffers=True) as txn:
            cursor = txn.cursor()
            more = cursor.set_range(start)
            while more and len(found) < limit:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    break
                found.append((key, self._unseal(key, cursor.value())))
                more = cursor.next()
        return found


class SnapshotReader:
    """A consistent scan of the stored state, a chunk at a time. It pins pages: close it."""

    def __init__(self, storage: RaftStorage) -> None:
        self._where = storage.where
        self._txn = storage.env.begin(buffers=True)
        self.applied: int = storage.read_meta(b"applied", self._txn)
        self._cursor = self._txn.cursor(storage.kv_db)
        self._more = self._cursor.first()
        self.seq = 0

    def chunk(self) -> tuple[bytes, bool]:
        """The next chunk, and whether it is the last."""
        pairs: list[tuple[bytes, bytes]] = []
        size = 0
        while self._more:
            key = bytes(self._cursor.key())
            value = unseal(key, self._cursor.value(), self._where)
            size += len(key) + len(value)
            if pairs and size > CHUNK_SIZE:
                break  # a large value has a message of its own
            pairs.append((key, value))
            self._more = self._cursor.next()
        self.seq += 1
        return msgpack.packb(pairs), not self._more

    def close(self) -> None:
        self._txn.abort()


class RaftStorage:
    def __init__(self, directory: Path, group: str) -> None:
        self.directory = directory
        self.where = str(directory)
        self.env: lmdb.Environment
        self.commits = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"raft-{group}")
        self._open = False

    # -- opening ----------------------------------------------------------------------------------

    async def open(self, identity: dict[str, str], config: Config) -> Loaded:
        """Check, open and load; ``config`` is what a new, empty directory begins with. Raises Corrupt,
        IdentityConflict, VersionMismatch, Invalid."""
        await check_in_child(self.directory, sealed=True, advice=ADVICE)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._open_now, identity, config)

    def _open_now(self, identity: dict[str, str], config: Config) -> Loaded:
        try:
            make_environment(self.directory, map_size=MAP_SIZE, mode=0o600)
            self.env = lmdb.open(self.where, map_size=MAP_SIZE, max_dbs=8, max_readers=64, mode=0o600)
            self._open = True
            self._refuse_another_format()
            self.meta_db = self.env.open_db(b"meta")
            self.log_db = self.env.open_db(b"log")
            self.kv_db = self.env.open_db(b"kv")
            self.staged_db = self.env.open_db(b"staged")
        except (lmdb.Error, OSError) as error:
            raise errors.DeviceFailed(f"cannot open the raft state in {self.where}: {error}") from error
        try:
            return self._load(identity, config)
        except lmdb.Error as error:
            raise errors.DeviceFailed(f"cannot write the raft state in {self.where}: {error}") from error
        except (LookupError, ValueError, TypeError, errors.InvariantViolation) as error:
            raise errors.Corrupt(
                f"{self.where}: the raft state makes no sense ({error}); {ADVICE}"
            ) from error
        except errors.Corrupt as error:
            raise errors.Corrupt(f"{error}; {ADVICE}") from error

    def _refuse_another_format(self) -> None:
        """Before anything is made in it."""
        try:
            self.meta_db = self.env.open_db(b"meta", create=False)
        except lmdb.NotFoundError:
            return  # it is new
        try:
            with self.env.begin() as txn:
                found = self.read_meta(b"identity", txn)["format"]
        except (errors.Corrupt, LookupError, ValueError, TypeError):
            return  # it says nothing: _load has the words
        if found != FORMAT:
            raise errors.VersionMismatch(
                f"{self.where} has format {found!r}, this version reads {FORMAT}: use the one that wrote it"
            )

    def _load(self, identity: dict[str, str], config: Config) -> Loaded:
        with self.env.begin(write=True) as txn:
            if txn.stat(self.meta_db)["entries"] == 0:
                self._begin(txn, identity, config)
        with self.env.begin(buffers=True) as txn:
            found = self.read_meta(b"identity", txn)
            self._check_identity(found, identity)
            base = self._read_base(txn)
            log = Log(base, [self._entry(key, value) for key, value in txn.cursor(self.log_db)])
            applied = self.read_meta(b"applied", txn)
            hard_state = HardState(*self.read_meta(b"hard_state", txn))
            pins = {
                bytes(key)[4:].decode(): Pin(*self._unpack(key, value))
                for key, value in txn.cursor(self.meta_db)
                if bytes(key).startswith(b"pin:")
            }
        log.validate()
        errors.invariant(base.index <= applied <= log.last_index, "applied index", applied=applied)
        errors.invariant(log.last_term <= hard_state.term, "term", term=hard_state.term)
        return Loaded(found["instance"], hard_state, log, applied, pins, self._begin_life())

    def _begin_life(self) -> Life:
        """The next one, durable before anybody hears of it. One that nobody accepted took part in nothing: it
        goes on, so that a copy that is refused does not get a higher number by starting again."""
        with self.env.begin(write=True) as txn:
            life = Life(*self.read_meta(b"life", txn))
            if life.accepted:
                life = Life(life.number + 1, secrets.token_hex(8), life.token, False)
                self._put_meta(txn, b"life", list(life))
        return life

    def _begin(self, txn: lmdb.Transaction, identity: dict[str, str], config: Config) -> None:
        instance = secrets.token_hex(8)
        self._put_meta(txn, b"identity", {"format": FORMAT, "instance": instance, **identity})
        self._put_meta(txn, b"life", list(Life(0, "", "", True)))
        self._put_meta(txn, b"hard_state", [0, None])
        self._put_meta(txn, b"base", [0, 0, config.encode()])
        self._put_meta(txn, b"applied", 0)

    def _check_identity(self, found: dict[str, Any], wanted: dict[str, str]) -> None:
        for key, value in wanted.items():
            if found[key] != value:
                raise errors.IdentityConflict(
                    f"{self.where} belongs to {key} {found[key]}, not {value}: use another directory"
                )

    # -- reading ----------------------------------------------------------------------------------

    def read_meta(self, key: bytes, txn: lmdb.Transaction) -> Any:
        value = txn.get(key, db=self.meta_db)
        if value is None:
            raise errors.Corrupt(f"{self.where}: {key.decode()} is missing")
        return self._unpack(key, value)

    def _unpack(self, key: bytes | memoryview, value: bytes | memoryview) -> Any:
        return msgpack.unpackb(unseal(bytes(key), value, self.where))

    def _read_base(self, txn: lmdb.Transaction) -> Snapshot:
        index, term, config = self.read_meta(b"base", txn)
        return Snapshot(index, term, Config.decode(config))

    def _entry(self, key: bytes | memoryview, value: bytes | memoryview) -> Entry:
        term, kind, data = self._unpack(key, value)
        return Entry(term, _INDEX.unpack(key)[0], kind, data)

    # -- writing ----------------------------------------------------------------------------------

    def commit(self, work: Work) -> asyncio.Future[None]:
        """Store it durably, in the worker thread, behind what was given before."""
        return asyncio.get_running_loop().run_in_executor(self._worker, self._commit_now, work)

    def _commit_now(self, work: Work) -> None:
        with self.env.begin(write=True) as txn:
            if work.hard_state is not None:
                self._put_meta(txn, b"hard_state", list(work.hard_state))
            for name, pin in work.pins.items():
                self._put_pin(txn, name, pin)
            if work.life is not None:
                self._put_meta(txn, b"life", list(work.life))
            for chunk in work.chunks:
                self._stage(txn, chunk)
            if work.install is not None:
                self._install(txn, work.install)
            if work.entries:
                self._append(txn, work.entries)
            if work.applied is not None:
                self._store_state(txn, work.batch, work.applied)
            if work.base is not None:
                self._compact(txn, work.base)
        self.commits += 1

    def _put_meta(self, txn: lmdb.Transaction, key: bytes, value: Any) -> None:
        txn.put(key, seal(key, msgpack.packb(value)), db=self.meta_db)

    def _put_pin(self, txn: lmdb.Transaction, name: str, pin: Pin | None) -> None:
        key = b"pin:" + name.encode()
        if pin is None:
            txn.delete(key, db=self.meta_db)
        else:
            self._put_meta(txn, key, list(pin))

    def _append(self, txn: lmdb.Transaction, entries: list[Entry]) -> None:
        """Entries replace all from the first one's index on."""
        self._delete_log(txn, entries[0].index, None)
        for entry in entries:
            key = _INDEX.pack(entry.index)
            txn.put(key, seal(key, msgpack.packb([entry.term, entry.kind, entry.data])), db=self.log_db)

    def _delete_log(self, txn: lmdb.Transaction, start: int, end: int | None) -> None:
        cursor = txn.cursor(self.log_db)
        cursor.set_range(_INDEX.pack(start))
        while (key := cursor.key()) and (end is None or _INDEX.unpack(key)[0] <= end):
            cursor.delete()  # it moves on to the next one; behind the last there is no key

    def _store_state(self, txn: lmdb.Transaction, batch: Batch, applied: int) -> None:
        for key, value in batch.items():
            if value is None:
                txn.delete(key, db=self.kv_db)
            else:
                txn.put(key, seal(key, value), db=self.kv_db)
        self._put_meta(txn, b"applied", applied)

    def _compact(self, txn: lmdb.Transaction, base: Snapshot) -> None:
        self._put_meta(txn, b"base", [base.index, base.term, base.config.encode()])
        self._delete_log(txn, 0, base.index)

    def _stage(self, txn: lmdb.Transaction, chunk: SnapshotChunk) -> None:
        if chunk.seq == 0:
            txn.drop(self.staged_db, delete=False)
        key = _INDEX.pack(chunk.seq)
        txn.put(key, seal(key, chunk.data), db=self.staged_db)

    def _install(self, txn: lmdb.Transaction, snapshot: Snapshot) -> None:
        txn.drop(self.kv_db, delete=False)
        txn.drop(self.log_db, delete=False)
        for key, value in txn.cursor(self.staged_db):
            for name, payload in msgpack.unpackb(unseal(bytes(key), value, self.where)):
                txn.put(name, seal(name, payload), db=self.kv_db)
        txn.drop(self.staged_db, delete=False)
        self._put_meta(txn, b"base", [snapshot.index, snapshot.term, snapshot.config.encode()])
        self._put_meta(txn, b"applied", snapshot.index)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._open:
            self._open = False
            await loop.run_in_executor(self._worker, self.env.close)
        self._worker.shutdown()
