"""What people type by mistake: one line that says what to do, the right exit code, never a traceback.

Exit codes are those of docs/launch.md: 2 usage, 3 a value is wrong, 4 refused, 9 others do not answer, or
hold the volume.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# (arguments, exit code, words that the message must contain). {tmp} is an empty directory.
OFFLINE: list[tuple[str, int, str]] = [
    ("frobnicate", 2, "No such command"),
    ("--frobnicate", 2, "No such option"),
    ("volume", 2, "Usage"),
    ("volume frob", 2, "No such command"),
    ("volume create", 2, "Missing argument"),
    ("volume create v", 2, "--size"),
    ("volume create v --size", 2, "requires an argument"),
    ("volume create v --size big", 2, "size"),
    ("volume create v --size -5", 2, "size"),
    ("volume create v --size 1Q", 2, "size"),
    ("volume create v --size 1M --replicas three", 2, "integer"),
    ("volume create v --size 1M --durability maybe", 2, "sync"),
    ("volume create v --size 1M --groups x", 2, "integer"),
    ("volume create v w --size 1M", 2, "unexpected extra argument"),
    ("volume show", 2, "Missing argument"),
    ("volume resize v", 2, "--size"),
    ("volume delete", 2, "Missing argument"),
    ("volume list --timeout 0", 2, "timeout"),
    ("volume list --timeout soon", 2, "timeout"),
    ("volume list --timeout nan", 2, "timeout"),
    ("volume list --timeout inf", 2, "timeout"),
    ("attach v --nbd unix:{tmp}/s --timeout nan", 2, "timeout"),
    ("attach", 2, "Missing argument"),
    ("attach v", 2, "--nbd"),
    ("status extra", 2, "unexpected extra argument"),
    ("docker extra", 2, "unexpected extra argument"),
    ("docker --discovery {tmp}/moorage.txt", 3, ".spec or .json"),
    ("docker", 3, "MOORAGE_REGISTRY"),
    ("dvdcli", 2, "Usage"),
    ("dvdcli mount", 2, "--volumename"),
    ("dvdcli frob --volumename=v", 2, "No such command"),
    ("dvdi run", 2, "Missing argument"),
    ("dvdi run true", 3, "DVDI_VOLUME_NAME"),
    ("up --hosts 2", 2, "--hosts"),
    ("up --data /proc/nope", 3, "--data"),
    ("demo --fast", 2, "No such option"),
    ("drill", 2, "Usage"),
    ("drill flood", 2, "No such command"),
    ("drill zombie --host h1", 2, "No such option"),
    ("drill host-loss --max-stall soon", 2, "max-stall"),
    ("drill host-loss --max-recovery nan", 2, "max-recovery"),
    ("drill full-disk --max-fill big", 2, "not a size"),
    ("drill partition --inject x", 3, "--undo"),
    ("drill host-loss --undo x", 3, "--inject"),
    ("drill host-loss --manual --inject x", 3, "contradict"),
    ("bench", 2, "Usage"),
    ("bench block --seconds none", 2, "seconds"),
    ("bench bucket --objects 10", 2, "--objects"),
    ("bench bucket --data /proc/nope", 3, "/proc/nope"),
    ("bench bucket --objects 1000000000000 --data {tmp}/b", 7, "--data"),
    ("bench object --only nonsense", 2, "put 4 KiB, concurrency 1"),
    ("bench object --endpoint 127.0.0.1:9", 2, "http://HOST:PORT"),
    ("bench object --endpoint http://127.0.0.1:9 --access-key K", 2, "AWS_SECRET_ACCESS_KEY"),
    ("bench object --endpoint http://h --secret-key-file {tmp}/no", 2, "{tmp}/no"),
    ("bench verify", 2, "Missing argument"),
    ("bench verify v --depth 0", 2, "depth"),
    (  # seen before anything is connected to, or zeroed
        "bench verify v --journal {tmp}/no/j --registry 127.0.0.1:1 --secret-file {tmp}/secret",
        3,
        "{tmp}/no/j: No such file",
    ),
    ("status", 3, "MOORAGE_REGISTRY"),
    ("volume list", 3, "MOORAGE_REGISTRY"),
    ("status --registry 127.0.0.1:1", 3, "MOORAGE_SECRET_FILE"),
    ("status --registry 127.0.0.1:1 --secret-file {tmp}/none", 3, "{tmp}/none"),
    ("status --registry 127.0.0.1:1 --secret-file {tmp}/open", 3, "chmod 600"),
    ("status --registry 127.0.0.1:1 --secret-file {tmp}/garbage", 3, "{tmp}/garbage"),
    ("status --registry nonsense --secret-file {tmp}/secret", 3, "nonsense"),
    ("status --registry 127.0.0.1:notaport --secret-file {tmp}/secret", 3, "notaport"),
    ("status --registry srv: --secret-file {tmp}/secret", 3, "srv"),
    ("status --cluster unheard --secret-file {tmp}/secret", 3, "unheard"),
    ("status --registry 127.0.0.1:1 --secret-file {tmp}/secret --timeout 1", 9, "127.0.0.1:1"),
    (
        "attach v --nbd unix:{tmp}/s --registry 127.0.0.1:1 --secret-file {tmp}/secret --timeout 1",
        9,
        "127.0.0.1:1",
    ),
    ("host", 3, "MOORAGE_DATA_DIR"),
    ("host --data-dir {tmp}/d", 3, "MOORAGE_SECRET_FILE"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/none", 3, "{tmp}/none"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/secret --port 99999", 3, "port"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/secret --bind nowhere", 3, "IP address"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/secret --name Bad!", 3, "a-z"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/secret --peers x", 3, "peers"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/secret --capacity lots", 3, "capacity"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/secret --log-level loud", 3, "log-level"),
    ("host --data-dir {tmp}/d --secret-file {tmp}/secret --suspect-ms 0", 3, "suspect-ms"),
    ("node --data-dir {tmp}/d --secret-file {tmp}/secret", 3, "registry"),
    ("metadata --data-dir {tmp}/d --secret-file {tmp}/secret", 3, "registry"),
    ("secret", 2, "Usage"),
    ("secret create", 2, "Missing argument"),
    ("secret create {tmp}/secret", 3, "exists"),
    ("secret create {tmp}/no/such/directory/secret", 3, "{tmp}/no/such/directory"),
]

# The same against a running cluster, in which volume "taken" (2 MiB, 3 replicas) exists and is held.


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With a good secret file, one that others can read, and one that is none."""
    from moorage.wire.secret import ClusterSecret

    ClusterSecret.create(tmp_path / "secret")
    (tmp_path / "open").write_text((tmp_path / "secret").read_text())
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "garbage").write_text("not a secret\n")
    (tmp_path / "garbage").chmod(0o600)
    return tmp_path


