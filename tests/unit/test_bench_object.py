"""The object benchmark over buckets in memory: what is done, counted, compared and told; and its S3 client's
signatures, beside those of botocore."""

from __future__ import annotations

import datetime
import json
from array import array
from collections.abc import Awaitable
from io import StringIO
from unittest import mock

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from rich.console import Console

from moorage.bench import object_report
from moorage.bench.object_stores import keys_of
from moorage.bench.objects import KIB, MIB, Measurement, Subject, Workload, closed_loop, workloads
from moorage.bench.s3_client import Endpoint, Payload, signed_headers
from moorage.wire.errors import Corrupt, Invalid, MoorageError, NoSpace

AT = datetime.datetime(2026, 11, 24, 12, 0, 0, tzinfo=datetime.UTC)
ROWS = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in "ab")


class MemoryStore:
    def __init__(self, by: str, room: int = 1 << 40) -> None:
        self.by = by
        self.objects: dict[str, bytes] = {}
        self.room = room
        self.cut = 0

    async def open(self) -> None: ...

    async def put(self, key: str, payload: Payload) -> None:
        if len(self.objects) >= self.room:
            raise NoSpace("full")
        self.objects[key] = payload.data

    async def get(self, key: str) -> int:
        return len(self.objects[key]) - self.cut

    async def page(self, prefix: str, limit: int) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))[:limit]

    async def delete(self, key: str) -> None:
        del self.objects[key]

    async def remove(self) -> None: ...


async def measured(store: MemoryStore, *operations: str, bytes_max: int = 64 * KIB) -> list[Measurement]:
    subject = Subject(store)
    await subject.prepare(20)
    chosen = [Workload(each, 0 if each == "list" else 4 * KIB, 4, 20) for each in operations]
    return [await subject.measure(one, 0.02, bytes_max) for one in chosen]


def test_workloads_put_what_they_get_and_delete() -> None:
    names = [one.name for one in workloads([4 * KIB, 64 * MIB], [1, 16], 1000)]
    assert names[:2] == ["list 1000 keys, concurrency 1", "list 1000 keys, concurrency 16"]
    assert names[2:5] == [f"{each} 4 KiB, concurrency 1" for each in ("put", "get", "delete")]
    assert names[-1] == "delete 64 MiB, concurrency 16" and len(names) == 14


async def test_a_put_ends_with_its_bytes_and_a_delete_with_its_objects() -> None:
    store = MemoryStore("library")
    put, got, listed, deleted = await measured(store, "put", "get", "list", "delete")
    assert put.operations == deleted.operations == 16, "64 KiB"
    assert got.operations > 16 and listed.operations > 0
    assert got.latency_us["p50"] <= got.latency_us["max"]
    assert not any(one.error for one in (put, got, listed, deleted))
    assert len(store.objects) == 20, "what is listed stays"


async def test_each_slot_puts_one_object_however_large() -> None:
    (put,) = await measured(MemoryStore("library"), "put", bytes_max=1)
    assert put.operations == 4


async def test_a_failure_is_told_with_what_was_done_until_then() -> None:
    put, got = await measured(MemoryStore("s3", room=25), "put", "get")
    assert (put.operations, put.error) == (5, "full")
    assert got.error is None and got.operations > 0, "of what was put"


async def test_bytes_that_lack_are_an_error() -> None:
    store = MemoryStore("library")
    store.cut = 1
    _, got = await measured(store, "put", "get")
    assert got.error is not None and "4095 bytes came" in got.error


async def test_the_first_error_ends_all_slots() -> None:
    begun = 0

    async def fail() -> None:
        raise Corrupt("no")

    def step() -> Awaitable[None]:
        nonlocal begun
        begun += 1
        return fail()

    with pytest.raises(Corrupt):
        await closed_loop(step, 3, 60, array("Q"))
    assert begun <= 3


async def test_report() -> None:
    ours, other = MemoryStore("s3"), MemoryStore("endpoint", room=25)
    found = await measured(MemoryStore("library"), "put") + await measured(ours, "put")
    found += await measured(other, "put")
    document = object_report.document(found, began="2026-11-24T12:00:00+00:00", options={"complete": True})
    assert json.loads(json.dumps(document))["schema"] == "moorage.bench.object/1"
    assert [one["by"] for one in document["results"]] == ["library", "s3", "endpoint"]
    assert document["results"][0]["workload"]["name"] == "put 4 KiB, concurrency 4"
    assert list(document["s3_to_library"]) == ["put 4 KiB, concurrency 4"]
    assert document["s3_to_endpoint"] == {}, "what failed is no rate to compare with"
    assert document["results"][2]["error"] == "full"
    shown = StringIO()
    Console(file=shown, width=80).print(object_report.table(found, "Objects"))
    assert "put 4K x4" in shown.getvalue() and "failed" in shown.getvalue() and "…" not in shown.getvalue()


@pytest.mark.parametrize("token", ["", "session/token=="])
@pytest.mark.parametrize(
    ("url", "method", "path", "query"),
    [
        ("http://127.0.0.1:9000", "PUT", "/b/k/%C3%A9%20a", ""),
        ("https://s3.example.com", "GET", "/b", "list-type=2&max-keys=10&prefix=a%2Fb"),
        ("http://[::1]:80/", "DELETE", "/b/k", ""),
    ],
)
def test_signatures_are_those_of_botocore(url: str, method: str, path: str, query: str, token: str) -> None:
    endpoint = Endpoint(url, "eu-west-1", "KEY", "SECRET", token)
    payload = Payload.of(b"body")
    ours = signed_headers(endpoint, method, path, query, payload.sha256, int(AT.timestamp() * 1000))
    request = AWSRequest(
        method, f"{endpoint.origin}{path}?{query}", {"x-amz-content-sha256": payload.sha256}, b"body"
    )
    with mock.patch.object(botocore.auth, "get_current_datetime", lambda: AT):
        credentials = Credentials("KEY", "SECRET", token or None)
        botocore.auth.S3SigV4Auth(credentials, "s3", "eu-west-1").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]


@pytest.mark.parametrize("url", ["127.0.0.1:9000", "ftp://host", "http://", "http://host/path"])
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(Invalid, match="http://HOST:PORT"):
        Endpoint(url, "us-east-1", "KEY", "SECRET")


def test_secrets_are_not_shown() -> None:
    assert "SECRET" not in repr(Endpoint("http://host", "us-east-1", "KEY", "SECRET", "SECRET"))


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_keys_of_listings(namespace: str) -> None:
    assert keys_of(f"<ListBucketResult{namespace}>{ROWS}</ListBucketResult>".encode()) == ["a", "b"]
    with pytest.raises(MoorageError, match="no S3 server"):
        keys_of(b"hello")
