"""The S3 gateway and a host die under load: what was acknowledged is there, byte for byte, and nothing is in
part."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

import moorage
from moorage.cli.local_cluster import LocalCluster

from .s3_gateway import S3Gateway, client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MIB = 1 << 20
BUCKET = "under-load"


def content(key: str) -> bytes:
    """Of an object; those that are put in parts have 11 MiB."""
    chance = random.Random(key)
    return chance.randbytes(11 * MIB if key.startswith("big") else chance.randrange(0, 300_000))


class Load:
    """Puts until it is told to stop; ``acknowledged`` and ``unknown`` are keys."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.ending = False

    def small(self, worker: int) -> None:
        number = 0
        while not self.ending:
            number += 1
            key = f"small-{worker}-{number}"
            self._note(key, lambda key=key: self._s3.put_object(Bucket=BUCKET, Key=key, Body=content(key)))

    def big(self) -> None:
        number = 0
        while not self.ending:
            number += 1
            key = f"big-{number}"
            self._note(key, lambda key=key: self._in_parts(key, content(key)))

    def _note(self, key: str, put: Any) -> None:
        try:
            put()
        except (BotoCoreError, ClientError):
            self.unknown.append(key)
        else:
            self.acknowledged.append(key)

    def _in_parts(self, key: str, data: bytes) -> None:
        made = self._s3.create_multipart_upload(Bucket=BUCKET, Key=key)
        upload = {"Bucket": BUCKET, "Key": key, "UploadId": made["UploadId"]}
        parts = []
        for number, at in enumerate(range(0, len(data), 5 * MIB), start=1):
            stored = self._s3.upload_part(**upload, PartNumber=number, Body=data[at : at + 5 * MIB])
            parts.append({"PartNumber": number, "ETag": stored["ETag"]})
        self._s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


async def test_a_gateway_and_a_host_die_under_load(
    local: LocalCluster, cluster: moorage.Cluster, environment: dict[str, str]
) -> None:
    key = (await cluster.keys.create("team-a")).to_json(with_secret=True)
    gateway = await asyncio.to_thread(S3Gateway, environment)
    s3 = client(
        gateway.url, key, retries={"mode": "standard", "total_max_attempts": 8}, max_pool_connections=8
    )
    s3.create_bucket(Bucket=BUCKET)
    load = Load(s3)
    workers = [asyncio.create_task(asyncio.to_thread(load.small, worker)) for worker in range(3)]
    workers.append(asyncio.create_task(asyncio.to_thread(load.big)))

    async def more(count: int) -> None:
        wanted = len(load.acknowledged) + count
        async with asyncio.timeout(60):
            while len(load.acknowledged) < wanted:
                await asyncio.sleep(0.05)

    try:
        await more(20)
        for victim in ("h1", "h2"):
            await asyncio.to_thread(gateway.stop, signal.SIGKILL)
            gateway = await asyncio.to_thread(S3Gateway, environment, listen=gateway.address)
            await more(20)
            await local.host(victim).kill()
            await more(20)
            await local.host(victim).launch()
            await local.host(victim).wait_ready()
            await more(20)
    finally:
        load.ending = True
        await asyncio.gather(*workers)
    assert any(each.startswith("big") for each in load.acknowledged)
    for each in load.acknowledged:
        got = await asyncio.to_thread(lambda each=each: s3.get_object(Bucket=BUCKET, Key=each)["Body"].read())
        assert got == content(each), each
    listed = {
        row["Key"]
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        for row in page["Contents"]
    }
    assert listed >= set(load.acknowledged)
    for each in listed - set(load.acknowledged):
        assert each in load.unknown
        assert s3.get_object(Bucket=BUCKET, Key=each)["Body"].read() == content(each)
    s3.close()
    assert await asyncio.to_thread(gateway.stop) == 0


async def test_without_a_majority_clients_are_told_to_try_again(
    local: LocalCluster, cluster: moorage.Cluster, environment: dict[str, str]
) -> None:
    key = (await cluster.keys.create("team-a")).to_json(with_secret=True)
    gateway = await asyncio.to_thread(S3Gateway, environment)
    s3 = client(gateway.url, key, retries={"total_max_attempts": 1}, read_timeout=100)
    s3.create_bucket(Bucket=BUCKET)
    await asyncio.to_thread(lambda: s3.put_object(Bucket=BUCKET, Key="k", Body=b"before"))
    for name in ("h1", "h2"):
        await local.host(name).kill()
    for attempt in (
        lambda: s3.put_object(Bucket=BUCKET, Key="k", Body=b"lost"),
        lambda: s3.get_object(Bucket=BUCKET, Key="k"),
        lambda: s3.create_bucket(Bucket="another"),
    ):
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(attempt)
        answer = caught.value.response
        assert answer["Error"]["Code"] == "ServiceUnavailable"
        assert answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"
    for name in ("h1", "h2"):
        await local.host(name).launch()
    for name in ("h1", "h2"):
        await local.host(name).wait_ready()

    async def puts() -> bool:
        try:
            await asyncio.to_thread(lambda: s3.put_object(Bucket=BUCKET, Key="k", Body=b"after"))
        except ClientError:
            return False
        return True

    async with asyncio.timeout(60):
        while not await puts():
            await asyncio.sleep(0.5)
    got = await asyncio.to_thread(lambda: s3.get_object(Bucket=BUCKET, Key="k")["Body"].read())
    assert got == b"after"
    s3.close()
    assert await asyncio.to_thread(gateway.stop) == 0
