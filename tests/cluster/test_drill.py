"""Each drill on `moorage up`: it passes, it is judged, and nothing of it is left, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moorage
import moorage.sync
from moorage.cli.drill.steps import NAMES
from moorage.cli.local_cluster import LocalCluster
from tests.prerequisites import require

NEED_A_SPARE = ("move", "repair")
QUICK = ("--measure", "0.5", "--blocks", "1024", "--depth", "4")
MOORAGE = (sys.executable, "-m", "moorage.cli.main")
ROOT = os.geteuid() == 0 and shutil.which("iptables") is not None


class Up:
    """`moorage up` of some hosts, and drills on it."""

    def __init__(self, home: Path, hosts: int = 3) -> None:
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)}
        if "PYTHONPATH" in os.environ:
            self.env["PYTHONPATH"] = os.environ["PYTHONPATH"]
        command = [*MOORAGE, "up", "--json", "--data", str(home / "data"), "--capacity", "256M"]
        command += ["--hosts", str(hosts)]
        self.process = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, text=True)
        self.ready = self.event()

    def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, **more}
        return subprocess.Popen([*MOORAGE, "drill", *arguments], env=self.env, text=True, **streams)

    def drill(self, name: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """(exit code, the document, stderr)"""
        with self.start(name, "--yes", "--json", *QUICK, *arguments) as process:
            out, err = process.communicate(timeout=100)
        return process.returncode, json.loads(out) if out else {}, err

    @contextlib.contextmanager
    def connected(self) -> Iterator[moorage.sync.Cluster]:
        ready = self.ready
        with moorage.sync.connect(registry=ready["registry"], secret_file=ready["secret_file"]) as cluster:
            yield cluster

    def volumes(self) -> list[str]:
        with self.connected() as cluster:
            return [volume.name for volume in cluster.list_volumes()]

    def pids(self) -> dict[str, int]:
        """Host to its process: a child of `moorage up`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes() for pid in children}
        found = {}
        for pid, environment in environments.items():
            names = [
                each[13:].decode() for each in environment.split(b"\0") if each.startswith(b"MOORAGE_NAME=")
            ]
            found |= {name: pid for name in names}
        return found

    def frozen(self) -> list[str]:
        stats = {
            host: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            for host, pid in self.pids().items()
        }
        return [host for host, state in stats.items() if state == "T"]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("home")
    started = Up(home)
    try:
        yield started
    finally:
        started.process.terminate()
        started.process.wait(30)
        assert started.process.stdout is not None
        started.process.stdout.close()
        shutil.rmtree(home, ignore_errors=True)


def until(condition: Callable[[], Any], what: str, timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(0.05)


def rules() -> str:
    return (
        subprocess.run(["iptables", "-S"], capture_output=True, text=True, check=False).stdout if ROOT else ""
    )


def leaves_nothing(up: Up) -> None:
    assert up.volumes() == []
    assert up.frozen() == []
    assert "moorage-drill" not in rules()


def test_a_missed_budget_fails_and_cleans_up(up: Up) -> None:
    code, said, err = up.drill("bit-rot", "--max-stall", "0", "--host", "h2")
    assert code == 9, err
    (drill,) = said["drills"]
    assert (drill["host"], drill["passed"], said["passed"]) == ("h2", False, False)
    missed = [each["what"] for each in drill["promises"] if not each["kept"]]
    assert missed == ["no stall of reads beyond 0 s", "no stall of writes beyond 0 s"]
    assert drill["checked_blocks"] == 1024 and drill["recovery_s"] < 60
    leaves_nothing(up)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_drill_cleans_up(up: Up, number: int) -> None:
    with up.start("silent-host", "--yes", "--host", "h3", "--hold", "60", *QUICK) as process:
        until(up.frozen, "a host is frozen")
        assert up.frozen() == ["h3"]
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "cleaning up" in err and "Traceback" not in err
    leaves_nothing(up)


def test_a_cluster_that_is_not_well_is_not_drilled(up: Up) -> None:
    pid = up.pids()["h1"]
    os.kill(pid, signal.SIGSTOP)
    try:
        code, said, err = up.drill("zombie")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (code, said) == (9, {})
    error = json.loads(err.strip().splitlines()[-1])["error"]
    assert "the cluster is not well, nothing was done" in error["message"] and "h1" in error["message"]
    leaves_nothing(up)


def test_nobody_is_hit_unasked(up: Up) -> None:
    with up.start("host-loss", *QUICK) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 3 and "SIGKILL to host h3" in err and "--yes" in err
    leaves_nothing(up)


@pytest.mark.slow
def test_no_is_no(up: Up) -> None:
    ours, theirs = pty.openpty()
    with up.start("host-loss", "--host", "h2", *QUICK, stdin=theirs) as process:
        os.write(ours, b"n\n")
        _, err = process.communicate(timeout=30)
    assert os.get_blocking(theirs), "the shell has this terminal too"
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 3 and "Go on? [y/N]" in err and "nothing was done" in err
    leaves_nothing(up)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEED_A_SPARE])
