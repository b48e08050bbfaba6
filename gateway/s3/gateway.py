"""From a request to its answer: who sent it, which operation it is, and what became of it.

Owns the table of operations and the last word on errors: whatever goes wrong is one answer of S3, and what
was our own mistake is in the log, with the id that the client was told. Must never log a query or a header:
signatures are in them.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

from moorage.gateway.s3 import (
    buckets,
    copies,
    cors,
    errors,
    forms,
    listings,
    locks,
    objects,
    routing,
    signature,
    uploads,
)
from moorage.gateway.s3.answer import XML, Answer
from moorage.gateway.s3.call import Call, Place
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import Proof
from moorage.wire.errors import InvariantViolation, MoorageError, NotFound

log = logging.getLogger(__name__)

Operation = Callable[[Call], Awaitable[Answer]]
RETRY_AFTER_S: Final = 1

_UNSET: Final = (
    *("GetBucketAccelerateConfiguration", "GetBucketEncryption", "GetBucketLogging"),
    *("GetBucketNotificationConfiguration", "GetBucketOwnershipControls", "GetBucketReplication"),
    *("GetBucketRequestPayment", "GetBucketWebsite", "GetPublicAccessBlock"),
)

OPERATIONS: Final[dict[str, Operation]] = {
    "ListBuckets": listings.list_buckets,
    "CreateBucket": buckets.create_bucket,
    "HeadBucket": buckets.head_bucket,
    "DeleteBucket": buckets.delete_bucket,
    "GetBucketLocation": buckets.get_location,
    "ListObjects": listings.list_objects,
    "ListObjectsV2": listings.list_objects_v2,
    "ListObjectVersions": listings.list_versions,
    "ListMultipartUploads": listings.list_uploads,
    "PutObject": objects.put_object,
    "GetObject": objects.get_object,
    "HeadObject": objects.head_object,
    "GetObjectAttributes": objects.get_object_attributes,
    "DeleteObject": objects.delete_object,
    "DeleteObjects": objects.delete_objects,
    "CopyObject": copies.copy_object,
    "PostObject": forms.post_object,
    "CreateMultipartUpload": uploads.create_upload,
    "UploadPart": uploads.upload_part,
    "UploadPartCopy": copies.upload_part_copy,
    "CompleteMultipartUpload": uploads.complete_upload,
    "AbortMultipartUpload": uploads.abort_upload,
    "ListParts": uploads.list_parts,
    "GetObjectTagging": objects.get_object_tagging,
    "PutObjectTagging": objects.put_object_tagging,
    "DeleteObjectTagging": objects.delete_object_tagging,
    "GetObjectAcl": objects.get_object_acl,
    "PutObjectAcl": objects.put_object_acl,
    "GetObjectRetention": locks.get_retention,
    "PutObjectRetention": locks.put_retention,
    "GetObjectLegalHold": locks.get_legal_hold,
    "PutObjectLegalHold": locks.put_legal_hold,
    "GetObjectLockConfiguration": locks.get_configuration,
    "PutObjectLockConfiguration": locks.put_configuration,
    "GetBucketPolicy": buckets.get_policy,
    "PutBucketPolicy": buckets.put_policy,
    "DeleteBucketPolicy": buckets.delete_document,
    "GetBucketPolicyStatus": buckets.get_policy_status,
    "GetBucketCors": buckets.get_cors,
    "PutBucketCors": buckets.put_cors,
    "DeleteBucketCors": buckets.delete_document,
    "GetBucketLifecycleConfiguration": buckets.get_lifecycle,
    "PutBucketLifecycleConfiguration": buckets.put_lifecycle,
    "DeleteBucketLifecycle": buckets.delete_document,
    "GetBucketTagging": buckets.get_tagging,
    "PutBucketTagging": buckets.put_tagging,
    "DeleteBucketTagging": buckets.delete_document,
    "GetBucketAcl": buckets.get_acl,
    "PutBucketAcl": buckets.put_acl,
    "GetBucketVersioning": buckets.get_versioning,
    "PutBucketVersioning": buckets.put_versioning,
    "Preflight": buckets.preflight,
    **dict.fromkeys(_UNSET, buckets.unset),
}


class Gateway:
    def __init__(self, place: Place, domains: Iterable[str], now_ms: Callable[[], int]) -> None:
        self._place = place
        self._domains = tuple(domains)
        self._now_ms = now_ms

    async def answer(self, request: Request, incoming: AsyncIterator[bytes]) -> tuple[str, Answer]:
        """And the name of the operation, "" for none. Raises nothing but cancellation and our own
        mistakes."""
        request_id = secrets.token_hex(8).upper()
        operation, name, answer = "", "", Answer()
        try:
            call = await self._call(request, incoming)
            operation, name = call.operation, call.name
            answer = await OPERATIONS[operation](call)
        except NotFound as error:  # what there is in it has been asked for by then
            self._place.records.forget(name)
            log.info("%s %s: %s", operation, request_id, error)
            answer = self._failure(S3Error("NoSuchBucket", BucketName=name), request, operation, request_id)
        except (S3Error, MoorageError) as error:
            if isinstance(error, InvariantViolation):
                raise
            answer = self._failure(error, request, operation, request_id)
        except Exception as error:
            log.exception("%s %s failed", operation, request_id)
            answer = self._failure(error, request, operation, request_id)
        answer.headers["x-amz-request-id"] = request_id
        answer.headers |= await self._cross_origin(request)
        return operation, answer

    async def _call(self, request: Request, incoming: AsyncIterator[bytes]) -> Call:
        now_ms = self._now_ms()
        request, principal, proof, presigned = await self._sender(request, now_ms)
        route = routing.route(request, self._domains)
        return Call(
            *(self._place, request, route.operation, route.bucket, route.key, route.action),
            *(principal, proof, presigned, now_ms, incoming),
        )

    async def _sender(self, request: Request, now_ms: int) -> tuple[Request, str | None, Proof, bool]:
        claim = signature.claim_of(request, self._place.region, now_ms)
        if claim is None:
            return request, None, signature.anonymous(request), False
        key = await self._place.credentials.get(claim.access_key)
        proof = signature.prove(claim, request, key.secret)
        if claim.presigned:
            request = signature.unfolded(request)
        return request, key.principal, proof, claim.presigned

    def _failure(self, error: BaseException, request: Request, operation: str, request_id: str) -> Answer:
        told = errors.error_of(error)
        if told.status >= 500 and not isinstance(error, S3Error):
            log.warning("%s %s: %s: %s", operation or request.method, request_id, told.code, error)
        headers = {"Content-Type": XML, **told.headers}
        if told.status == 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        body = b"" if told.status == 304 else errors.render(told, request.path, request_id)
        return Answer(told.status, headers, body)

    async def _cross_origin(self, request: Request) -> dict[str, str]:
        """The headers that let a browser's script see the answer, also one that says what went wrong."""
        origin = request.header("origin")
        if origin is None or request.method == "OPTIONS":
            return {}
        with contextlib.suppress(S3Error, MoorageError):
            name, _ = routing.place(request, self._domains)
            if name:
                return cors.answer((await self._place.records.get(name)).cors, origin, request.method)
        return {}
