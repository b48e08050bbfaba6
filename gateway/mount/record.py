"""What is noted of a mount on this host, before anything is done for it.

Owns the layout of the state directory (default ``/run/moorage/mounts``), and the files in it:

================== ==============================================================================
``lock``           held for the moments in which somebody claims or gives up a record
``ID/record.json`` the wish, and how far it has come; by who mounts, then by the daemon
``ID/status.json`` what the daemon says of itself; by the daemon
``ID/keeper.lock`` held by the keeper, whose pid it has: a record whose lock is free is a dead mount
``ID/work.lock``   held by who mounts or unmounts it
``ID/nbd.sock``    where the daemon serves the volume
``ID/fuse/``       where the keeper shows it as a file
``ID/inside/``     where a new file system is mounted for a moment, to get its owner
``ID/log``         of both processes
================== ==============================================================================

It must never act on the system: :mod:`~moorage.gateway.mount.mounting` and
:mod:`~moorage.gateway.mount.unmounting` do. A reboot clears ``/run``, and with it mounts and notes alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from moorage.gateway import notes
from moorage.wire.errors import Busy, Invalid

STATE_DIR = Path("/run/moorage/mounts")
SOCKET_PATH_MAX = 107  # bytes of a unix socket's path
DEVICE = "volume"

OPENING, MOUNTED = "opening", "mounted"
FAILED = 3  # exit code of a daemon: what was asked for cannot be had, do not start another life
WRITERS_KEPT = 8


def state_directory(given: str | Path | None = None) -> Path:
    """``given``, ``$MOORAGE_STATE_DIR`` or the default."""
    return Path(given or os.environ.get("MOORAGE_STATE_DIR") or STATE_DIR).absolute()


@dataclass
class Record:
    """One mount. ``volume``: its name, or ``NAME@SNAPSHOT``; ``target``: where it is mounted; ``fs``: "" for
    whatever the volume holds (new: ext4)."""

    id: str
    volume: str
    registry: str
    secret_file: str
    host: str
    target: str
    fs: str = ""
    options: list[str] = dataclasses.field(default_factory=list)
    read_only: bool = False
    force: bool = False
    overwrite: bool = False
    owner: tuple[int, int] | None = None
    io_timeout: float | None = None
    wait: float = 0.0
    phase: str = OPENING
    via: str = ""  # the way to a block device (``ways.py``), chosen when it is first mounted
    device: str = ""  # the block device, once there is one
    by: str = ""  # who asked, for `moorage mounts`

    def validate(self) -> None:
        assert self.phase in (OPENING, MOUNTED), self.phase
        assert self.target.startswith("/"), self.target


@dataclass
class Status:
    """What the daemon notes of itself. ``writers``: the ids of its lives, which an attach in their place
    names (:class:`moorage.client.succession.Succession`); ``clean``: all was on stable storage at its end."""

    state: str = "starting"  # starting, attaching, attached, formatting, mounting, serving, lost, failed
    pid: int = 0
    epoch: int = 0
    size: int = 0
    durability: str = ""
    writers: list[int] = dataclasses.field(default_factory=list)
    clean: bool = True
    reason: str = ""
    error: dict[str, Any] | None = None  # as on the wire, for who asked
    times: dict[str, float] = dataclasses.field(default_factory=dict)  # boot clock, seconds, by state

    def begin(self, writer: int) -> None:
        """Another attach is tried. The first id is the last one that came to serve: however many tries fail,
        it stays, since it may be the volume's last writer yet."""
        tried = [*self.writers[1:], writer]
        self.writers = [*self.writers[:1], *tried[1 - WRITERS_KEPT :]] if self.writers else [writer]


class Place:
    """The directory of one mount."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record_file = directory / "record.json"
        self.status_file = directory / "status.json"
        self.keeper_lock = directory / "keeper.lock"
        self.work_lock = directory / "work.lock"
        self.socket = directory / "nbd.sock"
        self.fuse = directory / "fuse"
        self.device_file = self.fuse / DEVICE
        self.inside = directory / "inside"
        self.log = directory / "log"

    def load(self) -> Record:
        """Raises FileNotFoundError when the mount has ended, Corrupt or VersionMismatch."""
        record = notes.load(self.record_file, {1: _record})
        if record is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.record_file))
        return record

    def save(self, record: Record) -> None:
        record.validate()
        notes.save(self.record_file, dataclasses.asdict(record))

    def status(self) -> Status:
        """Raises Corrupt or VersionMismatch."""
        return notes.load(self.status_file, {1: _status}) or Status()

    def save_status(self, status: Status) -> None:
        notes.save(self.status_file, dataclasses.asdict(status))

    def keeper_lives(self) -> bool:
        """Whether its keeper runs: also when it is frozen."""
        try:
            descriptor = os.open(self.keeper_lock, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextlib.contextmanager
    def worked_on(self) -> Iterator[None]:
        """Nobody else mounts, unmounts or cleans it up meanwhile. Raises Busy when somebody does."""
        with self.work_lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy("another command mounts or unmounts it just now: try again") from None
            yield

    def last_words(self) -> str:
        """The last line of the log, for an error that needs a reason."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            return lines[-1][-300:] if lines else ""
        return ""


class StateDirectory:
    """All mounts of this host (or of one agent on it)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> Self:
        longest = len(os.fsencode(self.path / ("0" * 12) / "nbd.sock"))
        if longest > SOCKET_PATH_MAX:
            raise Invalid(
                f"state directory {self.path} is too long for a socket below it: use at most "
                f"{SOCKET_PATH_MAX - longest + len(os.fsencode(self.path))} bytes"
            )
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For moments only: who waits for a network inside holds up every other mount of the host."""
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def created(self, record: Record, check: Callable[[], None]) -> Iterator[Place]:
        """A new mount, worked on by the caller; ``check`` raises when it must not be. Its directory is there
        whole or not at all."""
        made, place = Place(self.path / f".{record.id}"), Place(self.path / record.id)
        with contextlib.ExitStack() as stack:
            with self.locked():
                check()
                made.directory.mkdir(mode=0o700)
                made.fuse.mkdir()
                made.save(record)
                made.keeper_lock.touch()
                stack.enter_context(made.worked_on())
                made.directory.rename(place.directory)
            yield place

    def places(self) -> list[Place]:
        """Those with a record, oldest first."""
        if not self.path.is_dir():
            return []
        found = []
        for path in self.path.glob("[0-9a-f]*/record.json"):
            with contextlib.suppress(FileNotFoundError):  # it ends just now
                found.append((path.parent.stat().st_ctime_ns, path.parent))
        return [Place(path) for _, path in sorted(found)]


def new_id() -> str:
    return secrets.token_hex(6)


def _record(content: dict[str, Any]) -> Record:
    owner = content["owner"]
    return Record(**{**content, "owner": owner if owner is None else tuple(owner)})


def _status(content: dict[str, Any]) -> Status:
    return Status(**content)
