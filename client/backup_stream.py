"""The stream of a backup: header, frames, trailer; written and read from front to back, never seeking.

Owns the bytes (docs/formats.md, "Backup") and every check of them. Blocks where the stream does;
:mod:`moorage.client.backup` calls it in threads. A reader gives a frame only when its check matches, and an
end only when the trailer matches all that came before and nothing is behind: whoever reached it has read what
was written, all of it, in order. What is wrong raises Corrupt (another version: VersionMismatch) that names
the stream and the byte.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple, NoReturn

import msgpack
import xxhash

from moorage.client.front import PIECE_SIZE
from moorage.quorum.record import BLOCK_SIZE, Buffer
from moorage.wire.errors import Corrupt, Invalid, VersionMismatch, invariant

MAGIC = b"MOBK"
VERSION = 1
PREAMBLE = struct.Struct("<4sHHII")  # magic, version, 0, size of the body, 0
HEAD = struct.Struct("<B7xQQ")  # kind, offset, length; of the end: kind, frames, bytes of data
CHECK = struct.Struct("<Q")
assert (PREAMBLE.size, HEAD.size) == (16, 24)
BODY_MAX = 64 << 10
BATCH_MAX = 256  # frames: of holes there may be many
SIZE_END = 1 << 63  # no volume is larger


class Kind(IntEnum):
    DATA = 1
    HOLE = 2
    END = 3


@dataclass(frozen=True)
class Base:
    """The snapshot since which an incremental backup has what changed."""

    volume_id: int
    snapshot: str
    snapshot_id: int
    created_ms: int


@dataclass(frozen=True)
class Header:
    """What a backup is of. Ids are those of its cluster, given once; ``size`` and ``block_size`` in bytes;
    ``replicas``, ``groups`` and ``durability`` are those of the volume, defaults for a restore."""

    cluster: str
    volume: str
    volume_id: int
    snapshot: str
    snapshot_id: int
    created_ms: int
    size: int
    block_size: int
    replicas: int
    groups: int
    durability: str
    base: Base | None

    @property
    def shown(self) -> str:
        """``VOLUME@SNAPSHOT``, and since which one."""
        since = f" since {self.volume}@{self.base.snapshot}" if self.base else ""
        return f"{self.volume}@{self.snapshot}{since}"

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpack(cls, raw: bytes) -> Header:
        """Raises ValueError for what no version wrote."""
        value = _typed(cls, msgpack.unpackb(raw))
        if value["base"] is not None:
            value["base"] = Base(**_typed(Base, value["base"]))
        found = cls(**value)
        if found.block_size != BLOCK_SIZE or not 0 < found.size < SIZE_END or found.size % BLOCK_SIZE:
            raise ValueError(f"a size of {found.size} in blocks of {found.block_size}")
        return found


def _typed(kind: type, value: Any) -> dict[str, Any]:
    """A map with just the fields of a dataclass, each of its type."""
    wanted = {field.name: field.type for field in fields(kind)}
    if not isinstance(value, dict) or value.keys() != wanted.keys():
        raise ValueError("fields that no version wrote")
    types = {"int": (int,), "str": (str,), "Base | None": (dict, type(None))}
    for name, text in wanted.items():
        if type(value[name]) not in types[str(text)] or (text == "int" and value[name] < 0):
            raise ValueError(f"{name} is {value[name]!r:.80}")
    return value


class Frame(NamedTuple):
    """``length`` bytes of the volume from ``offset`` on: ``data``, or a hole."""

    kind: Kind
    offset: int
    length: int
    data: bytes


@dataclass
class Totals:
    """Of a stream so far; all but ``frames`` are bytes, ``stream`` that of the stream itself."""

    frames: int = 0
    data: int = 0
    holes: int = 0
    stream: int = 0


class _Sums:
    """What writer and reader add up alike."""

    header: Header

    def __init__(self) -> None:
        self.totals = Totals()
        self._seed = 0  # the header's check: a frame of another backup does not match
        self._digest = xxhash.xxh3_64()
        self._at = 0  # all of the volume before this offset is told

    def _check(self, head: bytes, data: Buffer) -> bytes:
        found = xxhash.xxh3_64(head, seed=self._seed)
        found.update(data)
        return CHECK.pack(found.intdigest())

    def _misplaced(self, kind: int, offset: int, length: int) -> str:
        """Why a frame cannot stand here, or ""."""
        if kind not in (Kind.DATA, Kind.HOLE):
            return f"a frame of kind {kind}"
        if (offset | length) % BLOCK_SIZE or not length or (kind == Kind.DATA and length > PIECE_SIZE):
            return f"a frame of {length} bytes at offset {offset}"
        if offset < self._at or (offset > self._at and self.header.base is None):
            return f"offset {offset} comes behind offset {self._at}: frames are missing, or out of order"
        if offset + length > self.header.size:
            return f"offset {offset + length} of a volume of {self.header.size} bytes"
        return ""

    def _count(self, kind: int, offset: int, length: int, check: bytes) -> None:
        self._digest.update(check)
        self._at = offset + length
        self.totals.frames += 1
        if kind == Kind.DATA:
            self.totals.data += length
        else:
            self.totals.holes += length

    def _is_short(self) -> bool:
        """A full backup tells of every byte."""
        return self.header.base is None and self._at != self.header.size


class BackupWriter(_Sums):
    """Frames go in ascending order; those of a full backup leave nothing out. The stream is the caller's."""

    def __init__(self, stream: BinaryIO, header: Header) -> None:
        super().__init__()
        self.header = header
        self._stream = stream
        body = header.pack()
        invariant(len(body) <= BODY_MAX, "header of a backup fits", size=len(body))
        preamble = PREAMBLE.pack(MAGIC, VERSION, 0, len(body), 0)
        check = self._check(preamble, body)
        (self._seed,) = CHECK.unpack(check)
        self._write(preamble + check + body)

    def data(self, offset: int, data: bytes) -> None:
        self._put(Kind.DATA, offset, len(data), data)

    def hole(self, offset: int, length: int) -> None:
        self._put(Kind.HOLE, offset, length, b"")

    def end(self) -> None:
        invariant(not self._is_short(), "backup tells of every byte", at=self._at)
        head = HEAD.pack(Kind.END, self.totals.frames, self.totals.data)
        digest = CHECK.pack(self._digest.intdigest())
        self._write(head + self._check(head, digest) + digest)

    def _put(self, kind: Kind, offset: int, length: int, data: bytes) -> None:
        wrong = self._misplaced(kind, offset, length)
        invariant(not wrong, wrong)
        head = HEAD.pack(kind, offset, length)
        check = self._check(head, data)
        self._write(head + check)
        if data:
            self._write(data)
        self._count(kind, offset, length, check)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                written = self._stream.write(view)
            except OSError as error:
                raise OSError(error.errno, error.strerror, name_of(self._stream)) from None
            if written is None:
                raise Invalid(f"{name_of(self._stream)} does not block: give one that does")
            view = view[written:]
        self.totals.stream += len(data)


