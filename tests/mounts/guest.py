"""A small machine, emulated by qemu: a Debian kernel with what this machine's may lack, such as nbd.

Its root is this machine's file system over 9p, read-only, with the same Python and sources; ``/run`` is its
own memory. Software emulation: a boot takes some 10 s, Python runs ten times slower. The kernel is downloaded
once, by apt, and kept in the user's cache.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moorage.cli.local_cluster import die_with_parent

PACKAGES = ("busybox-static", "qemu-system-x86")
MODULES = ("virtio_pci", "virtio_net", "9pnet_virtio", "9p", "crc32c_generic", "ext4", "nbd")
BUSYBOX = Path("/bin/busybox")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moorage/guest"
ENSURE = Path(__file__).parents[2] / "packages/ensure"

INIT = r"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
$b ip link set lo up
$b ip addr add 10.0.2.15/24 dev eth0
$b ip link set eth0 up
$b ip route add default via 10.0.2.2
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /machine
$b mount -t proc proc /machine/proc
$b mount -t sysfs sys /machine/sys
$b mount -o bind /dev /machine/dev
$b mount -t tmpfs run /machine/run
script=$($b sed 's/.*script=//' /proc/cmdline)
$b chroot /machine /bin/sh $script
echo "GUEST EXIT $?"
$b poweroff -f
"""


def unusable() -> str:
    """Why there can be no guest here, or nothing."""
    if os.geteuid() != 0:
        return "the guest's root is this machine's: that needs root"
    if platform.machine() != "x86_64":
        return "the guest runs this machine's programs, and qemu is asked for x86_64 only"
    return ""


async def run(
    directory: Path, command: list[str], prefix: tuple[str, ...], environment: dict[str, str], timeout: float
) -> str:
    """Boot, run ``command``, power off; what its console said, however it ended. ``prefix``: of the
    emulator's own command, such as nsenter: the guest reaches what that reaches."""
    await asyncio.to_thread(_said, str(ENSURE), *PACKAGES)
    kernel, modules = await asyncio.to_thread(_kernel)
    script, initramfs, console = (directory / name for name in ("script", "initramfs", "console"))
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    script.write_text(f"{exports}cd /run\nexec {shlex.join(command)}\n")
    initramfs.write_bytes(b"".join(_initramfs(modules)))
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
        *("-m", "1024", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{console}", "-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", f"console=ttyS0 quiet panic=-1 script={script}"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    try:
        async with asyncio.timeout(timeout):
            await process.wait()
    except TimeoutError:
        pass  # its console tells how far it came
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return console.read_text(errors="replace") if console.exists() else "it did not start"


def _kernel() -> tuple[Path, list[Path]]:
    """The kernel and the modules, in the order in which they are to be loaded."""
    if not (CACHE / "vmlinuz").exists():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as scratch:
            made = _unpacked_kernel(Path(scratch))
            shutil.rmtree(CACHE, ignore_errors=True)
            made.rename(CACHE)
    return CACHE / "vmlinuz", sorted(CACHE.glob("*.ko"))


def _unpacked_kernel(scratch: Path) -> Path:
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    depends = _said("apt-cache", "depends", "linux-image-amd64")
    found = re.search(r"Depends: (linux-image-[0-9]\S*)", depends)
    assert found is not None, depends
    _said("apt-get", "download", found[1], cwd=scratch)
    (package,) = scratch.glob("*.deb")
    _said("dpkg-deb", "-x", str(package), str(scratch / "all"))
    made = scratch / "made"
    made.mkdir()
    (kernel,) = (scratch / "all/boot").glob("vmlinuz-*")
    kernel.rename(made / "vmlinuz")
    known = {path.stem.replace("-", "_"): path for path in (scratch / "all/lib/modules").rglob("*.ko")}
    for number, name in enumerate(_with_what_they_need(known)):
        known[name].rename(made / f"{number:02}-{name}.ko")
    return made


def _with_what_they_need(known: dict[str, Path]) -> list[str]:
    ordered: list[str] = []

    def add(name: str) -> None:
        depends = re.search(rb"\0depends=([^\0]*)\0", known[name].read_bytes())
        for other in depends[1].decode().replace("-", "_").split(",") if depends else ():
            if other and other not in ordered:
                add(other)
        if name not in ordered:
            ordered.append(name)

    for name in MODULES:
        add(name)
    return ordered


def _said(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def _initramfs(modules: list[Path]) -> Iterator[bytes]:
    for name in ("bin", "dev", "proc", "sys", "machine", "modules"):
        yield _entry(name, 0o40755, b"")
    yield _entry("bin/busybox", 0o100755, BUSYBOX.read_bytes())
    yield _entry("init", 0o100755, INIT.encode())
    for module in modules:
        yield _entry(f"modules/{module.name}", 0o100644, module.read_bytes())
    yield _entry("TRAILER!!!", 0, b"")


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """Of a cpio archive in the "newc" format: 13 numbers in hexadecimal, the name, the content."""
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    header += bytes(-len(header) % 4)
    return header + content + bytes(-len(content) % 4)