def test_each_drill_passes_on_a_cluster_that_is_well(up: Up, name: str) -> None:
    if name == "partition" and not ROOT:
        require("a partition needs root and iptables")
    before = up.pids()
    hold = ("--hold", "4") if name in ("silent-host", "partition") else ()
    code, said, err = up.drill(name, "--max-stall", "5", *hold)
    assert code == 0, err
    (drill,) = said["drills"]
    assert drill["passed"] and drill["checked_blocks"] >= 1024 and drill["recovery_s"] is not None
    assert name in ("zombie", "full-disk") or drill["write_stall_ms"] is not None
    if name == "host-loss":
        assert [up.event()["event"] for _ in range(2)] == ["ended", "back"]
        assert up.pids()[drill["host"]] != before[drill["host"]]
    else:
        assert up.pids() == before
    leaves_nothing(up)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_replicas_move_where_there_is_a_host_more(up: Up, tmp_path: Path) -> None:
    for name in NEED_A_SPARE:
        code, _, err = up.drill(name)
        assert code == 3 and "add a fourth host" in err
    leaves_nothing(up)
    wide = Up(tmp_path, hosts=5)
    try:
        for name in NEED_A_SPARE:
            code, said, err = wide.drill(name)
            assert code == 0, err
            (drill,) = said["drills"]
            assert drill["passed"] and drill["checked_blocks"] == 1024
        leaves_nothing(wide)
    finally:
        wide.process.terminate()
        wide.process.wait(30)
        assert wide.process.stdout is not None
        wide.process.stdout.close()


@pytest.mark.slow
def test_a_drill_that_is_killed_leaves_no_rule_behind(up: Up) -> None:
    if not ROOT:
        require("a partition needs root and iptables")
    with up.start("partition", "--yes", "--hold", "60", *QUICK) as process:
        until(lambda: rules().count("-j moorage-drill") == 2, "the host is cut off")
        process.kill()
        process.communicate(timeout=30)
    until(lambda: "moorage-drill" not in rules(), "the guard has undone it")
    (left,) = up.volumes()  # that alone nobody could delete
    with up.connected() as cluster:
        cluster.delete(left, force=True)
    leaves_nothing(up)


@pytest.mark.slow
def test_a_fault_that_the_user_makes(up: Up, tmp_path: Path) -> None:
    pid = up.pids()["h2"]
    noted = tmp_path / "noted"
    inject, undo = f"echo $DRILL_HOST > {noted}; kill -STOP {pid}", f"kill -CONT {pid}"
    arguments = ("--host", "h2", "--hold", "3", "--max-stall", "5")
    code, _, err = up.drill("partition", "--inject", inject, "--undo", undo, *arguments)
    assert code == 0, err
    assert noted.read_text() == "h2\n"
    code, said, err = up.drill("partition", "--inject", "true", "--undo", "true", *arguments)
    assert code == 1, err
    missed = [each["what"] for each in said["drills"][0]["promises"] if not each["kept"]]
    assert missed == ["the load notices that h2 is away"]
    code, _, err = up.drill("partition", "--inject", "echo why; exit 3", "--undo", "true", *arguments)
    assert code == 9 and "failed with exit code 3: why" in err
    leaves_nothing(up)


@pytest.mark.slow
def test_a_fault_by_hand(up: Up) -> None:
    pid = up.pids()["h2"]
    arguments = ("--manual", "--host", "h2", "--hold", "2", "--yes", "--json", "--max-stall", "5", *QUICK)
    with up.start("partition", *arguments) as process:
        assert process.stderr is not None and process.stdout is not None
        for line in process.stderr:
            if "now make host h2" in line:
                os.kill(pid, signal.SIGSTOP)
            if "now bring host h2 back" in line:
                os.kill(pid, signal.SIGCONT)
        said = json.loads(process.stdout.read())
    assert process.returncode == 0 and said["passed"]
    leaves_nothing(up)


@pytest.mark.slow
async def test_a_host_that_nobody_starts_again(
    local: LocalCluster,
    cluster: moorage.Cluster,
    environment: dict[str, str],
    moorage_command: Callable[..., Awaitable[tuple[int, str, str]]],
) -> None:
    arguments = ("drill", "host-loss", "--yes", "--json", "--host", "h2", "--max-recovery", "3", *QUICK)
    code, out, err = await moorage_command(*arguments, env=environment)
    assert code == 1, err
    (drill,) = json.loads(out)["drills"]
    (missed, late) = [each for each in drill["promises"] if not each["kept"]]
    assert missed["what"] == "every replica has all that is committed again" and "h2" in missed["figure"]
    assert late["what"] == "recovered within 3 s"
    assert await cluster.list_volumes() == []
    assert [host.name for host in local.hosts if host.running] == ["h1", "h3"]
