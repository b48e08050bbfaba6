"""Operations on one object, but for copies and uploads in parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from moorage.client.objects.bucket import Bucket, Condition, Deletion, ObjectInfo
from moorage.client.objects.reading import ObjectReader
from moorage.gateway.s3 import (
    acl,
    conditions,
    documents,
    expiry,
    lifecycle,
    locks,
    names,
    properties,
    ranges,
    results,
    routing,
    times,
    versions,
)
from moorage.gateway.s3.answer import Answer, nothing, xml
from moorage.gateway.s3.body import Digests
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.conditions import Conditions
from moorage.gateway.s3.errors import S3Error, error_of
from moorage.gateway.s3.names import check_version
from moorage.gateway.s3.payload import Payload
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.ranges import Range
from moorage.gateway.s3.records import Record
from moorage.gateway.s3.results import Deleted
from moorage.wire.errors import MoorageError, NotFound, PreconditionFailed

Named = tuple[str, str | None]  # a key, and a version of it; None: the object as it is now

# -- writing ---------------------------------------------------------------------------------------------


async def put_object(call: Call) -> Answer:
    found, lock = await wanted_properties(call), await locks.asked(call)
    bucket = await allow_write(call, found)
    asked = conditions.of_request(call.request)
    await check_early(bucket, call.key, asked)
    payload, record = Payload(call), await call.record()
    with judged(asked):
        info = await bucket.put(
            call.key,
            await payload.source(),
            attributes=lambda: properties.to_attributes(found.with_digests(payload.digests)),
            condition=condition_of(asked),
            etag=payload.etag,
            lock=locks.of_new(record, lock, call.now_ms),
        )
    told = {**checksum_told(payload.digests), **about(call, record, info)}
    return Answer(headers={"ETag": f'"{info.etag}"', **told})


async def wanted_properties(call: Call) -> Properties:
    """What the request's headers say of the object that it makes."""
    found = properties.of_request(call.request)
    record = await call.record()
    listed = acl.of_headers(call.request, record.owner, record.owner)
    return found if listed is None else replace(found, grants=listed.grants)


async def allow_write(call: Call, found: Properties) -> Bucket:
    more = ["s3:PutObjectTagging"] * bool(found.tags) + ["s3:PutObjectAcl"] * (found.grants is not None)
    return await call.allow(*more, *locks.actions(call.request), tags=found.tags)


async def check_early(bucket: Bucket, key: str, asked: Conditions, version: str | None = None) -> None:
    """What cannot be put is not worth its bytes; it is judged again with the put."""
    if not asked.asked:
        return
    etag = None
    with contextlib.suppress(NotFound):
        etag = (await bucket.head(key, version=version)).etag
    conditions.check_write(asked, etag)


def condition_of(asked: Conditions) -> Condition | None:
    """Of a write or a delete, as metadata judges it."""
    if asked.none_match is not None:
        return Condition(absent=True)
    if asked.match is None or conditions.ANY in asked.match:
        return None
    return Condition(etags=sorted(asked.match))


@contextlib.contextmanager
def judged(asked: Conditions) -> Iterator[None]:
    """Says which condition did not hold."""
    try:
        yield
    except PreconditionFailed as error:
        conditions.check_write(asked, error.details.get("etag"))
        raise S3Error("ConditionalRequestConflict") from None


def checksum_told(digests: Digests) -> dict[str, str]:
    return properties.checksum_headers(Properties().with_digests(digests).checksum)


async def delete_object(call: Call) -> Answer:
    bucket, version = await call.allow(*call.bypassing()), call.version
    asked = conditions.of_request(call.request)
    await check_early(bucket, call.key, asked, version)
    with judged(asked):
        (done,) = await bucket.delete_versions(
            [(call.key, version)], condition=condition_of(asked), bypass=call.bypasses
        )
    if done.locked:
        raise _locked()
    return nothing(versions.deletion_told(done))


