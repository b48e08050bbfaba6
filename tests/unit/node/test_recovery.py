"""What a start makes of the log: the table, and every flipped byte of the last two group commits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from moorage.node.fold import Fold
from moorage.node.index import Index
from moorage.node.memory_disk import MemoryDisk
from moorage.node.recovery import TABLE, Chain, Cursor, Found, Place, Verdict, judge
from moorage.node.replay import Replay, catalogue
from moorage.node.segment import (
    FIRST_FRAME,
    Entry,
    EntryKind,
    SegmentHeader,
    build_frame,
    pack_head,
    pack_segment_header,
)
from moorage.quorum.record import Kind, Record, block_sums
from moorage.wire.errors import Corrupt

SEED = 0x5EED
DEVICE = b"d" * 16
SIZE = 128 << 10


def test_each_place_matches_exactly_one_row() -> None:
    for place in itertools.starmap(Place, itertools.product(Found, (True, False), (True, False))):
        rows = [
            row
            for row in TABLE
            if all(want is None or want == got for want, got in zip(row[:3], place, strict=True))
        ]
        assert len(rows) == 1, place
        assert judge(place) is rows[0][3]


def test_nothing_that_was_acknowledged_is_a_torn_tail() -> None:
    for found in Found:
        assert judge(Place(found, False, True)) is not Verdict.TORN_TAIL


class Writer:
    """Writes segments as the log does, by hand."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.disk = disk
        self.group = 0
        self.number = 0
        self.end = 0
        self.frames: list[tuple[str, int, int]] = []  # file, offset, size
        self.name = ""

    def segment(self, number: int, ended: int | None = None) -> None:
        previous, end = self.number, self.end if ended is None else ended
        self.name = f"{number:08d}.seg"
        self.number, self.end = number, FIRST_FRAME
        file = self.disk.create(self.name, SIZE)
        header = SegmentHeader(number, self.group + 1, previous, end, DEVICE)
        file.pwritev([pack_segment_header(header, SEED)], 0)

    def frame(self, *entries: tuple[int, Entry]) -> None:
        self.group += 1
        frame = build_frame(self.number, self.group, self.end, list(entries), SEED)
        self.disk.open(self.name).pwritev([frame.front, *frame.data], self.end)
        self.frames.append((self.name, self.end, frame.size))
        self.end += frame.size


def create(replica: int) -> tuple[int, Entry]:
    import msgpack

    entry = Entry(EntryKind.CREATE, replica)
    entry.add_body(msgpack.packb([replica, 1, 0, "sync", 3]))
    return replica, entry


def write(replica: int, lsn: int, blocks: int = 1) -> tuple[int, Entry]:
    data = bytes([lsn]) * 4096 * blocks
    record = Record(1, lsn, Kind.WRITE, 0, lsn, blocks, block_sums(data), data)
    entry = Entry(EntryKind.RECORDS)
    entry.add_body(pack_head(record))
    entry.add_data(data)
    entry.count = 1
    return replica, entry


class Outcome:
    def __init__(self, disk: MemoryDisk, reached: int = 0) -> None:
        self.found = catalogue(disk, DEVICE, SEED, {}, 0)
        first = min(self.found.headers)
        replay = Replay(self.found, Cursor(first, self.found.starts[first], 1), SIZE, SEED, reached)
        self.fold = Fold(Index(lambda handle, number: None, 64))
        self.all_damaged = False
        self.entries_damaged: set[int] = set()
        self.verdicts: list[Verdict] = []
        while steps := replay.batch():
            for step in steps:
                self.verdicts.append(step.verdict)
                self.all_damaged |= step.verdict is Verdict.DAMAGED_ALL
                for entry in step.entries if step.verdict is not Verdict.TORN_TAIL else []:
                    if entry.whole:
                        self.fold.parsed(entry, 0)
                    else:
                        self.entries_damaged.add(entry.head.replica)
        self.end = replay.end

    def last(self, replica: int) -> int:
        return self.fold.replicas[replica].state.last


