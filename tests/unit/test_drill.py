"""What `moorage drill` decides and undoes: the verdict, whether a cluster may be drilled, and its guard."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moorage.bench.verify import BLOCK, Pattern
from moorage.cli.drill import faults, outcome, plan, rot
from moorage.cli.drill.faults import Guard, Victim
from moorage.cli.drill.outcome import Budget, Outcome
from moorage.cli.drill.plan import Picture
from moorage.cli.drill.stage import Options
from moorage.cli.drill.steps import check_options
from moorage.cli.report import Promise
from moorage.client.cluster import VolumeInfo
from moorage.service import process
from moorage.service.exits import Exit
from moorage.wire.errors import Invalid, Unavailable

# -- the verdict ---------------------------------------------------------------------------------------


def judged(**figures: Any) -> Outcome:
    made = Outcome("host-loss", Budget(max_stall_s=0.5, max_recovery_s=10), **figures)
    made.promises = [Promise("no I/O error", True, ""), *made.verdicts()]
    return made


def test_within_the_budget_is_passed() -> None:
    good = judged(read_stall_ms=500.0, write_stall_ms=3.0, recovery_s=10.0)
    assert good.passed and good.exit() == Exit.OK and outcome.reasons([good]) == []


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"read_stall_ms": 501.0}, "no stall of reads beyond 0.5 s: 501 ms"),
        ({"write_stall_ms": 900.0}, "no stall of writes beyond 0.5 s: 900 ms"),
        ({"recovery_s": 10.1}, "recovered within 10 s: 10.1 s"),
    ],
)
def test_a_missed_budget_fails_and_may_be_met_another_time(figures: dict[str, float], why: str) -> None:
    bad = judged(**figures)
    assert not bad.passed and bad.exit() == Exit.UNAVAILABLE
    assert outcome.reasons([bad]) == [f"host-loss: {why}"]


def test_a_broken_promise_is_our_mistake() -> None:
    bad = judged(read_stall_ms=900.0)
    bad.promises.append(Promise("every block reads as it was written", False, "block 7"))
    assert bad.exit() == Exit.INTERNAL


def test_what_was_not_measured_is_not_judged() -> None:
    assert judged().verdicts() == []


def test_stalls_are_the_longest_gaps() -> None:
    made = judged()
    made.stalls([{"read_gap_ms": 3.0, "write_gap_ms": 90.0}, {"read_gap_ms": 7.0, "write_gap_ms": 2.0}])
    assert (made.read_stall_ms, made.write_stall_ms) == (7.0, 90.0)


def test_all_together() -> None:
    passed, missed = judged(recovery_s=1.0), judged(recovery_s=11.0)
    skipped = Outcome("partition", Budget(), skipped="not root")
    failed = Outcome("zombie", Budget(), error="no answer")
    assert outcome.worst([passed, skipped]) == Exit.OK
    assert outcome.worst([passed, missed, skipped]) == outcome.worst([passed, failed]) == Exit.UNAVAILABLE
    assert outcome.worst([skipped]) == Exit.CONFIGURATION
    broken = judged()
    broken.promises.append(Promise("x", False, ""))
    assert outcome.worst([missed, broken]) == Exit.INTERNAL
    said = outcome.document([passed, skipped])
    assert said["passed"] and [each["drill"] for each in said["drills"]] == ["host-loss", "partition"]
    assert outcome.reasons([passed, skipped, failed]) == ["partition: not root", "zombie: no answer"]
    out = io.StringIO()
    Console(file=out, width=80).print(outcome.table([passed, missed, skipped, failed]))
    assert all(word in out.getvalue() for word in ("pass", "FAIL", "skipped", "host-loss", "11.0 s"))


# -- may it be drilled ---------------------------------------------------------------------------------


def volume(name: str, hosts: str, identity: int = 1, **more: Any) -> VolumeInfo:
    members = [{"host": host, "device": f"d-{host}"} for host in hosts.split()]
    groups = [{"group": 0, "members": members}]
    fields: dict[str, Any] = {"state": "ready", "holder": None, "holder_alive": False, "fs": None, **more}
    fields["lease_left_ms"] = 0
    return VolumeInfo(identity, name, 1 << 20, len(members), "sync", 1, groups=groups, created_ms=0, **fields)


def row(volume: int = 1, last: int = 5, **more: Any) -> dict[str, Any]:
    fields = {"volume": volume, "group": 0, "last": last, "whole": True, "damaged": "", "offered": True}
    return {**fields, **more}


def picture(hosts: str = "h1 h2 h3", **more: Any) -> Picture:
    names = hosts.split()
    view = {
        "hosts": {name: {"health": "up", "reason": ""} for name in names},
        "devices": {f"d-{name}": {"host": name, "health": "up"} for name in names},
    }
    made = Picture(view, {f"d-{name}": [row()] for name in names}, [], [volume("v", hosts)])
    return dataclasses.replace(made, **more)


def test_a_cluster_that_is_well_may_be_drilled() -> None:
    assert plan.unhealthy(picture()) == []


def test_whatever_is_away_already_is_a_reason_not_to() -> None:
    assert plan.unhealthy(picture("h1 h2")) == ["2 hosts have a device: 3 are needed"]
    assert plan.unhealthy(picture(silent=["registry h1: no answer"])) == ["registry h1: no answer"]
    down = picture()
    down.view["hosts"]["h2"] = {"health": "down", "reason": "silent for 12 s"}
    assert plan.unhealthy(down) == ["host h2 is down (silent for 12 s)"]
    for bad in ({"whole": False}, {"damaged": "bad bytes"}, {"offered": False}):
        replicas = {**picture().replicas, "d-h3": [row(**bad)]}
        (reason,) = plan.unhealthy(picture(replicas=replicas))
        assert reason == "host h3 has 1 replica damaged or not whole yet"
    replicas = {**picture().replicas, "d-h3": "no answer"}
    assert plan.unhealthy(picture(replicas=replicas)) == ["the device of h3 does not answer: no answer"]
    replicas = {**picture().replicas, "d-h3": [row(last=20_000)]}
    assert plan.unhealthy(picture(replicas=replicas)) == ["a replica of volume v is far behind"]


def test_a_host_that_nothing_depends_on_alone_is_chosen() -> None:
    alone = picture(volumes=[volume("v", "h1 h2 h3"), volume("only", "h3", 2)])
    members = ["h1", "h2", "h3"]
    assert plan.choose_host(alone, members, None, away=True) == "h2"
    assert plan.choose_host(alone, members, None, away=False) == "h3"
    assert plan.choose_host(alone, members, "h1", away=True) == "h1"
    with pytest.raises(Invalid, match=r"would stop without their host .on h3: only"):
        plan.choose_host(alone, members, "h3", away=True)
    with pytest.raises(Invalid, match=r"host h9 is not in this cluster; it .* use one of h1, h2, h3"):
        plan.choose_host(alone, members, "h9", away=True)
    everywhere = picture(volumes=[volume(name, name) for name in members])
    with pytest.raises(Invalid, match="would stop without their host"):
        plan.choose_host(everywhere, members, None, away=True)


def test_what_a_killed_drill_left_is_named() -> None:
    volumes = [
        volume("drill-1", "h1"),
        volume("drill-2", "h1", holder={"pid": 1}),
        volume("drill-3", "h1", state="deleting"),
        volume("v", "h1"),
    ]
    assert plan.left_behind(picture(volumes=volumes), "drill-") == ["drill-1"]


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("zombie", {"inject": "x"}, "are for host-loss"),
        ("partition", {"inject": "x", "undo": "y", "by_hand": True}, "contradict"),
        ("partition", {"undo": "y"}, "goes with --inject"),
        ("partition", {"inject": "x"}, "say with --undo"),
    ],
)
def test_options_that_contradict_are_refused(name: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(Invalid, match=why):
        check_options(name, Options(Budget(), **options))


def test_a_killed_host_needs_nothing_undone() -> None:
    check_options("host-loss", Options(Budget(), inject="x"))


# -- faults are undone ---------------------------------------------------------------------------------


async def test_a_guard_undoes_once_and_tells_of_a_failure(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    async with Guard(command=f"echo $DRILL_HOST >> {noted}", env={"DRILL_HOST": "h2"}) as guard:
        assert not noted.exists()
        await guard.undo()
        assert noted.read_text() == "h2\n"
    assert noted.read_text() == "h2\n"
    with pytest.raises(Unavailable, match="could not be undone: echo why >&2; exit 3: why"):
        async with Guard(command="echo why >&2; exit 3"):
            pass


async def test_a_guard_that_is_told_while_its_drill_is_cancelled_ends_its_work(tmp_path: Path) -> None:
    noted, armed = tmp_path / "noted", asyncio.Event()

    async def drill() -> None:
        async with Guard(command=f"sleep 0.3; touch {noted}"):
            armed.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(drill())
    await armed.wait()
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()  # twice
    await asyncio.wait([task])
    assert noted.exists()


KILLED = """
import asyncio, os, signal, sys
from moorage.cli.drill.faults import Guard, Victim, Freeze
async def main():
    said = eval(sys.argv[1])
    fault = Freeze(Victim("h1", "d", "a", {"process": said}))
    async with fault, Guard(command=f"touch {sys.argv[2]}"):
        await fault.inject()
        print("frozen", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_drill_that_is_killed_leaves_nobody_frozen(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as host:
        said = {**process.identity(), "pid": host.pid, "started": process._started(host.pid)}
        done = subprocess.run(
            [sys.executable, "-c", KILLED, repr(said), str(noted)],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"frozen\n"), done.stderr
        until(noted.exists, "the command is run")
        until(lambda: state_of(host.pid) != "T", "the host is thawed")
        host.kill()


def test_a_process_that_is_not_the_host_is_never_signalled() -> None:
    said = {**process.identity(), "started": 1}
    with pytest.raises(Invalid, match=r"host h1 cannot be reached with a signal: .* --inject and --undo"):
        faults.Freeze(Victim("h1", "d", "a", {"process": said}))
    with pytest.raises(Invalid, match="another machine"):
        faults.Kill(Victim("h1", "d", "a", {}))


def test_a_host_of_another_user_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(opened: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    with pytest.raises(
        Invalid, match=r"cannot be reached with a signal: pid .*: Operation not permitted; say"
    ):
        faults.Kill(Victim("h1", "d", "a", {"process": process.identity()}))
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_cannot_cut_a_host_off_is_told_what_else_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Victim("h1", "d", "a", {"process": process.identity()})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Invalid, match=r"by root only .iptables.: say with --inject and --undo"):
        faults.Partition(here)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(faults, "tool", lambda name: None)
    with pytest.raises(Invalid, match="iptables is not installed"):
        faults.Partition(here)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("0100007F:1F90", (4, "127.0.0.1", 8080)),
        ("00000000:0016", (4, "", 22)),
        ("00000000000000000000000001000000:1F90", (6, "::1", 8080)),
        ("00000000000000000000000000000000:1F90", (6, "", 8080)),
        ("0000000000000000FFFF00000100007F:1F90", (4, "127.0.0.1", 8080)),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the addresses are written in the machine's order")
def test_the_ends_of_connections_are_read(text: str, end: tuple[int, str, int]) -> None:
    assert faults.parse_end(text) == end


def test_own_sockets_are_found() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert (4, "127.0.0.1", server.getsockname()[1]) in faults.tcp_ends(os.getpid())


# -- rot -----------------------------------------------------------------------------------------------


def test_only_the_newest_versions_of_this_run_rot(tmp_path: Path) -> None:
    ours, others = Pattern(7), Pattern(8)
    before = [ours.content(1, 1), others.content(1, 9), ours.content(2, 3)]
    after = [ours.content(1, 2), random.Random(1).randbytes(BLOCK), ours.content(2, 3)[: BLOCK // 2]]
    for name, blocks in (("1.seg", before), ("2.seg", after), ("3.seg", [ours.content(2, 3)])):
        (tmp_path / name).write_bytes(b"head" * 128 + b"".join(blocks))
    os.utime(tmp_path / "3.seg", (1, 1))
    places = rot.find(tmp_path, ours, since=100.0)
    assert {(place.path.name, place.block, place.version) for place in places} == {
        ("1.seg", 2, 3),
        ("2.seg", 1, 2),
    }
    untouched = (tmp_path / "1.seg").read_bytes()[: 512 + 2 * BLOCK]
    assert all(rot.flip(place, ours) for place in rot.choose(places, random.Random(1)))
    assert not any(rot.flip(place, ours) for place in places), "it is not whole any more: left alone"
    assert (tmp_path / "1.seg").read_bytes()[: 512 + 2 * BLOCK] == untouched
    assert rot.find(tmp_path, others, since=0)[0].version == 9
