"""The life of a service process, with a service that does what the test asks of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.service.exits import Exit
from moorage.wire.secret import ClusterSecret

PROBE = """
import asyncio, os, sys, threading, time
from moorage.service.embed import EmbeddedService
from moorage.service.lifecycle import run
from moorage.wire import errors

class Probe(EmbeddedService):
    kind = "registry"
    def not_ready(self):
        return [] if os.environ.get("PROBE") != "waits" else ["waits for h2"]
    async def start(self, router):
        what = os.environ.get("PROBE")
        if what in vars(errors):
            raise vars(errors)[what]("the reason\\nand the next step")
        if what == "bug":
            raise KeyError("a bug")
        if what == "hangs":
            await asyncio.sleep(3600)
        if what == "fatal":
            asyncio.get_running_loop().call_later(0.1, self.fatal, errors.DeviceFailed("fsync: EIO"))
        if what == "violated-later":
            asyncio.get_running_loop().call_soon(errors.violated, "one and one")
    async def stop(self):
        sys.stderr.write("stopping\\n")
        if os.environ.get("PROBE") == "stuck":
            await asyncio.sleep(3600)
        if os.environ.get("PROBE") == "stuck-thread":
            threading.Thread(target=time.sleep, args=[3600]).start()
        if os.environ.get("PROBE") == "stop-fails":
            raise RuntimeError("cannot stop")

