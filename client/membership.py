"""Which replicas are a group's members, as its holder carries a change out (the shell of
:meth:`moorage.quorum.writer.Writer.change`).

Owns the group's version and the wish as metadata says them, and the calls that end a change: ``reconfigure``
once a record is committed by the old members and by the new ones, ``show_volume`` when the wish seems to be
gone. A renewal may be answered by a leader that was deposed and does not know it, so it begins a change, but
never ends one as refused: with the old members alone counting, while metadata has committed the new ones,
the next recovery could miss what was acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from moorage.wire.errors import Fenced, MoorageError, StaleConfiguration

if TYPE_CHECKING:
    from moorage.client.session import GroupSession

log = logging.getLogger(__name__)

ASK_S = 3.0
RETRY_S = 0.2


class Membership:
    """Of one group in one epoch of an attachment. ``group``: as metadata described it with the attach."""

    def __init__(self, session: GroupSession, group: dict[str, Any]) -> None:
        self._session = session
        self._version: int = group["version"]
        self._members = [row["replica"] for row in group["members"]]
        self._wish: dict[str, Any] | None = None  # the change that is under way
        self._ready = False  # a record was committed both ways
        self._asking = False

    @property
    def _current(self) -> bool:
        """Whether the epoch that this is of goes on."""
        session = self._session
        return session.membership is self and session.failed is None and not session.paused

    @property
    def learner(self) -> int:
        """The replica that is to become a member; 0: none."""
        return self._wish["replica"] if self._wish is not None else 0

    def heard(self, group: dict[str, Any]) -> None:
        """What a leader of metadata says of the group, perhaps not the newest."""
        if group["version"] > self._version:
            self._committed(group)
        elif group["version"] < self._version:
            return
        wish = group["wish"]
        if self._wish is None:
            if wish is not None:
                self._begin(wish)
        elif wish is None or wish["replica"] != self._wish["replica"]:
            self._ask(self._judge)

    def ready(self) -> None:
        """The core's word: metadata may commit the new members."""
        self._ready = True
        self._ask(self._commit)

    def _begin(self, wish: dict[str, Any]) -> None:
        self._wish = wish
        self._ready = False
        text = "volume %s group %d: replica %x on %s is to replace %x"
        name, index = self._session.shared.name, self._session.index
        log.info(text, name, index, wish["replica"], wish["host"], wish["replaces"])
        self._session.writer.change(self._wished(wish))
        self._session.add(wish)
        self._session.kick()

    def _wished(self, wish: dict[str, Any]) -> tuple[int, ...]:
        return tuple(wish["replica"] if each == wish["replaces"] else each for each in self._members)

    # -- asking metadata: one question at a time -------------------------------------------------------

    def _ask(self, question: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        if self._asking or self._wish is None:
            return
        self._asking = True
        shared, index = self._session.shared, self._session.index
        shared.spawn(self._until_told(question, self._wish), f"members of {shared.name} group {index}")

    async def _until_told(
        self, question: Callable[[dict[str, Any]], Awaitable[None]], wish: dict[str, Any]
    ) -> None:
        try:
            while self._wish is wish and self._current:
                try:
                    await question(wish)
                except Fenced as error:
                    if self._current:
                        self._session.shared.suspect(error)
                    return
                except MoorageError as error:
                    log.info("volume %s: metadata has yet to hear of new members: %s", self._name, error)
                    await asyncio.sleep(RETRY_S)
                else:
                    if not (self._ready and self._wish is wish):
                        return
                    question = self._commit  # it still is wished for
        finally:
            self._asking = False

    @property
    def _name(self) -> str:
        return self._session.shared.name

    async def _commit(self, wish: dict[str, Any]) -> None:
        session = self._session
        params = {
            "volume": session.shared.volume,
            "group": session.index,
            "epoch": session.epoch,
            "version": self._version,
            "old": wish["replaces"],
            "new": wish["replica"],
        }
        try:
            group = await session.shared.ask("metadata.reconfigure", params, ASK_S)
        except StaleConfiguration:  # it was cancelled, or a lost answer of ours said yes
            await self._judge(wish)
        else:
            self._committed(group)

    async def _judge(self, wish: dict[str, Any]) -> None:
        """Look at the committed state, not at some leader's copy: what is not wished for there will never be
        committed, since no replica is wished for twice."""
        session = self._session
        volume = await session.shared.ask("metadata.show_volume", {}, ASK_S)
        if self._wish is not wish or not self._current:
            return
        if volume["id"] != session.shared.volume:
            raise Fenced(f"volume {self._name!r} was deleted, and another one has its name")
        group = volume["groups"][session.index]
        if group["version"] > self._version:
            self._committed(group)
        elif group["wish"] is None or group["wish"]["replica"] != wish["replica"]:
            self._refused(wish)

    # -- the outcome ---------------------------------------------------------------------------------------

    def _committed(self, group: dict[str, Any]) -> None:
        wish, session = self._wish, self._session
        if group["version"] <= self._version or not self._current:
            return
        members = [row["replica"] for row in group["members"]]
        if wish is None or wish["replica"] not in members:
            session.shared.suspect(
                Fenced(f"group {session.index} has members that this attachment never asked for")
            )
            return
        self._version = group["version"]
        session.writer.change_committed(self._wished(wish))
        self._members = members
        self._settle("is a member now, and %x is none any more", wish)

    def _refused(self, wish: dict[str, Any]) -> None:
        self._session.writer.change_refused(self._wished(wish))
        self._settle("will not replace %x: that was cancelled", wish)

    def _settle(self, outcome: str, wish: dict[str, Any]) -> None:
        session = self._session
        self._wish = None
        text = f"volume %s group %d: replica %x on %s {outcome}"
        log.info(text, self._name, session.index, wish["replica"], wish["host"], wish["replaces"])
        session.keep(self._members)