def check(code: int, out: str, err: str, expected: int, words: str, arguments: str) -> None:
    said = out + err
    assert code == expected, f"{arguments}: exit code {code}, not {expected}: {said}"
    assert "Traceback" not in said, said
    assert words in said, f"{arguments}: {words!r} is not in {said!r}"
    if expected != 2:
        assert len(err.strip().splitlines()) == 1, f"{arguments}: more than one line: {err!r}"


def run(directory: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moorage.cli.main", *arguments.format(tmp=directory).split()],
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(("arguments", "code", "words"), OFFLINE, ids=[row[0] for row in OFFLINE])
def test_offline(directory: Path, arguments: str, code: int, words: str) -> None:
    done = run(directory, arguments)
    check(done.returncode, done.stdout, done.stderr, code, words.format(tmp=directory), arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("frobnicate --json", 2, "No such command"),
        ("volume frob --json", 2, "No such command"),
        ("volume create v --json", 2, "Missing option '--size'"),
        ("volume create v --json --size big", 2, "not a size"),
        ("bench block --volume v --json", 2, "--overwrite"),
        ("status --json", 3, "MOORAGE_REGISTRY"),
    ],
)
def test_with_json_a_bad_invocation_is_answered_with_json(
    directory: Path, arguments: str, code: int, words: str
) -> None:
    done = run(directory, arguments)
    assert (done.returncode, done.stdout) == (code, "")
    said = json.loads(done.stderr)["error"]
    assert said.keys() == {"name", "code", "message", "details"}
    assert words in said["message"]


@pytest.mark.parametrize("arguments", ["volume create --json --help", "up --json --help"])
def test_help_is_help_with_json_too(directory: Path, arguments: str) -> None:
    done = run(directory, arguments)
    assert done.returncode == 0 and "Usage" in done.stdout
