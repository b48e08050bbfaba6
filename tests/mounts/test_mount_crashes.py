"""Mounts whose processes die or freeze, at every step: nothing is lost, left, or written over another's."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster
from moorage.gateway.mount import system, unmounting
from tests import processes
from tests.fsck import check_clean
from tests.prerequisites import require

from ..mesos import cgroups
from .conftest import Host, signalled, spawn

pytestmark = pytest.mark.usefixtures("mount")
MakeVolume = Callable[..., Awaitable[str]]
VERIFIED = (
    *("fio", "--name=x", "--size=64M", "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--direct=1"),
    *("--iodepth=32", "--verify=crc32c", "--verify_fatal=1"),
    "--verify_state_save=0",  # else one that fails leaves a file where it was started
)


def write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


async def next_life(host: Host, former: int) -> int:
    async with asyncio.timeout(20):
        while True:
            status = host.place().status()
            if status.pid != former and status.state in ("serving", "lost"):
                return status.pid
            await asyncio.sleep(0.02)


async def mend(host: Host, cluster: moorage.Cluster, name: str) -> None:
    """The next mount replays the journal; then `fsck -f` finds nothing to mend."""
    await host.mount(name)
    (host.point() / "mended").write_text("it works")
    await host.unmount(name)
    await check_clean(cluster, name)


FILE_SYSTEMS = pytest.mark.parametrize(
    ("kind", "size"), [("ext4", "64M"), pytest.param("xfs", "320M", marks=pytest.mark.slow)]
)


@FILE_SYSTEMS
async def test_a_dead_holder_is_waited_for_and_fenced(
    host: Host, other: Host, cluster: moorage.Cluster, volume: MakeVolume, kind: str, size: str
) -> None:
    name = await volume(size)
    await host.mount(name, "--fs", kind)
    await asyncio.to_thread(write_through, host.point() / "file", b"synced before the host died")
    await host.kill()
    await other.mount(name)
    assert (other.point() / "file").read_bytes() == b"synced before the host died"
    await other.unmount(name)
    await check_clean(cluster, name)
    assert [mount["state"] for mount in await host.mounts()] == ["dead"]
    assert await unmounting.clean_up(host.state) == []
    assert await host.mounts() == []


@FILE_SYSTEMS
async def test_a_frozen_holder_is_fenced_and_says_by_whom(
    host: Host, other: Host, cluster: moorage.Cluster, volume: MakeVolume, kind: str, size: str
) -> None:
    name = await volume(size)
    await host.mount(name, "--fs", kind)
    daemon = host.place().status().pid
    os.kill(daemon, signal.SIGSTOP)
    await other.mount(name, "--force")
    await asyncio.to_thread(write_through, other.point() / "file", b"of the new holder")
    os.kill(daemon, signal.SIGCONT)
    with pytest.raises(OSError) as raised:
        await asyncio.to_thread(write_through, host.point() / "file", b"of the zombie")
    assert raised.value.errno in (errno.EIO, errno.EROFS)
    (mount,) = await host.mounts()
    assert mount["state"] == "lost" and "was taken over by moorage mount" in mount["reason"]
    os.kill(daemon, signal.SIGKILL)  # a next life must not serve it either
    assert await next_life(host, daemon) != daemon
    assert (await host.mounts())[0]["state"] == "lost"
    await host.unmount(name)
    await other.unmount(name)
    await check_clean(cluster, name)
    await other.mount(name)
    assert (other.point() / "file").read_bytes() == b"of the new holder"


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGTERM, id="upgraded", marks=pytest.mark.slow),
    ],
)
async def test_the_daemon_restarts_under_a_verifying_load(
    number: int, host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume("192M")
    await host.mount(name)
    fio = spawn(*VERIFIED, f"--directory={host.point()}", "--io_size=24M")
    former = host.place().status().pid
    for _ in range(2):
        signalled(former, number)
        former = await next_life(host, former)
        await asyncio.to_thread((host.point() / "between").write_bytes, b"x")
    said, _ = await asyncio.to_thread(fio.communicate)
    assert fio.returncode == 0, said
    await host.unmount(name)
    await check_clean(cluster, name)


@pytest.mark.slow
async def test_writeback_goes_on_after_an_upgrade_but_not_after_a_crash(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume(durability="writeback")
    await host.mount(name)
    former = host.place().status().pid
    os.kill(former, signal.SIGTERM)
    former = await next_life(host, former)
    (host.point() / "file").write_text("x")
    os.kill(former, signal.SIGKILL)
    await next_life(host, former)
    (mount,) = await host.mounts()
    assert mount["state"] == "lost" and "ended without a flush" in mount["reason"]
    await host.unmount(name)
    await mend(host, cluster, name)


@pytest.mark.slow
async def test_a_daemon_comes_back_to_a_volume_that_others_held_meanwhile(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    """The kernel has its caches: what it writes back must not go over another holder's data."""
    name = await volume()
    await host.mount(name)
    pid = host.place().status().pid
    os.kill(pid, signal.SIGSTOP)
    async with await cluster.attach(name, force=True) as attached:
        await attached.write(0, bytes(4096))
    os.kill(pid, signal.SIGKILL)
    await next_life(host, pid)
    (mount,) = await host.mounts()
    assert mount["state"] == "lost" and "was taken over" in mount["reason"]
    await host.unmount(
        name,
    )
    async with await cluster.attach(name) as attached:
        assert await attached.read(0, 4096) == bytes(4096)


