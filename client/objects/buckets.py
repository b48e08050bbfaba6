"""The buckets of a cluster: create, list, open and delete them.

Owns the links to devices that all of them share. Which metadata group has a bucket is the cluster's to know.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from moorage.client import uri
from moorage.client.nodes import NodePool
from moorage.client.objects.bucket import CALL_S, Bucket
from moorage.client.objects.devices import Devices
from moorage.wire.errors import NotFound

CREATE_S = 30.0

CallOwner = Callable[..., Awaitable[Any]]
CallGroups = Callable[[str, dict[str, Any]], Awaitable[list[Any]]]


class Buckets:
    """``call(name, method, params, timeout=s)``: asks the metadata group that owns a name; ``create(name,
    method, params, timeout=s)``: one for a new name; ``groups(method, params)``: all of them."""

    def __init__(
        self, pool: NodePool, call: CallOwner, create: CallOwner, groups: CallGroups, principal: str
    ) -> None:
        self._call = call
        self._create = create
        self._groups = groups
        self._principal = principal
        self._devices = Devices(pool)
        self._open: dict[str, Bucket] = {}

    async def create(
        self,
        name: str,
        *,
        replicas: int = 3,
        groups: int = 0,
        principal: str | None = None,
        locks: bool = False,
    ) -> Bucket:
        """A new bucket; volumes and buckets share one namespace. ``replicas``: 1, 3 or 5 of each object, on
        as many hosts; ``groups``: replica groups it is spread over (0: a default); ``principal``: whose it is
        (default: the one that this client is configured with); ``locks``: versions are on, and can be locked.
        Raises NameTaken, NotEnoughHosts."""
        params = {
            "name": uri.check_name(name),
            "replicas": replicas,
            "groups": groups,
            "request": secrets.token_hex(16),
        }
        if owner := principal or self._principal:
            params["principal"] = owner
        if locks:
            params["locks"] = True
        await self._create(name, "metadata.create_bucket", params, timeout=CREATE_S)
        return self._open.setdefault(name, self._bucket(name))

    async def open(self, name: str) -> Bucket:
        """The bucket of this name; the same one each time. Raises NotFound, and Invalid for a volume."""
        name = uri.parse(name).name
        bucket = self._open.get(name) or self._bucket(name)
        await bucket.show()
        return self._open.setdefault(name, bucket)

    def _bucket(self, name: str) -> Bucket:
        async def call(method: str, params: dict[str, Any], timeout: float) -> Any:
            return await self._call(name, method, params, timeout=timeout)

        return Bucket(name, call, self._devices)

    async def list(self) -> list[dict[str, Any]]:
        """All buckets, by name: ``{name, created_ms, replicas, ...}``."""
        found: list[dict[str, Any]] = []
        after: dict[str, Any] = {"after": ""}
        while True:
            pages = await self._groups("metadata.list_buckets", after)
            found += [row for page in pages for row in page["volumes"]]
            nexts = [page["next"] for page in pages if page["next"] is not None]
            if not nexts:
                return sorted({row["name"]: row for row in found}.values(), key=lambda row: str(row["name"]))
            after = {"after": min(nexts)}

    async def lacks(self, name: str) -> dict[str, Any]:
        """``{id, groups}``: what replicas are noted to lack, see :class:`BucketCopies`; the cluster's
        ``bucket_copies`` has that together with what their devices say."""
        try:
            found: dict[str, Any] = await self._call(name, "metadata.show_lacks", {}, timeout=CALL_S)
        except NotFound:  # the bucket; or the call, when its metadata is older
            found = await self._call(name, "metadata.show_bucket", {}, timeout=CALL_S)
        return found

    async def delete(self, name: str) -> None:
        """Busy while there are objects in it; uploads that were begun go with it."""
        bucket = self._open.pop(name, None)
        if bucket is not None:
            await bucket.close()
        params = {"force": True, "request": secrets.token_hex(16)}
        await self._call(name, "metadata.delete_bucket", params, timeout=CREATE_S)

    async def close(self) -> None:
        """Give back what is not used; for the end of the cluster's life."""
        buckets, self._open = self._open, {}
        for bucket in buckets.values():
            await bucket.close()
        self._devices.close()
