"""Notes on this host: small JSON maps, each in a file of its own, with the format of what they say.

Owns their field ``format``, the way they are written, and the words for one that cannot be read
(docs/formats.md). The first notes had no such field: theirs is format 1. It must never guess: what another
version wrote, and what no version wrote, is refused before anybody acts on it or writes over it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from moorage.wire.errors import Corrupt, VersionMismatch

log = logging.getLogger(__name__)

T = TypeVar("T")
Readers = Mapping[int, Callable[[dict[str, Any]], T]]
_WRONG = (TypeError, KeyError, ValueError, AttributeError)  # what a reader comes upon in another layout


def load(path: Path, readers: Readers[T], *, torn_is_none: bool = False) -> T | None:
    """What the note says, by the reader of its format; None where there is none. ``torn_is_none``: also for
    one that is no JSON, where only what a power failure ends can be noted.

    Raises VersionMismatch or Corrupt, which name the file and say what to do.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        if torn_is_none:
            log.warning("%s is damaged, and taken for absent", path)
            return None
        raise _damaged(path, "not JSON") from None
    if not isinstance(content, dict):
        raise _damaged(path, "not a map")
    version = content.pop("format") if type(content.get("format")) is int else 1
    if version not in readers:
        known = " and ".join(map(str, sorted(readers)))
        raise VersionMismatch(
            f"{path}: a note of format {version}, this version reads {known}: use the version that wrote it",
            path=str(path),
        )
    try:
        return readers[version](content)
    except _WRONG as error:
        raise _damaged(path, f"fields that no version wrote: {error!r}") from None


def save(path: Path, content: Mapping[str, Any], version: int = 1) -> None:
    """Whole or not at all, also for who reads meanwhile. Not synced: a reboot ends what it speaks of."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")  # no note's name begins with a dot
    scratch.write_text(json.dumps({"format": version, **content}))
    scratch.replace(path)


def _damaged(path: Path, what: str) -> Corrupt:
    return Corrupt(
        f"{path}: damaged note ({what}): unmount by umount what it is about, then remove the file",
        path=str(path),
    )
