"""The verifying load must notice what it is there to notice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moorage.bench.verify import BLOCK, Journal, Pattern, VerifyingLoad, judge, read_journal
from moorage.client.device import Done
from moorage.wire.errors import Corrupt, NoQuorum

BLOCKS = 32


class MemoryDevice:
    """Completes on the next loop turn; ``spoil`` may tamper with what is stored."""

    size = BLOCKS * BLOCK
    read_only = False
    block_size = BLOCK

    def __init__(self, spoil: str = "") -> None:
        self.data = bytearray(self.size)
        self.spoil = spoil
        self.writes = 0

    def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
        def run() -> None:
            into[:] = self.data[offset : offset + len(into)]
            done(None)

        asyncio.get_running_loop().call_soon(run)

    def write_nowait(self, offset: int, data: memoryview, done: Done, fua: bool = False) -> None:
        self.writes += 1
        if self.spoil == "refuse" and self.writes % 5 == 0:
            done(NoQuorum("1 of 3"))
            return
        if self.spoil == "lose" and self.writes % 50 == 0:
            done(None)
            return
        content = bytearray(data)
        if self.spoil == "tear" and self.writes % 50 == 0:
            content[BLOCK // 2 :] = self.data[offset + BLOCK // 2 : offset + BLOCK]
        if self.spoil == "misplace" and self.writes % 50 == 0:
            offset = (offset + BLOCK) % self.size
        self.data[offset : offset + len(data)] = content
        asyncio.get_running_loop().call_soon(done, None)

    def zero_nowait(self, offset: int, length: int, done: Done, discard: bool, fua: bool = False) -> None:
        raise NotImplementedError

    def flush_nowait(self, done: Done) -> None:
        done(None)

    async def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, False)]


async def run_load(device: MemoryDevice, journal: Journal | None = None) -> VerifyingLoad:
    load = VerifyingLoad(device, blocks=BLOCKS, run=7, depth=4, journal=journal)
    load.start("only")
    while load.phase.reads + load.phase.writes < 2000:
        await asyncio.sleep(0)
    await load.stop()
    await load.verify_all()
    return load


async def test_a_good_device_passes() -> None:
    load = await run_load(MemoryDevice())
    assert load.mismatches == []
    assert load.phase.errors == 0


@pytest.mark.parametrize("spoil", ["lose", "tear", "misplace"])
async def test_a_bad_device_is_noticed(spoil: str) -> None:
    assert (await run_load(MemoryDevice(spoil))).mismatches


async def test_refused_writes_are_errors_not_mismatches() -> None:
    load = await run_load(MemoryDevice("refuse"))
    assert load.mismatches == []
    assert load.phase.errors > 0
    assert "NoQuorum" in load.phase.first_error


async def test_writes_that_were_not_asked_for_have_no_gap() -> None:
    load = VerifyingLoad(MemoryDevice(), blocks=BLOCKS, run=7, depth=4)
    load.start("both")
    await asyncio.sleep(0.02)
    load.set_read_share(1.0)
    await asyncio.sleep(0.02)
    load.next_phase("reads")
    await asyncio.sleep(0.3)
    load.set_read_share(0.5)
    await asyncio.sleep(0.02)
    figures = await load.stop()
    assert figures["writes"] and float(str(figures["write_gap_ms"])) < 250


async def test_a_copy_is_held_to_the_last_version() -> None:
    device = MemoryDevice()
    load = await run_load(device)
    copy = bytearray(device.data)

    async def read_from(offset: int, length: int) -> bytes:
        if offset == 0 and rotten:
            raise Corrupt("rot")
        return bytes(copy[offset : offset + length])

    rotten = True
    assert await load.verify_copy(read_from) == 1 and load.mismatches == []
    rotten = False
    assert await load.verify_copy(read_from) == 0 and load.mismatches == []
    copy[3 * BLOCK : 4 * BLOCK] = bytes(BLOCK)  # as it was once
    assert await load.verify_copy(read_from) == 0
    (mismatch,) = load.mismatches
    assert mismatch.startswith("block 3: version 0, not within")


async def test_the_journal_judges_a_volume_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    device = MemoryDevice()
    load = await run_load(device, journal)
    journal.flush_begins()
    journal.flushed()
    journal.acked(0, 10**6)
    journal.close()
    acked, flushed = read_journal(path)
    assert acked[0] == 10**6 and flushed[0] < 10**6
    wrong, found = judge(load.pattern, device.data, 0, flushed)
    assert wrong == [] and found[0] == flushed[0]
    wrong, _ = judge(load.pattern, device.data, 0, acked)
    assert wrong == [f"block 0: version {flushed[0]} found, 1000000 was acknowledged"]


def test_a_pattern_names_its_version() -> None:
    pattern = Pattern(3)
    assert pattern.version(5, pattern.content(5, 9)) == 9
    assert pattern.version(5, bytes(BLOCK)) == 0
    assert pattern.version(6, pattern.content(5, 9)) is None
    assert Pattern(4).version(5, pattern.content(5, 9)) is None