def log_of_four(disk: MemoryDisk) -> Writer:
    writer = Writer(disk)
    writer.segment(2)
    writer.frame(create(1), create(2))
    writer.frame(write(1, 1), write(2, 1))
    writer.frame(write(1, 2, blocks=2), write(2, 2))
    writer.frame(write(1, 3), write(2, 3))
    return writer


def flipped(disk: MemoryDisk, name: str, offset: int) -> Callable[[], None]:
    """Flip a byte; call what is returned to flip it back."""
    file = disk.files[name]
    file.now[offset] ^= 0x20

    def back() -> None:
        file.now[offset] ^= 0x20

    return back


def test_a_whole_log_is_read_whole() -> None:
    disk = MemoryDisk()
    writer = log_of_four(disk)
    outcome = Outcome(disk)
    assert outcome.verdicts == [Verdict.KEEP] * 4 + [Verdict.TORN_TAIL]
    assert outcome.end == Cursor(2, writer.end, 5)
    assert (outcome.last(1), outcome.last(2)) == (3, 3)


def test_every_flipped_byte_of_the_last_group_commit_only_shortens_the_log() -> None:
    disk = MemoryDisk()
    name, offset, size = log_of_four(disk).frames[3]
    for at in range(offset, offset + size):
        back = flipped(disk, name, at)
        outcome = Outcome(disk)
        assert not outcome.all_damaged and not outcome.entries_damaged
        assert (outcome.last(1), outcome.last(2)) in ((2, 2), (3, 3)), at
        if (outcome.last(1), outcome.last(2)) == (3, 3):
            assert at >= offset + size - 511, "only the padding may change without a word"
        back()


@pytest.mark.slow
def test_every_flipped_byte_of_an_earlier_group_commit_is_reported() -> None:
    disk = MemoryDisk()
    name, offset, size = log_of_four(disk).frames[2]
    seen = set()
    for at in range(offset, offset + size):
        back = flipped(disk, name, at)
        outcome = Outcome(disk)
        if outcome.all_damaged:
            seen.add("all")
        elif outcome.entries_damaged:
            assert len(outcome.entries_damaged) == 1, "damage of one entry is its replica's alone"
            seen |= {f"replica {each}" for each in outcome.entries_damaged}
        else:
            assert at >= offset + size - 511 and outcome.last(1) == outcome.last(2) == 3, at
        back()
    assert seen == {"all", "replica 1", "replica 2"}


def test_every_flipped_byte_of_a_last_group_commit_that_the_index_refers_to_is_reported() -> None:
    disk = MemoryDisk()
    writer = log_of_four(disk)
    assert Outcome(disk, reached=4).verdicts == [*[Verdict.KEEP] * 4, Verdict.TORN_TAIL]
    name, offset, size = writer.frames[3]
    for at in range(offset, offset + size):
        back = flipped(disk, name, at)
        outcome = Outcome(disk, reached=4)
        if not outcome.all_damaged and not outcome.entries_damaged:
            assert outcome.last(1) == outcome.last(2) == 3  # padding
        assert outcome.end.group == 5, "the number of what is lost is not given again"
        back()


def test_a_gap_is_seen_again_by_the_start_after_the_one_that_saw_the_damage() -> None:
    """That one died before its checkpoint, and has said where the log ended."""
    disk = MemoryDisk()
    writer = log_of_four(disk)
    flipped(disk, *writer.frames[3][:2])
    end = Outcome(disk, reached=4).end
    writer.group = end.group - 1
    writer.segment(4, ended=end.offset)
    writer.frame()
    again = Outcome(disk, reached=4)
    assert again.all_damaged and again.end.group == 6
    assert Outcome(disk).all_damaged


def test_a_flipped_byte_before_a_later_segment_is_reported() -> None:
    """The proof of a later group is in the next segment only."""
    disk = MemoryDisk()
    writer = log_of_four(disk)
    name, offset, _ = writer.frames[3]
    writer.segment(3)
    writer.frame(write(1, 4))
    flipped(disk, name, offset + 70)
    assert Outcome(disk).all_damaged


