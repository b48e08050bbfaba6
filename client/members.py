"""Members of the Raft groups (the registry, the metadata groups), as an operator replaces them.

Owns the order of the steps, each of which may be repeated: add the new one as a learner, wait until it has
caught up, let it vote, remove the old one. So the group never has fewer voters that live than before, and a
replacement that was interrupted goes on when it is asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from moorage.quorum.majority import majority
from moorage.wire.errors import Busy, Invalid, NotEnoughHosts, NotFound

REGISTRY = "registry"
POLL_S = 0.3

CallGroup = Callable[[str, str, dict[str, Any]], Awaitable[Any]]
"""(group, method without ``raft.GROUP.``, parameters), to its leader."""


@dataclass(frozen=True)
class Member:
    """``voter``: False for one that only listens yet. ``trouble``: why it does not answer, or ""."""

    group: str
    name: str
    address: str
    voter: bool
    leads: bool
    trouble: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Members:
    def __init__(
        self,
        call: CallGroup,
        groups: Callable[[], Awaitable[list[str]]],
        trouble: Callable[[str, str, str], Awaitable[str]],
        forget: Callable[[str], Awaitable[None]],
    ) -> None:
        """``groups``: of metadata; ``trouble(group, name, address)``: why a member does not answer,
        or ""; ``forget(metadata/GROUP/NAME)``: one that has left."""
        self._call = call
        self._metadata_groups = groups
        self._trouble = trouble
        self._forget = forget

    async def groups(self) -> list[str]:
        return [REGISTRY, *sorted(await self._metadata_groups())]

    async def list(self, group: str) -> list[Member]:
        """The members of a group, voters first. NotFound."""
        known = await self.groups()
        if group not in known:
            raise NotFound(f"there is no group {group!r}: there are {', '.join(known)}")
        status = await self._call(group, "status", {"leader": True})
        leader = (status["leader"] or {}).get("name")
        rows = status["members"]
        troubles = await asyncio.gather(*(self._trouble(group, row["name"], row["address"]) for row in rows))
        found = [
            Member(group, row["name"], row["address"], row["voter"], row["name"] == leader, trouble)
            for row, trouble in zip(rows, troubles, strict=True)
        ]
        return sorted(found, key=lambda member: (not member.voter, member.name))

    async def add(self, group: str, name: str, address: str, told: Callable[[str], None]) -> None:
        """Make a member that was started with ``--join yes`` a voter. May be repeated. ``told`` hears what is
        waited for."""
        known = {member.name: member for member in await self.list(group)}
        if name not in known:
            if not address:
                raise Invalid(f"{name} is new to {group}: say where it listens, as {name}=HOST:PORT")
            await self._call(group, "add_member", {"name": name, "address": address})
        elif known[name].voter:
            return
        while True:
            try:
                await self._call(group, "promote", {"name": name})
                return
            except Busy as error:  # it catches up
                told(str(error))
                await asyncio.sleep(POLL_S)

    async def remove(self, group: str, name: str) -> None:
        """Take a member out of its group. May be repeated. Raises NotEnoughHosts when the voters that answer
        would be no majority of those that are left."""
        members = await self.list(group)
        if all(member.name != name for member in members):
            return
        left = [member for member in members if member.voter and member.name != name]
        alive = [member.name for member in left if not member.trouble]
        if len(alive) < majority(len(left)) or not left:
            troubles = "; ".join(f"{member.name}: {member.trouble}" for member in left if member.trouble)
            raise NotEnoughHosts(
                f"without {name}, {len(alive)} of {len(left)} voters of {group} answer, which is no majority"
                f" ({troubles or 'there are no others'}): bring them back, or add a member first"
            )
        await self._call(group, "remove_member", {"name": name})
        if group != REGISTRY:
            await self._forget(f"metadata/{group}/{name}")

    async def replace(
        self, group: str, old: str, name: str, address: str, told: Callable[[str], None]
    ) -> None:
        """``name`` takes the place of ``old``; see the module."""
        if old == name:
            raise Invalid("a member cannot replace itself: remove it, clear its directory, add it anew")
        members = [member.name for member in await self.list(group)]
        if old not in members and name not in members:
            raise NotFound(f"{old} is no member of {group}: there are {', '.join(members)}")
        await self.add(group, name, address, told)
        await self.remove(group, old)