sys.exit(run("registry", {}, lambda launch: [Probe()]))
"""

Launch = Callable[..., subprocess.Popen[str]]


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    ClusterSecret.create(tmp_path / "secret")
    return {
        "PATH": os.environ["PATH"],
        "MOORAGE_NAME": "h1",
        "MOORAGE_DATA_DIR": str(tmp_path / "data"),
        "MOORAGE_SECRET_FILE": str(tmp_path / "secret"),
    }


@pytest.fixture
def launch(environment: dict[str, str]) -> Iterator[Launch]:
    processes: list[subprocess.Popen[str]] = []

    def start(probe: str = "", **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROBE],
            env={**environment, "PROBE": probe, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    found: dict[str, Any] = json.loads(line)
    return found


def get(address: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_ready_line(launch: Launch) -> None:
    process = launch()
    line = ready(process)
    assert list(line) == ["event", "service", "name", "address", "http", "pid"]
    assert (line["event"], line["service"], line["name"], line["pid"]) == (
        "ready",
        "registry",
        "h1",
        process.pid,
    )
    for address in (line["address"], line["http"]):
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=5).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)])
def test_a_signal_stops_in_order(launch: Launch, number: int) -> None:
    process = launch()
    ready(process)
    begun = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == Exit.OK
    assert time.monotonic() - begun < 4
    assert out == "" and "stopping" in err and "Traceback" not in err


def test_a_signal_before_it_is_ready(launch: Launch) -> None:
    """A scheduler may change its mind while the service still waits for others."""
    port = free_port()
    process = launch("hangs", MOORAGE_HTTP_PORT=str(port))
    wait_for_http(process, port)
    assert get(f"127.0.0.1:{port}", "/readyz") == (503, {"ready": False, "reasons": ["registry: starting"]})
    process.terminate()
    assert process.communicate(timeout=10)[0] == ""
    assert process.returncode == Exit.OK


def wait_for_http(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            get(f"127.0.0.1:{port}", "/healthz")
            return
        except OSError:
            time.sleep(0.02)
    pytest.fail(f"HTTP did not come up: {process.poll()}")


def test_alive_is_not_ready(launch: Launch) -> None:
    port = free_port()
    process = launch("waits", MOORAGE_HTTP_PORT=str(port))
    wait_for_http(process, port)
    assert get(f"127.0.0.1:{port}", "/healthz")[0] == 200
    deadline = time.monotonic() + 10
    while (found := get(f"127.0.0.1:{port}", "/readyz"))[1]["reasons"] != ["registry: waits for h2"]:
        assert time.monotonic() < deadline, found
    assert found[0] == 503


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("Invalid", Exit.CONFIGURATION),
        ("IdentityConflict", Exit.REFUSED),
        slow("AuthenticationFailed", Exit.REFUSED),
        ("Corrupt", Exit.CORRUPT),
        slow("VersionMismatch", Exit.CORRUPT),
        slow("CannotBind", Exit.CANNOT_BIND),
        ("DeviceFailed", Exit.DEVICE_FAILED),
        slow("DeadlineExceeded", Exit.UNAVAILABLE),
        ("InvariantViolation", Exit.INTERNAL),
    ],
)
def test_an_error_is_one_line_and_its_code(launch: Launch, error: str, code: Exit) -> None:
    process = launch(error, MOORAGE_LOG_LEVEL="ERROR")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == "moorage registry: the reason and the next step"
    assert (
        error == "InvariantViolation" or err == "stopping\nmoorage registry: the reason and the next step\n"
    )


def test_an_error_after_ready_ends_the_process_too(launch: Launch) -> None:
    process = launch("fatal")
    ready(process)
    _, err = process.communicate(timeout=20)
    assert process.returncode == Exit.DEVICE_FAILED
    assert err.splitlines()[-1] == "moorage registry: fsync: EIO"


@pytest.mark.parametrize("probe", ["bug", "violated-later"])
def test_our_own_mistake_ends_the_process_with_a_story_in_the_log(launch: Launch, probe: str) -> None:
    _, err = (process := launch(probe)).communicate(timeout=20)
    assert process.returncode == Exit.INTERNAL
    assert not any(line.startswith(("Traceback", " ")) for line in err.splitlines()), "one line each"
    assert "Traceback" in err and err.splitlines()[-1].startswith("moorage registry: ")


def test_a_stop_that_takes_too_long_ends_anyhow(launch: Launch) -> None:
    for probe, code in (("stuck", Exit.DRAIN_OVERRUN), ("stuck-thread", Exit.DRAIN_OVERRUN)):
        process = launch(probe, MOORAGE_DRAIN_S="1")
        ready(process)
        process.terminate()
        process.communicate(timeout=10)
        assert process.returncode == code, probe


def test_a_second_signal_ends_at_once(launch: Launch) -> None:
    process = launch("stuck", MOORAGE_DRAIN_S="30")
    ready(process)
    process.terminate()
    assert process.stderr is not None
    while process.stderr.readline().strip() != "stopping":
        pass
    process.terminate()
    process.communicate(timeout=5)
    assert process.returncode == Exit.DRAIN_OVERRUN


def test_a_service_that_cannot_stop_does_not_hold_the_process(launch: Launch) -> None:
    process = launch("stop-fails")
    ready(process)
    process.terminate()
    _, err = process.communicate(timeout=10)
    assert process.returncode == Exit.OK and "cannot stop" in err


def test_a_ready_line_that_nobody_reads(launch: Launch) -> None:
    port = free_port()
    process = launch("waits-not", MOORAGE_HTTP_PORT=str(port))
    assert process.stdout is not None
    process.stdout.close()
    wait_for_http(process, port)
    deadline = time.monotonic() + 10
    while get(f"127.0.0.1:{port}", "/readyz")[0] != 200:
        assert time.monotonic() < deadline
    process.terminate()
    assert process.wait(timeout=10) == Exit.OK


def test_ports_in_use(launch: Launch, tmp_path: Path) -> None:
    line = ready(launch())
    for option, address in (("MOORAGE_PORT", line["address"]), ("MOORAGE_HTTP_PORT", line["http"])):
        port = address.rpartition(":")[2]
        other = launch("", **{option: port, "MOORAGE_DATA_DIR": str(tmp_path / option)})
        _, err = other.communicate(timeout=20)
        assert other.returncode == Exit.CANNOT_BIND
        assert port in err.splitlines()[-1]


def test_one_directory_one_process(launch: Launch) -> None:
    ready(launch())
    other = launch()
    _, err = other.communicate(timeout=20)
    assert other.returncode == Exit.REFUSED
    assert "in use by another process" in err


def test_a_directory_of_another_cluster(launch: Launch, tmp_path: Path) -> None:
    process = launch()
    ready(process)
    process.terminate()
    process.wait(timeout=10)
    ClusterSecret.create(tmp_path / "other")
    other = launch("", MOORAGE_SECRET_FILE=str(tmp_path / "other"))
    _, err = other.communicate(timeout=20)
    assert other.returncode == Exit.REFUSED and "--secret-file" in err


def test_a_flipped_byte_in_the_identity_file(launch: Launch, tmp_path: Path) -> None:
    process = launch()
    ready(process)
    process.terminate()
    process.wait(timeout=10)
    path = tmp_path / "data" / "identity.json"
    raw = bytearray(path.read_bytes())
    raw[20] ^= 4
    path.write_bytes(raw)
    _, err = (other := launch()).communicate(timeout=20)
    assert other.returncode == Exit.CORRUPT
    assert str(path) in err and "move the directory away" in err


def test_secrets_are_nowhere_to_be_seen(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789-hush-hush\n")
    (tmp_path / "token").chmod(0o600)
    process = launch("", MOORAGE_TOKEN_FILE=str(tmp_path / "token"), MOORAGE_LOG_LEVEL="DEBUG")
    ready(process)
    key = (tmp_path / "secret").read_text().strip().partition(":")[2]
    command = (
        Path(f"/proc/{process.pid}/cmdline").read_text() + Path(f"/proc/{process.pid}/environ").read_text()
    )
    process.terminate()
    _, err = process.communicate(timeout=10)
    assert key not in err + command and "hush" not in err + command


def test_a_misspelt_variable_is_warned_of(launch: Launch) -> None:
    process = launch("", MOORAGE_CAPCITY="1G")
    ready(process)
    process.terminate()
    assert "MOORAGE_CAPCITY is not an option" in process.communicate(timeout=10)[1]
