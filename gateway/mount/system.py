"""The programs and tables of the operating system that a mount is made with.

Owns how they are called and what is read from them: losetup, mount, umount, the mount table, loop devices,
and who uses a file system. Every call has a deadline; what a program said is in the error. Nothing here
knows what a mount is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moorage.wire.errors import Busy, DeadlineExceeded, Denied, NotFound, Unavailable

PROGRAM_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1
_LOOP_CLR_FD = 0x4C01
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # Debian keeps such tools in sbin
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


def program(name: str) -> str:
    """Its path. NotFound that says which package has it."""
    found = shutil.which(name, path=PATH)
    if found is None:
        package = {"mkfs.ext4": "e2fsprogs", "resize2fs": "e2fsprogs", "mkfs.xfs": "xfsprogs"}.get(name)
        raise NotFound(f"{name} is not installed: install {package or 'util-linux, e2fsprogs, xfsprogs'}")
    return found


async def run(name: str, *arguments: str, timeout: float = PROGRAM_TIMEOUT_S) -> str:
    """Run a program to its end; what it printed. It does not outlive this process: who goes on in its place
    would do the same beside it. Raises NotFound, or :class:`ProgramFailed`."""
    # Not a pipe: what it leaves in the background may keep that open. Nor a file: /tmp may not be writable.
    with os.fdopen(os.memfd_create("output"), "w+b") as output:
        process = await asyncio.create_subprocess_exec(
            program(name),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "LC_ALL": "C"},
            preexec_fn=_die_with_parent,
        )
        try:
            async with asyncio.timeout(timeout):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # in the kernel it may stay, until its device answers
            raise DeadlineExceeded(f"{name} {' '.join(arguments)} did not end in {timeout:g} s") from None
        output.seek(0)
        text = output.read().decode(errors="replace").strip()
    if process.returncode:
        said = " ".join(text.split())[-400:] or f"exit status {process.returncode}"
        raise ProgramFailed(f"{name} {' '.join(arguments)}: {said}", status=process.returncode)
    return text


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def until_unused(device: str) -> None:
    """Wait until no program that a former life ran on a device is left: one that waits for the device ends
    only once that answers. Raises Busy."""
    end = asyncio.get_running_loop().time() + PROGRAM_TIMEOUT_S
    while running := _running_on(device):
        if asyncio.get_running_loop().time() > end:
            raise Busy(f"{device} is used by {', '.join(running)}: end that first")
        await asyncio.sleep(0.02)


def _running_on(device: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            if device.encode() in arguments:
                found.append(f"{arguments[0].decode(errors='replace')} (pid {path.parent.name})")
    return found


class ProgramFailed(Unavailable):
    """A program of the system ended with an error; ``details["status"]`` is its exit status."""


@dataclass(frozen=True)
class MountEntry:
    source: str
    target: str
    type: str
    device: tuple[int, int]  # major, minor
    shared: bool = False  # what is mounted or unmounted below it, is so in copies of this namespace too


def mount_table(text: str | None = None) -> list[MountEntry]:
    """What is mounted in this process's namespace, in order; the last one at a target is what one sees."""
    lines = (text if text is not None else Path("/proc/self/mountinfo").read_text()).splitlines()
    return [_entry(line) for line in lines]


def _entry(line: str) -> MountEntry:
    before, _, after = line.partition(" - ")
    fields, (kind, source, *_) = before.split(), after.split()
    major, _, minor = fields[2].partition(":")
    shared = any(tag.startswith("shared:") for tag in fields[6:])
    return MountEntry(_unescaped(source), _unescaped(fields[4]), kind, (int(major), int(minor)), shared)


def _unescaped(text: str) -> str:
    for escaped, plain in _ESCAPES.items():
        text = text.replace(escaped, plain)
    return text


def mounted_at(target: str) -> MountEntry | None:
    """What is mounted exactly there."""
    return next((entry for entry in reversed(mount_table()) if entry.target == target), None)


def mounts_of(device: str) -> list[MountEntry]:
    return [entry for entry in mount_table() if entry.source == device]


async def unmount(entry: MountEntry, timeout: float = PROGRAM_TIMEOUT_S) -> None:
    """Raises Busy that names who uses it; DeadlineExceeded."""
    try:
        await run("umount", entry.target, timeout=timeout)
    except ProgramFailed as error:
        if mounted_at(entry.target) is None:
            return  # somebody else was faster
        users = await asyncio.to_thread(users_of, entry.device)
        if not users:
            raise
        raise Busy(f"{entry.target} is in use by {describe_users(users)}: end that first") from error


async def abort_fuse(entry: MountEntry) -> None:
    """All that waits for the session of a FUSE mount fails, and so does what comes later, whatever its
    process does. The kernel's file for that is reached in a mount namespace of its own: not every container
    has it mounted."""
    connections = "/sys/fs/fuse/connections"
    script = f"mount -t fusectl fusectl {connections} && echo 1 >{connections}/{entry.device[1]}/abort"
    await run("unshare", "--mount", "sh", "-c", script)


async def attach_loop(file: Path, read_only: bool) -> str:
    """A loop device on a file, with direct I/O: what is written is in no page cache but the file system's."""
    flags = ["--read-only"] if read_only else []
    return await run("losetup", "--find", "--show", "--direct-io=on", *flags, str(file))


def loops_on(file: Path) -> list[str]:
    """Loop devices on a file, also when that is out of reach by now."""
    found = [f"/dev/{entry.name}" for entry in Path("/sys/block").glob("loop*")]
    return sorted(device for device in found if _backing_file(device) == str(file))


async def detach_loop(device: str, file: Path) -> None:
    """Now, or by itself when the last one that has it open lets go. Nothing, where it went by itself: another
    one may have its number by now, who has not mounted it yet, and would lose it."""
    await asyncio.to_thread(clear_loop, device, str(file))


def clear_loop(device: str, file: str) -> None:
    """``file``: as the kernel shows it. While we have the device open, it stays on what it is on."""
    with contextlib.suppress(OSError):  # it has gone
        opened = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _backing_file(device) == file:
                fcntl.ioctl(opened, _LOOP_CLR_FD)
        finally:
            os.close(opened)


def _backing_file(device: str) -> str:
    try:
        text = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text()
    except OSError:
        return ""
    return text.rstrip("\n").removesuffix(" (deleted)")


@dataclass(frozen=True)
class User:
    pid: int
    command: str
    what: str  # the path that it has open

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}, {self.what})"


def users_of(device: tuple[int, int]) -> list[User]:
    """Processes that have something of a mounted file system open, or stand in it, in whatever namespace."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            what = next((path for path in _open_by(directory) if _is_on(path, device)), None)
            if what is not None:
                name = (directory / "comm").read_text().strip()
                found.append(User(int(directory.name), name, os.readlink(what)))
    return found


def _open_by(directory: Path) -> Iterator[Path]:
    yield from (directory / "cwd", directory / "root", directory / "exe")
    yield from (directory / "fd").iterdir()


def _is_on(path: Path, device: tuple[int, int]) -> bool:
    with contextlib.suppress(OSError):
        number = path.stat().st_dev
        return (os.major(number), os.minor(number)) == device
    return False


def describe_users(users: list[User]) -> str:
    shown = ", ".join(str(user) for user in users[:3])
    return shown + (f" and {len(users) - 3} more" if len(users) > 3 else "")


def check_root() -> None:
    if os.geteuid() != 0:
        raise Denied("mounting needs root: run it with sudo, or serve the volume by `moorage attach --nbd`")
