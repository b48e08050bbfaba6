"""One request that is being answered: what it is, who sent it, and what it may.

Owns the permission checks. Every operation on a bucket goes through :meth:`Call.allow`, or says why not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from moorage.client.cluster import Cluster
from moorage.client.objects.bucket import Bucket, ObjectInfo
from moorage.gateway.s3 import policy, properties, versions
from moorage.gateway.s3.acl import Acl
from moorage.gateway.s3.body import Body
from moorage.gateway.s3.credentials import Credentials
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.names import check_put_size, check_version
from moorage.gateway.s3.policy import Ask
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.records import Record, Records
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.results import Owner
from moorage.gateway.s3.signature import Proof
from moorage.wire.errors import NotFound

# Of these the list of the object says who may, and it has to be looked at.
_BY_LIST = {
    *("s3:GetObject", "s3:GetObjectAcl", "s3:PutObjectAcl"),
    *("s3:GetObjectVersion", "s3:GetObjectVersionAcl", "s3:PutObjectVersionAcl"),
}
_UPLOADS_KEPT = 1000


@dataclass
class Place:
    """What all requests share. ``rules_changed``: is told of new lifecycle rules. ``uploads``: of those that
    parts come for, by bucket and upload: the key, and the properties, which never change."""

    cluster: Cluster
    credentials: Credentials
    records: Records
    region: str
    replicas: int
    rules_changed: Callable[[], None] = lambda: None
    uploads: dict[tuple[int, str], tuple[str, Properties]] = field(default_factory=dict)

    def keep_upload(self, at: tuple[int, str], found: tuple[str, Properties]) -> None:
        if len(self.uploads) >= _UPLOADS_KEPT:
            self.uploads.clear()
        self.uploads[at] = found


@dataclass
class Call:
    """``principal`` None: nobody in particular. ``incoming``: the bytes of the body, as they arrive.
    ``action``: the permission that the operation needs."""

    place: Place
    request: Request
    operation: str
    name: str
    key: str
    action: str
    principal: str | None
    proof: Proof
    presigned: bool
    now_ms: int
    incoming: AsyncIterator[bytes]
    _record: Record | None = None

    async def record(self) -> Record:
        """Of the bucket. Raises NoSuchBucket, and AccessDenied where its owner is not who was expected."""
        if self._record is None:
            self._record = await self.place.records.get(self.name)
            expected = self.request.header("x-amz-expected-bucket-owner")
            if expected is not None and expected != self._record.owner:
                raise S3Error("AccessDenied")
        return self._record

    @property
    def version(self) -> str | None:
        """Of the object, that the request names. Raises InvalidArgument for what can be none."""
        return check_version(self.request.parameter("versionId"))

    @property
    def bypasses(self) -> bool:
        """Whether retention for governance is to be passed over."""
        return (self.request.header("x-amz-bypass-governance-retention") or "").lower() == "true"

    def bypassing(self) -> Sequence[str]:
        """The permission that this needs, where it is asked for."""
        return ("s3:BypassGovernanceRetention",) if self.bypasses else ()

    async def allow(self, *more: str, tags: Mapping[str, str] | None = None) -> Bucket:
        """The bucket, if the request may do what it wants, and ``more`` actions beside; ``tags``: those that
        an object is to get. Raises AccessDenied."""
        record = await self.record()
        for action in (self.action, *more):
            await self.check(record, action, self.key, self.version, tags)
        return record.bucket

    async def check(
        self,
        record: Record,
        action: str,
        key: str,
        version: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Of any bucket, key and version. Raises AccessDenied."""
        listed: Acl | None = None
        there: Mapping[str, str] | None = None
        is_owner = self.principal == record.owner
        by_tags = record.policy is not None and policy.asks_for_tags(record.policy)
        if key and (by_tags or (not is_owner and action in _BY_LIST)):
            found = await self._properties(record.bucket, key, version)
            if found is not None:
                listed, there = found.acl(record.owner), found.tags
        context = policy.context_of(
            *(self.request, self.principal, self.now_ms),
            presigned=self.presigned,
            request_tags=tags,
            object_tags=there,
            version=version,
        )
        ask = Ask(self.principal, action, record.name, key, context)
        policy.check(ask, record.owner, record.policy, record.acl, listed)

    @staticmethod
    async def _properties(bucket: Bucket, key: str, version: str | None) -> Properties | None:
        try:
            return properties.of_attributes((await bucket.head(key, version=version)).attributes)
        except NotFound:
            return None

    async def may(self, record: Record, action: str) -> bool:
        """With the object of the request, and the version that it names."""
        try:
            await self.check(record, action, self.key, self.version)
        except S3Error:
            return False
        return True

    async def missing(self, record: Record, key: str, version: str | None, error: NotFound) -> S3Error:
        """What is told of an object that is not there: to who may not list the bucket, nothing."""
        try:
            await self.check(record, "s3:ListBucket", "")
        except S3Error as refused:
            return refused
        return versions.missing(key, version, error)

    async def head(self) -> ObjectInfo:
        """The object of the request, or the version that it names. Raises NoSuchKey, NoSuchVersion, and
        MethodNotAllowed for a delete marker."""
        record = await self.record()
        try:
            return await record.bucket.head(self.key, version=self.version)
        except NotFound as error:
            raise await self.missing(record, self.key, self.version, error) from None

    def signed_in(self) -> str:
        """The principal. Raises AccessDenied where nobody signed."""
        if self.principal is None:
            raise S3Error("AccessDenied")
        return self.principal

    async def owner(self) -> Owner:
        return Owner((await self.record()).owner)

    async def document(self, size_max: int) -> bytes:
        """The whole body, which is a small document, checked. Raises S3Error."""
        if (
            self.request.header("content-length") in (None, "0")
            and self.request.header("transfer-encoding") is None
        ):
            return b""
        body = Body(self.request, self.proof)
        check_put_size(body.length)
        if body.length > size_max:
            raise S3Error("MaxMessageLengthExceeded")
        found = bytearray()
        async for data in self.incoming:
            for piece in body.feed(data):
                found += piece
        body.finish()
        return bytes(found)
