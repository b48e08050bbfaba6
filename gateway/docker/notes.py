"""The ledger's files, below the state directory of mounts:

========================= =======================================================================
``docker/volumes/V.json`` the entry of volume V; absent when there is nothing to note
``docker/volumes/V.lock`` held while somebody mounts or unmounts V for a user
``docker/known.json``     the cluster's volumes as they were last seen (``known.py``)
========================= =======================================================================

A lock ends with its process: nothing is held up by a crash. A file that a power failure has torn is as good
as none, since no mount survives that.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from moorage.gateway import notes
from moorage.gateway.docker.ledger import Entry

POLL_S = 0.02


class Notes:
    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "docker" / "volumes"
        self.known_file = state_dir / "docker" / "known.json"

    def prepare(self) -> None:
        """Raises Corrupt or VersionMismatch for an entry that cannot be read."""
        for name in self.names():
            self.load(name)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self) -> list[str]:
        return sorted(path.name.removesuffix(".json") for path in self._directory.glob("[a-z0-9]*.json"))

    def load(self, name: str) -> Entry:
        return notes.load(self._directory / f"{name}.json", {1: _entry}, torn_is_none=True) or Entry()

    def save(self, name: str, entry: Entry) -> None:
        file = self._directory / f"{name}.json"
        if entry.empty:
            file.unlink(missing_ok=True)
        else:
            engines = {user: engine for user, engine in entry.engines.items() if user in entry.users}
            content = {"users": sorted(entry.users), "options": dict(entry.options), "engines": engines}
            notes.save(file, content)

    @contextlib.asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[None]:
        """Nobody else works on the volume meanwhile; how long to wait for that is the caller's to bound."""
        while True:
            with self.locked_nowait(name) as free:
                if free:
                    yield
                    return
            await asyncio.sleep(POLL_S)

    @contextlib.contextmanager
    def locked_nowait(self, name: str) -> Iterator[bool]:
        """The same, or False when somebody does work on it."""
        descriptor = self._try_lock(name)
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            if self.load(name).empty:
                self._lock_file(name).unlink(missing_ok=True)
            os.close(descriptor)

    def _try_lock(self, name: str) -> int | None:
        path = self._lock_file(name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # held, or removed by who held it: there is another one by now
        os.close(descriptor)
        return None

    def _lock_file(self, name: str) -> Path:
        return self._directory / f"{name}.lock"


def _entry(content: dict[str, Any]) -> Entry:
    return Entry(**{**content, "users": frozenset(content["users"])})
