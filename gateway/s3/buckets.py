"""Operations on buckets: to make, find and delete them, and the documents that are kept about them.

Owns which configurations there are. One that nothing here would act on is NotImplemented, never stored: a
client would believe in it.
"""

from __future__ import annotations

from moorage.gateway.s3 import acl, cors, documents, lifecycle, names, policy_document, results
from moorage.gateway.s3.answer import Answer, nothing, xml
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.records import ACL, CORS, LIFECYCLE, POLICY, TAGGING
from moorage.wire.errors import Busy, Invalid, MoorageError, NameTaken, NotEnoughHosts, NotFound

_DELETES = {
    "DeleteBucketCors": CORS,
    "DeleteBucketLifecycle": LIFECYCLE,
    "DeleteBucketPolicy": POLICY,
    "DeleteBucketTagging": TAGGING,
}


async def create_bucket(call: Call) -> Answer:
    owner = call.signed_in()
    wanted = documents.creation(await call.document(documents.SMALL_MAX))
    if wanted.location not in ("", call.place.region):
        raise S3Error("IllegalLocationConstraintException", f"Buckets here are in {call.place.region}.")
    with_locks = (call.request.header("x-amz-bucket-object-lock-enabled") or "").lower() == "true"
    listed = acl.of_headers(call.request, owner, owner)
    try:
        await call.place.cluster.buckets.create(
            call.name, replicas=call.place.replicas, principal=owner, locks=with_locks
        )
    except NameTaken:
        raise await _taken(call, owner) from None
    except NotEnoughHosts:
        raise S3Error("ServiceUnavailable", "There are too few hosts for the replicas of a bucket.") from None
    call.place.records.expire(call.name)
    record = await call.record()
    if listed is not None:
        await call.place.records.set_document(record, ACL, acl.render(listed).decode())
    if wanted.tags:
        await call.place.records.set_document(record, TAGGING, results.tagging(wanted.tags).decode())
    return Answer(headers={"Location": f"/{call.name}"})


async def _taken(call: Call, owner: str) -> S3Error:
    try:
        is_mine = (await call.place.records.get(call.name)).owner == owner
    except S3Error:  # a volume has the name, or it is being deleted
        is_mine = False
    return S3Error("BucketAlreadyOwnedByYou" if is_mine else "BucketAlreadyExists", BucketName=call.name)


async def head_bucket(call: Call) -> Answer:
    await call.allow()
    return Answer(headers={"x-amz-bucket-region": call.place.region})


async def get_location(call: Call) -> Answer:
    await call.allow()
    return xml(results.location(call.place.region))


async def delete_bucket(call: Call) -> Answer:
    """Uploads that were begun go with it."""
    await call.allow()
    try:
        await call.place.cluster.buckets.delete(call.name)
    except Busy:
        raise S3Error("BucketNotEmpty", BucketName=call.name) from None
    except NotFound:
        raise S3Error("NoSuchBucket", BucketName=call.name) from None
    finally:
        call.place.records.forget(call.name)
    return nothing()


# -- documents -------------------------------------------------------------------------------------------


async def put_policy(call: Call) -> Answer:
    body = await call.document(policy_document.SIZE_MAX)
    await call.allow()
    policy_document.parse(body, call.name)
    await _keep(call, POLICY, body.decode())
    return nothing()


async def get_policy(call: Call) -> Answer:
    text = await _kept(call, POLICY, "NoSuchBucketPolicy")
    return Answer(headers={"Content-Type": "application/json"}, body=text.encode())


async def get_policy_status(call: Call) -> Answer:
    await _kept(call, POLICY, "NoSuchBucketPolicy")
    found = (await call.record()).policy
    return xml(results.policy_status(found is not None and found.is_public))


async def put_cors(call: Call) -> Answer:
    body = await call.document(documents.SMALL_MAX)
    await call.allow()
    await _keep(call, CORS, cors.render(cors.parse(body)).decode())
    return Answer()


async def get_cors(call: Call) -> Answer:
    return xml((await _kept(call, CORS, "NoSuchCORSConfiguration")).encode())


async def put_lifecycle(call: Call) -> Answer:
    body = await call.document(lifecycle.SIZE_MAX)
    await call.allow()
    await _keep(call, LIFECYCLE, lifecycle.render(lifecycle.parse(body)).decode())
    call.place.rules_changed()
    return Answer()


async def get_lifecycle(call: Call) -> Answer:
    return xml((await _kept(call, LIFECYCLE, "NoSuchLifecycleConfiguration")).encode())


async def put_tagging(call: Call) -> Answer:
    tags = documents.tagging(await call.document(documents.SMALL_MAX), names.BUCKET_TAGS_MAX)
    await call.allow()
    await _keep(call, TAGGING, results.tagging(tags).decode())
    return nothing()


async def get_tagging(call: Call) -> Answer:
    return xml((await _kept(call, TAGGING, "NoSuchTagSet")).encode())


async def put_acl(call: Call) -> Answer:
    record = await call.record()
    body = await call.document(documents.SMALL_MAX)
    await call.allow()
    listed = acl.of_headers(call.request, record.owner, record.owner) or acl.parse(body, record.owner)
    await _keep(call, ACL, acl.render(listed).decode())
    return Answer()


async def get_acl(call: Call) -> Answer:
    await call.allow()
    return xml(acl.render((await call.record()).acl))


async def delete_document(call: Call) -> Answer:
    await call.allow()
    await _keep(call, _DELETES[call.operation], None)
    return nothing()


async def _keep(call: Call, name: str, text: str | None) -> None:
    try:
        await call.place.records.set_document(await call.record(), name, text)
    except Invalid as error:
        raise _refused(error) from None


def _refused(error: MoorageError) -> S3Error:
    if isinstance(error, NotFound):
        return S3Error("NoSuchBucket")
    return S3Error("InvalidRequest", "The document is too large to be kept.")


async def _kept(call: Call, name: str, otherwise: str) -> str:
    await call.allow()
    text = (await call.record()).document(name)
    if text is None:
        raise S3Error(otherwise, BucketName=call.name)
    return text


# -- versions --------------------------------------------------------------------------------------------


async def get_versioning(call: Call) -> Answer:
    await call.allow()
    state = (await call.record()).versioning
    return xml(results.versioning(None if state is None else state.capitalize()))


async def put_versioning(call: Call) -> Answer:
    body = await call.document(documents.SMALL_MAX)
    await call.allow()
    try:
        await call.place.records.set_versioning(await call.record(), documents.versioning(body).lower())
    except Invalid as error:
        if isinstance(error, NotFound):
            raise
        raise S3Error("InvalidBucketState", "Versions stay on in a bucket with object lock.") from None
    return Answer()


# -- what there is not -----------------------------------------------------------------------------------


async def unset(call: Call) -> Answer:
    await call.allow()
    document = results.unset(call.operation)
    assert document is not None
    return xml(document)


async def preflight(call: Call) -> Answer:
    """By what the browser sends, without a signature."""
    origin = call.request.header("origin")
    method = call.request.header("access-control-request-method")
    if origin is None or method is None:
        raise S3Error("BadRequest", "A preflight request has Origin and Access-Control-Request-Method.")
    wanted = (call.request.header("access-control-request-headers") or "").split(",")
    return Answer(headers=cors.preflight((await call.record()).cors, origin, method, wanted))
