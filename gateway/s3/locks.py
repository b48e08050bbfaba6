"""Object lock: what keeps a version from being deleted, as requests ask for it and answers tell it.

Owns when a retention begins: what a request asks for is judged by the clock of this gateway, as its signature
is. Until when a version is kept is metadata's to judge, by its own.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from moorage.client.objects.bucket import Lock, ObjectInfo
from moorage.gateway.s3 import documents, results, times, versions
from moorage.gateway.s3.answer import Answer, xml
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.documents import MODES, LockRule, Retention
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.records import ENABLED, OBJECT_LOCK, Record
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.times import DAY_MS
from moorage.wire.errors import NotFound, PreconditionFailed

_PREFIX: Final = "x-amz-object-lock-"
_MODE, _UNTIL, _HOLD = f"{_PREFIX}mode", f"{_PREFIX}retain-until-date", f"{_PREFIX}legal-hold"

# -- of objects that are put -----------------------------------------------------------------------------


def actions(request: Request) -> list[str]:
    """The permissions that a put with these headers needs beside its own."""
    retention = ["s3:PutObjectRetention"] * (request.header(_MODE) is not None)
    return retention + ["s3:PutObjectLegalHold"] * (request.header(_HOLD) is not None)


async def asked(call: Call) -> Lock | None:
    """Of the object that the request puts, by its headers; None without any. Raises InvalidArgument, and
    InvalidRequest in a bucket without locks."""
    found = of_request(call.request, call.now_ms)
    if found is not None:
        _check_bucket(await call.record())
    return found


def of_request(request: Request, now_ms: int) -> Lock | None:
    mode, until, hold = (request.header(name) for name in (_MODE, _UNTIL, _HOLD))
    if mode is until is hold is None:
        return None
    if hold not in (None, "ON", "OFF"):
        raise S3Error("InvalidArgument", f"{_HOLD} is ON or OFF.")
    if mode is None and until is None:
        return Lock(hold=hold == "ON")
    if mode not in MODES or until is None:
        raise S3Error("InvalidArgument", f"{_MODE}, one of {', '.join(MODES)}, and {_UNTIL} belong together.")
    until_ms = times.parse_iso(until)
    if until_ms is None:
        raise S3Error("InvalidArgument", f"{_UNTIL} is not a time.")
    return Lock(mode, _in_future(until_ms, now_ms), hold == "ON")


def _in_future(until_ms: int, now_ms: int) -> int:
    if until_ms <= now_ms:
        raise S3Error("InvalidArgument", "The retain until date must be in the future!")
    return until_ms


def of_new(record: Record, wanted: Lock | None, now_ms: int) -> Lock | None:
    """Of an object that is put now: what was ``wanted`` of it, and the bucket's default for the rest."""
    rule = record.lock_rule
    if rule is None or (wanted is not None and wanted.mode):
        return wanted
    return Lock(rule.mode, now_ms + _span_ms(rule), wanted is not None and wanted.hold)


def _span_ms(rule: LockRule) -> int:
    return DAY_MS * ((rule.days or 0) + 365 * (rule.years or 0))


async def told(call: Call, record: Record, info: ObjectInfo) -> dict[str, str]:
    """Headers of an answer about an object: those that the request may know."""
    headers = {}
    if info.lock.mode and await call.may(record, "s3:GetObjectRetention"):
        retention = _retention(info.lock)
        headers = {_MODE: retention.mode, _UNTIL: times.iso(retention.until_ms)}
    if info.lock.hold and await call.may(record, "s3:GetObjectLegalHold"):
        headers[_HOLD] = "ON"
    return headers


# -- of versions that are there --------------------------------------------------------------------------


async def get_retention(call: Call) -> Answer:
    record, info = await _found(call)
    if not info.lock.mode:
        raise S3Error("NoSuchObjectLockConfiguration", Key=call.key)
    return xml(results.retention(_retention(info.lock)), versions.told(record, info))


def _retention(lock: Lock) -> Retention:
    """As it can be told: a program may have locked for longer than there are dates."""
    return Retention(lock.mode, min(lock.until_ms, times.LAST_MS))


async def get_legal_hold(call: Call) -> Answer:
    """One that was taken away is as one that never was."""
    record, info = await _found(call)
    if not info.lock.hold:
        raise S3Error("NoSuchObjectLockConfiguration", Key=call.key)
    return xml(results.legal_hold(True), versions.told(record, info))


async def put_retention(call: Call) -> Answer:
    wanted = documents.retention(await call.document(documents.SMALL_MAX))
    record, info = await _found(call, *call.bypassing())
    mode, until_ms = "", 0
    if wanted is not None:
        mode, until_ms = wanted.mode, _in_future(wanted.until_ms, call.now_ms)
    change = record.bucket.set_retention(info, mode, until_ms, bypass=call.bypasses)
    return await _changed(call, record, info, change)


async def put_legal_hold(call: Call) -> Answer:
    is_on = documents.legal_hold(await call.document(documents.SMALL_MAX))
    record, info = await _found(call)
    return await _changed(call, record, info, record.bucket.set_hold(info, is_on))


async def _found(call: Call, *more: str) -> tuple[Record, ObjectInfo]:
    await call.allow(*more)
    record = await call.record()
    _check_bucket(record)
    return record, await call.head()


def _check_bucket(record: Record) -> None:
    if not record.locks:
        raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")


async def _changed(call: Call, record: Record, info: ObjectInfo, change: Awaitable[ObjectInfo]) -> Answer:
    try:
        await change
    except NotFound:
        raise S3Error("NoSuchKey", Key=call.key) from None
    except PreconditionFailed:
        raise S3Error("OperationAborted") from None
    return Answer(headers=versions.told(record, info))


# -- of buckets ------------------------------------------------------------------------------------------


async def get_configuration(call: Call) -> Answer:
    await call.allow()
    record = await call.record()
    if not record.locks:
        raise S3Error("ObjectLockConfigurationNotFoundError", BucketName=call.name)
    return xml(results.object_lock(record.lock_rule))


async def put_configuration(call: Call) -> Answer:
    """Locks that were switched on stay on; the default may be changed, or taken away."""
    rule = documents.object_lock(await call.document(documents.SMALL_MAX))
    await call.allow()
    record = await call.record()
    if record.versioning != ENABLED:
        raise S3Error("InvalidBucketState", "Objects can be locked where versions are on.")
    if not record.locks:
        await call.place.records.set_versioning(record, ENABLED, locks=True)
    text = None if rule is None else results.object_lock(rule).decode()
    await call.place.records.set_document(record, OBJECT_LOCK, text)
    return Answer()
