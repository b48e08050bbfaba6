"""Heads of records: what is packed comes back, what is not packed is refused."""

from __future__ import annotations

import pytest

from moorage.quorum.record import (
    BLOCK_SIZE,
    BLOCKS_PER_CHUNK,
    CHUNKS_MAX,
    EPOCH_MAX,
    HEAD_SIZE,
    LSN_MAX,
    SNAPSHOTS_MAX,
    Kind,
    block_sum,
    block_sums,
    decode_batch,
    decode_head,
    encode_head,
    first_bad_block,
    pack_lsns,
    problem,
)
from moorage.wire.errors import Corrupt

DATA = bytes(range(256)) * (BLOCK_SIZE // 256) * 2


def test_heads_come_back() -> None:
    sums = block_sums(DATA)
    heads = [
        (3, 7, Kind.WRITE, 5, 1022, 2, sums),
        (3, 8, Kind.ZERO, 5, 0, 1024, b""),
        (3, 9, Kind.ZERO_CHUNKS, 1 << 40, 0, 1 << 20, b""),
        (4, 10, Kind.BARRIER, 0, 0, 0, b""),
        (4, 11, Kind.SNAPSHOTS, 0, 0, 3, pack_lsns([2, 7, 11])),
        (4, 12, Kind.SNAPSHOTS, 0, 0, 0, b""),
    ]
    packed = b"".join(encode_head(*head) for head in heads)
    records = decode_batch(packed, DATA)
    assert [(r.epoch, r.lsn, r.kind, r.chunk, r.block, r.count, r.sums) for r in records] == heads
    assert bytes(records[0].data) == DATA
    assert records[4].snapshots == [2, 7, 11] and records[5].snapshots == []
    assert len(packed) == 6 * HEAD_SIZE + len(sums) + 3 * 8


def test_every_flipped_bit_is_noticed() -> None:
    good = encode_head(3, 7, Kind.WRITE, 5, 1, 2, block_sums(DATA))
    for at in range(len(good) * 8):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << (at % 8)
        with pytest.raises(Corrupt):
            decode_head(bad)


def test_every_short_buffer_is_refused() -> None:
    good = encode_head(3, 7, Kind.WRITE, 5, 1, 2, block_sums(DATA))
    for size in range(len(good)):
        with pytest.raises(Corrupt):
            decode_head(good[:size])


def test_batches_follow_one_another() -> None:
    def heads(*positions: tuple[int, int]) -> bytes:
        return b"".join(encode_head(epoch, lsn, Kind.ZERO, 0, 0, 1) for epoch, lsn in positions)

    assert len(decode_batch(heads((1, 1), (1, 2), (3, 3)), b"")) == 3
    for wrong in (heads((1, 1), (1, 3)), heads((1, 1), (1, 1)), heads((2, 1), (1, 2))):
        with pytest.raises(Corrupt):
            decode_batch(wrong, b"")
    with pytest.raises(Corrupt, match="bytes of data"):
        decode_batch(heads((1, 1)), b"x")


@pytest.mark.parametrize(
    "values",
    [
        (0, 1, Kind.ZERO, 0, 0, 1, 0),
        (EPOCH_MAX + 1, 1, Kind.ZERO, 0, 0, 1, 0),
        (1, 0, Kind.ZERO, 0, 0, 1, 0),
        (1, LSN_MAX + 1, Kind.ZERO, 0, 0, 1, 0),
        (1, 1, Kind.WRITE, 0, 0, 0, 0),
        (1, 1, Kind.WRITE, 0, BLOCKS_PER_CHUNK - 1, 2, 2 * BLOCK_SIZE),
        (1, 1, Kind.WRITE, 0, 0, 2, BLOCK_SIZE),
        (1, 1, Kind.ZERO, 0, 0, BLOCKS_PER_CHUNK + 1, 0),
        (1, 1, Kind.ZERO, 0, 0, 1, BLOCK_SIZE),
        (1, 1, Kind.ZERO_CHUNKS, 0, 0, 0, 0),
        (1, 1, Kind.ZERO_CHUNKS, 0, 1, 1, 0),
        (1, 1, Kind.WRITE, CHUNKS_MAX, 0, 1, BLOCK_SIZE),
        (1, 1, Kind.ZERO, CHUNKS_MAX, 0, 1, 0),
        (1, 1, Kind.ZERO_CHUNKS, CHUNKS_MAX - 4, 0, 5, 0),
        (1, 1, Kind.ZERO_CHUNKS, (1 << 64) - 1, 0, 1, 0),
        (1, 1, Kind.BARRIER, 0, 0, 1, 0),
        (1, 1, Kind.SNAPSHOTS, 0, 0, SNAPSHOTS_MAX + 1, 0),
        (1, 1, Kind.SNAPSHOTS, 0, 1, 1, 0),
        (1, 1, 0, 0, 0, 0, 0),
        (1, 1, 9, 0, 0, 0, 0),
    ],
)
def test_what_is_no_record(values: tuple[int, int, int, int, int, int, int]) -> None:
    assert problem(*values)


def test_ends_of_the_ranges_are_records() -> None:
    assert not problem(EPOCH_MAX, LSN_MAX, Kind.ZERO, 0, BLOCKS_PER_CHUNK - 1, 1, 0)
    assert not problem(1, 1, Kind.WRITE, 0, 0, BLOCKS_PER_CHUNK, BLOCKS_PER_CHUNK * BLOCK_SIZE)
    assert not problem(1, 1, Kind.ZERO, CHUNKS_MAX - 1, 0, 1, 0)
    assert not problem(1, 1, Kind.ZERO_CHUNKS, CHUNKS_MAX - 5, 0, 5, 0)


@pytest.mark.parametrize("lsns", [[0], [4], [2, 2], [3, 1]])
def test_lists_of_snapshots_rise_to_their_own_record(lsns: list[int]) -> None:
    with pytest.raises(Corrupt, match="snapshots"):
        decode_head(encode_head(1, 3, Kind.SNAPSHOTS, 0, 0, len(lsns), pack_lsns(lsns)))


def test_bad_blocks_are_found() -> None:
    sums = block_sums(DATA)
    assert first_bad_block(sums, DATA) == -1
    assert sums[:8] == block_sum(DATA[:BLOCK_SIZE]).to_bytes(8, "little")
    bad = bytearray(DATA)
    bad[BLOCK_SIZE] ^= 1
    assert first_bad_block(sums, bad) == 1
