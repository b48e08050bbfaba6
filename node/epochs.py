"""What a replica must promise when its own memory of that is damaged: the newest epoch, which metadata knows.

Epochs are metadata's, committed before anybody is given one. So whatever a replica had promised before this
process began was not above what metadata answers to a question that was asked since; and until it has
promised that, it answers nobody. Owns the asking, group by group, until no replica is withheld any more.

What is damaged may also be the note that a replica was dropped: then it is here again, and nobody orders it
to be dropped a second time. Must never drop one because no volume has it: only when the metadata group that
gave its id says that it has taken it away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from moorage.node.replica import ReplicaInfo
from moorage.node.sessions import Sessions
from moorage.wire.errors import MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 30.0  # one that metadata is about to have dropped waits for that order
CALL_S: Final = 10.0
AT_ONCE: Final = 1000  # replicas in one question


async def ask_for_epochs(
    sessions: Sessions,
    registry: LeaderClient,
    hello: Hello,
    secret: ClusterSecret,
    drop: Callable[[int], None],
) -> None:
    """Returns when no replica is withheld. ``drop``: called with each that metadata has taken away."""
    told = ""
    pause = PAUSE_FIRST_S
    while sessions.withheld:
        try:
            await _ask_all(sessions, registry, hello, secret, drop)
        except MoorageError as error:
            if str(error) != told:
                log.warning("epochs of %d withheld replicas: %s", len(sessions.withheld), error)
            told = str(error)
        if sessions.withheld:
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)


async def _ask_all(
    sessions: Sessions,
    registry: LeaderClient,
    hello: Hello,
    secret: ClusterSecret,
    drop: Callable[[int], None],
) -> None:
    view = await registry.call("registry.view", {}, timeout=CALL_S)
    groups: dict[str, list[str]] = {}
    for row in view["services"]:
        if row["service"] == "metadata":
            groups.setdefault(row["group"], []).append(row["address"])
    errors: list[MoorageError] = []  # one group, one replica must not keep the others waiting
    for addresses in groups.values():
        client = LeaderClient(addresses, service="metadata", hello=hello, secret=secret)
        try:
            rows, gone = await _epochs(client, sorted(sessions.withheld))
            for row in rows:
                _promise(sessions, row, errors)
            for replica in gone:
                drop(replica)
        except MoorageError as error:
            errors.append(error)
        finally:
            await client.close()
    if errors:
        raise errors[0]


async def _epochs(client: LeaderClient, replicas: list[int]) -> tuple[list[dict[str, Any]], list[int]]:
    rows: list[dict[str, Any]] = []
    gone: list[int] = []
    for at in range(0, len(replicas), AT_ONCE):
        asked = {"replicas": replicas[at : at + AT_ONCE]}
        answer = await client.call("metadata.current_epochs", asked, timeout=CALL_S)
        rows += answer["replicas"]
        gone += answer.get("gone", [])  # a metadata service of an older version does not say it
    return rows, gone


def _promise(sessions: Sessions, row: dict[str, Any], errors: list[MoorageError]) -> None:
    info = ReplicaInfo(row["replica"], row["volume"], row["group"], row["durability"], row["members"])
    try:
        sessions.promise_again(info, row["epoch"], row["writer"])
    except MoorageError as error:
        errors.append(error)