async def delete_objects(call: Call) -> Answer:
    wanted, quiet = documents.deletions(await call.document(documents.DELETE_MAX))
    record = await call.record()
    told: dict[Named, Deleted] = {}
    plain: dict[Named, None] = {}
    for each in wanted:
        named = each.key, each.version
        try:
            await _allow_deletion(call, record, each)
            if (each.etag, each.modified_ms, each.size) != (None, None, None):
                told[named] = await _delete_if(call, record.bucket, each)
            else:
                plain[named] = None
        except (S3Error, MoorageError) as error:
            told[named] = Deleted(*named, error=error_of(error))
    if plain:
        gone = await record.bucket.delete_versions(list(plain), bypass=call.bypasses)
        told |= {named: _deleted(named, done) for named, done in zip(plain, gone, strict=True)}
    return xml(results.deleted(told.values(), quiet))


async def _allow_deletion(call: Call, record: Record, each: documents.Deletion) -> None:
    action = "s3:DeleteObject" if check_version(each.version) is None else "s3:DeleteObjectVersion"
    for needed in (action, *call.bypassing()):
        await call.check(record, needed, each.key, each.version)


def _locked() -> S3Error:
    return S3Error("AccessDenied", "The version is locked.")


def _deleted(named: Named, done: Deletion) -> Deleted:
    if done.locked:
        return Deleted(*named, error=_locked())
    return Deleted(*named, done.version if done.marker else None)


async def _delete_if(call: Call, bucket: Bucket, each: documents.Deletion) -> Deleted:
    """Of an object that is as it was described: judged once more, by its ETag, when it goes."""
    named = each.key, each.version
    try:
        found = await bucket.head(each.key, version=each.version)
    except NotFound as error:
        if each.version is not None and "marker" in error.details:  # which has nothing that was described
            raise S3Error("PreconditionFailed") from None
        return Deleted(*named)
    same_time = each.modified_ms is None or found.modified_ms // 1000 == each.modified_ms // 1000
    same_size = each.size is None or found.size == each.size
    if not (same_time and same_size and each.etag in (None, "*", found.etag)):
        raise S3Error("PreconditionFailed")
    try:
        (done,) = await bucket.delete_versions(
            [named], condition=Condition(etags=[found.etag]), bypass=call.bypasses
        )
    except PreconditionFailed:
        raise S3Error("ConditionalRequestConflict") from None
    return _deleted(named, done)


# -- reading ---------------------------------------------------------------------------------------------


async def get_object(call: Call) -> Answer:
    bucket = await call.allow()
    properties.check_supported(call.request)
    try:
        info, reader = await bucket.open(call.key, version=call.version)
    except NotFound as error:
        raise await call.missing(await call.record(), call.key, call.version, error) from None
    return await _told(call, info, reader)


async def head_object(call: Call) -> Answer:
    await call.allow()
    properties.check_supported(call.request)
    return await _told(call, await call.head(), None)


async def _told(call: Call, info: ObjectInfo, reader: ObjectReader | None) -> Answer:
    record, found = await call.record(), properties.of_attributes(info.attributes)
    headers = {
        "ETag": f'"{info.etag}"',
        "Last-Modified": times.http(info.modified_ms),
        "Accept-Ranges": "bytes",
        **about(call, record, info),
    }
    try:
        conditions.check_read(conditions.of_request(call.request), info.etag, info.modified_ms)
    except S3Error as error:
        if error.code == "NotModified":
            return Answer(error.status, headers)
        raise
    headers |= await locks.told(call, record, info)
    headers |= found.told() | routing.response_headers(call.request, anonymous=call.principal is None)
    part, parts = _range(call, info)
    if parts:
        headers["x-amz-mp-parts-count"] = str(parts)
    if part is None and (call.request.header("x-amz-checksum-mode") or "").upper() == "ENABLED":
        headers |= properties.checksum_headers(found.checksum)
    answer = Answer(headers=headers, length=info.size)
    if part is not None:
        headers["Content-Range"] = part.content_range(info.size)
        answer.status, answer.length = 206, part.length
    if reader is not None:
        chosen = reader if part is None else reader.range(part.first, part.length)
        answer.stream = aiter(chosen)
    return answer


def about(call: Call, record: Record, info: ObjectInfo) -> dict[str, str]:
    """Headers of each answer to who puts or reads it: which version it is, and when the current one
    expires."""
    headers = versions.told(record, info)
    text = lifecycle.expiration_header(record.lifecycle, expiry.found(info), info.modified_ms)
    if text is not None and call.version is None:
        headers["x-amz-expiration"] = text
    return headers


