"""`moorage mount` on a real kernel: format, mount, grow, trim, unmount, and what is in the way."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import moorage
import moorage.sync
from moorage.gateway.mount import system, unmounting, writeback
from moorage.gateway.mount.record import Place
from moorage.node.store import StoreConfig
from moorage.wire.errors import NotFound
from tests.fsck import check_clean

from .conftest import Host, run_program, spawn

pytestmark = pytest.mark.usefixtures("mount")
PF_MEMALLOC_NOIO = 0x00080000  # include/linux/sched.h; PR_SET_IO_FLUSHER sets it
MakeVolume = Callable[..., Awaitable[str]]


async def stored(cluster: moorage.Cluster, name: str) -> list[int]:
    """Bytes of a volume that are stored on each device that has a part of it, as the devices say."""
    info = await cluster.show(name)
    devices = sorted({member["device"] for group in info.groups for member in group["members"]})
    answers = [await cluster.list_replicas(device, volume=info.id) for device in devices]
    return [sum(row["bytes"] for row in rows) for rows in answers]


async def until_stored(cluster: moorage.Cluster, name: str, holds: Callable[[int], bool]) -> None:
    """On all three devices. They count whole chunks that were discarded at their next checkpoint."""
    async with asyncio.timeout(2 * StoreConfig.checkpoint_seconds):
        while not (len(found := await stored(cluster, name)) == 3 and all(map(holds, found))):
            await asyncio.sleep(0.1)


async def may_serve_writeback(place: Place) -> None:
    """The keeper's pages are never swapped out; and neither process waits for pages to be written back, which
    they would have to serve, where the kernel grants that (CAP_SYS_RESOURCE)."""
    keeper, daemon = unmounting._keeper_pid(place), place.status().pid
    status = Path(f"/proc/{keeper}/status").read_text()
    assert int(status.partition("VmLck:")[2].split()[0]) > 0
    ask = f"import ctypes; print(ctypes.CDLL(None).prctl({writeback._PR_SET_IO_FLUSHER}, 1, 0, 0, 0))"
    granted = (await run_program(sys.executable, "-c", ask)).strip() == "0"
    for pid in (keeper, daemon):
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
        assert bool(flags & PF_MEMALLOC_NOIO) == granted


async def test_a_new_volume_is_formatted_once_and_what_is_written_is_there_again(
    host: Host, other: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    mounted = await host.mount(name, "--owner", "1234:5678")
    assert (mounted["fs"], mounted["epoch"], mounted["state"]) == ("ext4", 1, "serving")
    status = host.point().stat()
    assert (status.st_uid, status.st_gid) == (1234, 5678)
    await may_serve_writeback(host.place())
    (host.point() / "file").write_bytes(b"kept" * 10_000)
    info = await cluster.show(name)
    assert info.fs == {"type": "ext4", "state": "ready"}
    assert info.holder is not None and info.holder["program"] == "moorage mount"
    await host.unmount(str(host.point()))
    assert (await cluster.show(name)).holder is None, "others need not wait for a lease"
    await check_clean(cluster, name)
    again = await other.mount(name, "--owner", "1:1")
    assert again["epoch"] > 1
    assert (other.point() / "file").read_bytes() == b"kept" * 10_000
    assert other.point().stat().st_uid == 1234, "the owner is of a new file system only"
    await other.unmount(name)
    assert await host.mounts() == await other.mounts() == []
    assert list(other.state.path.glob("[0-9a-f]*")) == []


async def test_xfs_grows_while_it_is_mounted(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume("320M")
    await host.mount(name, "--fs", "xfs")
    before = os.statvfs(host.point()).f_blocks
    await cluster.resize(name, "640M")
    async with asyncio.timeout(20):
        while os.statvfs(host.point()).f_blocks < 1.8 * before:
            await asyncio.sleep(0.05)
    await host.unmount(name)
    assert (await cluster.show(name)).fs == {"type": "xfs", "state": "ready"}


@pytest.mark.slow
async def test_ext4_has_grown_after_the_next_mount_at_the_latest(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    await host.mount(name)
    before = os.statvfs(host.point()).f_blocks
    await host.unmount(name)
    await cluster.resize(name, "128M")
    await host.mount(name)
    assert os.statvfs(host.point()).f_blocks > 1.8 * before
    await host.unmount(name)
    await check_clean(cluster, name)


async def test_a_snapshot_is_mounted_beside_its_volume(
    host: Host, other: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    await host.mount(name)
    (host.point() / "file").write_text("then")
    await run_program("sync", "--file-system", str(host.point()))
    await run_program("fsfreeze", "--freeze", str(host.point()))
    try:
        await cluster.snapshots.create("clean", name)
    finally:
        await run_program("fsfreeze", "--unfreeze", str(host.point()))
    (host.point() / "file").write_text("now")
    await run_program("sync", "--file-system", str(host.point()))
    await cluster.snapshots.create("busy", name)
    shown = await other.mount(f"{name}@clean")
    assert (shown["volume"], shown["state"]) == (f"{name}@clean", "serving")
    assert (other.point() / "file").read_text() == "then"
    with pytest.raises(OSError, match="Read-only"):
        (other.point() / "file").write_text("no")
    await other.unmount(f"{name}@clean")
    code, _, err = await other.run("mount", f"{name}@busy", str(other.point()))
    assert code != 0 and f"moorage snapshot clone {name}@busy" in err, "its journal is to be replayed first"
    clone = f"{name}-clone"
    await cluster.create_volume(clone, parent=f"{name}@busy")
    await other.mount(clone)
    assert (other.point() / "file").read_text() == "now"
    (other.point() / "file").write_text("elsewhere")
    await other.unmount(clone)
    await check_clean(cluster, clone)
    assert (host.point() / "file").read_text() == "now"
    await host.unmount(name)
    await cluster.delete(clone)
    for snapshot in ("clean", "busy"):
        await cluster.snapshots.delete(f"{name}@{snapshot}")


async def test_the_table_of_mounts_says_by_whom(host: Host, volume: MakeVolume) -> None:
    name = await volume()
    host.environment.pop("SUDO_USER", None)
    mounted = await host.mount(name)
    host.environment |= {"COLUMNS": "250", "SUDO_USER": "alice"}
    code, table, _ = await host.run("mounts")
    (row,) = (line.split("│")[1:-1] for line in table.splitlines() if name in line)
    by = "moorage mount (root)"
    shown = [name, str(host.point()), "ext4", mounted["device"], str(mounted["epoch"]), by, "serving"]
    assert code == 0 and [cell.strip() for cell in row] == shown
    await host.unmount(name)
    assert (await host.mount(name))["by"] == "moorage mount (alice)"
    await host.unmount(name)


@pytest.mark.slow
async def test_fstrim_gives_space_back(host: Host, cluster: moorage.Cluster, volume: MakeVolume) -> None:
    name = await volume()
    await host.mount(name)
    big = host.point() / "big"
    big.write_bytes(os.urandom(32 << 20))
    with big.open("rb") as file:
        os.fsync(file.fileno())
    await until_stored(cluster, name, lambda size: size > 32 << 20)
    big.unlink()
    await run_program(
        "sync", "--file-system", str(host.point())
    )  # what was freed is free once that is committed
    await run_program("/usr/sbin/fstrim", str(host.point()))
    await until_stored(cluster, name, lambda size: size < 16 << 20)
    await host.unmount(name)


async def test_a_volume_that_holds_anything_is_never_formatted(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    async with await cluster.attach(name) as attached:
        await attached.write(40 << 20, b"something, far from where file systems begin")
    code, _, err = await host.run("mount", name, str(host.point()))
    assert code == 3 and "holds data, but no file system" in err and "--overwrite" in err
    assert await host.mounts() == []
    async with await cluster.attach(name) as attached:
        assert await attached.read(40 << 20, 9) == b"something"
    assert (await cluster.show(name)).fs is None
    assert (await host.mount(name, "--overwrite"))["fs"] == "ext4"
    (host.point() / "file").touch()
    await host.unmount(name)
    code, out, err = await host.run("mount", name, str(host.point()), "--overwrite", "--json")
    assert code == 0 and f"ALL THAT {name} HOLDS WILL BE LOST" in err, err
    assert json.loads(out)["fs"] == "ext4" and not (host.point() / "file").exists()
    await host.unmount(name)
    code, _, err = await host.run("mount", name, str(host.point()), "--fs", "xfs")
    assert code == 3 and f"volume '{name}' holds ext4, not xfs" in err


async def test_a_format_that_was_not_finished_is_begun_anew(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume(fs="ext4")
    async with await cluster.attach(name) as attached:
        await attached.note_fs("ext4", "formatting")
        await attached.write(0, os.urandom(1 << 20))
    await host.mount(name)
    await host.unmount(name)
    await check_clean(cluster, name)


async def test_what_is_in_the_way_is_said_in_one_line(
    host: Host, other: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    taken, empty = host.point(), host.point("empty")
    await host.mount(name, at=taken)
    second = await volume()
    cases = [
        (("mount", second, str(taken)), f"{taken} is the mount point of volume '{name}' already"),
        (("mount", name, str(empty)), f"volume '{name}' is mounted at {taken} already"),
        (("mount", second, str(host.directory / "none")), "does not exist: create it (mkdir -p"),
        (("mount", second, "/proc"), "/proc is a mount point already, of proc"),
        (("mount", second, "/etc/passwd"), "/etc/passwd is not a directory"),
        (("mount", "nosuch", str(empty)), "there is no volume or bucket 'nosuch'"),
        (("mount", f"moorage:///{second}/a/file", str(empty)), "names a file in a volume"),
        (("mount", second, str(empty), "--overwrite", "--read-only"), "choose one"),
        (("mount", second, str(empty), "--read-only"), "mount it once without --read-only"),
        (("mount", second, str(empty), "--owner", "root"), "is not UID:GID"),
        (("mount", second, str(empty), "-o", "nonsense"), "nonsense"),
        (("umount", str(empty)), f"{empty} is not mounted by Moorage here: mounted are {taken}"),
    ]
    for arguments, message in cases:
        code, out, err = await host.run(*arguments)
        assert code != 0 and message in err and "Traceback" not in err, (arguments, out, err)
        assert len(err.strip().splitlines()) == 1 or "Usage" in err, err
    assert [mount["target"] for mount in await host.mounts()] == [str(taken)]
    code, _, err = await other.run("mount", name, str(other.point()), "--wait", "0")
    assert code != 0 and f"volume '{name}' is held by moorage mount" in err


async def test_who_uses_a_mount_is_named(host: Host, volume: MakeVolume) -> None:
    name = await volume()
    await host.mount(name)
    user = spawn("sleep", "60", cwd=host.point())
    try:
        code, _, err = await host.run("umount", name)
        assert code != 0 and f"in use by sleep (pid {user.pid}, {host.point()})" in err
        (host.point() / "still").write_text("writable")
    finally:
        user.kill()
        user.communicate()
    await host.unmount(name)


@pytest.mark.slow
async def test_a_mount_kept_by_another_namespace_is_not_pulled_away(host: Host, volume: MakeVolume) -> None:
    name = await volume()
    await host.mount(name)
    container = spawn("unshare", "--mount", "sleep", "60")
    try:
        async with asyncio.timeout(10):
            while Path(f"/proc/{container.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink():
                await asyncio.sleep(0.01)
        unmounting = host.start("umount", name)
        async with asyncio.timeout(10):
            while system.mounts_of((await host.mounts())[0]["device"]):
                await asyncio.sleep(0.01)
        inside = f"--mount=/proc/{container.pid}/ns/mnt"
        await run_program(
            "nsenter", inside, "tee", str(host.point() / "inside"), said="written by a container"
        )
    finally:
        container.kill()
        container.communicate()
    assert await asyncio.to_thread(unmounting.wait, 30) == 0
    unmounting.communicate()
    await host.mount(name)
    assert (host.point() / "inside").read_text() == "written by a container"


async def test_not_root_and_no_fuse(host: Host, volume: MakeVolume) -> None:
    name = await volume()
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    no_fuse = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh")
    mount, umount = ("mount", name, str(host.point())), ("umount", str(host.point()))
    for prefix, command, message in (
        (nobody, mount, "mounting needs root"),
        (nobody, umount, "mounting needs root"),
        (no_fuse, mount, "/dev/fuse does not exist"),
    ):
        told = await asyncio.to_thread(
            subprocess.run,
            [*prefix, sys.executable, "-m", "moorage.cli.main", *command],
            env=host.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert told.returncode not in (0, 1) and not told.stdout
        (line,) = told.stderr.splitlines()
        assert line.startswith("moorage: ") and message in line


async def test_a_loop_device_that_is_anothers_by_now_is_left_alone(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for file in (ours, theirs):
        file.write_bytes(bytes(1 << 20))
    device = await run_program("/sbin/losetup", "--find", "--show", str(theirs))
    device = device.strip()
    try:
        await system.detach_loop(device, ours)
        assert system.loops_on(theirs) == [device]
    finally:
        await system.detach_loop(device, theirs)
    assert system.loops_on(theirs) == []


@pytest.mark.slow
async def test_readers_on_two_hosts_at_once(
    host: Host, other: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    await host.mount(name)
    (host.point() / "file").write_text("for all")
    code, _, err = await other.run("mount", name, str(other.point()), "--read-only")
    assert code != 0 and "a file system that changes underneath cannot be read" in err
    await host.unmount(name)
    await (await cluster.attach(name)).detach(keep=True)  # dead, as far as metadata knows
    for reader in (host, other):  # the first one waits for the end of its lease
        await reader.mount(name, "--read-only")
        assert (reader.point() / "file").read_text() == "for all"
        with pytest.raises(OSError, match="Read-only"):
            (reader.point() / "new").write_text("")
    await host.unmount(name)
    await other.unmount(name)


async def test_from_python_with_and_without_await(up: dict[str, str], host: Host, volume: MakeVolume) -> None:
    name = await volume()
    where = {"registry": up["MOORAGE_REGISTRY"], "secret_file": up["MOORAGE_SECRET_FILE"]}
    options = {"state_dir": host.state.path}
    async with await moorage.connect(**where) as cluster:
        async with await cluster.mount(name, host.point(), **options) as mounted:
            assert (mounted.volume, mounted.target) == (name, str(host.point()))
            (host.point() / "file").write_text("async")
        assert list(host.point().iterdir()) == []

    def synchronous() -> None:
        uri = f"moorage:///{name}-made?size=64M&fs=ext4"
        with moorage.sync.connect(**where) as cluster:
            with cluster.mount(name, host.point(), **options) as mounted:
                assert mounted.state == "serving"
                assert (host.point() / "file").read_text() == "async"
            with cluster.mount(uri, host.point(), **options):
                assert cluster.show(f"{name}-made").size == 64 << 20
            cluster.delete(f"{name}-made")
            cluster.mount(name, host.point(), **options)
        with moorage.sync.connect(**where) as cluster:  # another program
            (found,) = cluster.mounts(**options)
            assert (found.volume, found.state) == (name, "serving") and "(pid " in found.by
            cluster.umount(host.point(), **options)
            assert cluster.mounts(**options) == []
            with pytest.raises(NotFound, match="mounted are none"):
                cluster.umount(name, **options)

    await asyncio.to_thread(synchronous)
