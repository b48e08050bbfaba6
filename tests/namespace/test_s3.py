"""A bucket of a real S3 server in the mount table: moto's, by s3fs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prerequisites import no_programs, require
from tests.processes import command_lines

from .conftest import Agent, until
from .test_table import answer_until, apply, set_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def put(url: str, data: bytes = b"") -> None:
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(url, data=data, headers=headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass


def get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": "AWS key:signature"})  # anybody, but one
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: bytes = answer.read()
        return content


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """An S3 server with an empty bucket "media"."""
    require(no_programs("s3fs"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("moto_server")
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"

    def serves() -> bool:
        assert server.poll() is None, (tmp_path / "log").read_text()
        try:
            put(f"{url}/media")
        except OSError:
            return False
        return True

    until(serves, "an S3 server")
    yield url
    server.terminate()
    server.wait(20)


def line(agent: Agent, endpoint: str, bucket: str = "media") -> str:
    credentials = agent.directory / "credentials"
    credentials.write_text("key:secret\n")
    credentials.chmod(0o600)
    options = f"endpoint={endpoint},credentials={credentials},retries=1,connect_timeout=2"
    return f"s3://{bucket} {agent.directory / 'at'} s3 {options}"


def clients(agent: Agent) -> list[int]:
    """The s3fs of an agent."""
    return [
        pid
        for pid, command in command_lines().items()
        if command.partition(b"\0")[0].endswith(b"/s3fs") and str(agent.directory).encode() in command
    ]


def test_a_bucket_is_mounted_kept_and_unmounted(agent: Agent, endpoint: str) -> None:
    at = agent.directory / "at"
    put(f"{endpoint}/media/there.txt", b"from the outside")
    set_table(agent, line(agent, endpoint))
    service = agent.start("table", "apply", "--keep", "--interval", "0.5")
    assert answer_until(service, at, "mounted") == ""
    assert agent.sh(f"cat {at}/there.txt") == "from the outside"
    agent.sh(f"echo from the inside > {at}/new.txt")
    assert get(f"{endpoint}/media/new.txt") == b"from the inside\n"
    (first,) = clients(agent)
    os.kill(first, signal.SIGKILL)
    until(lambda: set(clients(agent)) - {first}, "another s3fs")
    assert until(lambda: agent.run("cat", f"{at}/new.txt").stdout, "mounted again") == "from the inside\n"
    (found,) = agent.moorage("resolve", "at")
    assert (found["uri"], found["kind"], found["mounted_at"]) == ("s3://media", "s3", [str(at)])
    set_table(agent, "# nothing")
    answer_until(service, at, "unmounted")
    until(lambda: not clients(agent), "s3fs ended")


def test_a_bucket_that_is_not_there_fails(agent: Agent, endpoint: str) -> None:
    at = agent.directory / "at"
    set_table(agent, line(agent, endpoint, "nosuch"))
    state, reason = apply(agent, code=9)[str(at)]
    assert state == "failed" and "s3fs" in reason
    assert str(at) not in agent.mounted()
    assert clients(agent) == []