def test_a_life_ends_where_the_next_one_says() -> None:
    """Behind a torn tail lie bytes that would parse: they were never acknowledged, and stay gone."""
    disk = MemoryDisk()
    writer = log_of_four(disk)
    end = writer.frames[2][1]  # recovery kept two groups; the third was torn then, and reads whole now
    writer.group = 2
    writer.segment(5, ended=end)
    writer.frame(write(1, 2), write(2, 2))
    outcome = Outcome(disk)
    assert outcome.verdicts == [Verdict.KEEP] * 3 + [Verdict.TORN_TAIL]
    assert (outcome.last(1), outcome.last(2)) == (2, 2)
    assert outcome.end.segment == 5


def test_stale_frames_of_a_former_life_of_the_file_do_not_parse() -> None:
    disk = MemoryDisk()
    old = Writer(disk)
    old.segment(2)
    old.frame(create(1), create(2))
    old.frame(write(1, 1))
    old.frame(write(1, 2))
    new = Writer(disk)
    new.number, new.name, new.end = 9, old.name, FIRST_FRAME
    disk.open(old.name).pwritev([pack_segment_header(SegmentHeader(9, 1, 0, 0, DEVICE), SEED)], 0)
    new.frame(create(1), create(2))  # of the same length: the old second frame begins right behind it
    outcome = Outcome(disk)
    assert outcome.verdicts == [Verdict.KEEP, Verdict.TORN_TAIL]
    assert outcome.last(1) == 0


@pytest.mark.parametrize("at", [0, 8, 16, 30, 56])
def test_a_damaged_segment_header_loses_nothing(at: int) -> None:
    disk = MemoryDisk()
    writer = log_of_four(disk)
    writer.segment(3)
    writer.frame(write(1, 4))
    writer.frame(write(1, 5))
    flipped(disk, writer.name, at)
    outcome = Outcome(disk)
    assert not outcome.all_damaged
    assert outcome.last(1) == 5
    assert outcome.found.notes


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_checkpoint_knows_a_segment_whose_header_the_disk_put_elsewhere(elsewhere: bool) -> None:
    """The file has the header of its former life, and perhaps another one has what it should have."""
    disk = MemoryDisk()
    writer = Writer(disk)
    for number in (2, 3):
        writer.segment(number)
        writer.frame(create(number))
    at = {2: "00000002.seg", 7: "00000003.seg"}
    if elsewhere:
        disk.create("00000004.seg", SIZE).pwritev(
            [pack_segment_header(SegmentHeader(7, 5, 0, 0, DEVICE), SEED)], 0
        )
    found = catalogue(disk, DEVICE, SEED, at, 7)
    assert found.names == at and found.last_number == 7
    assert found.notes == ["00000003.seg: header of segment 7 is damaged"]


def test_a_torn_first_group_of_a_segment_is_a_torn_tail() -> None:
    disk = MemoryDisk()
    writer = log_of_four(disk)
    writer.segment(3)
    writer.frame(write(1, 4))
    for at in (0, writer.frames[-1][1] + 10):  # both the header and the frame
        flipped(disk, writer.name, at)
    outcome = Outcome(disk)
    assert not outcome.all_damaged
    assert outcome.last(1) == 3


@pytest.mark.parametrize("more_lives", [False, True])
def test_a_segment_that_was_only_begun_is_no_damage(more_lives: bool) -> None:
    """A torn first write of a segment may lack the sector with the header, and leave the frame behind it: so
    it stays, also when later lives have begun."""
    for later in (False, True):
        writer = Writer(MemoryDisk())
        writer.segment(1)
        writer.frame(create(1))
        writer.segment(2)
        writer.frame(write(1, 1, blocks=4))
        name, offset, size = writer.frames[-1]
        if later:  # then the first one had been synced, and its header too
            writer.frame(write(1, 2))
        file = writer.disk.files[name].now
        file[:FIRST_FRAME] = bytes(FIRST_FRAME)
        assert bool(Outcome(writer.disk).found.notes) is later
        file[offset + size - 512 : offset + size] = bytes(512)
        if more_lives:
            if not later:  # what is torn is not counted
                writer.group -= 1
                writer.end = FIRST_FRAME
            writer.segment(4)
            writer.frame()
        outcome = Outcome(writer.disk)
        assert bool(outcome.found.notes) is later
        assert outcome.entries_damaged == ({1} if later else set())
        assert not outcome.all_damaged


