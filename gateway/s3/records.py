"""Buckets as the gateway knows them: whose each is, and the documents that are kept about it.

Owns what is remembered of a bucket, and for how long: a change by another gateway counts here after
:data:`FRESH_S` at the latest. Must never remember that a bucket is not there: it may be made the next moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from moorage.client.cluster import Cluster
from moorage.client.objects.bucket import Bucket
from moorage.gateway.s3 import acl, cors, documents, lifecycle, policy, policy_document
from moorage.gateway.s3.acl import Acl, Grant, Permission
from moorage.gateway.s3.documents import LockRule
from moorage.gateway.s3.errors import S3Error
from moorage.wire.errors import Invalid, NotFound

FRESH_S: Final = 1.0
BUCKETS_MAX: Final = 10_000

# Names of documents.
POLICY, ACL, CORS, TAGGING, LIFECYCLE = "policy", "acl", "cors", "tagging", "lifecycle"
OBJECT_LOCK: Final = "object-lock"

ENABLED: Final = "enabled"  # of versions


@dataclass
class Record:
    """``shown``: as :meth:`Bucket.show` tells it. Documents were checked when they were set."""

    bucket: Bucket
    shown: dict[str, Any]

    @property
    def name(self) -> str:
        return self.bucket.name

    @property
    def id(self) -> int:
        return int(self.shown["id"])

    @property
    def owner(self) -> str:
        return str(self.shown["principal"])

    @property
    def versioning(self) -> str | None:
        """``enabled`` or ``suspended``; None where versions were never on, or metadata does not know any."""
        found = self.shown.get("versioning")
        return None if found is None else str(found)

    @property
    def locks(self) -> bool:
        """Whether versions can be locked."""
        return bool(self.shown.get("locks"))

    def document(self, name: str) -> str | None:
        found = self.shown["documents"].get(name)
        return None if found is None else str(found)

    @cached_property
    def policy(self) -> policy.Policy | None:
        text = self.document(POLICY)
        return None if text is None else policy_document.parse(text.encode(), self.name)

    @cached_property
    def acl(self) -> Acl:
        text = self.document(ACL)
        if text is None:
            return Acl(self.owner, (Grant(self.owner, Permission.FULL_CONTROL),))
        return acl.parse(text.encode(), self.owner)

    @cached_property
    def cors(self) -> list[cors.Rule]:
        text = self.document(CORS)
        return [] if text is None else cors.parse(text.encode())

    @cached_property
    def lifecycle(self) -> list[lifecycle.Rule]:
        text = self.document(LIFECYCLE)
        return [] if text is None else lifecycle.parse(text.encode())

    @cached_property
    def lock_rule(self) -> LockRule | None:
        """What an object gets that is put without a lock."""
        text = self.document(OBJECT_LOCK)
        return None if text is None else documents.object_lock(text.encode())


class Records:
    def __init__(self, cluster: Cluster, now: Callable[[], float]) -> None:
        self._cluster = cluster
        self._now = now
        self._kept: dict[str, tuple[float, Record]] = {}

    async def get(self, name: str) -> Record:
        """Raises NoSuchBucket."""
        known = self._kept.get(name)
        if known is not None and self._now() < known[0]:
            return known[1]
        try:
            bucket = known[1].bucket if known is not None else await self._cluster.bucket(name)
            found = Record(bucket, await bucket.show())
        except (NotFound, Invalid):  # a volume is no bucket
            self.forget(name)
            raise S3Error("NoSuchBucket", BucketName=name) from None
        if known is not None and known[1].id != found.id:
            await bucket.close()  # it was made anew by somebody else: the space in the former one is gone
        if len(self._kept) >= BUCKETS_MAX:
            self._kept.clear()
        self._kept[name] = (self._now() + FRESH_S, found)
        return found

    async def set_document(self, record: Record, name: str, text: str | None) -> None:
        try:
            await record.bucket.set_document(name, text)
        finally:
            self.expire(record.name)

    async def set_versioning(self, record: Record, state: str, *, locks: bool = False) -> None:
        try:
            await record.bucket.set_versioning(state, locks=locks)
        finally:
            self.expire(record.name)

    def expire(self, name: str) -> None:
        """It has changed: ask anew."""
        if name in self._kept:
            self._kept[name] = (0.0, self._kept[name][1])

    def forget(self, name: str) -> None:
        self._kept.pop(name, None)