class BackupReader(_Sums):
    """Reads the header at once. Each frame is checked before it is given away. The stream is the caller's."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self.name = name_of(stream)
        self._stream = stream
        self._ended = False
        self._frame_at = 0  # byte of the stream: what is wrong is wrong there
        self.header = self._read_header()

    def _read_header(self) -> Header:
        front = self._read(PREAMBLE.size + CHECK.size)
        magic, version, _, size, _ = PREAMBLE.unpack_from(front)
        if magic != MAGIC:
            self._damaged("it is no backup of Moorage")
        if size > BODY_MAX:
            self._damaged(f"a header of {size} bytes")
        body = self._read(size)
        if self._check(front[: PREAMBLE.size], body) != front[PREAMBLE.size :]:
            self._damaged("the header does not match its check")
        if version != VERSION:
            raise VersionMismatch(
                f"{self.name}: backup in version {version}, this version reads {VERSION}: use the version of"
                " Moorage that wrote it"
            )
        (self._seed,) = CHECK.unpack_from(front, PREAMBLE.size)
        try:
            return Header.unpack(body)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            self._damaged(f"the header: {error}")

    def batch(self) -> list[Frame]:
        """The next frames, less than two pieces of data; none at the end of a backup that is whole."""
        frames: list[Frame] = []
        until = self.totals.data + PIECE_SIZE
        while not self._ended and self.totals.data < until and len(frames) < BATCH_MAX:
            if (frame := self._next()) is None:
                self._ended = True
            else:
                frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        self._frame_at = self.totals.stream
        front = self._read(HEAD.size + CHECK.size)
        head, check = front[: HEAD.size], front[HEAD.size :]
        kind, offset, length = HEAD.unpack(head)
        if kind == Kind.END:
            self._read_end(head, check)
            return None
        data = self._read(length) if kind == Kind.DATA and length <= PIECE_SIZE else b""
        if self._check(head, data) != check:
            self._damaged("a frame does not match its check")
        if wrong := self._misplaced(kind, offset, length):
            self._damaged(wrong)
        self._count(kind, offset, length, check)
        return Frame(Kind(kind), offset, length, data)

    def _read_end(self, head: bytes, check: bytes) -> None:
        digest = self._read(CHECK.size)
        if self._check(head, digest) != check:
            self._damaged("the trailer does not match its check")
        wanted = (HEAD.pack(Kind.END, self.totals.frames, self.totals.data), self._digest.intdigest())
        if wanted != (head, *CHECK.unpack(digest)) or self._is_short():
            self._damaged("the trailer is not that of the frames before it: some are missing")
        self._frame_at = self.totals.stream
        if self._stream.read(1):
            self._damaged("there are bytes behind the trailer")

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            try:
                part = self._stream.read(left)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.name) from None
            if part is None:
                raise Invalid(f"{self.name} does not block: give one that does")
            if not part:
                raise Corrupt(
                    f"{self.name} ends at byte {self.totals.stream + size - left}, before the end of the"
                    " backup: use another copy of it",
                    name=self.name,
                    byte=self.totals.stream + size - left,
                )
            parts.append(part)
            left -= len(part)
        self.totals.stream += size
        return b"".join(parts)

    def _damaged(self, what: str) -> NoReturn:
        raise Corrupt(
            f"{self.name} is damaged at byte {self._frame_at}: {what}; use another copy of it",
            name=self.name,
            byte=self._frame_at,
        )


def name_of(stream: BinaryIO) -> str:
    """As errors call it."""
    name: object = getattr(stream, "name", "the backup")
    return {0: "standard input", 1: "standard output"}[name] if name in (0, 1) else str(name)


def check_chain(readers: list[BackupReader]) -> None:
    """Raises Invalid unless the first is full, and each other one of what changed since the one before."""
    if not readers:
        raise Invalid("name the backups: a full one, and then incremental ones in their order")
    first = readers[0]
    if (base := first.header.base) is not None:
        raise Invalid(
            f"{first.name} holds only what changed since {first.header.volume}@{base.snapshot}: name the full"
            " backup first, and all incremental ones from there on in their order"
        )
    for before, reader in pairwise(readers):
        old, new = before.header, reader.header
        if new.base is None:
            raise Invalid(f"{reader.name} is a full backup, of {new.shown}: it can only be the first one")
        found = Base(old.volume_id, old.snapshot, old.snapshot_id, old.created_ms)
        if (old.cluster, found) != (new.cluster, new.base) or new.size < old.size:
            raise Invalid(
                f"{reader.name} holds what changed since {new.volume}@{new.base.snapshot} (snapshot"
                f" {new.base.snapshot_id}), but {before.name} is of {old.volume}@{old.snapshot} (snapshot"
                f" {old.snapshot_id}): name each backup behind the one that it is based on"
            )
