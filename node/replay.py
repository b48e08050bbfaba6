"""Reading the log back after a start: the shell around :mod:`moorage.node.recovery`.

Owns: finding the segments, walking their frames in order, looking for proof of later groups. All of it
blocks: it runs in the device's lane, a batch at a time. Must never write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from moorage.node.disk import Disk, File
from moorage.node.recovery import Chain, Cursor, Found, Place, Verdict, judge
from moorage.node.segment import (
    ALIGN,
    ENTRY_SIZE,
    FIRST_FRAME,
    FRAME_HEADER_SIZE,
    FRAME_MAGIC,
    SEGMENT_HEADER_SIZE,
    SEGMENT_MAGIC,
    FrameHeader,
    ParsedEntry,
    SegmentHeader,
    device_field,
    frame_verified,
    parse_entries,
    parse_frame_header,
    parse_segment_header,
)
from moorage.wire.errors import Corrupt, VersionMismatch

BATCH_BYTES = 8 << 20
_ROTTEN_BITS_MAX = 8
_SCAN_BYTES = 4 << 20
_UNKNOWN_END = -1


class Step(NamedTuple):
    """One group commit, or what stands in its place."""

    at: Cursor
    verdict: Verdict
    entries: list[ParsedEntry]
    data_at: int  # offset of the frame in its segment
    size: int


@dataclass
class Catalogue:
    """The segment files of a device: which number each one has."""

    files: dict[str, File] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # number -> file name
    headers: dict[int, SegmentHeader] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)  # where the first readable frame is
    notes: list[str] = field(default_factory=list)  # damage that lost nothing, for people
    last_number: int = 0


def catalogue(disk: Disk, device: bytes, seed: int, known: dict[int, str], replay_from: int) -> Catalogue:
    """Read every header. ``known``: the checkpoint's own list, which counts where a header is damaged, or is
    one of a former life because the disk has put its last write elsewhere. Raises Corrupt when a file is
    another device's: it must neither be read nor be written again."""
    found = Catalogue(last_number=max(known, default=0))
    listed = {name: number for number, name in known.items()}
    bare: dict[str, bytes] = {}
    for name in disk.names():
        file = found.files[name] = disk.open(name)
        raw = bytearray(SEGMENT_HEADER_SIZE)
        with naming(name):
            header = parse_segment_header(raw, seed) if file.preadv([raw], 0) == len(raw) else None
        agrees = header is not None and (
            listed.get(name, header.number) == header.number and known.get(header.number, name) == name
        )
        if header is not None and header.device == device and agrees:
            _enter(found, name, header, FIRST_FRAME)
        else:
            bare[name] = bytes(raw)
    for number, name in known.items():
        if name in bare:
            found.notes.append(f"{name}: header of segment {number} is damaged")
            _enter(found, name, SegmentHeader(number, 0, 0, 0, device), FIRST_FRAME)
            del bare[name]
    for name, raw_header in bare.items():
        if _salvage(found, name, disk.size(name), replay_from, device, seed):
            continue
        if raw_header.startswith(SEGMENT_MAGIC) and _differs(device_field(raw_header), device):
            raise Corrupt(f"segments/{name} belongs to another device: move it away, then start again")
    return found


