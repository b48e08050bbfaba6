"""`moorage automount` with a real kernel: what is seen, mounted, unmounted, and left for the next service."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Agent, Service, until

pytestmark = pytest.mark.timeout(180)
MakeAgent = Callable[..., Agent]


def start(agent: Agent, *arguments: str, idle: str = "1") -> tuple[Service, Path]:
    root = agent.directory / "moorage"
    root.mkdir(exist_ok=True)
    service = agent.start("automount", str(root), *arguments, "--idle", idle)
    ready = service.answer()
    assert (ready["event"], ready["path"]) == ("ready", str(root))
    return service, root


def is_there(agent: Agent, path: Path) -> bool:
    return str(path) in agent.mounted()


def test_volumes_are_shown_mounted_when_used_and_unmounted_when_idle(agent: Agent) -> None:
    agent.cluster.create("first", "second")
    service, root = start(agent)
    assert {"first", "second"} <= set(agent.sh(f"ls {root}").split())
    agent.sh(f"ls -l --color=always {root}")  # looks at each of them, and goes into none
    assert agent.mounts() == {}
    user = agent.hold(root / "first")
    agent.sh(f"echo hello > {root}/first/file")
    assert agent.mounts().keys() == {"first"}
    user.kill()
    user.wait()
    assert "No such file or directory" in agent.fails(f"ls {root}/nosuch")
    until(lambda: not is_there(agent, root / "first"), "unmounted when idle")
    until(lambda: agent.mounts() == {}, "let go")
    assert agent.cluster.client.show("first").holder is None
    assert agent.sh(f"cat {root}/first/file") == "hello"
    agent.cluster.create("third")  # not shown yet, perhaps
    assert agent.sh(f"ls {root}/third") == "lost+found"
    assert service.end() == 0
    assert str(root) not in agent.mounted() and agent.mounts() == {}


@pytest.mark.slow
def test_many_who_come_at_once_wait_for_one_mount(agent: Agent) -> None:
    agent.cluster.create("crowd")
    service, root = start(agent, idle="60")
    agent.sh(f"for i in $(seq 20); do echo $i > {root}/crowd/$i & done; wait")
    assert len(agent.sh(f"ls {root}/crowd").split()) == 21
    assert agent.mounts()["crowd"]["epoch"] == 1
    assert service.said().count("is mounted") == 1


@pytest.mark.slow
def test_use_keeps_it_mounted(agent: Agent) -> None:
    agent.cluster.create("used")
    _, root = start(agent)
    user = agent.hold(root / "used")
    time.sleep(4)
    assert is_there(agent, root / "used")
    user.kill()
    user.wait()
    until(lambda: not is_there(agent, root / "used"), "unmounted when idle")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_next_service_goes_on_with_what_is_in_use(agent: Agent, number: int) -> None:
    held, free, unused = (f"{name}{number}" for name in ("held", "free", "unused"))
    agent.cluster.create(held, free, unused)
    service, root = start(agent, idle="60")
    user = agent.hold(root / held)
    agent.sh(f"touch {root}/{free}/file {root}/{held}/file")
    service.process.send_signal(number)
    if number == signal.SIGTERM:
        assert service.answer() == {"event": "ended", "mounted": [held]}
        assert f"{held} is in use by sleep" in service.said()
        assert not is_there(agent, root / free)
    service.process.wait()
    left = [held] if number == signal.SIGTERM else [free, held]
    # What cannot be mounted now is not shown, as if it were an empty volume.
    until(lambda: agent.sh(f"ls {root}").split() == left, "only what is mounted is shown")
    assert "No such file" in agent.fails(f"ls {root}/{unused}")
    assert agent.sh(f"ls {root}/{held}") == "file\nlost+found"  # no service is needed for that
    again = agent.start("automount", str(root), "--idle", "1")
    assert again.answer()["mounted"] == left
    assert agent.sh(f"ls {root}/{free}") == "file\nlost+found"
    until(lambda: not is_there(agent, root / free), "unmounted when idle")
    assert is_there(agent, root / held)
    user.kill()
    user.wait()
    until(lambda: agent.mounts() == {}, "unmounted when idle")
    agent.check_clean(free)
    agent.check_clean(held)


@pytest.mark.slow
def test_one_service_for_a_directory(agent: Agent) -> None:
    _, root = start(agent)
    said = agent.moorage("automount", str(root), code=9)["error"]["message"]
    assert said == f"another `moorage automount` serves {root} already"


@pytest.mark.slow
def test_what_another_host_uses_is_busy_and_the_log_says_who(make_agent: MakeAgent) -> None:
    first, second = make_agent("a1"), make_agent("a2")
    first.cluster.create("shared")
    target = first.directory / "data"
    target.mkdir()
    first.moorage("mount", "shared", str(target))
    service, root = start(second)
    assert "Device or resource busy" in second.fails(f"ls {root}/shared")
    assert re.search(r"shared, wanted by pid \d+: volume 'shared' is held by .* on a1", service.said())
    first.moorage("umount", "shared")
    assert second.sh(f"ls {root}/shared") == "lost+found"


@pytest.mark.slow
def test_a_volume_that_this_host_has_mounted_is_shown_where_it_is(agent: Agent) -> None:
    agent.cluster.create("byhand")
    target = agent.directory / "data"
    target.mkdir()
    agent.moorage("mount", "byhand", str(target))
    agent.sh(f"echo hello > {target}/file")
    _, root = start(agent)
    assert agent.sh(f"cat {root}/byhand/file") == "hello"
    until(lambda: not is_there(agent, root / "byhand"), "unbound when idle")
    assert agent.sh(f"cat {target}/file") == "hello"


@pytest.mark.slow
def test_a_hung_volume_hangs_nobody_else(agent: Agent) -> None:
    agent.cluster.create("hung", "well")
    _, root = start(agent, idle="60")
    agent.sh(f"touch {root}/hung/file")
    frozen = agent.pids("hung")
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert {"hung", "well"} <= set(agent.sh(f"ls {root}").split())
        agent.sh(f"ls -l {root}")
        agent.sh(f"touch {root}/well/file")
        assert time.monotonic() - began < 30
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert agent.sh(f"ls {root}/hung") == "file\nlost+found"


@pytest.mark.slow
def test_an_access_ends_at_its_timeout_and_the_mount_goes_on(make_agent: MakeAgent) -> None:
    first, second = make_agent("a1"), make_agent("a2")
    first.cluster.create("late")
    target = first.directory / "data"
    target.mkdir()
    first.moorage("mount", "late", str(target))
    frozen = first.pids("late")
    service, root = start(second, "--timeout", "1", idle="60")
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)  # a holder that seems dead: its lease is waited for
    try:
        began = time.monotonic()
        assert "Connection timed out" in second.fails(f"ls {root}/late")
        assert time.monotonic() - began < 3
        until(lambda: is_there(second, root / "late"), "mounted behind the answer")
        assert second.sh(f"ls {root}/late") == "lost+found"
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert "is not mounted after 1 s, and goes on" in service.said()


@pytest.mark.slow
def test_a_volume_that_was_taken_away_is_let_go_and_mounted_anew(make_agent: MakeAgent) -> None:
    first, second = make_agent("a1"), make_agent("a2")
    first.cluster.create("taken")
    service, root = start(first, idle="2")
    user = first.hold(root / "taken")
    target = second.directory / "data"
    target.mkdir()
    second.moorage("mount", "taken", str(target), "--force")
    until(lambda: "it is lost" in service.said(), "said that it is lost")
    second.moorage("umount", "taken")
    assert is_there(first, root / "taken")  # never under a process that uses it
    user.kill()
    user.wait()
    until(lambda: not is_there(first, root / "taken"), "let go")
    assert first.sh(f"ls {root}/taken") == "lost+found"
    service.end()
    first.check_clean("taken")


@pytest.mark.slow
def test_a_mount_that_died_is_mounted_anew(agent: Agent) -> None:
    agent.cluster.create("dying")
    service, root = start(agent, idle="2")
    agent.sh(f"touch {root}/dying/file; sync -f {root}/dying")
    for pid in agent.pids("dying"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not is_there(agent, root / "dying"), "let go")
    assert agent.sh(f"ls {root}/dying") == "file\nlost+found"
    service.end()
    agent.check_clean("dying")


@pytest.mark.slow
def test_a_container_that_has_the_directory_sees_what_comes(agent: Agent) -> None:
    """Its use counts, its copy does not; a bind of a volume in a namespace of its own counts."""
    agent.cluster.create("inside", "bound")
    service, root = start(agent, idle="2")
    container = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec"]
    done = agent.run(*container, f"echo hello > {root}/inside/file; cat {root}/inside/file")
    assert (done.stdout, done.stderr) == ("hello\n", "")
    until(lambda: not is_there(agent, root / "inside"), "unmounted when idle")
    into = agent.directory / "data"
    into.mkdir()
    agent.sh(f"ls {root}/bound")
    script = f"mount --bind {root}/bound {into}; umount {root}/bound; echo there; exec sleep infinity"
    other = agent.stay("unshare", "--mount", "--propagation", "private", "sh", "-ec", script)
    until(lambda: f"{into} (mount namespace of pid" in service.said(), "told why it stays")
    assert is_there(agent, root / "bound")
    other.kill()
    other.wait()
    until(lambda: not is_there(agent, root / "bound"), "unmounted when idle")


@pytest.mark.slow
def test_options_of_a_volume_are_those_of_its_uri(agent: Agent) -> None:
    agent.cluster.create("plain")
    _, root = start(agent, "moorage:///made?size=64M&replicas=1&durability=writeback")
    assert "made" in agent.sh(f"ls {root}").split()
    assert agent.sh(f"ls {root}/made") == "lost+found"
    made = agent.moorage("volume", "show", "made")
    assert (made["size"], made["replicas"], made["durability"]) == (64 << 20, 1, "writeback")


def test_what_is_in_the_way_is_said(agent: Agent) -> None:
    missing = agent.directory / "missing"
    said = agent.moorage("automount", str(missing), code=3)["error"]["message"]
    assert said == f"{missing} is not a directory: create it (mkdir -p {missing})"
    said = agent.moorage("automount", "/proc", code=9)["error"]["message"]
    assert said == "/proc is a mount point already, of proc: choose another"
    said = agent.moorage("automount", str(agent.directory), "moorage:///a?mode=x", code=3)["error"]["message"]
    assert said == "mode='x': write rw or ro"
