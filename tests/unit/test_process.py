"""A process says who it is; whoever would signal it gets it, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from moorage.service import process
from moorage.wire.errors import Invalid


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def said_by(pid: int) -> dict[str, object]:
    return {**process.identity(), "pid": pid, "started": process._started(pid)}


def test_the_process_meant_gets_the_signal(child: subprocess.Popen[bytes]) -> None:
    opened = process.open_process(said_by(child.pid))
    try:
        signal.pidfd_send_signal(opened, signal.SIGKILL)
    finally:
        os.close(opened)
    assert child.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("boot", "other", "another machine"),
        ("namespace", "pid:[1]", "another container"),
        ("started", 1, "another one has its pid"),
        ("started", None, "another one has its pid"),
    ],
)
def test_any_other_is_refused(child: subprocess.Popen[bytes], field: str, value: object, why: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Invalid, match=why):
        process.open_process({**said_by(child.pid), field: value})
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_has_ended_is_refused(child: subprocess.Popen[bytes]) -> None:
    said = said_by(child.pid)
    child.kill()
    child.wait(10)
    with pytest.raises(Invalid, match="has ended"):
        process.open_process(said)


def test_a_service_of_an_older_version_says_nothing() -> None:
    with pytest.raises(Invalid, match="another machine"):
        process.open_process({})
