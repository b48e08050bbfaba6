"""Going on in the place of a former life: who may, and with what.

Owns the writer ids under which a holder attaches in the place of what it was (:class:`Succession`,
:class:`Lives`), and the records that an epoch left without an end for the next one (:class:`Rest`). Metadata
alone says whether others came to write meanwhile, and the log that is chosen alone what of a former life is
there: nothing here guesses.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from moorage.client.device import Done
from moorage.quorum.record import Buffer
from moorage.quorum.writer import Writer
from moorage.wire.errors import AttachmentLost, Fenced, MoorageError

MetadataCall = Callable[[str, dict[str, Any], float], Awaitable[Any]]
# kind, chunk, block, count, checksums, data, done (None: it was acknowledged), FUA
Queued = tuple[int, int, int, int, Buffer, Buffer, Done | None, bool]

FLUSH = 0  # in place of a kind of record: what waits until all before it is durable
ATTACH_S = 10.0
PAUSE_S, PAUSE_MAX_S = 0.1, 1.0  # between attaches that metadata does not answer
LIVES_KEPT = 8


def new_writer() -> int:
    return 1 + secrets.randbits(62)


@dataclass(frozen=True)
class Succession:
    """For a program that goes on where a former life of it ended, with what that one had cached.

    ``writer`` is the id of this life (random, used once, noted durably by the caller *before* it attaches),
    ``former`` those of earlier ones. The attach waits for no lease, and is refused with
    :class:`~moorage.errors.Fenced` when others may have written since. ``noted``: is told the ids that the
    next life has to name, before another one is used (the attachment went on after a recovery).
    """

    writer: int
    former: tuple[int, ...] = ()
    noted: Callable[[tuple[int, ...]], None] = lambda writers: None


class Lives:
    """The writer ids of one attachment: the one that served last, and those tried since."""

    def __init__(
        self,
        call: MetadataCall,
        params: dict[str, Any],
        writer: int,
        succession: Succession | None,
    ) -> None:
        """``params``: what metadata was asked when it was attached."""
        self._call = call
        self._params = params | {"force": False}
        self._noted = succession.noted if succession is not None else lambda writers: None
        self._writers: tuple[int, ...] = (writer,)

    def rolled_back(self) -> None:
        """What it attaches for from now on is to write."""
        self._params.pop("rollback", None)

    def serves(self) -> None:
        """The last one does: what was before cannot come back."""
        self._writers = self._writers[-1:]

    def knows(self, writer: int) -> bool:
        return writer in self._writers

    async def attach(self, say: Callable[[str], None]) -> tuple[dict[str, Any], int]:
        """Attach in the place of what it was, however long metadata takes: its word, and the writer id.
        ``say`` is told why it takes long. Raises Fenced when another came to write since, and whatever else
        is final."""
        while True:
            writer, former = new_writer(), self._writers
            self._writers = (*former[:1], *former[1:][2 - LIVES_KEPT :], writer)
            self._noted(self._writers)
            found = await self._attach(self._params | {"writer": writer, "succeeds": former}, say)
            if found is not None:
                return found, writer
            await asyncio.sleep(PAUSE_S)

    async def _attach(self, params: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any] | None:
        """None: it was given an epoch, which was over before we heard of it: this id is of no more use."""
        pause = PAUSE_S
        while True:
            try:
                found: dict[str, Any] = await self._call("metadata.attach", params, ATTACH_S)
                return found
            except Fenced as error:
                if "epoch" in error.details:  # at which another has it
                    raise
                return None
            except MoorageError as error:
                if not error.retriable:
                    raise
                say(str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)


class Rest:
    """What an epoch leaves of one group: records that may not be in the log that the next one chooses, and
    flushes, in order."""

    def __init__(self, writer: Writer) -> None:
        """Takes it from the writer of an epoch that is over."""
        self.epoch = writer.epoch
        self.records: list[tuple[int, Queued]] = []
        for lsn, entry, tag in writer.take_rest():
            if entry is None:
                queued: Queued = (FLUSH, 0, 0, 0, b"", b"", tag, False)
            else:
                where = entry.kind, entry.chunk, entry.block, entry.count
                queued = (*where, entry.sums, entry.data, tag, False)
            self.records.append((lsn, queued))

    def divide(self, writer: Writer) -> tuple[list[Done | None], list[Queued]]:
        """By the log that the writer of the next epoch has chosen: what is there is committed, and done; the
        others are to be issued again, in order. Raises AttachmentLost when the log does not tell."""
        there: list[Done | None] = []
        again: list[Queued] = []
        for lsn, queued in self.records:
            found = writer.recovered(self.epoch, lsn)
            if found is None:
                raise AttachmentLost(
                    f"whether record {lsn} of epoch {self.epoch} is there is not known any more"
                )
            if found:
                there.append(queued[6])
            else:
                again.append(queued)
        return there, again
