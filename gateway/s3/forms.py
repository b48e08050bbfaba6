"""Uploads by browsers' forms.

Owns who sent such a request, which only its fields say: they are read before anything else is known.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import quote, urlencode, urlsplit

from moorage.gateway.s3 import checksums, documents, form, locks, names, properties, results, versions
from moorage.gateway.s3.answer import XML, Answer
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.form import Upload
from moorage.gateway.s3.multipart import FormReader
from moorage.gateway.s3.objects import allow_write, wanted_properties
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.results import Checksum

# Of the request itself; all others that an object takes are in the form.
_KEPT = ("host", "origin", "referer", "user-agent", "x-amz-expected-bucket-owner")


async def post_object(call: Call) -> Answer:
    reader = FormReader(call.request.header("content-type") or "", call.incoming)
    pairs, filename = await reader.fields()
    fields = form.fields_of(pairs)
    claim = form.claim_of(fields, call.place.region, call.now_ms)
    call.principal = None  # whatever the head says: a signature of it would not cover the fields
    if claim is not None:
        key = await call.place.credentials.get(claim.access_key)
        form.prove(claim, key.secret)
        call.principal = key.principal
    upload = form.upload_of(fields, call.name, filename, call.now_ms)
    call.key = upload.key
    call.request = _as_put(call.request, upload)
    found, lock = await wanted_properties(call), await locks.asked(call)
    if upload.tagging:
        found = replace(found, tags=documents.tagging(upload.tagging.encode(), names.OBJECT_TAGS_MAX))
    bucket = await allow_write(call, found)
    body = _File(call.request, upload, reader.file())
    record = await call.record()
    info = await bucket.put(
        upload.key,
        body,
        attributes=lambda: properties.to_attributes(body.noted(found)),
        lock=locks.of_new(record, lock, call.now_ms),
    )
    return _told(call, upload, info.etag, versions.told(record, info))


def _as_put(request: Request, upload: Upload) -> Request:
    kept = [(name, value) for name in _KEPT for value in request.values(name)]
    headers = [*kept, *upload.headers.items()]
    return Request(
        *(request.method, request.path, request.query, headers),
        secure=request.secure,
        source_ip=request.source_ip,
    )


class _File:
    """The file, of the size that the form allows and with the checksum that it announces; else it ends with
    an error."""

    def __init__(self, request: Request, upload: Upload, pieces: AsyncIterator[bytes]) -> None:
        self._upload = upload
        self._pieces = pieces
        self._announced = checksums.announced(request)
        self._hasher = None if self._announced is None else checksums.hasher(self._announced.algorithm)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._pieces:
            size += len(piece)
            self._upload.check_size_so_far(size)
            if self._hasher is not None:
                self._hasher.update(piece)
            yield piece
        self._upload.check_size(size)
        expected = None if self._announced is None else self._announced.value
        made = None if self._hasher is None else self._hasher.digest()
        if expected is not None and made is not None and not hmac.compare_digest(expected, made):
            raise S3Error("BadDigest")

    def noted(self, found: Properties) -> Properties:
        if self._announced is None or self._hasher is None:
            return found
        text = checksums.encode(self._hasher.digest())
        return replace(found, checksum=Checksum(self._announced.algorithm, text))


def _told(call: Call, upload: Upload, etag: str, more: dict[str, str]) -> Answer:
    headers = {"ETag": f'"{etag}"', **more}
    if upload.redirect and urlsplit(upload.redirect).scheme in ("http", "https"):
        told = urlencode({"bucket": call.name, "key": upload.key, "etag": f'"{etag}"'})
        headers["Location"] = f"{upload.redirect}{'&' if '?' in upload.redirect else '?'}{told}"
        return Answer(303, headers)
    scheme = "https" if call.request.secure else "http"
    location = f"{scheme}://{call.request.header('host')}/{call.name}/{quote(upload.key)}"
    headers["Location"] = location
    if upload.status != 201:
        return Answer(upload.status, headers)
    headers["Content-Type"] = XML
    return Answer(201, headers, results.post_object(location, call.name, upload.key, etag))
