"""Programs that others wrote for S3, on the gateway of a real cluster."""

from __future__ import annotations

import filecmp
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import moorage
from tests.prerequisites import PATH, no_mounts, no_programs, require

from .s3_gateway import S3Gateway, client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MIB = 1 << 20


class Tools:
    """``directory`` has a tree of files; programs run in it, with a key in their environment."""

    def __init__(self, gateway: S3Gateway, key: dict[str, str], directory: Path) -> None:
        self.url = gateway.url
        self.key = key
        self.directory = directory
        self.environment = {
            "PATH": PATH,
            "HOME": str(directory),
            "AWS_ACCESS_KEY_ID": key["id"],
            "AWS_SECRET_ACCESS_KEY": key["secret"],
        }
        chance = random.Random(7)
        for name, size in (("a", 1000), ("empty", 0), ("sub/ü b", 70_000), ("sub/deep/large", 23 * MIB + 7)):
            file = directory / "tree" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(chance.randbytes(size))

    def run(self, *command: str, **more: str) -> str:
        ended = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def check(self, back: str) -> None:
        """Whether the tree has come back there."""
        files = [path.relative_to(self.directory / "tree") for path in (self.directory / "tree").rglob("*")]
        names = [str(each) for each in files if (self.directory / "tree" / each).is_file()]
        same, other, missing = filecmp.cmpfiles(
            self.directory / "tree", self.directory / back, names, shallow=False
        )
        assert (sorted(same), other, missing) == (sorted(names), [], [])


@pytest.fixture
async def tools(
    cluster: moorage.Cluster, environment: dict[str, str], tmp_path: Path
) -> AsyncIterator[Tools]:
    key = (await cluster.keys.create("team-a")).to_json(with_secret=True)
    gateway = S3Gateway(environment)
    yield Tools(gateway, key, tmp_path)
    assert gateway.stop() == 0


def test_rclone(tools: Tools) -> None:
    require(no_programs("rclone"))
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENV_AUTH": "true",
        "ENDPOINT": tools.url,
        "REGION": "us-east-1",
    }
    settings |= {"UPLOAD_CUTOFF": "10M", "CHUNK_SIZE": "5M"}
    named = {f"RCLONE_CONFIG_M_{name}": value for name, value in settings.items()}

    def rclone(*command: str) -> str:
        return tools.run("rclone", "--config", "", *command, **named)

    rclone("mkdir", "m:bucket")
    rclone("sync", "tree", "m:bucket/tree")
    rclone("check", "--download", "tree", "m:bucket/tree")
    rclone("moveto", "m:bucket/tree/a", "m:bucket/tree/moved")
    os.utime(tools.directory / "tree" / "empty", (1_500_000_000, 1_500_000_000))
    rclone("sync", "tree", "m:bucket/tree")
    assert "2017-07-14" in rclone("lsl", "m:bucket/tree/empty")
    rclone("copy", "m:bucket/tree", "back")
    tools.check("back")
    rclone("purge", "m:bucket")
    assert rclone("lsd", "m:") == ""


def test_restic(tools: Tools) -> None:
    require(no_programs("restic"))
    named = {"RESTIC_PASSWORD": "p", "RESTIC_REPOSITORY": f"s3:{tools.url}/backups"}

    def restic(*command: str) -> str:
        return tools.run("restic", *command, **named)

    restic("init")
    restic("backup", "tree")
    (tools.directory / "tree" / "new").write_bytes(b"new")
    restic("backup", "tree")
    restic("forget", "--keep-last", "1", "--prune")
    assert "no errors were found" in restic("check", "--read-data")
    restic("restore", "latest", "--target", "back")
    tools.check("back/tree")


@pytest.fixture
def mounted(tools: Tools) -> Iterator[Path]:
    require(no_programs("s3fs") or no_mounts(("/dev/fuse",)))
    s3 = client(tools.url, tools.key)
    s3.create_bucket(Bucket="files")
    s3.close()
    at, credentials = tools.directory / "at", tools.directory / "credentials"
    at.mkdir()
    credentials.write_text(f"{tools.key['id']}:{tools.key['secret']}\n")
    credentials.chmod(0o600)
    options = f"url={tools.url},passwd_file={credentials},use_path_request_style,endpoint=us-east-1"
    tools.run("s3fs", "files", str(at), "-o", options)
    yield at
    tools.run("umount", str(at))


def test_s3fs(tools: Tools, mounted: Path) -> None:
    tools.run("cp", "-r", "tree", "at/tree")
    tools.check("at/tree")
    tools.run("mv", "at/tree/sub/deep/large", "at/large")
    tools.run("chmod", "600", "at/tree/a")
    assert (mounted / "large").stat().st_size == 23 * MIB + 7
    assert (mounted / "tree" / "a").stat().st_mode & 0o777 == 0o600
    tools.run("rm", "-r", "at/tree", "at/large")
    assert list(mounted.iterdir()) == []
