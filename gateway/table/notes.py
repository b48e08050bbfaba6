"""What this host has mounted for the mount table: one file for each mount point, written before it acts.

Owns ``STATE_DIR/table/``: a ``lock`` that one applier holds, and a note ``HASH.json`` for each target. A
mount without a note is somebody else's and is never touched. A reboot clears ``/run``, and with it mounts
and notes alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from moorage.client.mount_table import Line
from moorage.gateway import notes
from moorage.wire.errors import Busy


@dataclass(frozen=True)
class Note:
    """``what``: as :attr:`moorage.client.mount_table.Line.what`; ``volume``: "" for foreign storage."""

    target: str
    what: str
    source: str
    kind: str
    volume: str


def note_of(line: Line) -> Note:
    address = line.address
    return Note(line.target, line.what, line.source, line.kind, address.name if address else "")


def _note(content: dict[str, Any]) -> Note:
    return Note(**content)


class Notes:
    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "table"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """By one applier of this host. Raises Busy."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._directory / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy("another `moorage table apply` is at work for this state directory") from None
            yield

    def all(self) -> dict[str, Note]:
        """By target. Raises Corrupt or VersionMismatch."""
        found = [notes.load(path, {1: _note}) for path in sorted(self._directory.glob("*.json"))]
        return {note.target: note for note in found if note is not None}

    def write(self, note: Note) -> None:
        notes.save(self._path(note.target), dataclasses.asdict(note))

    def remove(self, target: str) -> None:
        self._path(target).unlink(missing_ok=True)

    def _path(self, target: str) -> Path:
        return self._directory / f"{xxhash.xxh3_128_hexdigest(target.encode())}.json"
