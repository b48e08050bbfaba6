"""A `moorage s3` process, and clients for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import boto3
from botocore.config import Config

from moorage.cli.local_cluster import die_with_parent

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