def _differs(named: bytes, device: bytes) -> bool:
    """Whether this is another device's id. They are random: two of them differ in about half of their bits,
    and bits that have rotted are few."""
    return (int.from_bytes(named) ^ int.from_bytes(device)).bit_count() > _ROTTEN_BITS_MAX


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Say in which file another version was found."""
    try:
        yield
    except VersionMismatch as error:
        raise VersionMismatch(f"segments/{name}: {error}") from None


def _enter(found: Catalogue, name: str, header: SegmentHeader, start: int) -> None:
    found.headers[header.number] = header
    found.names[header.number] = name
    found.starts[header.number] = start
    found.last_number = max(found.last_number, header.number)


def _salvage(found: Catalogue, name: str, size: int, replay_from: int, device: bytes, seed: int) -> bool:
    """A file without a header may be free, torn when it was begun, or damaged: its frames tell."""
    with naming(name):
        at = _scan(found.files[name], FIRST_FRAME, size, None, replay_from, seed)
    if at is None or at.segment in found.headers:
        return False
    if not _only_begun(found, name, size, at, seed):
        found.notes.append(
            f"{name}: header of segment {at.segment} is missing or damaged, its frames are read"
        )
    previous = max((number for number in found.headers if number < at.segment), default=0)
    header = SegmentHeader(at.segment, at.group, previous, _UNKNOWN_END, device)
    _enter(found, name, header, at.offset)
    return True


def _only_begun(found: Catalogue, name: str, size: int, at: Cursor, seed: int) -> bool:
    """Whether this is no more than a segment's first group commit: a crash may have torn it, its header in
    the part that is missing. That is no damage, and stays so when later lives have begun."""
    if at.offset != FIRST_FRAME:
        return False
    return _scan(found.files[name], at.offset + ALIGN, size, at.segment, at.group, seed) is None


def _scan(file: File, start: int, size: int, segment: int | None, above: int, seed: int) -> Cursor | None:
    """The first verified frame from ``start`` on: of ``segment`` with a group above ``above``, or (None) of
    any segment above ``above``."""
    while start < size:
        raw = bytearray(min(_SCAN_BYTES, size - start))
        raw = raw[: file.preadv([raw], start)]
        at = raw.find(FRAME_MAGIC)
        while at >= 0:
            if (start + at) % ALIGN == 0:
                header = _frame_at(file, start + at, segment, seed)
                if header is not None and (header.segment if segment is None else header.group) > above:
                    return Cursor(header.segment, start + at, header.group)
            at = raw.find(FRAME_MAGIC, at + 1)
        start += _SCAN_BYTES
    return None


def _frame_at(file: File, offset: int, segment: int | None, seed: int) -> FrameHeader | None:
    raw = bytearray(FRAME_HEADER_SIZE)
    if file.preadv([raw], offset) < FRAME_HEADER_SIZE:
        return None
    header = parse_frame_header(raw, segment, seed)
    if header is None:
        return None
    front = bytearray(FRAME_HEADER_SIZE + ENTRY_SIZE * header.entry_count)
    front = front[: file.preadv([front], offset)]
    return header if frame_verified(memoryview(front), header, seed) else None


class Replay:
    """``steps`` from ``cursor`` to the end of the log; afterwards ``end`` is where that is. ``reached``: a
    group commit that is known to have been durable."""

    def __init__(self, found: Catalogue, cursor: Cursor, segment_size: int, seed: int, reached: int) -> None:
        self._found = found
        self._seed = seed
        self._chain = Chain(found.headers)
        self._size = segment_size
        self._reached = reached
        self.end = cursor
        self._steps = self._walk(cursor)

    def batch(self) -> list[Step]:
        """The next steps; empty at the end."""
        taken, size = [], 0
        for step in self._steps:
            taken.append(step)
            size += step.size
            if size >= BATCH_BYTES:
                break
        return taken

    def _walk(self, at: Cursor) -> Iterator[Step]:
        while True:
            follower = self._chain.follower(at.segment)
            ended = follower is not None and _ended(follower, at)
            with naming(self._found.names[at.segment]):
                found, header, entries = self._look(at)
                later = None if ended or found is Found.WHOLE else self._later(at, header)
            verdict = judge(Place(found, ended, later is not None or at.group <= self._reached))
            self.end = at
            if verdict is Verdict.LIFE_END and follower is not None:
                at = Cursor(follower.number, self._found.starts[follower.number], at.group)
                continue
            size = header.frame_size if header is not None else 0
            yield Step(at, verdict, entries, at.offset, size)
            if verdict is Verdict.TORN_TAIL:
                return
            if verdict is Verdict.DAMAGED_ALL:
                if later is None:
                    # What is lost keeps its number: should a crash come before this damage is remembered, the
                    # next start sees the gap.
                    self.end = at._replace(group=self._reached + 1)
                    return
                at = later
            else:
                at = Cursor(at.segment, at.offset + size, at.group + 1)

    def _look(self, at: Cursor) -> tuple[Found, FrameHeader | None, list[ParsedEntry]]:
        file = self._found.files[self._found.names[at.segment]]
        raw = bytearray(FRAME_HEADER_SIZE)
        if at.offset >= self._size or file.preadv([raw], at.offset) < FRAME_HEADER_SIZE:
            return Found.BAD, None, []
        header = parse_frame_header(raw, at.segment, self._seed)
        if header is None or header.group != at.group or at.offset + header.frame_size > self._size:
            return Found.BAD, None, []
        frame = bytearray(header.frame_size)
        view = memoryview(frame)
        if file.preadv([frame], at.offset) < len(frame) or not frame_verified(view, header, self._seed):
            return Found.BAD, None, []
        entries = list(parse_entries(view, header))
        return (Found.WHOLE if all(each.whole for each in entries) else Found.PART), header, entries

    def _later(self, at: Cursor, header: FrameHeader | None) -> Cursor | None:
        """Proof that a later group commit was written, and where to go on."""
        file = self._found.files[self._found.names[at.segment]]
        start = at.offset + (header.frame_size if header is not None else 0)
        here = _scan(file, start, self._size, at.segment, at.group, self._seed)
        if here is not None:
            return here
        following = self._chain.follower(at.segment) or self._chain.next_after(at.segment)
        if following is None:
            return None
        return Cursor(following.number, self._found.starts[following.number], following.first_group)


def _ended(follower: SegmentHeader, at: Cursor) -> bool:
    """Whether the log of this segment ended here. A salvaged follower says so by its group only."""
    if follower.previous_end == _UNKNOWN_END:
        return follower.first_group == at.group
    return follower.previous_end == at.offset
