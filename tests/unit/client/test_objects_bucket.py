"""A bucket against metadata that loses answers, has forgotten a writer, or has other members."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from moorage.client.objects import bucket as buckets
from moorage.client.objects import writing
from moorage.client.objects.bucket import Bucket, Condition
from moorage.wire.errors import (
    DeadlineExceeded,
    MoorageError,
    NotFound,
    PreconditionFailed,
    Stale,
    StaleConfiguration,
    Unavailable,
)

from .object_devices import FakeDevices, FakeMetadata


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRY_S", 0.0)
    monkeypatch.setattr(writing, "LATE_S", 0.005)


PLAIN = {"version": "null", "marker": False, "lock": None}


class Rig:
    """``answer(method, params)`` may raise, or give another answer than that all was well."""

    def __init__(self) -> None:
        self.metadata = FakeMetadata()
        self.devices = FakeDevices()
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.answer: Callable[[str, dict[str, Any]], Any] = lambda method, params: None
        self.bucket = Bucket("photos", self.call, self.devices)

    async def call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        await asyncio.sleep(0)
        if method.endswith(("_region", "_regions")):
            return await self.metadata(method, params)
        self.sent.append((method.removeprefix("metadata."), params))
        if (found := self.answer(method, params)) is not None:
            return found
        if method == "metadata.delete_objects":
            return {"outcomes": [1] * len(params["keys"]), "markers": [None] * len(params["keys"])}
        about = {key: params[key] for key in ("key", "id", "size", "etag", "attributes")}
        return {**about, "at_ms": 1, "parts": [], **PLAIN}

    def fail(self, *errors: MoorageError) -> None:
        left = list(errors)

        def answer(method: str, params: dict[str, Any]) -> None:
            if left:
                raise left.pop(0)

        self.answer = answer


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_what_is_not_known_is_sent_again_as_it_was(rig: Rig) -> None:
    rig.fail(DeadlineExceeded("no answer"), Unavailable("no leader"))
    await rig.bucket.put("k", b"x")
    assert [method for method, _ in rig.sent] == ["put_object"] * 3
    assert rig.sent[0] == rig.sent[1] == rig.sent[2]


async def test_an_error_of_the_second_time_says_that_the_first_may_have_happened(rig: Rig) -> None:
    rig.fail(DeadlineExceeded("no answer"), PreconditionFailed("there is one", etag="e"))
    with pytest.raises(PreconditionFailed) as caught:
        await rig.bucket.put("k", b"x", condition=Condition(absent=True))
    assert caught.value.outcome == "unknown" and caught.value.details["etag"] == "e"
    rig.fail(PreconditionFailed("there is one"))
    with pytest.raises(PreconditionFailed) as caught:
        await rig.bucket.put("k", b"x")
    assert caught.value.outcome == "not_done"


@pytest.mark.parametrize("error", [Stale("silent for too long"), StaleConfiguration("other members")])
async def test_a_put_whose_regions_were_lost_is_written_anew(rig: Rig, error: MoorageError) -> None:
    await rig.bucket.put("a", b"x")
    rig.fail(error, error)
    await rig.bucket.put("k", b"x")
    writers = [params["writer"] for _, params in rig.sent]
    assert len(writers) == 4 and len(set(writers)) == 3, "each time as another writer"
    rig.fail(error, error, error)
    with pytest.raises(Stale):
        await rig.bucket.put("k", b"x")


async def test_lost_regions_fail_no_put_after_one_that_cannot_be_repeated(rig: Rig) -> None:
    """While something else is being written all the time."""
    going = asyncio.Event()

    async def endless() -> Any:
        yield b"x"
        await going.wait()

    upload = asyncio.create_task(rig.bucket.put("endless", endless()))
    await asyncio.sleep(0)

    async def body() -> Any:
        yield b"y"

    rig.fail(Stale("silent for too long"))
    with pytest.raises(Stale):
        await rig.bucket.put("k", body())
    first = rig.sent[-1][1]["writer"]
    await rig.bucket.put("k", body())
    assert rig.sent[-1][1]["writer"] != first
    going.set()
    await upload


async def test_an_unknown_stale_put_is_not_written_twice(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "PUT_S", 0.0)
    rig.fail(Stale("lost", outcome="unknown"))
    with pytest.raises(Stale):
        await rig.bucket.put("k", b"x")
    assert len(rig.sent) == 1


async def test_the_etag_is_asked_for_when_the_body_has_ended(rig: Rig) -> None:
    ended = False

    async def body() -> Any:
        nonlocal ended
        yield b"x"
        ended = True

    info = await rig.bucket.put("k", body(), etag=lambda: f"ended-{ended}", attributes={"a": 1})
    assert (info.etag, info.attributes, info.size) == ("ended-True", {"a": 1}, 1)
    assert (await rig.bucket.put("k", b"x")).etag == "9dd4e461268c8034f5c8564e155c67a6"


async def test_a_put_that_is_cancelled_gives_back_what_it_had(rig: Rig) -> None:
    async def endless() -> Any:
        while True:
            yield bytes(1 << 20)
            await asyncio.sleep(0)

    task = asyncio.create_task(rig.bucket.put("k", endless()))
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.metadata.open
    await rig.bucket.close()
    assert not rig.metadata.open and not rig.sent


async def test_many_long_keys_are_deleted_in_several_calls(rig: Rig) -> None:
    keys = [f"{number:04}" + "k" * 1020 for number in range(1000)]
    assert await rig.bucket.delete(*keys) == [True] * 1000
    assert [key for _, params in rig.sent for key in params["keys"]] == keys
    assert 2 <= len(rig.sent) <= 3
    assert await rig.bucket.delete() == []


async def test_complete_upload_is_known_when_it_is_sent_again(rig: Rig) -> None:
    def answer(method: str, params: dict[str, Any]) -> Any:
        if len(rig.sent) == 1:
            raise DeadlineExceeded("no answer")
        return {**params, "size": 1, "at_ms": 1, "parts": [], **PLAIN}

    rig.answer = answer
    await rig.bucket.complete_upload("u", "k", [(1, "e")], etag="e-1")
    assert rig.sent[0] == rig.sent[1]


async def test_a_bucket_that_is_gone(rig: Rig) -> None:
    rig.metadata.error = NotFound("there is no bucket")
    with pytest.raises(NotFound):
        await rig.bucket.put("k", b"x")
    await rig.bucket.close()