def _range(call: Call, info: ObjectInfo) -> tuple[Range | None, int]:
    """The bytes that are wanted, None for all; and of how many parts the object is, where one was asked
    for."""
    stated, wished = call.request.header("range"), call.request.parameter("partNumber")
    if wished is None:
        wanted = conditions.range_applies(call.request, info.etag, info.modified_ms)
        return ranges.of_header(stated if wanted else None, info.size), 0
    if stated is not None:
        raise S3Error("InvalidRequest", "Range and partNumber exclude each other.")
    number = names.part_number(wished)
    sizes = [size for size, _ in info.parts] or [info.size]
    if number > len(sizes):
        raise S3Error("InvalidRange", "The object has no part of this number.")
    first = sum(sizes[: number - 1])
    part = Range(first, first + sizes[number - 1] - 1)
    return (part if part.length else None), len(info.parts)


async def get_object_attributes(call: Call) -> Answer:
    await call.allow()
    info = await call.head()
    stated = call.request.header("x-amz-object-attributes") or ""
    wanted = {each.strip() for each in stated.split(",") if each.strip()}
    known = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}
    if not wanted or not wanted <= known:
        raise S3Error("InvalidArgument", f"x-amz-object-attributes lists some of {', '.join(sorted(known))}.")
    limit = names.page_size("x-amz-max-parts", call.request.header("x-amz-max-parts"))
    after = names.part_marker(call.request.header("x-amz-part-number-marker"))
    parts = [
        results.Part(number, "", size, info.modified_ms)
        for number, (size, _) in enumerate(info.parts, start=1)
    ]
    with_parts = "ObjectParts" in wanted and bool(info.parts)
    document = results.attributes(
        results.Attributes(
            info.etag if "ETag" in wanted else None,
            properties.checksum_of(info.attributes) if "Checksum" in wanted else None,
            results.STANDARD if "StorageClass" in wanted else None,
            info.size if "ObjectSize" in wanted else None,
            len(parts) if with_parts else None,
            parts[after : after + limit] if with_parts else (),
            after,
            limit,
            with_parts and len(parts) > after + limit,
        )
    )
    told = versions.told(await call.record(), info)
    return xml(document, {"Last-Modified": times.http(info.modified_ms), **told})


# -- tags and lists of access ----------------------------------------------------------------------------


async def get_object_tagging(call: Call) -> Answer:
    await call.allow()
    info = await call.head()
    found = properties.of_attributes(info.attributes)
    return xml(results.tagging(dict(found.tags)), versions.told(await call.record(), info))


async def put_object_tagging(call: Call) -> Answer:
    tags = documents.tagging(await call.document(documents.SMALL_MAX), names.OBJECT_TAGS_MAX)
    bucket = await call.allow(tags=tags)
    return Answer(headers=await _change(call, bucket, tags=tags))


async def delete_object_tagging(call: Call) -> Answer:
    return nothing(await _change(call, await call.allow(), tags={}))


async def get_object_acl(call: Call) -> Answer:
    await call.allow()
    record, info = await call.record(), await call.head()
    found = properties.of_attributes(info.attributes)
    return xml(acl.render(found.acl(record.owner)), versions.told(record, info))


async def put_object_acl(call: Call) -> Answer:
    record = await call.record()
    body = await call.document(documents.SMALL_MAX)
    listed = acl.of_headers(call.request, record.owner, record.owner) or acl.parse(body, record.owner)
    return Answer(headers=await _change(call, await call.allow(), grants=listed.grants))


async def _change(
    call: Call,
    bucket: Bucket,
    *,
    tags: dict[str, str] | None = None,
    grants: tuple[acl.Grant, ...] | None = None,
) -> dict[str, str]:
    """Of the object as it is; of one that is replaced meanwhile, nothing is changed. Headers of the
    answer."""
    info = await call.head()
    found = properties.of_attributes(info.attributes)
    if tags is not None:
        found = replace(found, tags=tags)
    if grants is not None:
        found = replace(found, grants=grants)
    try:
        await bucket.set_attributes(info, properties.to_attributes(found, info.attributes))
    except NotFound:
        raise S3Error("NoSuchKey", Key=call.key) from None
    except PreconditionFailed:
        raise S3Error("OperationAborted") from None
    return versions.told(await call.record(), info)
