"""The ledger's files, below the state directory of mounts:

========================= =======================================================================
``docker/volumes/V.json`` the entry of volume V; absent when there is nothing to note
``docker/volumes/V.lock`` held while somebody mounts or unmounts V for a user
``docker/known.json``     the cluster's volumes as they were last seen (``known.py``)
========================= =======================================================================

A lock ends with its process: nothing is held up by a crash. Not synced, as the notes of mounts: a file that
a power failure has torn is as good as none, since no mount survives that.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from moorage.gateway.docker.ledger import Entry

log = logging.getLogger(__name__)

POLL_S = 0.02


class Notes:
    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "docker" / "volumes"
        self.known_file = state_dir / "docker" / "known.json"

    def prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self) -> list[str]:
        return sorted(path.name.removesuffix(".json") for path in self._directory.glob("[a-z0-9]*.json"))

    def load(self, name: str) -> Entry:
        content = load_json(self._directory / f"{name}.json")
        if content is None:
            return Entry()
        return Entry(frozenset(content["users"]), content["options"], content["engines"])

    def save(self, name: str, entry: Entry) -> None:
        file = self._directory / f"{name}.json"
        if entry.empty:
            file.unlink(missing_ok=True)
        else:
            engines = {user: engine for user, engine in entry.engines.items() if user in entry.users}
            content = {"users": sorted(entry.users), "options": dict(entry.options), "engines": engines}
            save_json(file, content)

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


def load_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("%s is damaged, and taken for absent", path)
        return None
    return content


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")  # no name of a volume begins with a dot
    scratch.write_text(json.dumps(content))
    scratch.replace(path)
