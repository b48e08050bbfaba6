"""File systems on a device: what is there, make one, mount it, let it grow.

Owns the decision what may be formatted (:func:`plan`, a pure function with its reasons) and how each kind is
made and grown. It must never format a device that holds anything, unless it was told to overwrite.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from moorage.gateway.mount import system
from moorage.wire.errors import Invalid

KINDS = ("ext4", "xfs")
DEFAULT = "ext4"
FORMAT_TIMEOUT_S = 600.0
_NOTHING_FOUND = 2  # exit status of blkid
_MAKE = {
    # Nothing to discard on a blank volume; blocks of 4 KiB are what a volume writes without reading first.
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096"),
}
_MOUNT_OPTIONS = {"ext4": ["errors=remount-ro"], "xfs": ["nouuid"]}


@dataclass(frozen=True)
class Found:
    """What ``volume`` holds. ``blank``: nothing, also no block that is stored; ``kind``: the file system that
    is recognised, or ""; ``noted``: what metadata knows of it, "" or new, formatting, ready."""

    volume: str
    blank: bool
    kind: str
    noted: str = ""
    noted_kind: str = ""


def plan(found: Found, wanted: str, *, overwrite: bool, read_only: bool) -> tuple[str, bool]:
    """(kind, whether to format). Raises :class:`Invalid` with the way out."""
    if wanted and wanted not in KINDS:
        raise Invalid(f"file system {wanted!r} is not supported: use {' or '.join(KINDS)}")
    volume = found.volume
    fresh = found.blank or found.noted == "formatting"
    kind = wanted or found.noted_kind or DEFAULT
    if fresh or overwrite:
        if read_only:
            raise Invalid(f"volume {volume!r} holds no file system yet: mount it once without --read-only")
        return kind, True
    if not found.kind:
        raise Invalid(
            f"volume {volume!r} holds data, but no file system that is recognised: read it by "
            "`moorage attach --nbd`, or lose it all by mounting with --overwrite"
        )
    if wanted and found.kind != wanted:
        raise Invalid(
            f"volume {volume!r} holds {found.kind}, not {wanted}: mount it without --fs, or lose it all by "
            "mounting with --overwrite"
        )
    if found.kind not in KINDS:
        raise Invalid(f"volume {volume!r} holds {found.kind}, which is not mounted here: use --overwrite")
    return found.kind, False


async def probe(device: str) -> str:
    """The kind of what is there, "" for nothing that is known."""
    try:
        said = await system.run("blkid", "--probe", "--output", "value", "--match-tag", "TYPE", device)
    except system.ProgramFailed as error:
        if error.details["status"] == _NOTHING_FOUND:
            return ""
        raise
    return said.strip() or "a partition table"


async def make(kind: str, device: str) -> None:
    name, *arguments = _MAKE[kind]
    await system.run(name, *arguments, device, timeout=FORMAT_TIMEOUT_S)


async def mount(
    kind: str, device: str, target: str, options: list[str], read_only: bool, *, replay_by: str = ""
) -> None:
    """Raises :class:`Invalid` where the file system needs its journal replayed and must not be written;
    ``replay_by``: how that can be done, if not by a mount of the same volume."""
    chosen = ["ro" if read_only else "rw", *_MOUNT_OPTIONS[kind], *options]
    try:
        await system.run("mount", "-t", kind, "-o", ",".join(chosen), device, target)
    except system.ProgramFailed as error:
        if read_only and await _needs_recovery(kind, device):
            raise Invalid(
                "the file system was not unmounted cleanly, and its journal cannot be replayed without "
                f"writing: {replay_by or 'mount the volume once without --read-only'}"
            ) from error
        raise


async def give(kind: str, device: str, at: Path, owner: tuple[int, int]) -> None:
    """Make ``owner`` (uid, gid) the owner of the root directory, by a mount that nobody sees."""
    await asyncio.to_thread(at.mkdir, exist_ok=True)
    await mount(kind, device, str(at), [], read_only=False)
    os.chown(at, *owner)
    await system.run("umount", str(at))


async def _needs_recovery(kind: str, device: str) -> bool:
    if kind == "ext4":
        return "needs_recovery" in await system.run("dumpe2fs", "-h", device)
    return kind == "xfs"  # a clean one mounts


async def grow(kind: str, device: str, target: str) -> None:
    """While it is mounted, to the whole device; nothing to do when it fills it already. For ext4 that takes
    CAP_SYS_RESOURCE, which a container's root may lack: the next mount does it then."""
    if kind == "ext4":
        await system.run("resize2fs", device, timeout=FORMAT_TIMEOUT_S)
    else:
        await system.run("xfs_growfs", target, timeout=FORMAT_TIMEOUT_S)


async def grow_unmounted(kind: str, device: str) -> None:
    """An ext4 that does not fill its device, before it is mounted. (xfs can only grow while it is.)"""
    if kind != "ext4":
        return
    said = await system.run("dumpe2fs", "-h", device)
    fields = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    size = int(fields["Block count"]) * int(fields["Block size"])
    if int(await system.run("blockdev", "--getsize64", device)) - size >= int(fields["Block size"]):
        await system.run("e2fsck", "-f", "-p", device, timeout=FORMAT_TIMEOUT_S)
        await system.run("resize2fs", device, timeout=FORMAT_TIMEOUT_S)


async def refresh_size(device: str, file: Path) -> None:
    """Have a loop device ask its file for its size again. The kernel believes what it was last told; in a
    thread, since the answer is this process's."""
    await asyncio.to_thread(os.stat, file)
    await system.run("losetup", "--set-capacity", device)
