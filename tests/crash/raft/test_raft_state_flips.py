"""A flipped byte anywhere in a member's LMDB environment is noticed, or its page holds nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import lmdb
import pytest
import xxhash

from moorage.quorum.raft_types import COMMAND, Config, Entry, HardState, Member
from moorage.service import lmdb_check
from moorage.service.raft_storage import RaftStorage, Work
from moorage.wire import errors

IDENTITY = {"cluster": "c", "group": "g", "name": "a"}
CONFIG = Config([Member("a", "unix:/a", True)])
SAME, NOTICED, UNNOTICED = 0, 1, 3


async def fill(directory: Path, seed: int) -> None:
    rng = Random(seed)
    storage = RaftStorage(directory, "g")
    await storage.open(IDENTITY, CONFIG)
    index = 0
    for _ in range(30):
        entries = [Entry(1, index + n, COMMAND, rng.randbytes(rng.choice((9, 300)))) for n in range(1, 8)]
        index += len(entries)
        batch: dict[bytes, Any] = {b"key%d" % rng.randrange(200): rng.randbytes(60) for _ in range(20)}
        batch[b"large"] = rng.randbytes(9000)
        await storage.commit(Work(hard_state=HardState(1, "a"), entries=entries, applied=index, batch=batch))
    await storage.close()


def content(directory: Path) -> int:
    digest = xxhash.xxh3_64()
    with lmdb.open(str(directory), readonly=True, lock=False, max_dbs=8) as env, env.begin() as txn:
        for name in (b"meta", b"log", b"kv", b"staged"):
            for key, value in txn.cursor(env.open_db(name, txn=txn, create=False)):
                digest.update(key + value)
    return digest.intdigest()


def in_child(directory: Path, expected: int) -> int:
    """Check and compare in a forked child: a corrupt page may kill it."""
    child = os.fork()
    if child == 0:
        code = UNNOTICED
        try:
            lmdb_check.check(directory, sealed=True)
            code = SAME if content(directory) == expected else UNNOTICED
        except errors.Corrupt:
            code = NOTICED
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
        return NOTICED
    return os.WEXITSTATUS(status)


def flip_many(directory: Path, expected: int, rng: Random, count: int) -> dict[int, int]:
    seen: dict[int, int] = {}
    data = directory / "data.mdb"
    size = data.stat().st_size
    with data.open("r+b") as file:
        for n in range(count):
            # The two meta pages are few among many: every fourth flip is there.
            at = rng.randrange(200) + 4096 * rng.randrange(2) if n % 4 == 0 else rng.randrange(size)
            file.seek(at)
            before = file.read(1)
            file.seek(at)
            file.write(bytes([before[0] ^ (1 << rng.randrange(8))]))
            file.flush()
            result = in_child(directory, expected)
            assert result in (SAME, NOTICED), f"flip at {at} was not noticed"
            seen[result] = seen.get(result, 0) + 1
            file.seek(at)
            file.write(before)
            file.flush()
    return seen


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [120, pytest.param(6000, marks=pytest.mark.slow)])
def test_every_flip_is_noticed_or_harmless(tmp_path: Path, count: int) -> None:
    asyncio.run(fill(tmp_path / "state", 1))
    expected = content(tmp_path / "state")
    assert in_child(tmp_path / "state", expected) == SAME
    assert in_child(tmp_path / "state", expected + 1) == UNNOTICED
    seen = flip_many(tmp_path / "state", expected, Random(2), count)
    assert seen[NOTICED] > count // 10


async def test_the_service_refuses_and_says_what_to_do(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    await fill(directory, 3)
    raw = bytearray((directory / "data.mdb").read_bytes())
    with lmdb.open(str(directory), readonly=True, lock=False, max_dbs=8) as env, env.begin() as txn:
        value = txn.get(b"large", db=env.open_db(b"kv", txn=txn, create=False))
    at = raw.rindex(value[:64])
    raw[at + 20] ^= 4
    (directory / "data.mdb").write_bytes(raw)
    storage = RaftStorage(directory, "g")
    with pytest.raises(errors.Corrupt) as caught:
        await storage.open(IDENTITY, CONFIG)
    await storage.close()
    assert str(directory) in str(caught.value) and "remove it from the group" in str(caught.value)


async def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    await fill(directory, 4)
    data = directory / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    storage = RaftStorage(directory, "g")
    with pytest.raises(errors.Corrupt):
        await storage.open(IDENTITY, CONFIG)
    await storage.close()


async def test_a_gap_in_the_log_makes_no_sense(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    await fill(directory, 5)
    with lmdb.open(str(directory), max_dbs=8) as env, env.begin(write=True) as txn:
        txn.delete((100).to_bytes(8, "big"), db=env.open_db(b"log", txn=txn))
    storage = RaftStorage(directory, "g")
    with pytest.raises(errors.Corrupt, match="makes no sense"):
        await storage.open(IDENTITY, CONFIG)
    await storage.close()
