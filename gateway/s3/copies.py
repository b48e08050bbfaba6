"""Copies: of whole objects, and of ranges of them into parts of uploads.

Owns that the bytes of a copy go through this process, from the members of one replica group to those of
another: checksums are checked when they are read and made anew when they are written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from moorage.client.objects.bucket import ObjectInfo
from moorage.client.objects.reading import ObjectReader
from moorage.gateway.s3 import acl, checksums, conditions, locks, names, properties, ranges, results, versions
from moorage.gateway.s3.answer import Answer, xml
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.checksums import Algorithm, encode
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.objects import allow_write, check_early, condition_of, judged
from moorage.gateway.s3.patience import patiently
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.results import Checksum
from moorage.gateway.s3.uploads import upload_of
from moorage.wire.errors import NotFound


class _Digesting:
    """The bytes of a reader, and their checksum on the way."""

    def __init__(self, reader: ObjectReader, algorithm: Algorithm | None) -> None:
        self._reader = reader
        self._algorithm = algorithm
        self._hasher = None if algorithm is None else checksums.hasher(algorithm)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        async for piece in self._reader:
            if self._hasher is not None:
                self._hasher.update(piece)
            yield piece

    @property
    def checksum(self) -> Checksum | None:
        if self._algorithm is None or self._hasher is None:
            return None
        return Checksum(self._algorithm, encode(self._hasher.digest()))


async def copy_object(call: Call) -> Answer:
    source, reader, told = await _source(call)
    found = properties.of_attributes(source.attributes)
    new, lock = await _copied(call, found), await locks.asked(call)
    bucket = await allow_write(call, new)
    names.check_put_size(source.size)
    asked = conditions.of_request(call.request)
    await check_early(bucket, call.key, asked)
    stated = call.request.header("x-amz-checksum-algorithm")
    former = None if found.checksum is None else found.checksum.algorithm
    body = _Digesting(reader, former if stated is None else checksums.algorithm_of(stated))

    async def put() -> Answer:
        record = await call.record()
        with judged(asked):
            info = await bucket.put(
                call.key,
                body,
                attributes=lambda: properties.to_attributes(replace(new, checksum=body.checksum)),
                condition=condition_of(asked),
                lock=locks.of_new(record, lock, call.now_ms),
            )
        document = results.copy_object(info.etag, info.modified_ms, body.checksum)
        return xml(document, told | versions.told(record, info))

    return await patiently(call, put(), told)


async def _source(call: Call) -> tuple[ObjectInfo, ObjectReader, dict[str, str]]:
    """What ``x-amz-copy-source`` names, if the request may read it and its conditions hold; and headers of
    the answer."""
    name, key, version = names.copy_source(call.request.header("x-amz-copy-source") or "")
    record = await call.place.records.get(name)
    if call.request.header("x-amz-source-expected-bucket-owner") not in (None, record.owner):
        raise S3Error("AccessDenied")
    await call.check(record, "s3:GetObject" if version is None else "s3:GetObjectVersion", key, version)
    try:
        info, reader = await record.bucket.open(key, version=version)
    except NotFound as error:
        if version is not None and "marker" in error.details:
            raise S3Error("InvalidRequest", "A delete marker cannot be copied.") from None
        raise await call.missing(record, key, version, error) from None
    conditions.check_copy(conditions.of_request(call.request, of_source=True), info.etag, info.modified_ms)
    return info, reader, versions.told(record, info, versions.SOURCE)


async def _copied(call: Call, found: Properties) -> Properties:
    """What the copy is to have: of the source, or of the request. A version that is copied to its own key is
    the current object again."""
    given = properties.of_request(call.request)
    other_metadata = _is_replaced(call, "x-amz-metadata-directive")
    other_tags = _is_replaced(call, "x-amz-tagging-directive")
    record = await call.record()
    listed = acl.of_headers(call.request, record.owner, record.owner)
    name, key, version = names.copy_source(call.request.header("x-amz-copy-source") or "")
    changes = other_metadata or other_tags or listed is not None
    if (name, key, version) == (call.name, call.key, None) and not changes:
        raise S3Error("InvalidRequest", "A copy of an object to itself has to change something of it.")
    chosen = given if other_metadata else found
    return Properties(
        chosen.headers,
        chosen.metadata,
        given.tags if other_tags else found.tags,
        None if listed is None else listed.grants,
    )


def _is_replaced(call: Call, header: str) -> bool:
    stated = call.request.header(header) or "COPY"
    if stated not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"{header} is COPY or REPLACE.")
    return stated == "REPLACE"


async def upload_part_copy(call: Call) -> Answer:
    bucket = await call.allow()
    number = names.part_number(call.request.parameter("partNumber"))
    id, upload = await upload_of(call)
    source, reader, told = await _source(call)
    part = ranges.of_copy(call.request.header("x-amz-copy-source-range"), source.size)
    if part is not None:
        reader = reader.range(part.first, part.length)
    names.check_put_size(source.size if part is None else part.length)
    body = _Digesting(reader, upload.algorithm)

    async def put() -> Answer:
        try:
            stored = await bucket.put_part(
                id,
                number,
                body,
                attributes=lambda: properties.to_attributes(Properties(checksum=body.checksum)),
            )
        except NotFound:
            raise S3Error("NoSuchUpload", UploadId=id) from None
        return xml(results.copy_part(stored["etag"], stored["at_ms"], body.checksum), told)

    return await patiently(call, put(), told)