@pytest.mark.parametrize("seed", [0, SEED])
def test_what_a_client_wrote_is_no_proof_of_a_later_group(seed: int) -> None:
    """Bytes of a client's blocks lie behind the tail of a segment that is used again. Only who knows the
    device's seed could make frames of them, which then would be read as group commits."""
    disk = MemoryDisk()
    writer = log_of_four(disk)
    forged = build_frame(writer.number, 10**9, writer.end, [(2, Entry(EntryKind.DROP))], seed)
    slot = b"".join((forged.front, *forged.data))
    disk.open(writer.name).pwritev([slot * 16], writer.end + 512)
    outcome = Outcome(disk)
    assert outcome.all_damaged is (seed == SEED)
    assert outcome.verdicts[:5] == [Verdict.KEEP] * 4 + (
        [Verdict.DAMAGED_ALL] if seed == SEED else [Verdict.TORN_TAIL]
    )


def test_a_scan_reads_little_of_what_is_no_frame() -> None:
    disk = MemoryDisk()
    writer = log_of_four(disk)
    slot = build_frame(writer.number, 10**9, 512, [(2, Entry(EntryKind.DROP))], 0).front[:64].ljust(512, b"x")
    disk.open(writer.name).pwritev([slot * ((SIZE - writer.end) // 512)], writer.end)
    read: list[int] = []
    file = disk.files[writer.name]
    real = file.preadv

    def preadv(into: Any, offset: int) -> int:
        read.append(real(into, offset))
        return read[-1]

    file.preadv = preadv  # type: ignore[method-assign]
    assert not Outcome(disk).all_damaged
    assert sum(read) < 4 * SIZE


def test_a_torn_tail_before_a_life_whose_header_is_damaged_is_no_corruption() -> None:
    disk = MemoryDisk()
    writer = log_of_four(disk)
    name, offset, size = writer.frames[-1]
    flipped(disk, name, offset + size - 10)  # the last group was torn, the next life has left it out
    writer.group -= 1
    writer.segment(3, ended=offset)
    writer.frame(write(1, 4))
    flipped(disk, writer.name, 8)
    outcome = Outcome(disk)
    assert not outcome.all_damaged and not outcome.entries_damaged
    assert Verdict.LIFE_END not in outcome.verdicts and outcome.end.segment == 3


def test_a_file_of_another_device_is_named() -> None:
    disk = MemoryDisk()
    log_of_four(disk)
    header = SegmentHeader(99, 1, 0, 0, b"e" * 16)
    disk.create("00000099.seg", SIZE).pwritev([pack_segment_header(header, SEED + 1)], 0)
    with pytest.raises(Corrupt, match=r"00000099\.seg belongs to another device"):
        Outcome(disk)


def test_a_rotten_name_of_the_device_in_a_free_file_is_not_another_device() -> None:
    disk = MemoryDisk()
    log_of_four(disk)
    raw = bytearray(pack_segment_header(SegmentHeader(99, 1, 0, 0, DEVICE), SEED))
    raw[raw.index(DEVICE) + 3] ^= 0x81
    disk.create("00000099.seg", SIZE).pwritev([raw], 0)
    assert not Outcome(disk).all_damaged


def test_followers() -> None:
    headers = [SegmentHeader(2, 1, 0, 0, DEVICE), SegmentHeader(4, 3, 2, 900, DEVICE)]
    chain = Chain({each.number: each for each in headers})
    assert chain.follower(2) == headers[1]
    assert chain.follower(4) is None
    assert chain.next_after(1) == headers[0]
    assert chain.next_after(4) is None
