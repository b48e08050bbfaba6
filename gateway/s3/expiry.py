"""Who acts on lifecycle rules: deletes what is due, once a day for each bucket, and when its rules change.

Owns the rounds, and the document :data:`DONE` of a bucket, which says what was done last: of several gateways
one does it, as a rule; when two do, each finds less to do. Must never delete an object that was put since it
was looked at, nor go by a clock of its own: an object's age is by metadata's, which it was put by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final

import xxhash

from moorage.client.cluster import Cluster
from moorage.client.objects.bucket import Bucket, ObjectInfo
from moorage.gateway.s3 import lifecycle, properties
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.lifecycle import Found, Rule, Succession
from moorage.gateway.s3.records import LIFECYCLE
from moorage.gateway.s3.times import DAY_MS
from moorage.wire.errors import MoorageError, NotFound

log = logging.getLogger(__name__)

DONE: Final = "lifecycle-done"
LOOK_S: Final = 1800.0  # between looks at all buckets; what is due is due from a midnight on


class Expiry:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._changed = asyncio.Event()

    def rules_changed(self) -> None:
        """Of some bucket: they are acted on now."""
        self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._changed.clear()
            try:
                for row in await self._cluster.buckets.list():
                    await self._see_to(row["name"])
            except MoorageError as error:
                log.warning("lifecycle rules wait: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()

    async def _see_to(self, name: str) -> None:
        try:
            async with await self._cluster.bucket(name) as bucket:
                await see_to(bucket)
        except (MoorageError, S3Error) as error:  # it is deleted, or out of reach: the others have their turn
            log.warning("lifecycle rules of bucket %s: %s", name, error)


async def see_to(bucket: Bucket) -> None:
    """Do what its rules ask for by now, unless that was done today."""
    shown = await bucket.show()
    text, now_ms = shown["documents"].get(LIFECYCLE), shown.get("now_ms")
    if text is None or now_ms is None:  # without rules; or its metadata is of a version that has no clock
        return
    done = f"{now_ms // DAY_MS} {xxhash.xxh3_64_hexdigest(text.encode())}"
    if shown["documents"].get(DONE) == done:
        return
    rules = lifecycle.parse(text.encode())
    wanted = prefixes(rules, with_versions=shown.get("versioning") is not None)
    objects = sum([await _expire(bucket, rules, prefix, now_ms) for prefix in wanted])
    uploads = await _abort(bucket, rules, now_ms)
    if objects or uploads:
        log.info("bucket %s: %d objects have expired, and %d uploads", bucket.name, objects, uploads)
    await bucket.set_document(DONE, done)


def prefixes(rules: Sequence[Rule], *, with_versions: bool) -> list[str]:
    """Of what may expire: each is below one of these. ``with_versions``: former versions and delete markers
    as well."""
    wanted = {rule.prefix for rule in rules if rule.enabled and _deletes(rule, with_versions)}
    return sorted(each for each in wanted if not any(each != one and each.startswith(one) for one in wanted))


def _deletes(rule: Rule, with_versions: bool) -> bool:
    of_versions = with_versions and (rule.markers or rule.noncurrent_days is not None)
    return of_versions or rule.days is not None or rule.date_ms is not None


async def _expire(bucket: Bucket, rules: Sequence[Rule], prefix: str, now_ms: int) -> int:
    """Page by page: what is due of one goes before the next is looked at."""
    count, succession = 0, Succession(rules, now_ms)
    after = "", ""
    while True:
        page = await bucket.versions_page(prefix, after=after[0], after_version=after[1])
        former = [one for each in page.versions for one in succession.see(found(each), each.modified_ms)]
        count += await _remove(bucket, former)
        due = [each for each in page.versions if _is_due(rules, each, now_ms)]
        if due:
            count += sum(await bucket.delete_these(due))
        if page.next is None:
            return count + await _remove(bucket, succession.end())
        after = page.next


def _is_due(rules: Sequence[Rule], info: ObjectInfo, now_ms: int) -> bool:
    """Of current objects; where versions are on, a delete marker is put before each."""
    is_current = info.latest and not info.marker
    return is_current and lifecycle.current_due(rules, found(info), info.modified_ms, now_ms)


async def _remove(bucket: Bucket, due: Sequence[Found]) -> int:
    """For good; what is locked stays, and is due again the next day. So does what is something else under
    that name by now, and a former version that is the newest."""
    count = 0
    for former in (True, False):
        if some := [each for each in due if each.former is former]:
            gone = await bucket.delete_versions(
                [(each.key, each.version) for each in some], ids=[each.id for each in some], former=former
            )
            count += sum(each.existed and not each.locked for each in gone)
    return count


def found(info: ObjectInfo) -> Found:
    """As rules look at it."""
    tags = properties.of_attributes(info.attributes).tags
    return Found(info.key, info.size, tags, info.version, info.id, info.marker)


async def _abort(bucket: Bucket, rules: Sequence[Rule], now_ms: int) -> int:
    if not any(rule.enabled and rule.abort_days for rule in rules):
        return 0
    due: list[dict[str, Any]] = [
        each
        for each in await bucket.list_uploads()
        if lifecycle.upload_due(rules, each["key"], each["created_ms"], now_ms)
    ]
    for upload in due:
        with contextlib.suppress(NotFound):  # it was completed meanwhile, or aborted
            await bucket.abort_upload(upload["upload"])
    return len(due)
