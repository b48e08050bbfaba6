"""Operations that list: buckets, objects, versions, and uploads in parts."""

from __future__ import annotations

from collections.abc import Sequence

from moorage.client.objects.bucket import Bucket, ObjectInfo
from moorage.gateway.s3 import listing, names, properties, results
from moorage.gateway.s3.answer import Answer, xml
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.listing import Asked, Cursor, Page, Query
from moorage.gateway.s3.results import Object, Owner, Upload, Version


async def list_buckets(call: Call) -> Answer:
    """Those of who asks."""
    principal = call.signed_in()
    prefix = call.request.parameter("prefix") or ""
    limit = names.number("max-buckets", call.request.parameter("max-buckets"), 1, 10_000, 10_000)
    after = call.request.parameter("continuation-token") or ""
    rows = await call.place.cluster.buckets.list()
    mine = [
        (row["name"], row["created_ms"])
        for row in rows
        if row["principal"] == principal and row["name"].startswith(prefix) and row["name"] > after
    ]
    following = mine[limit - 1][0] if len(mine) > limit else ""
    return xml(results.list_buckets(Owner(principal), mine[:limit], prefix, following))


async def list_objects(call: Call) -> Answer:
    bucket = await call.allow()
    asked = listing.asked(call.request, "ListObjects")
    owner = await call.owner()
    return xml(results.list_objects(call.name, asked, await _objects(bucket, asked.query, owner)))


async def list_objects_v2(call: Call) -> Answer:
    bucket = await call.allow()
    asked = listing.asked(call.request, "ListObjectsV2")
    owner = await call.owner() if asked.fetch_owner else None
    return xml(results.list_objects_v2(call.name, asked, await _objects(bucket, asked.query, owner)))


async def _objects(bucket: Bucket, query: Query, owner: Owner | None) -> Page[Object]:
    """Metadata rolls keys up itself."""
    if not query.limit:
        return Page()
    found = await bucket.page(
        query.prefix, delimiter=query.delimiter, after=_behind_prefix(query), limit=query.limit
    )
    page = Page([_object(each, owner) for each in found.objects], found.prefixes)
    if found.next:
        ends = [*found.prefixes[-1:], *(each.key for each in found.objects[-1:])]
        page.next = Cursor(max(ends, key=str.encode))
    return page


def _behind_prefix(query: Query) -> str:
    """Who asks for what comes behind a key has had the common prefix that the key is in."""
    after = query.after.key
    if not query.delimiter or not after.startswith(query.prefix):
        return after
    end = after.find(query.delimiter, len(query.prefix))
    return after if end < 0 else after[: end + len(query.delimiter)]


def _object(info: ObjectInfo, owner: Owner | None) -> Object:
    checksum = properties.checksum_of(info.attributes)
    return Object(info.key, info.etag, info.size, info.modified_ms, owner, checksum=checksum)


async def list_versions(call: Call) -> Answer:
    bucket = await call.allow()
    asked = listing.asked(call.request, "ListObjectVersions")
    owner = await call.owner()
    return xml(results.list_versions(call.name, asked, await _versions(bucket, asked.query, owner)))


async def _versions(bucket: Bucket, query: Query, owner: Owner) -> Page[Version]:
    """As :func:`_objects`."""
    if not query.limit:
        return Page()
    found = await bucket.versions_page(
        query.prefix,
        delimiter=query.delimiter,
        after=query.after.key,
        after_version=query.after.id,
        limit=query.limit,
    )
    following = None if found.next is None else Cursor(*found.next)
    return Page([_version(each, owner) for each in found.versions], found.prefixes, following)


def _version(info: ObjectInfo, owner: Owner) -> Version:
    about = info.key, info.version, info.latest, info.modified_ms, owner
    if info.marker:
        return Version(*about)
    return Version(*about, info.etag, info.size, checksum=properties.checksum_of(info.attributes))


async def list_uploads(call: Call) -> Answer:
    bucket = await call.allow()
    asked = listing.asked(call.request, "ListMultipartUploads")
    owner = await call.owner()
    found = [_upload(each, owner) for each in await bucket.list_uploads(asked.query.prefix)]
    return xml(results.list_uploads(call.name, asked, await _uploads(found, asked)))


async def _uploads(found: Sequence[Upload], asked: Asked) -> Page[Upload]:
    async def fetch(after: Cursor, limit: int) -> tuple[Sequence[Upload], bool]:
        rest = found[_index(found, after) :]
        return rest[:limit], len(rest) > limit

    return await listing.page(fetch, asked.query)


def _index(found: Sequence[Upload], after: Cursor) -> int:
    """Of the first one behind it; of one key they are in the order in which they were begun."""
    for index, each in enumerate(found):
        if each.key == after.key and each.id == after.id:
            return index + 1
        if each.key.encode() > after.key.encode():
            return index
    return len(found)


def _upload(row: dict[str, object], owner: Owner) -> Upload:
    attributes = row["attributes"]
    assert isinstance(attributes, dict) and isinstance(row["created_ms"], int)
    kept = properties.of_attributes(attributes)
    return Upload(
        *(str(row["key"]), str(row["upload"]), row["created_ms"], owner),
        algorithm=kept.algorithm,
        kind=kept.kind,
    )
