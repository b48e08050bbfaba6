"""Uploads in parts.

Owns what an upload comes to: the ETag and the checksum of the whole are made of those of the parts, without
reading a byte again. An upload that was completed is answered as before when it is completed again: the
first answer may have been lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from moorage.client.objects.bucket import Bucket, ObjectInfo
from moorage.gateway.s3 import checksums, conditions, documents, locks, names, properties, results, versions
from moorage.gateway.s3.answer import Answer, nothing, xml
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.checksums import Algorithm, Kind
from moorage.gateway.s3.documents import CompletedPart
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.objects import (
    allow_write,
    check_early,
    checksum_told,
    condition_of,
    judged,
    wanted_properties,
)
from moorage.gateway.s3.payload import Payload
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.results import Checksum
from moorage.wire.errors import Invalid, NotFound

PAGE: Final = 1000
RECENT: Final = 100


async def create_upload(call: Call) -> Answer:
    found = replace(await wanted_properties(call), lock=await locks.asked(call))
    headers = {}
    stated = call.request.header("x-amz-checksum-algorithm")
    kind = call.request.header("x-amz-checksum-type")
    if stated is not None:
        algorithm = checksums.algorithm_of(stated)
        found = replace(found, algorithm=algorithm, kind=checksums.kind_of(kind, algorithm))
        headers = {"x-amz-checksum-algorithm": str(algorithm), "x-amz-checksum-type": str(found.kind)}
    elif kind is not None:
        raise S3Error("InvalidRequest", "x-amz-checksum-type needs x-amz-checksum-algorithm.")
    bucket = await allow_write(call, found)
    id = await bucket.create_upload(call.key, attributes=properties.to_attributes(found))
    return xml(results.initiate_upload(call.name, call.key, id), headers)


async def upload_of(call: Call) -> tuple[str, Properties]:
    """The upload that a part is of. Remembered: what is known of an upload does not change, and that it is
    there is checked with the part itself."""
    record = await call.record()
    id = call.request.parameter("uploadId") or ""
    found = call.place.uploads.get((record.id, id))
    if found is None:
        shown = await _show(record.bucket, id, limit=1)
        found = shown["key"], properties.of_attributes(shown["attributes"])
        call.place.keep_upload((record.id, id), found)
    if found[0] != call.key:
        raise _no_upload(id)
    return id, found[1]


async def _show(bucket: Bucket, id: str, *, after: int = 0, limit: int = PAGE) -> dict[str, Any]:
    try:
        return await bucket.show_upload(id, after=after, limit=limit)
    except (NotFound, Invalid):  # of an id that cannot be one
        raise _no_upload(id) from None


def _no_upload(id: str) -> S3Error:
    return S3Error("NoSuchUpload", UploadId=id)


async def upload_part(call: Call) -> Answer:
    bucket = await call.allow()
    properties.check_supported(call.request)
    number = names.part_number(call.request.parameter("partNumber"))
    id, upload = await upload_of(call)
    payload = Payload(call, upload.algorithm)
    try:
        stored = await bucket.put_part(
            id,
            number,
            await payload.source(),
            attributes=lambda: properties.to_attributes(Properties().with_digests(payload.digests)),
            etag=payload.etag,
        )
    except NotFound:
        raise _no_upload(id) from None
    told = checksum_told(payload.digests)
    told.pop("x-amz-checksum-type", None)
    return Answer(headers={"ETag": f'"{stored["etag"]}"', **told})


async def abort_upload(call: Call) -> Answer:
    bucket = await call.allow()
    id, _ = await upload_of(call)
    try:
        await bucket.abort_upload(id)
    except NotFound:
        raise _no_upload(id) from None
    return nothing()


async def list_parts(call: Call) -> Answer:
    bucket = await call.allow()
    id = call.request.parameter("uploadId") or ""
    limit = names.page_size("max-parts", call.request.parameter("max-parts"))
    marker = names.part_marker(call.request.parameter("part-number-marker"))
    shown = await _show(bucket, id, after=marker, limit=max(limit, 1))
    if shown["key"] != call.key:
        raise _no_upload(id)
    found = properties.of_attributes(shown["attributes"])
    upload = results.Upload(
        *(call.key, id, shown["created_ms"], await call.owner()), algorithm=found.algorithm, kind=found.kind
    )
    document = results.list_parts(
        *(call.name, upload, [_part(each) for each in shown["parts"][:limit]]),
        marker=marker,
        limit=limit,
        more=shown["more"] and limit > 0,
        url=names.encoding_type(call.request.parameter("encoding-type")),
    )
    return xml(document)


def _part(stored: dict[str, Any]) -> results.Part:
    checksum = properties.checksum_of(stored["attributes"])
    return results.Part(stored["number"], stored["etag"], stored["size"], stored["at_ms"], checksum)


# -- completion ------------------------------------------------------------------------------------------


async def complete_upload(call: Call) -> Answer:
    bucket = await call.allow()
    wanted = documents.completed_parts(await call.document(documents.COMPLETE_MAX))
    id = call.request.parameter("uploadId") or ""
    asked = conditions.of_request(call.request)
    try:
        shown = await _show(bucket, id, limit=1)
    except S3Error:
        return await _completed(call, bucket, id)
    if shown["key"] != call.key:
        raise _no_upload(id)
    found = properties.of_attributes(shown["attributes"])
    stored = {part.number: part async for part in _parts(bucket, id)}
    chosen = [_chosen(stored.get(each.number), each) for each in wanted]
    _check_sizes(call, chosen)
    await check_early(bucket, call.key, asked)
    checksum = _checksum_of(call, found, chosen)
    etag = checksums.multipart_etag([bytes.fromhex(part.etag) for part in chosen])
    new = replace(found, algorithm=None, kind=None, lock=None, upload=id, checksum=checksum)
    with judged(asked):
        try:
            info = await bucket.complete_upload(
                *(id, call.key, [(part.number, part.etag) for part in chosen]),
                etag=etag,
                attributes=properties.to_attributes(new),
                condition=condition_of(asked),
                lock=locks.of_new(await call.record(), found.lock, call.now_ms),
            )
        except NotFound:  # another completion, or a part that was put anew, came first
            return await _completed(call, bucket, id)
    return await _told(call, info)


async def _completed(call: Call, bucket: Bucket, id: str) -> Answer:
    """The answer of before, where one of the newest versions is the one that this upload has made."""
    page = await bucket.versions_page(call.key, limit=RECENT)
    for info in page.versions:
        if id and info.key == call.key and properties.of_attributes(info.attributes).upload == id:
            return await _told(call, info)
    raise _no_upload(id)


async def _told(call: Call, info: ObjectInfo) -> Answer:
    scheme = "https" if call.request.secure else "http"
    location = f"{scheme}://{call.request.header('host')}/{call.name}/{quote(call.key)}"
    checksum = properties.checksum_of(info.attributes)
    document = results.complete_upload(location, call.name, call.key, info.etag, checksum)
    return xml(document, versions.told(await call.record(), info))


async def _parts(bucket: Bucket, id: str) -> AsyncIterator[results.Part]:
    after, more = 0, True
    while more:
        shown = await _show(bucket, id, after=after)
        for each in shown["parts"]:
            yield _part(each)
            after = each["number"]
        more = shown["more"]


def _chosen(stored: results.Part | None, wanted: CompletedPart) -> results.Part:
    known = {"PartNumber": str(wanted.number), "ETag": wanted.etag}
    if stored is None or stored.etag != wanted.etag:
        raise S3Error("InvalidPart", **known)
    for algorithm, digest in wanted.checksums.items():
        has = stored.checksum
        if has is None or (has.algorithm, has.text) != (algorithm, checksums.encode(digest)):
            raise S3Error("InvalidPart", "The checksum of a part is another one.", **known)
    return stored


def _check_sizes(call: Call, chosen: Sequence[results.Part]) -> None:
    for part in chosen[:-1]:
        if part.size < names.PART_SIZE_MIN:
            known = {"ProposedSize": str(part.size), "MinSizeAllowed": str(names.PART_SIZE_MIN)}
            raise S3Error("EntityTooSmall", PartNumber=str(part.number), ETag=part.etag, **known)
    size = sum(part.size for part in chosen)
    if size > names.OBJECT_SIZE_MAX:
        raise S3Error("EntityTooLarge", ProposedSize=str(size), MaxSizeAllowed=str(names.OBJECT_SIZE_MAX))
    stated = call.request.header("x-amz-mp-object-size")
    if stated is not None and stated != str(size):
        raise S3Error(
            "InvalidRequest", f"The parts have {size} bytes, not as many as x-amz-mp-object-size says."
        )


def _checksum_of(call: Call, found: Properties, chosen: Sequence[results.Part]) -> Checksum | None:
    if found.algorithm is None:
        return None
    algorithm, kind = found.algorithm, found.kind or Kind.COMPOSITE
    digests = [_digest(part, algorithm) for part in chosen]
    if kind is Kind.COMPOSITE:
        text = checksums.composite(algorithm, digests)
    else:
        sizes = [part.size for part in chosen]
        text = checksums.encode(checksums.full_object(algorithm, zip(digests, sizes, strict=True)))
    stated = call.request.header(algorithm.header)
    if stated is not None and stated not in (text, text.rpartition("-")[0]):
        raise S3Error("BadDigest", f"{algorithm.header} is not the checksum of the parts.")
    return Checksum(algorithm, text, kind)


def _digest(part: results.Part, algorithm: Algorithm) -> bytes:
    has = part.checksum
    digest = None
    if has is not None and has.algorithm is algorithm:
        digest = checksums.decode(has.text, algorithm.size)
    if digest is None:
        raise S3Error("InvalidPart", f"The part has no {algorithm} checksum.", PartNumber=str(part.number))
    return digest
