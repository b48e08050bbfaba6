"""`moorage bench` on real clusters: small, for what it says and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import moorage

from .s3_gateway import S3Gateway

Command = Callable[..., Awaitable[tuple[int, str, str]]]


async def test_bench_object_by_all_ways(
    cluster: moorage.Cluster, environment: dict[str, str], moorage_command: Command
) -> None:
    """The other server is a gateway of ours, too: what it is asked is what any would be."""
    key = (await cluster.keys.create("other")).to_json(with_secret=True)
    other = S3Gateway(environment)
    try:
        arguments = ("--size", "4K", "--concurrency", "2", "--seconds", "0.1", "--keys", "10", "--json")
        given = {"AWS_ACCESS_KEY_ID": key["id"], "AWS_SECRET_ACCESS_KEY": key["secret"]}
        code, out, err = await moorage_command(
            "bench", "object", *arguments, "--endpoint", other.url, env={**environment, **given}
        )
    finally:
        other.stop()
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "moorage.bench.object/1" and document["options"]["complete"]
    expected = [
        (f"{what}, concurrency 2", by)
        for what in ("list 10 keys", "put 4 KiB", "get 4 KiB", "delete 4 KiB")
        for by in ("library", "s3", "endpoint")
    ]
    assert [(one["workload"]["name"], one["by"]) for one in document["results"]] == expected
    assert all(one["operations"] > 0 and one["error"] is None for one in document["results"])
    assert len(document["s3_to_library"]) == len(document["s3_to_endpoint"]) == 4
    assert key["secret"] not in out + err
    assert await cluster.buckets.list() == [], "all is cleaned up"
    assert [each.id for each in await cluster.keys.list()] == [key["id"]]
