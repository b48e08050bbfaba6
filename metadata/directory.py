"""What metadata knows of the cluster, through the registry: devices, addresses, and whose a name is.

Owns the calls to the registry and a copy of its view, refreshed in the background. It must never be asked
on the path of a renewal: everything that a holder needs comes from the copy, so that a registry that is
away stops no attachment. Invariant: placement uses a view fetched for that very decision, never the copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Any

from moorage.metadata.records import LATER
from moorage.wire.errors import IdentityConflict, MoorageError, NameTaken, Unavailable
from moorage.wire.handshake import Hello
from moorage.wire.registry import RegistryClient
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

View = dict[str, Any]
EMPTY_VIEW: View = {"hosts": {}, "devices": {}, "services": [], "groups": []}
VIEW_TIMEOUT_S = 5.0
KNOW_TIMEOUT_S = 2.0  # an attach does not wait longer for a registry that is away
SOON_S = 0.05  # between looks while the group has yet to be founded and known
EVENTS_KEPT = 512
EVENTS_AT_ONCE = 64
EVENT_TEXT_MAX = 512  # as the registry takes it


class Directory:
    """The registry as seen from one metadata member. ``run`` is a task of the service."""

    def __init__(self, spec: str, *, group: str, hello: Hello, secret: ClusterSecret) -> None:
        self._spec = spec
        self._group = group
        self._client = RegistryClient(spec, hello=hello, secret=secret)
        self.view: View = EMPTY_VIEW  # the last one seen
        self.joined = False
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)  # not told yet
        self.last_error: MoorageError | None = None

    async def close(self) -> None:
        await self._client.close()

    async def run(
        self,
        me: Callable[[], dict[str, Any] | None],
        admitted: Callable[[], Awaitable[bool]],
        *,
        join_interval_s: float,
        view_interval_s: float,
    ) -> None:
        """Tell the registry where this member is, again and again, and keep the copy of its view fresh.
        ``me``: None while the group is not founded; ``admitted`` is told of each success, and says whether
        the whole group knows. Raises IdentityConflict when the registry knows another group of this name."""
        loop = asyncio.get_running_loop()
        join_at = loop.time()
        while True:
            member = me()
            try:
                if member is not None and loop.time() >= join_at:
                    await self._client.call("registry.join_service", member, timeout=VIEW_TIMEOUT_S)
                    self.joined = True
                    join_at = loop.time() + (join_interval_s if await admitted() else 0)
                await self.fetch_view()
                await self._tell_events()
                self._note(None)
            except IdentityConflict:
                raise
            except MoorageError as error:
                self._note(error)
            await asyncio.sleep(view_interval_s if self.joined else min(SOON_S, view_interval_s))

    def tell(self, kind: str, about: Iterable[str], text: str) -> None:
        """An event for the cluster's log, told within a second or so; ``about``: names of volumes, hosts and
        devices. The oldest are forgotten when the registry is away for long."""
        event = {
            "at_ms": time.time_ns() // 1_000_000,
            "kind": kind,
            "about": [*about],
            "text": text[:EVENT_TEXT_MAX],
        }
        self._events.append({**event, "id": secrets.token_hex(8)})

    async def _tell_events(self) -> None:
        while self._events:
            events = [*islice(self._events, EVENTS_AT_ONCE)]
            await self._client.call("registry.note_events", {"events": events}, timeout=VIEW_TIMEOUT_S)
            for event in events:
                if self._events and self._events[0] is event:
                    self._events.popleft()

    async def fetch_view(self, timeout: float = VIEW_TIMEOUT_S) -> View:
        """The view as of now; raises when the registry cannot be asked."""
        if timeout <= 0:
            raise Unavailable(
                f"no time left to ask the registry: {self.last_error or 'it was not slow so far'}"
            )
        self.view = await self._client.call("registry.view", {}, timeout=timeout)
        return self.view

    async def claim(self, volume: dict[str, Any], timeout: float) -> None:
        """Make its name ours in the whole cluster, and charge its principal; NameTaken when it is another
        group's, LimitExceeded when that is too much. May be repeated."""
        params = {"kind": volume.get("kind", LATER["kind"]), **self._charged(volume)}
        await self._client.call("registry.claim", params, timeout=timeout)

    async def charge(self, volume: dict[str, Any], turn: tuple[int, int], timeout: float) -> None:
        """It is about to have that size. LimitExceeded when that is too much for its principal. ``turn``:
        term and number of this charge; Stale when a later one came before it."""
        params = {"term": turn[0], "count": turn[1], **self._charged(volume)}
        await self._client.call("registry.charge", params, timeout=timeout)

    async def settle(self, charges: list[list[Any]], turn: tuple[int, int], timeout: float) -> None:
        """``[name, id, principal, size]`` of volumes, as they are; ``turn`` as for :meth:`charge`."""
        params = {"group": self._group, "term": turn[0], "count": turn[1], "charges": charges}
        await self._client.call("registry.settle", params, timeout=timeout)

    def _charged(self, volume: dict[str, Any]) -> dict[str, Any]:
        principal = volume.get("principal", LATER["principal"])
        about = {"name": volume["name"], "id": volume["id"], "size": volume["size"]}
        return {**about, "group": self._group, "principal": principal}

    async def release(self, name: str, volume: int, timeout: float) -> None:
        """Give the name back; nothing happens when it is not this volume's. May be repeated."""
        params = {"name": name, "group": self._group, "id": volume}
        with contextlib.suppress(NameTaken):  # another group's: it never was ours, or is not any more
            await self._client.call("registry.release", params, timeout=timeout)

    def address_of(self, device: str) -> str:
        """Where the device's node listened when last seen; empty when that is not known."""
        entry = self.view["devices"].get(device)
        return str(entry["address"]) if entry else ""

    def is_refused(self, device: str) -> bool:
        """Whether the registry has refused it, which is for good: an old copy of the view cannot be wrong."""
        entry = self.view["devices"].get(device)
        return entry is not None and entry["health"] == "refused"

    async def know(self, devices: set[str], timeout: float = KNOW_TIMEOUT_S) -> None:
        """Have their addresses in the copy, if the registry can tell them soon."""
        if not all(self.address_of(device) for device in devices):
            with contextlib.suppress(MoorageError):  # what is missing is empty in the reply, and comes later
                await self.fetch_view(timeout)

    async def reach(self, device: str) -> str:
        """The address of the device's node, asked for anew when the copy does not know it."""
        if not self.address_of(device):
            await self.fetch_view(KNOW_TIMEOUT_S)
        address = self.address_of(device)
        if not address:
            raise Unavailable(f"the registry does not know device {device}: start its node", device=device)
        return address

    def _note(self, error: MoorageError | None) -> None:
        if (error is None) != (self.last_error is None):  # state changes only: a line per second helps nobody
            log.log(
                logging.INFO if error is None else logging.WARNING,
                "registry %s: %s",
                "is back" if error is None else "cannot be asked",
                error or self._spec,
            )
        self.last_error = error
