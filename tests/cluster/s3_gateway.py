"""A `moorage s3` process, clients for it, and a cluster behind it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import moorage
from moorage.cli.local_cluster import LocalCluster, die_with_parent

READY_S = 20


class S3Gateway:
    """``environment``: of a client program, which finds the cluster by it."""

    def __init__(self, environment: dict[str, str], *options: str, listen: str = "127.0.0.1:0") -> None:
        command = (sys.executable, "-m", "moorage.cli.main", "s3", "--listen", listen, "--json", *options)
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, preexec_fn=die_with_parent
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(READY_S)}"
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["url"]

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(READY_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def client(url: str, key: dict[str, str], *, verify: str | None = None, **options: Any) -> Any:
    """A boto3 client; ``key``: as `moorage key create --json` tells it; ``verify``: a file with roots."""
    # Without a version boto3 signs URLs by the one before, which the gateway does not take.
    usual = {"s3": {"addressing_style": "path"}, "retries": {"max_attempts": 3}, "signature_version": "s3v4"}
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        verify=verify,
        aws_access_key_id=key["id"],
        aws_secret_access_key=key["secret"],
        config=Config(**usual | options),
    )


class Served:
    """A cluster with a gateway, and two principals with a key each."""

    def __init__(self, gateway: S3Gateway, environment: dict[str, str], keys: list[dict[str, str]]) -> None:
        self.gateway = gateway
        self.environment = environment
        self.keys = keys
        self.s3 = client(gateway.url, keys[0])
        self.other = client(gateway.url, keys[1])
        self._buckets = 0

    def bucket(self) -> str:
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.s3.create_bucket(Bucket=name)
        return name

    def raw(
        self, method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Any]:
        """Without a signature: status, body and headers."""
        request = urllib.request.Request(
            self.gateway.url + path, data=data, headers=headers or {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers


@contextlib.asynccontextmanager
async def serve(directory: Path) -> AsyncIterator[Served]:
    local = LocalCluster(directory, hosts=3, options={})
    try:
        await local.start()
        environment = {"MOORAGE_REGISTRY": local.registry, "MOORAGE_SECRET_FILE": str(local.secret_file)}
        async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
            keys = [
                (await cluster.keys.create(principal)).to_json(with_secret=True)
                for principal in ("team-a", "team-b")
            ]
        gateway = S3Gateway(environment, "--domain", "s3.test")
        made = Served(gateway, environment, keys)
        yield made
        made.s3.close()
        made.other.close()
        assert gateway.stop() == 0
    finally:
        await local.kill()


def code_of(call: Callable[..., Any], **arguments: Any) -> str:
    """Of the error that it ends with."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])
