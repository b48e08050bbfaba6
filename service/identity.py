"""Persistent identity: small JSON files that say who owns a directory, each with its own checksum.

Owns the format and the way to write it so that a crash leaves the old file or the new one
(docs/launch.md): one line of JSON, ``{"body": {...}, "check": "16 hex digits", "format": 1, "kind":
"..."}``, keys sorted, no spaces, one newline at its end; ``check`` is xxh3_64 of the same line without
``check``. The bytes on disk must be exactly those that :func:`encode` gives for what they say: so any
flipped byte is noticed, also one that JSON would forgive.

Must never guess: what does not check is refused with the next step, never replaced by a new identity (a
device that forgot who it was would count as a new, empty one).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import xxhash

from moorage.wire.errors import Corrupt, IdentityConflict, Invalid, VersionMismatch

FORMAT = 1
# What may be in a directory that is nobody's yet: of a new file system, or of a start that was cut short.
NOTHING = {"lost+found", "lock", "identity.json.new"}
# What a device, or a member of a Raft group, has: one that was below the directory of a `moorage host`.
OURS = {"superblock", "data.mdb"}


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def encode(kind: str, body: dict[str, Any]) -> bytes:
    bare = {"body": body, "format": FORMAT, "kind": kind}
    return _dump({**bare, "check": xxhash.xxh3_64_hexdigest(_dump(bare))}) + b"\n"


def decode(kind: str, raw: bytes, path: Path) -> dict[str, Any]:
    """The body of ``raw``; ``path`` is for the message. Raises Corrupt, VersionMismatch or
    IdentityConflict."""
    value = _parse(raw, path)
    body, found = value.get("body"), value.get("kind")
    if not isinstance(body, dict) or not isinstance(found, str):
        raise _corrupt(path, "a field is missing")
    bare = {"body": body, "format": value.get("format"), "kind": found}
    if raw != _dump({**bare, "check": xxhash.xxh3_64_hexdigest(_dump(bare))}) + b"\n":
        raise _corrupt(path, "the checksum does not match")
    if value["format"] != FORMAT:
        raise VersionMismatch(
            f"{path}: identity format {value['format']!r}, not {FORMAT}: use the version that wrote it"
        )
    if found != kind:
        raise IdentityConflict(
            f"{path}: identity of a {found}, not of a {kind}: give each service its own directory"
        )
    return body


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise _corrupt(path, "not JSON") from None
    if not isinstance(value, dict):
        raise _corrupt(path, "not a map")
    return value


def _corrupt(path: Path, what: str) -> Corrupt:
    return Corrupt(
        f"{path}: damaged identity file ({what}): restore this file alone from a copy, or move the directory"
        " away and start with an empty one, under a new identity",
        path=str(path),
    )


def load(path: Path, kind: str) -> dict[str, Any] | None:
    """The body, or None when there is no such file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode(kind, raw, path)


def store(path: Path, kind: str, body: dict[str, Any]) -> None:
    """Replace the file atomically; durable on return."""
    replace_durably(path, encode(kind, body), mode=0o644)


def replace_durably(path: Path, raw: bytes, *, mode: int) -> None:
    """Write beside, fsync, rename over, fsync the directory: a crash leaves the former bytes or these."""
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        _write_all(descriptor, raw)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(beside, path)
    fsync_directory(path.parent)


def _write_all(descriptor: int, raw: bytes) -> None:
    while raw:
        raw = raw[os.write(descriptor, raw) :]


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make it, and what is missing above it; its name is durable on return."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in [
        *reversed(missing),
        path,
    ]:  # ``path`` also if it was there: a killed process may have made it
        each.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):  # nobody syncs a directory that he may not read
            fsync_directory(each.parent)


class DirectoryLock:
    """One process per directory: an flock that ends with the process, however that ends."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock"
        self._descriptor = -1

    def acquire(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise IdentityConflict(
                f"{self.path.parent} is in use by another process: stop that one, or use another --data-dir"
            ) from None

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def claim_directory(directory: Path, *, cluster: str, name: str, kind: str) -> DirectoryLock:
    """Make ``directory`` if need be, lock it, and bind it for good to this cluster, name and service.

    Raises IdentityConflict when it belongs to another one or is in use, Corrupt when its identity is damaged,
    Invalid when it holds anything but is not ours, or cannot be written.
    """
    try:
        make_directory(directory)
    except OSError as error:
        raise Invalid(
            f"--data-dir {directory}: {error.strerror}: choose a directory that can be written"
        ) from None
    lock = DirectoryLock(directory)
    try:
        lock.acquire()
        _bind(directory / "identity.json", {"cluster": cluster, "name": name, "service": kind})
    except OSError as error:
        lock.release()
        raise Invalid(
            f"--data-dir {directory}: {error.strerror}: choose a directory that can be written"
        ) from None
    except BaseException:
        lock.release()
        raise
    return lock


def _bind(path: Path, wanted: dict[str, Any]) -> None:
    found = load(path, "service")
    if found is None:
        there = set(os.listdir(path.parent))
        if (foreign := sorted(there - NOTHING)) and not there & OURS:
            raise Invalid(
                f"{path.parent} is not empty ({', '.join(foreign[:3])}), and no identity.json says whose it"
                " is: nothing is done there; empty it yourself, or use another directory"
            )
        store(path, "service", wanted)
        return
    for field, option in (("cluster", "--secret-file"), ("service", "--data-dir"), ("name", "--name")):
        if found.get(field) != wanted[field]:
            raise IdentityConflict(
                f"{path.parent} belongs to {field} {found.get(field)!r}, not {wanted[field]!r}:"
                f" correct {option}, or use another directory"
            )