STEPS = ("attaching", "formatting", "mounting", "serving")
WHO = ("command", "daemon", "keeper", "all")
QUICK = (("all", "mounting"),)


@pytest.mark.parametrize(
    ("who", "step"),
    [
        pytest.param(who, step, marks=() if (who, step) in QUICK else pytest.mark.slow)
        for who in WHO
        for step in STEPS
    ],
)
async def test_a_crash_at_any_step_is_put_right(
    who: str, step: str, host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    command = host.start("mount", name, str(host.point()))
    try:
        async with asyncio.timeout(20):
            while True:
                places = host.state.places()
                if places and step in places[0].status().times:
                    break
                await asyncio.sleep(0)
        place = places[0]
        victims = {
            "command": command.pid,
            "daemon": place.status().pid,
            "keeper": unmounting._keeper_pid(place),
        }
        for victim, pid in victims.items():
            if who in (victim, "all"):
                signalled(pid, signal.SIGKILL)
        await asyncio.to_thread(command.communicate, timeout=40)
    finally:
        command.kill()
        command.wait()
    found = await host.mounts()
    if who in ("command", "daemon") and found:  # it comes to its end without them
        async with asyncio.timeout(30):
            while (found := await host.mounts()) and found[0]["state"] != "serving":
                await asyncio.sleep(0.05)
    if found and found[0]["state"] == "serving":
        (host.point() / "file").write_text("it works")
        await host.unmount(name)
    again = await host.mount(name)  # whatever was left is put right by the next one
    (host.point() / "file").write_text("it works")
    assert system.mounted_at(str(host.point())) is not None and again["state"] == "serving"
    await host.unmount(name)
    assert list(host.state.path.glob("*[0-9a-f]")) == []
    await check_clean(cluster, name)


# What `moorage umount` does, in order: it dies just before.
UNMOUNTING = {
    "unmount": "unmounting.unmount_file_system",
    "loop": "FuseWay.release",
    "session": "FuseWay.end_session",
    "keeper": "unmounting._end_keeper",
    "daemon": "unmounting._end_daemon",
    "note": "unmounting.shutil.rmtree",
}
DIES = """
import os, sys
from moorage.cli.main import main
from moorage.gateway.mount import unmounting
from moorage.gateway.mount.fuse_device import FuseWay
owner, _, name = sys.argv.pop(1).rpartition(".")
setattr(eval(owner), name, lambda *_, **__: os._exit(9))
sys.exit(main(prog_name="moorage"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["command", "all"])
@pytest.mark.parametrize("step", UNMOUNTING)
async def test_an_unmount_that_dies_at_any_step_is_put_right(
    who: str, step: str, host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    await host.mount(name)
    await asyncio.to_thread(write_through, host.point() / "file", b"kept")
    died = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", DIES, UNMOUNTING[step], "umount", name],
        env=host.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert died.returncode == 9, died.stderr
    if who == "all":
        await host.kill()
    found = await host.mounts()
    assert found, "what was begun is noted until it has come to its end"
    if who == "command" and step == "unmount":  # nothing was done yet
        assert found[0]["state"] == "serving"
    if who == "command":
        await host.unmount(name)
    await host.mount(name)  # after "all" it finds what is left, and puts it right
    assert (host.point() / "file").read_bytes() == b"kept"
    await host.unmount(name)
    assert list(host.state.path.glob("*[0-9a-f]")) == []
    await check_clean(cluster, name)


@pytest.mark.slow
async def test_a_dead_mount_is_not_pulled_from_under_who_stands_in_it(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    await host.mount(name)
    user = spawn("sleep", "60", cwd=host.point())
    try:
        await host.kill()
        (problem,) = await unmounting.clean_up(host.state)
        assert f"in use by sleep (pid {user.pid}" in problem
        assert [mount["state"] for mount in await host.mounts()] == ["dead"]
    finally:
        user.kill()
        user.communicate()
    assert await unmounting.clean_up(host.state) == []
    await mend(host, cluster, name)


def lives(pid: int) -> bool:
    """Also not as a zombie, which whoever is process 1 may not have asked for yet."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("frozen", ["daemon", "keeper"])
async def test_an_unmount_waits_for_what_is_frozen_until_it_is_forced(
    frozen: str, host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    name = await volume()
    await host.mount(name)
    await asyncio.to_thread(write_through, host.point() / "file", b"synced")
    (host.point() / "dirty").write_bytes(b"not synced" * 100_000)
    place = host.place()
    daemon, keeper = place.status().pid, unmounting._keeper_pid(place)
    os.kill({"daemon": daemon, "keeper": keeper}[frozen], signal.SIGSTOP)
    code, _, err = await host.run("umount", name, "--timeout", "3")
    assert code != 0 and "--force` gives up what was not written" in err, err
    code, _, err = await host.run("umount", name, "--force")
    assert code == 0, err
    assert not any(lives(pid) for pid in (daemon, keeper))
    assert await host.mounts() == []
    await host.mount(name)
    assert (host.point() / "file").read_bytes() == b"synced"
    await host.unmount(name)
    await check_clean(cluster, name)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("both", [False, True])
async def test_what_is_frozen_by_its_control_group_is_unmounted_by_force(
    both: bool, host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    """A container was paused, with the processes that it had started: none of them dies before it goes on."""
    require(cgroups.unusable())
    name = await volume()
    await host.mount(name)
    await asyncio.to_thread(write_through, host.point() / "file", b"synced")
    (host.point() / "dirty").write_bytes(b"not synced" * 100_000)
    place = host.place()
    daemon, keeper = place.status().pid, unmounting._keeper_pid(place)
    waiting = spawn("sync", "--file-system", str(host.point()))
    try:
        with cgroups.frozen(f"{cgroups.PREFIX}paused-{os.getpid()}", [keeper, *([daemon] if both else [])]):
            code, _, err = await host.run("umount", name, "--force")
            await asyncio.to_thread(waiting.wait, 30)
            if code:  # it was about to hear of it
                assert f"in use by sync (pid {waiting.pid}" in err
                await host.unmount(name, "--force")
            assert lives(keeper)
            assert host.left() == [] and await host.mounts() == []
            await host.mount(name)
            assert (host.point() / "file").read_bytes() == b"synced"
        assert not any(lives(pid) for pid in (daemon, keeper))
    finally:
        waiting.communicate()
    await host.unmount(name)
    await check_clean(cluster, name)


@pytest.mark.slow
async def test_what_a_container_mounted_is_unmounted_by_force_and_nobody_elses_process_is_killed(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    """It has process ids of its own: the keeper's number is that of another process outside."""
    name = await volume()
    command = shlex.join([sys.executable, "-m", "moorage.cli.main", "mount", name, str(host.point())])
    inside = ("unshare", "--pid", "--fork", "--kill-child", "sh", "-c")
    container = spawn(*inside, f"{command} && echo there && exec sleep 1000", env=host.environment)
    try:
        assert container.stdout is not None
        assert name in await asyncio.to_thread(container.stdout.readline)
        place = host.place()
        frozen = processes.naming(str(place.directory))
        assert int(place.keeper_lock.read_text()) not in frozen and unmounting._keeper_pid(place) == 0
        (host.point() / "dirty").write_bytes(b"not synced" * 100_000)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        await host.unmount(name, "--force")
        assert host.left() == [] and await host.mounts() == []
    finally:
        container.kill()
        container.communicate()
    await mend(host, cluster, name)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_without_a_majority_unmount_says_so_and_force_gives_up(
    tmp_path: Path, make_host: Callable[[dict[str, str]], Host]
) -> None:
    local = LocalCluster(tmp_path / "c", options={"MOORAGE_CAPACITY": "512M"})
    await local.start()
    environment = {"MOORAGE_REGISTRY": local.registry, "MOORAGE_SECRET_FILE": str(local.secret_file)}
    host = make_host({**os.environ, **environment})
    try:
        async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
            await cluster.create_volume("db", "64M")
        await host.mount("db")
        for dying in local.hosts[:2]:
            await dying.kill()
        (host.point() / "file").write_bytes(b"x" * 1_000_000)
        code, _, err = await host.run("umount", "db", "--timeout", "3")
        assert code != 0 and "is not unmounted yet" in err and "--force` gives up" in err
        await host.unmount("db", "--force")
        assert await host.mounts() == []
        for back in local.hosts[:2]:
            await back.launch()
            await back.wait_ready(60)
        async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
            await mend(host, cluster, "db")
    finally:
        await local.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_verified_writes_on_a_file_system_go_on_through_the_loss_of_a_host(
    tmp_path: Path, make_host: Callable[[dict[str, str]], Host]
) -> None:
    """A host that holds replicas (and leads, perhaps) is killed under fio, and comes back; then another."""
    local = LocalCluster(tmp_path / "c", options={"MOORAGE_CAPACITY": "1G"})
    await local.start()
    environment = {"MOORAGE_REGISTRY": local.registry, "MOORAGE_SECRET_FILE": str(local.secret_file)}
    host = make_host({**os.environ, **environment})
    try:
        async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
            await cluster.create_volume("db", "192M")
            await host.mount("db")
            fio = spawn(*VERIFIED, f"--directory={host.point()}", "--io_size=48M", "--rate_iops=600")
            for dying in local.hosts[:2]:
                await asyncio.sleep(2)
                assert fio.poll() is None, "the load is under way"
                await dying.kill()
                await asyncio.sleep(2)
                await dying.launch()
                await dying.wait_ready(60)
            said, _ = await asyncio.to_thread(fio.communicate)
            assert fio.returncode == 0, said
            await host.unmount("db")
            await check_clean(cluster, "db")
    finally:
        await local.kill()


@pytest.mark.slow
async def test_a_daemon_that_a_reader_took_for_dead_goes_on(
    host: Host, cluster: moorage.Cluster, volume: MakeVolume
) -> None:
    """The reader brings the volume's logs to an end, which fences the holder; nobody else wrote."""
    name = await volume()
    mounted = await host.mount(name)
    await asyncio.to_thread(write_through, host.point() / "file", b"before")
    daemon = host.place().status().pid
    os.kill(daemon, signal.SIGSTOP)
    async with asyncio.timeout(40):
        while (await cluster.show(name)).epoch == mounted["epoch"]:
            await asyncio.sleep(1)
            async with await cluster.attach(name, read_only=True):
                pass
    os.kill(daemon, signal.SIGCONT)
    await asyncio.to_thread(write_through, host.point() / "file", b"after")
    async with asyncio.timeout(10):
        while (await host.mounts())[0]["epoch"] == mounted["epoch"]:
            await asyncio.sleep(0.1)
    (mount,) = await host.mounts()
    assert (mount["state"], mount["epoch"]) == ("serving", mounted["epoch"] + 2)
    assert host.place().status().pid == daemon
    os.kill(daemon, signal.SIGKILL)  # its next life can name the one before
    await next_life(host, daemon)
    assert (await host.mounts())[0]["state"] == "serving"
    assert (host.point() / "file").read_bytes() == b"after"
    await host.unmount(name)
    await check_clean(cluster, name)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_fifty_mounts_leave_nothing(host: Host, volume: MakeVolume) -> None:
    name = await volume()

    def counts() -> Any:
        of_host = processes.naming(str(host.directory))
        return len(of_host), len(system.mount_table()), len(list(Path("/sys/block").glob("loop*/loop")))

    await host.mount(name)
    await host.unmount(name)
    before = counts()
    for cycle in range(50):
        await host.mount(name)
        (host.point() / f"{cycle}").write_text("x")
        await host.unmount(name)
    assert counts() == before
    assert list(host.state.path.iterdir()) == [host.state.path / "lock"]
    await host.mount(name)
    assert len(list(host.point().iterdir())) == 51
    shutil.rmtree(host.point() / "lost+found")
