"""Where volumes are mounted for those who ask for a path: ``ROOT/VOLUME``.

Owns the root directory, and that it is *shared*: containers are made with a copy of the mount table, and one
of another volume would keep this one mounted until it ends, were the unmount not passed on to it. Where
nothing has made the machine's root shared (systemd does), the mount root is bound to itself and made so; that
one stays. Agents on one machine have roots apart: ``ROOT/@ADDRESS``, which no volume is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from moorage.gateway.mount import system

ROOT = Path("/run/moorage/volumes")
_AGENT = "@"


def mount_root(given: str | Path | None = None) -> Path:
    """``given``, ``$MOORAGE_MOUNT_ROOT`` or the default, as the mount table will name it."""
    return Path(os.path.realpath(given or os.environ.get("MOORAGE_MOUNT_ROOT") or ROOT))


def of_agent(path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The part of a directory that is the Mesos agent's whose address is in ``$LIBPROCESS_IP``."""
    address = environment.get("LIBPROCESS_IP")
    return path / f"{_AGENT}{address.replace('/', '_')}" if address else path


async def make_target(root: Path, name: str) -> Path:
    machines = root.parent if root.name.startswith(_AGENT) else root
    with _locked(machines):
        if not _is_shared(machines):
            await system.run("mount", "--bind", str(machines), str(machines))
            await system.run("mount", "--make-shared", str(machines))
    target = root / name
    await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
    return target


async def drop_target(root: Path, name: str) -> None:
    with contextlib.suppress(OSError):  # something is mounted there again, or it was never made
        await asyncio.to_thread((root / name).rmdir)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """For moments: two that bind it would have it twice."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_shared(path: Path) -> bool:
    """Whether the mount that holds it is."""
    holders = [entry for entry in system.mount_table() if path.is_relative_to(entry.target)]
    return max(reversed(holders), key=lambda entry: len(entry.target)).shared
