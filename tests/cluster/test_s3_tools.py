"""Programs that others wrote for S3, on the gateway of a real cluster."""

from __future__ import annotations

import filecmp
import json
import os
import random
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import Minio
from minio.commonconfig import ENABLED, ComposeSource, CopySource, Tags
from minio.deleteobjects import DeleteObject
from minio.error import S3Error as MinioError
from minio.versioningconfig import VersioningConfig

import moorage
from tests.prerequisites import PATH, no_mounts, no_programs, require

from .s3_gateway import S3Gateway, client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MIB = 1 << 20
AWS = "/usr/bin/aws"  # Debian's, of version 2


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

    def run(self, *command: str, expected: int = 0, **more: str) -> str:
        ended = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ended.returncode == expected, ended.stdout + ended.stderr
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


def test_aws(tools: Tools) -> None:
    require(no_programs(AWS))

    def aws(*command: str, expected: int = 0) -> str:
        place = ("--endpoint-url", tools.url, "--region", "us-east-1", "--output", "json")
        return tools.run(AWS, *place, *command, expected=expected)

    aws("s3", "mb", "s3://bucket")
    aws("s3", "sync", "tree", "s3://bucket/tree", "--no-progress")
    assert aws("s3", "sync", "tree", "s3://bucket/tree") == "", "all is there"
    aws("s3", "mv", "s3://bucket/tree/a", "s3://bucket/tree/moved")
    aws("s3", "cp", "s3://bucket/tree/moved", "s3://bucket/tree/a")
    listed = aws("s3", "ls", "--recursive", "--summarize", "s3://bucket/tree/")
    assert "tree/sub/ü b" in listed and "Total Objects: 5" in listed
    aws("s3", "cp", "--recursive", "s3://bucket/tree", "back")
    tools.check("back")
    url = aws("s3", "presign", "s3://bucket/tree/moved").strip()
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == (tools.directory / "tree" / "a").read_bytes()

    def api(*command: str) -> dict[str, Any]:
        return dict(json.loads(aws("s3api", *command, "--bucket", "bucket") or "{}"))

    api("put-bucket-versioning", "--versioning-configuration", "Status=Enabled")
    aws("s3", "rm", "s3://bucket/tree/moved")
    found = api("list-object-versions", "--prefix", "tree/moved")
    assert (len(found["DeleteMarkers"]), found["Versions"][0]["VersionId"]) == (1, "null")
    aws("s3", "rb", "--force", "s3://bucket", expected=1)
    for each in (each for rows in api("list-object-versions").values() if rows for each in _named(rows)):
        api("delete-object", "--key", each["Key"], "--version-id", each["VersionId"])
    aws("s3", "rb", "s3://bucket")
    assert aws("s3", "ls") == ""


def _named(rows: Any) -> list[dict[str, Any]]:
    return [each for each in rows if isinstance(each, dict)] if isinstance(rows, list) else []


def test_s5cmd(tools: Tools) -> None:
    program = str(Path(sys.executable).with_name("s5cmd"))

    def s5cmd(*command: str) -> str:
        return tools.run(program, "--endpoint-url", tools.url, *command, AWS_REGION="us-east-1")

    s5cmd("mb", "s3://bucket")
    s5cmd("cp", "--part-size", "5", "tree/", "s3://bucket/tree/")
    s5cmd("mv", "s3://bucket/tree/a", "s3://bucket/tree/moved")
    s5cmd("cp", "s3://bucket/tree/moved", "s3://bucket/tree/a")
    rows = [json.loads(line) for line in s5cmd("--json", "ls", "s3://bucket/*").splitlines()]
    assert "s3://bucket/tree/sub/ü b" in [row["key"] for row in rows] and len(rows) == 5
    assert s5cmd("cat", "s3://bucket/tree/empty") == ""
    s5cmd("sync", "s3://bucket/tree/*", "back/")
    tools.check("back")
    (tools.directory / "tree" / "new").write_bytes(b"new")
    said = s5cmd("sync", "--size-only", "tree/", "s3://bucket/tree/")
    assert len(said.splitlines()) == 1 and "tree/new" in said
    s5cmd("rm", "s3://bucket/*")
    s5cmd("rb", "s3://bucket")
    assert s5cmd("ls") == ""


def test_minio(tools: Tools) -> None:
    place = urllib.parse.urlsplit(tools.url).netloc
    about = {"access_key": tools.key["id"], "secret_key": tools.key["secret"], "region": "us-east-1"}
    s3 = Minio(place, secure=False, **about)
    s3.make_bucket("bucket")
    tree = tools.directory / "tree"
    for path in (each for each in tree.rglob("*") if each.is_file()):
        name = f"tree/{path.relative_to(tree)}"
        s3.fput_object("bucket", name, str(path), part_size=5 * MIB, metadata={"from": "here"})
    s3.copy_object("bucket", "copy", CopySource("bucket", "tree/a"))
    s3.compose_object(
        "bucket",
        "composed",
        [ComposeSource("bucket", "tree/sub/deep/large"), ComposeSource("bucket", "tree/a")],
    )
    assert s3.stat_object("bucket", "composed").size == 23 * MIB + 1007
    found = s3.stat_object("bucket", "tree/a")
    assert found.metadata is not None and found.metadata["x-amz-meta-from"] == "here"
    listed = sorted(str(each.object_name) for each in s3.list_objects("bucket", "tree/sub/"))
    assert listed == ["tree/sub/deep/", "tree/sub/ü b"]
    for each in s3.list_objects("bucket", "tree/", recursive=True):
        s3.fget_object("bucket", str(each.object_name), str(tools.directory / "back" / str(each.object_name)))
    tools.check("back/tree")
    tags = Tags.new_object_tags()
    tags["a"] = "b"
    s3.set_object_tags("bucket", "copy", tags)
    assert s3.get_object_tags("bucket", "copy") == tags
    s3.set_bucket_versioning("bucket", VersioningConfig(ENABLED))
    s3.remove_object("bucket", "copy")
    with pytest.raises(MinioError, match="NoSuchKey"):
        s3.stat_object("bucket", "copy")
    all_versions = list(s3.list_objects("bucket", recursive=True, include_version=True))
    assert sum(each.is_delete_marker for each in all_versions) == 1 and len(all_versions) == 7
    gone = [DeleteObject(str(each.object_name), each.version_id) for each in all_versions]
    assert list(s3.remove_objects("bucket", gone)) == []
    s3.remove_bucket("bucket")
    assert list(s3.list_buckets()) == []


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
