"""What volumes and buckets count for their principals, told to the registry, which has the quotas of all
metadata groups.

Owns the order of a growth: charged first, committed after. So what is charged is never less than what there
is, and a crash in between leaves it too much until the next leader begins, who tells what is (``settle``). A
creation is charged with the claim of its name (tasks/create.py), a deletion ends with its release. Only one
growth at a time, and none while it is settled: what is told is what is then. There is nothing to tell before
the cluster has a quota. What buckets count: objects/room.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from moorage.metadata import records
from moorage.metadata.directory import Directory
from moorage.metadata.objects.room import Room
from moorage.service.replicated import Replicated
from moorage.wire.errors import DeadlineExceeded, MoorageError, NotLeader, Stale

log = logging.getLogger(__name__)

PAGE: Final = 500  # volumes told at once
RETRY_S: Final = 1.0
TIMEOUT_S: Final = 5.0

Volume = dict[str, Any]


class Charges:
    """One per member; works while it leads."""

    def __init__(self, replicated: Replicated, directory: Directory) -> None:
        self._replicated = replicated
        self._directory = directory
        self._one = asyncio.Lock()
        self._term = 0  # of this member's last leadership: never a successor's
        self._count = 0  # of charges sent, in whatever term
        self._settling: asyncio.Task[None] | None = None
        self.room = Room(lambda: replicated.kv, self.charge, self._is_charging)

    def lead(self) -> None:
        self.follow()
        self._term = self._replicated.term
        self.room.lead()
        self._settling = asyncio.create_task(self._settle(), name="metadata-charges")
        self._settling.add_done_callback(_ended)

    def follow(self) -> None:
        if self._settling is not None:
            self._settling.cancel()

    async def stop(self) -> None:
        self.follow()
        if self._settling is not None:
            await asyncio.gather(self._settling, return_exceptions=True)

    async def resize(self, name: str, size: int, timeout: float) -> Volume:
        """Within the quota. Raises LimitExceeded with the numbers, DeadlineExceeded: nothing was done."""
        async with self._alone(timeout):
            return await self._resize(name, size, timeout)

    async def charge(self, bucket: Volume, size: int, timeout: float) -> None:
        """Its objects are about to have so many bytes. Raises as :meth:`resize`."""
        async with self._alone(timeout):
            await self._charge(bucket, size, timeout)

    @asynccontextmanager
    async def _alone(self, timeout: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                await self._one.acquire()
        except TimeoutError:
            raise DeadlineExceeded("others are resized first: try again", outcome="not_done") from None
        try:
            yield
        finally:
            self._one.release()

    async def _resize(self, name: str, size: int, timeout: float) -> Volume:
        await self._replicated.read_barrier()
        volume = records.volume_by_name(self._replicated.kv, name)
        grows = volume["state"] == records.READY and size > volume["size"]
        if grows:
            await self._charge(volume, size, timeout)
        try:
            command = {"do": "resize", "volume": volume["id"], "size": size}
            changed: Volume = await self._replicated.propose(command)
        except MoorageError as error:
            if grows and error.outcome == "not_done":
                with contextlib.suppress(MoorageError):  # too much until the next leader, else
                    await self._charge(volume, volume["size"], TIMEOUT_S)
            raise
        return changed

    async def _charge(self, volume: Volume, size: int, timeout: float) -> None:
        await self._directory.charge({**volume, "size": size}, self._turn(), timeout)

    def _is_charging(self) -> bool:
        """As of a second ago."""
        return bool(self._directory.view.get("charging"))

    def _turn(self) -> tuple[int, int]:
        self._count += 1
        return self._term, self._count

    async def _settle(self) -> None:
        """Once in each leadership, whatever the former leaders left; not before volumes are charged."""
        while True:
            try:
                if self._is_charging():
                    await self._replicated.read_barrier()
                    async with self._one:
                        for page in self._pages():
                            await self._directory.settle(page, self._turn(), TIMEOUT_S)
                    return
            except (NotLeader, Stale):
                return  # another one begins
            except MoorageError as error:
                log.info("the registry has yet to hear what the volumes count for: %s", error)
            await asyncio.sleep(RETRY_S)

    def _pages(self) -> Iterator[list[list[Any]]]:
        """At least one: from now on nothing of a former leader is taken."""
        page: list[list[Any]] = []
        for volume in records.volumes(self._replicated.kv):
            if len(page) == PAGE:
                yield page
                page = []
            principal = volume.get("principal", records.LATER["principal"])
            is_bucket = records.kind_of(volume) == records.BUCKET
            size = self.room.settled(volume) if is_bucket else volume["size"]
            page.append([volume["name"], volume["id"], principal, size])
        yield page


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("what volumes count for was not told, the next leader does", exc_info=error)
