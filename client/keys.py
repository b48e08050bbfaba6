"""Access keys: an id and a secret, for programs that come by S3. Each belongs to a principal."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from moorage.wire.secret import ClusterSecret

AskRegistry = Callable[[str, dict[str, Any]], Awaitable[Any]]
ID_BYTES = 12  # 20 characters


@dataclass(frozen=True)
class AccessKey:
    """``secret`` is never shown by itself."""

    id: str
    principal: str
    created_ms: int
    by: str
    secret: str = field(repr=False)

    def to_json(self, *, with_secret: bool) -> dict[str, Any]:
        shown = {"id": self.id, "principal": self.principal, "created_ms": self.created_ms, "by": self.by}
        return {**shown, "secret": self.secret} if with_secret else shown


class Keys:
    def __init__(self, registry: AskRegistry, secret: ClusterSecret, by: str) -> None:
        self._registry = registry
        self._secret = secret
        self._by = by

    async def create(self, principal: str) -> AccessKey:
        """A new key of a principal, which may have several. Raises Invalid for a name that is none."""
        identity = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().rstrip("=")
        params = {"id": identity, "principal": principal, "by": self._by}
        return self._key(await self._registry("registry.create_key", params))

    async def list(self) -> list[AccessKey]:
        """All keys, by id."""
        found: list[AccessKey] = []
        page: dict[str, Any] = {"next": ""}
        while page["next"] is not None:
            page = await self._registry("registry.keys", {"after": page["next"]})
            found += [self._key(row) for row in page["keys"]]
        return found

    async def find(self, identity: str) -> AccessKey:
        """Raises NotFound; Invalid for what cannot be one."""
        return self._key(await self._registry("registry.key", {"id": identity}))

    async def revoke(self, identity: str) -> None:
        """Nothing that is signed with it is accepted any more, within seconds. Raises NotFound."""
        await self._registry("registry.revoke_key", {"id": identity})

    def _key(self, row: dict[str, Any]) -> AccessKey:
        secret = self._secret.access_secret(row["id"])
        return AccessKey(row["id"], row["principal"], row["created_ms"], row["by"], secret)
