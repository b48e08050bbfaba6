"""What the gateway remembers, and how it waits: without sockets and without a cluster."""

from __future__ import annotations

import asyncio
from typing import Any
from xml.etree import ElementTree

import pytest

from moorage.client.keys import AccessKey
from moorage.gateway.s3.answer import Answer, xml
from moorage.gateway.s3.credentials import FRESH_S, Credentials
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.gateway import OPERATIONS
from moorage.gateway.s3.markup import document, element
from moorage.gateway.s3.patience import patiently
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.routing import COPIES, TABLE
from moorage.wire.errors import NoQuorum, NotFound


def test_every_operation_that_is_routed_is_answered() -> None:
    assert set(OPERATIONS) == {row.operation for row in TABLE} | set(COPIES.values())


async def test_keys_are_remembered_for_a_moment() -> None:
    asked: list[str] = []
    there = {"A": AccessKey("A", "team-a", 0, "", "secret")}
    now = [0.0]

    async def find(identity: str) -> AccessKey:
        asked.append(identity)
        if identity not in there:
            raise NotFound("there is no access key")
        return there[identity]

    credentials = Credentials(find, lambda: now[0])
    for _ in range(3):
        assert (await credentials.get("A")).principal == "team-a"
        with pytest.raises(S3Error, match="InvalidAccessKeyId"):
            await credentials.get("B")
        with pytest.raises(S3Error, match="InvalidAccessKeyId"):
            await credentials.get("../x")
    assert asked == ["A", "B"]
    there.clear()
    now[0] += FRESH_S
    with pytest.raises(S3Error, match="InvalidAccessKeyId"):
        await credentials.get("A")


class _Call:
    operation = "CopyObject"
    request = Request("PUT", "/b/k", "", [])


async def _long(seconds: float, error: Exception | None = None) -> Answer:
    await asyncio.sleep(seconds)
    if error is not None:
        raise error
    return xml(document("CopyObjectResult", element("ETag", "e")), {"late": "1"})


CALL: Any = _Call()


async def test_what_ends_soon_is_answered_as_it_is() -> None:
    answer = await patiently(CALL, _long(0), {"early": "1"})
    assert answer.stream is None and answer.body.startswith(b"<?xml") and "late" in answer.headers
    with pytest.raises(S3Error, match="NoSuchKey"):
        await patiently(CALL, _long(0, S3Error("NoSuchKey")), {})


@pytest.mark.parametrize(
    ("error", "root"),
    [(None, "CopyObjectResult"), (S3Error("PreconditionFailed"), "Error"), (NoQuorum("h1"), "Error")],
)
async def test_what_takes_long_is_answered_with_blanks_before(error: Exception | None, root: str) -> None:
    answer = await patiently(CALL, _long(0.05, error), {"early": "1"}, every_s=0.01)
    assert "early" in answer.headers
    assert (answer.status, answer.length) == (200, None) and answer.stream is not None
    text = b"".join([bytes(piece) async for piece in answer.stream])
    assert text.count(b"  ") and text.count(b"<?xml") == 1
    assert ElementTree.fromstring(text).tag.rpartition("}")[2] == root


async def test_who_does_not_wait_any_more_cancels_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> Answer:
        try:
            return await _long(60)
        finally:
            ended.set()

    waiting = asyncio.create_task(patiently(CALL, work(), {}))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    answer = await patiently(CALL, work(), {}, every_s=0.01)
    ended.clear()
    assert answer.stream is not None
    await anext(answer.stream)
    await answer.stream.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(ended.wait(), 5)
