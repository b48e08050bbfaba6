"""Walk an LMDB environment in a child process before it is opened: a corrupt page can kill whoever maps it.

Owns: the check of an environment's structure and of sealed values, and their format (``seal``, ``unseal``).
Must never: write to the environment, or run in the process that serves.
Invariant: an environment that passes can be read whole without a crash, each key is found again by a
lookup, and each sealed value matches its checksum, which includes its key (docs/raft.md).

As a child: ``python -m moorage.service.lmdb_check PATH [--sealed]``; exit code 0: whole; 1: corrupt, with
one line on standard error. No other process may have the environment open for writing.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from pathlib import Path

import lmdb
import xxhash

from moorage.wire import errors

_SEAL = struct.Struct("<Q")
SEAL_SIZE = _SEAL.size
MAX_DBS = 64
META_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
# MDB_meta behind the 16 bytes of a page's head: magic, version, address, map size, two MDB_db of 48 bytes,
# last page, transaction number.
_META = struct.Struct("<II16x48x48xQQ")
_META_OFFSET = 16
_META_MAGIC = 0xBEEFC0DE


def seal(key: bytes, payload: bytes) -> bytes:
    """The value to store: xxh3_64 over key and payload, then the payload."""
    return _SEAL.pack(xxhash.xxh3_64_intdigest(key + payload)) + payload


def unseal(key: bytes, value: bytes | memoryview, where: str | Path) -> bytes:
    """The payload of a stored value; Corrupt when value or key changed since it was sealed."""
    payload = bytes(value[SEAL_SIZE:])
    if len(value) < SEAL_SIZE or _SEAL.unpack_from(value)[0] != xxhash.xxh3_64_intdigest(key + payload):
        raise errors.Corrupt(
            f"{where}: the value of key {key[:64]!r} does not match its checksum", key=key[:64]
        )
    return payload


def check(path: Path, sealed: bool) -> int:
    """Read everything; the number of items. Raises Corrupt, or dies with the process."""
    if not (path / "data.mdb").exists():
        return 0
    _check_meta_pages(path / "data.mdb")
    try:
        with lmdb.open(
            str(path), readonly=True, lock=False, max_dbs=MAX_DBS, create=False, subdir=True
        ) as env:
            count = _walk(env, path, sealed)
            _check_page_count(env)
            return count
    except lmdb.Error as error:
        raise errors.Corrupt(f"{path}: LMDB says: {error}") from error


def _check_meta_pages(data: Path) -> None:
    """The two meta pages must come from consecutive transactions, each on its own page: a flipped transaction
    number would make LMDB fall back to the state before the last commit, without a word."""
    found = []
    if data.stat().st_size < 2 * META_PAGE_SIZES[0]:
        raise errors.Corrupt(f"{data}: shorter than its two meta pages")
    with data.open("rb") as file:
        page_size = _page_size(file.read(4096))
        for number in (0, 1):
            file.seek(number * page_size + _META_OFFSET)
            raw = file.read(_META.size)
            if len(raw) < _META.size:
                raise errors.Corrupt(f"{data}: shorter than its two meta pages")
            magic, version, _, transaction = _META.unpack(raw)
            if magic != _META_MAGIC or version != 1:
                raise errors.Corrupt(f"{data}: meta page {number} is damaged")
            found.append(transaction)
    fresh = found == [0, 0]
    if not fresh and (abs(found[0] - found[1]) != 1 or found[0] % 2 != 0):
        raise errors.Corrupt(f"{data}: meta pages disagree (transactions {found[0]} and {found[1]})")


def _page_size(first: bytes) -> int:
    """LMDB keeps the page size in the flags' neighbour of the free list's record (MDB_db.md_pad)."""
    size: int = struct.unpack_from("<I", first, _META_OFFSET + 24)[0]
    return size if size in META_PAGE_SIZES else 4096


def _walk(env: lmdb.Environment, path: Path, sealed: bool) -> int:
    count = 0
    with env.begin(buffers=True) as txn:
        names = [bytes(key) for key, _ in txn.cursor()]
        for name in names:
            try:
                db = env.open_db(name, txn=txn, create=False)
            except lmdb.IncompatibleError as error:
                raise errors.Corrupt(f"{path}: {name!r} is not a database") from error
            count += _walk_one(txn, db, f"{path} ({name.decode(errors='replace')})", sealed)
    return count


def _walk_one(txn: lmdb.Transaction, db: lmdb._Database, where: str, sealed: bool) -> int:
    count, last = 0, b""
    for raw_key, value in txn.cursor(db):
        key = bytes(raw_key)
        if count and key <= last:
            raise errors.Corrupt(f"{where}: keys out of order at {key[:64]!r}")
        if sealed:
            unseal(key, value, where)
        else:
            xxhash.xxh3_64_intdigest(value)  # touches every page of the value
        if txn.get(key, db=db) is None:
            raise errors.Corrupt(f"{where}: key {key[:64]!r} is there but is not found")
        count, last = count + 1, key
    expected = txn.stat(db)["entries"]
    if expected != count:
        raise errors.Corrupt(f"{where}: {count} items found, {expected} expected")
    return count


def _check_page_count(env: lmdb.Environment) -> None:
    """A compacting copy to nowhere fails when used and free pages do not add up."""
    with open(os.devnull, "wb") as nowhere:
        env.copyfd(nowhere.fileno(), compact=True)


async def check_in_child(path: Path, *, sealed: bool, advice: str) -> None:
    """Run the check as a child process. Corrupt names the path, what is wrong and ``advice``: what to do."""
    arguments = ["-m", "moorage.service.lmdb_check", str(path)] + (["--sealed"] if sealed else [])
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, raw = await child.communicate()
    except BaseException:
        child.kill()
        await child.wait()
        raise
    if child.returncode == 0:
        return
    lines = raw.decode(errors="replace").strip().splitlines()
    if child.returncode == 1 and lines:
        raise errors.Corrupt(f"{lines[-1]}; {advice}", path=str(path))
    raise errors.Corrupt(f"{path}: reading it ended with status {child.returncode}; {advice}", path=str(path))


def main(arguments: list[str]) -> int:
    sealed = "--sealed" in arguments
    paths = [argument for argument in arguments if not argument.startswith("--")]
    if len(paths) != 1:
        sys.stderr.write("usage: python -m moorage.service.lmdb_check PATH [--sealed]\n")
        return 2
    try:
        check(Path(paths[0]), sealed)
    except errors.Corrupt as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
