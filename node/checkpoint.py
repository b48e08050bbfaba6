"""The index on disk: LMDB, in which a checkpoint is many small transactions with the replay position last.

Owns the environment, its keys and the seal on each value (xxh3 over key and value). Must never be the first
to open an environment of a former life: ``check`` walks it in a process of its own before (a corrupt page can
kill whoever maps it), and must never use a writable map (SIGBUS on a full disk).
Invariants: what ``finish`` wrote is the newest thing that a crash can bring back, and everything that it
refers to was written by the transactions before it. Each of those says which group commit was the last
durable one (``reached``): what it wrote refers to nothing later, so a log that ends before that has lost
something.

Databases: ``meta`` (two keys, and one of each table's check), ``replicas`` (8 bytes: id), ``pages`` (handle 4
bytes, page number 8 bytes, big endian), ``tombstones`` (handle, first chunk). docs/node-store.md has the byte
tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgpack

from moorage.node.page import PAGE_SIZE
from moorage.node.tombstones import Range
from moorage.service.lmdb_check import SEAL_SIZE, check_in_child, seal, unseal
from moorage.service.lmdb_file import make_environment
from moorage.wire.errors import Corrupt, VersionMismatch

VERSION = 1
SNAPSHOTS_VERSION = 2  # the same, with versions of blocks in pages, and the snapshots of replicas
_KEY = struct.Struct(">IQ")
_ID = struct.Struct(">Q")
_CHECK = struct.Struct(">5sI")
_CHECKS = b"scrub"
_META = b"checkpoint"
_REACHED = b"reached"
PAST_ALL = 1 << 62  # no page has this number
MAP_SIZE = 1 << 40  # sparse: address space only
ADVICE = (
    "move this device's directory away and start it empty: its replicas are rebuilt from the other members"
)


@dataclass
class Meta:
    """Where a replay begins, and which file each segment in use is."""

    segment: int = 0
    offset: int = 0
    group: int = 1
    next_handle: int = 1
    segments: list[tuple[int, str, int]] = field(default_factory=list)  # number, file name, end
    snapshots: bool = False  # some replica has, or had, some: who knows of none must not read this index

    def pack(self) -> bytes:
        version = SNAPSHOTS_VERSION if self.snapshots else VERSION
        packed: bytes = msgpack.packb(
            [version, self.segment, self.offset, self.group, self.next_handle, self.segments]
        )
        return packed

    @classmethod
    def unpack(cls, raw: bytes) -> Meta:
        version, *fields = msgpack.unpackb(raw)
        if version not in (VERSION, SNAPSHOTS_VERSION):
            raise VersionMismatch(
                f"an index of version {version!r}, this version reads {VERSION} and {SNAPSHOTS_VERSION}:"
                " use the one that wrote it"
            )
        segment, offset, group, next_handle, segments = fields
        return cls(segment, offset, group, next_handle, [tuple(each) for each in segments])


class StoredPage(NamedTuple):
    handle: int
    number: int
    packed: bytes | None  # None: it does not match its checksum


def _cells(key: bytes, value: bytes) -> bytes | None:
    try:
        return unseal(key, value, "page")
    except Corrupt:
        return None


def page_key(handle: int, number: int) -> bytes:
    return _KEY.pack(handle, number)


class IndexStore:
    """Blocking calls; writes belong to one lane. ``load_page`` is also called on the event loop: it is one
    lookup in a map that is mostly in the page cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_environment(path, map_size=MAP_SIZE)
        self._env = lmdb.open(
            str(path),
            map_size=MAP_SIZE,
            max_dbs=8,
            subdir=True,
            writemap=False,
            readahead=False,
            max_readers=64,
        )
        try:
            self._refuse_another_version()
            self._meta = self._env.open_db(b"meta")
            self._replicas = self._env.open_db(b"replicas")
            self._pages = self._env.open_db(b"pages")
            self._tombstones = self._env.open_db(b"tombstones")
        except BaseException:
            self._env.close()
            raise

    def _refuse_another_version(self) -> None:
        """Before anything is made in it."""
        try:
            self._meta = self._env.open_db(b"meta", create=False)
        except lmdb.NotFoundError:
            return  # it is new
        self.load_meta()

    def close(self) -> None:
        self._env.close()

    def size(self) -> int:
        """Bytes of the file that are in use or were."""
        info = self._env.info()
        return int((info["last_pgno"] + 1) * self._env.stat()["psize"])

    # -- reading --------------------------------------------------------------------------------------

    def load_page(self, handle: int, number: int) -> bytes | None:
        key = _KEY.pack(handle, number)
        with self._env.begin(db=self._pages) as txn:
            value = txn.get(key)
        return None if value is None else self._open(key, value, f"page {number} of handle {handle}")

    def _open(self, key: bytes, value: bytes, what: str) -> bytes:
        try:
            return unseal(key, value, self.path)
        except Corrupt as error:
            raise Corrupt(f"{self.path}: index damaged ({what})", path=str(self.path)) from error

    def load_meta(self) -> Meta | None:
        with self._env.begin(db=self._meta) as txn:
            value = txn.get(_META)
        if value is None:
            return None
        try:
            return Meta.unpack(unseal(_META, value, self.path))
        except VersionMismatch as error:
            raise VersionMismatch(f"{self.path}: {error}") from None

    def reached(self) -> int:
        """The newest group commit that was durable when something was written here ahead of ``finish``."""
        with self._env.begin(db=self._meta) as txn:
            value = txn.get(_REACHED)
        return 0 if value is None else int(msgpack.unpackb(unseal(_REACHED, value, self.path)))

    def replicas(self) -> Iterator[tuple[int, Any]]:
        """(id, what was stored for it); None when that does not match its checksum."""
        with self._env.begin(db=self._replicas) as txn:
            for key, value in txn.cursor():
                packed = _cells(key, value)
                yield _ID.unpack(key)[0], None if packed is None else msgpack.unpackb(packed)

    def tombstones(self) -> dict[int, list[Range]]:
        found: dict[int, list[Range]] = {}
        with self._env.begin(db=self._tombstones) as txn:
            for key, value in txn.cursor():
                handle, first = _KEY.unpack(key)
                numbers = msgpack.unpackb(self._open(key, value, "a tombstone"))
                ranges = zip(numbers[::2], numbers[1::2], strict=True)
                found.setdefault(handle, []).extend((first, end, lsn) for end, lsn in ranges)
        return found

    def checks(self) -> Iterator[tuple[int, bytes | None]]:
        """(handle, what was stored of its check); None when that does not match its checksum."""
        with self._env.begin(db=self._meta) as txn:
            cursor = txn.cursor()
            if not cursor.set_range(_CHECKS):
                return
            for key, value in cursor:
                if not key.startswith(_CHECKS) or len(key) != _CHECK.size:
                    return
                yield _CHECK.unpack(key)[1], _cells(key, value)

    def pages(self, handle: int, first: int, limit: int, whole: bool = False) -> list[StoredPage]:
        """Up to ``limit`` stored pages from a place on; of that handle only, unless ``whole``."""
        found: list[StoredPage] = []
        with self._env.begin(db=self._pages) as txn:
            cursor = txn.cursor()
            if not cursor.set_range(_KEY.pack(handle, first)):
                return found
            for key, value in cursor:
                owner, number = _KEY.unpack(key)
                if len(found) == limit or (owner != handle and not whole):
                    break
                found.append(StoredPage(owner, number, _cells(key, value)))
        return found

    def page_numbers(self, handle: int, first: int, end: int, limit: int) -> list[int]:
        """Numbers of up to ``limit`` stored pages of a handle in [first, end)."""
        found: list[int] = []
        with self._env.begin(db=self._pages) as txn:
            cursor = txn.cursor()
            if cursor.set_range(_KEY.pack(handle, first)):
                for key in cursor.iternext(values=False):
                    owner, number = _KEY.unpack(key)
                    if len(found) == limit or owner != handle or number >= end:
                        break
                    found.append(number)
        return found

    def pages_with_versions(self, handle: int, first: int, limit: int, look_at: int) -> tuple[list[int], int]:
        """Numbers of up to ``limit`` stored pages of a handle that have any, out of up to ``look_at`` from
        ``first`` on, and the one to go on with; past all at the end."""
        found: list[int] = []
        with self._env.begin(db=self._pages, buffers=True) as txn:
            cursor = txn.cursor()
            if cursor.set_range(_KEY.pack(handle, first)):
                for count, (key, value) in enumerate(cursor):
                    owner, number = _KEY.unpack(key)
                    if owner != handle:
                        break
                    if len(found) == limit or count == look_at:
                        return found, number
                    if len(value) > SEAL_SIZE + PAGE_SIZE:
                        found.append(number)
        return found, PAST_ALL

    # -- writing ----------------------------------------------------------------------------------------

    def write_pages(
        self, pages: list[tuple[bytes, bytes | None]], tombstones: dict[int, list[Range]], reached: int
    ) -> None:
        """One transaction of (key, packed page), None deletes, and of all tombstones of some tables."""
        with self._env.begin(write=True, db=self._pages) as txn:
            self._reach(txn, reached)
            for key, packed in pages:
                if packed is None:
                    txn.delete(key)
                else:
                    txn.put(key, seal(key, packed))
            for handle, ranges in tombstones.items():
                self._replace_tombstones(txn, handle, ranges)

    def _reach(self, txn: lmdb.Transaction, reached: int) -> None:
        txn.put(_REACHED, seal(_REACHED, msgpack.packb(reached)), db=self._meta)

    def delete_pages(self, handle: int, limit: int, reached: int) -> list[StoredPage]:
        """Delete up to ``limit`` pages of a handle that nobody uses; what they were."""
        gone: list[StoredPage] = []
        with self._env.begin(write=True, db=self._pages) as txn:
            self._reach(txn, reached)
            cursor = txn.cursor()
            cursor.set_range(_KEY.pack(handle, 0))
            while (key := cursor.key()) and len(gone) < limit:
                owner, number = _KEY.unpack(key)
                if owner != handle:
                    break
                gone.append(StoredPage(owner, number, _cells(key, cursor.value())))
                cursor.delete()  # it moves on to the next one
        return gone

    def finish(
        self,
        meta: Meta,
        replicas: dict[int, bytes | None],
        tombstones: dict[int, list[Range]],
    ) -> None:
        """The last transaction of a checkpoint. None: the replica is gone."""
        with self._env.begin(write=True) as txn:
            for replica, packed in replicas.items():
                key = _ID.pack(replica)
                if packed is None:
                    txn.delete(key, db=self._replicas)
                else:
                    txn.put(key, seal(key, packed), db=self._replicas)
            for handle, ranges in tombstones.items():
                self._replace_tombstones(txn, handle, ranges)
            txn.put(_META, seal(_META, meta.pack()), db=self._meta)

    def delete_tombstones(self, handle: int, reached: int) -> None:
        with self._env.begin(write=True) as txn:
            self._reach(txn, reached)
            self._replace_tombstones(txn, handle, [])

    def write_checks(self, checks: dict[int, bytes | None]) -> None:
        """None: the table is gone. It refers to nothing in the log: a block that is not where a check says
        that it is bad is not bad."""
        with self._env.begin(write=True, db=self._meta) as txn:
            for handle, packed in checks.items():
                key = _CHECK.pack(_CHECKS, handle)
                if packed is None:
                    txn.delete(key)
                else:
                    txn.put(key, seal(key, packed))

    def _replace_tombstones(self, txn: lmdb.Transaction, handle: int, ranges: list[Range]) -> None:
        cursor = txn.cursor(self._tombstones)
        cursor.set_range(_KEY.pack(handle, 0))
        while (key := cursor.key()) and _KEY.unpack(key)[0] == handle:
            cursor.delete()  # it moves on to the next one
        beginning: dict[int, list[int]] = {}
        for first, end, lsn in ranges:
            beginning.setdefault(first, []).extend((end, lsn))
        for first, pairs in beginning.items():
            key = _KEY.pack(handle, first)
            txn.put(key, seal(key, msgpack.packb(pairs)), db=self._tombstones)


async def check(path: Path) -> None:
    """Walk the whole index in a child process; Corrupt says what to do."""
    await check_in_child(path, sealed=False, advice=ADVICE)
