"""Who sees to the bytes of objects, while this member leads: they are where metadata says, and nowhere else.

Owns the rounds over all buckets: what is free is discarded, regions of writers that are gone are closed and
swept, members get what they lack, and are asked from time to time whether they have what they should.
Metadata is the truth: what nothing refers to is never copied, and discarded only by addresses that were given
and taken away. Each step may be repeated. A member that is away keeps what it has to discard, until it was
told.

Every await is a place where the world changes: who is a member is read anew before each order, and once more
before it is noted that all members have done something. Nothing here may look at all of a bucket in one go;
each round takes some of it, and goes on there in the next one. A device that does not answer is left alone
for a while, and what needs it waits: the others are not kept waiting by it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import Any, Final

from moorage.metadata import records
from moorage.metadata.objects import layout
from moorage.metadata.objects.layout import CLOSED, OPEN, REGION_CHUNKS, SWEPT, Extent
from moorage.metadata.objects.state import is_built, replicas_of
from moorage.metadata.objects.writers import Writers
from moorage.metadata.scanning import ready_volumes
from moorage.metadata.tasks.context import TaskContext, wall_ms
from moorage.metadata.tasks.create import order_of
from moorage.quorum.record import BLOCKS_PER_CHUNK, CHUNKS_MAX
from moorage.wire.errors import (
    CannotConnect,
    Damaged,
    MoorageError,
    NotLeader,
    Stale,
    StaleConfiguration,
    Unavailable,
)

log = logging.getLogger(__name__)

ROUND_S: Final = 1.0
BUCKETS_S: Final = 5.0  # between looks for buckets among all volumes, and ...
LOOK_SHARE: Final = 20  # ... so many times as long as such a look takes
READERS_S: Final = 600.0  # what is of no object any more is kept for so long, for who reads it still
REGIONS_S: Final = 20.0  # between looks at the regions of a bucket
VERIFY_S: Final = 6 * 3600.0  # between questions to members whether they have all
REGIONS_AT_ONCE: Final = 100  # of a bucket, in one round
VERIFIED_AT_ONCE: Final = 10  # orders to each member, in one round
AT_ONCE: Final = 500  # extents in one order
LOOKED_AT: Final = 2000  # extents that are free, in one round
YIELD_AFTER: Final = 500  # records that are looked at, before others are served
COPIED_BLOCKS: Final = 4 * 4096  # to one member, before that is noted: 64 MiB
REPAIRS: Final = 20  # of a replica that is about to become a member, before others are seen to
SILENT_S: Final = 5.0  # a device that did not answer is not asked again
COPY_BLOCKS: Final = 4096  # in one order: 16 MiB
ORDER_S: Final = 5.0
COPY_S: Final = 60.0

Bucket = dict[str, Any]
Group = dict[str, Any]


class ObjectKeeper:
    def __init__(self, context: TaskContext, writers: Writers) -> None:
        self._context = context
        self._writers = writers
        self._buckets: list[int] = []  # as of the last look
        # By bucket: where the last round has ended, over what is free, and over regions; where the last one
        # over all extents is, if one is under way; when the next one of these begins.
        self._free_at: dict[int, str] = {}
        self._region_at: dict[int, str] = {}
        self._regions_next: dict[int, float] = {}
        self._damage_next: dict[int, float] = {}
        self._verify_at: dict[int, tuple[int, int]] = {}
        self._verify_next: dict[int, float] = {}
        self._lack_at: dict[int, str] = {}  # by replica: where the last look at what it lacks has ended
        self._damage: dict[int, str] = {}  # by replica that is looked through: which damage that is of
        self._bad: dict[int, int] = {}  # by replica: how many blocks it has said are bad
        self._silent: dict[str, float] = {}  # by device: until when it is not asked
        self._waiting = False  # something is to be discarded in a later generation
        self._generation_at = 0.0

    async def run(self) -> None:
        """Until leadership ends."""
        self._writers.lead()
        self._forget(set(), set())
        self._silent.clear()
        self._generation_at = time.monotonic() + READERS_S
        look_at = 0.0
        while True:
            await asyncio.sleep(ROUND_S)
            if (began := time.monotonic()) >= look_at:
                await self._look_for_buckets()
                look_at = began + max(BUCKETS_S, LOOK_SHARE * (time.monotonic() - began))
            for identity in self._buckets:
                try:
                    await self._round(identity)
                except NotLeader:
                    return
                except MoorageError as error:
                    log.info("objects of bucket %x: %s; looking again", identity, error)
            try:
                await self._end_generation()
            except NotLeader:
                return
            except MoorageError as error:
                log.info("generation: %s; looking again", error)
            self._writers.forget_silent()

    async def _look_for_buckets(self) -> None:
        """There may be thousands of volumes beside them."""
        buckets = [
            volume
            async for volume in ready_volumes(self._context.replicated)
            if records.kind_of(volume) == records.BUCKET
        ]
        self._buckets = [bucket["id"] for bucket in buckets]
        replicas = {each for bucket in buckets for group in bucket["groups"] for each in replicas_of(group)}
        self._forget(set(self._buckets), replicas)

    async def _end_generation(self) -> None:
        """One takes ``READERS_S`` at least, by one leader's clock; none begins when nothing waits for it."""
        if self._waiting and time.monotonic() >= self._generation_at:
            self._waiting = False
            generation = layout.generation(self._context.replicated.kv)
            await self._context.propose({"do": "next_generation", "generation": generation})
            self._generation_at = time.monotonic() + READERS_S

    def _forget(self, buckets: set[int], replicas: set[int]) -> None:
        """All but these."""
        by_bucket: list[dict[int, Any]] = [
            self._free_at,
            self._region_at,
            self._regions_next,
            self._damage_next,
        ]
        for notes in [*by_bucket, self._verify_at, self._verify_next]:
            for identity in notes.keys() - buckets:
                del notes[identity]
        for by_replica in (self._lack_at, self._damage, self._bad):
            for replica in by_replica.keys() - replicas:
                del by_replica[replica]

    def _bucket(self, identity: int) -> Bucket | None:
        """As it is now, while it is there to stay."""
        found = records.volume_by_id(self._context.replicated.kv, identity)
        return found if found is not None and found["state"] == records.READY else None

    async def _round(self, identity: int) -> None:
        if self._bucket(identity) is None:
            return
        await self._discard_free(identity)
        await self._see_to_regions(identity)
        await self._see_to_damage(identity)
        await self._see_to_lacks(identity)
        await self._verify(identity)

    # -- what nothing refers to ----------------------------------------------------------------------------

    async def _discard_free(self, identity: int) -> None:
        """A part of it in each round. Who reads an object may go on for a while after it is gone."""
        kv = self._context.replicated.kv
        current = layout.generation(kv)
        found = list(islice(layout.frees(kv, identity, self._free_at.get(identity, "")), LOOKED_AT))
        self._free_at[identity] = layout.free_key(identity, found[-1][0]) if len(found) == LOOKED_AT else ""
        by_group: dict[int, list[Extent]] = defaultdict(list)
        for extent, born in found:
            if born <= current - 2:
                by_group[extent.group].append(extent)
            else:
                self._waiting = True
        for number, extents in by_group.items():
            for at in range(0, len(extents), AT_ONCE):
                some = extents[at : at + AT_ONCE]
                if not await self._discard(identity, number, {"pieces": _pieces(some)}):
                    break
                command = {"do": "discarded", "bucket": identity}
                await self._context.propose({**command, "extents": [list(each) for each in some]})

    async def _discard(self, identity: int, number: int, what: dict[str, Any]) -> bool:
        """Whether all members have done so, and the one that is to become a member: those of now. (Who is
        to become one later copies what is referred to, and that is not.)"""
        places = self._places(identity, number)
        if not places or any(self._is_silent(place) for place in places.values()):
            return False
        done = await asyncio.gather(
            *(self._ask(place, "node.discard_blocks", what, ORDER_S) for place in places.values()),
            return_exceptions=True,
        )
        failed = [each for each in done if isinstance(each, BaseException)]
        for each in failed:
            if not isinstance(each, MoorageError):
                raise each
            log.info("bucket %x: not all is discarded yet: %s", identity, each)
        return not failed and self._places(identity, number).keys() <= places.keys()

    def _places(self, identity: int, number: int) -> dict[int, dict[str, Any]]:
        """The members of a group, and the one that is to become one, by replica."""
        bucket = self._bucket(identity)
        if bucket is None:
            return {}
        group = bucket["groups"][number]
        return {
            each["replica"]: each for each in [*group["members"], *([group["wish"]] if group["wish"] else [])]
        }

    async def _see_to_regions(self, identity: int) -> None:
        """Some of them in each round; from the first on again after a while."""
        now = time.monotonic()
        start = self._region_at.get(identity, "")
        if not start:
            if now < self._regions_next.get(identity, 0.0):
                return
            self._regions_next[identity] = now + REGIONS_S
        found = list(
            islice(layout.regions_from(self._context.replicated.kv, identity, start), REGIONS_AT_ONCE)
        )
        self._region_at[identity] = found[-1][0] + "~" if len(found) == REGIONS_AT_ONCE else ""
        left = [
            [group, chunk]
            for _, group, chunk, region in found
            if region["state"] == OPEN and self._writers.is_gone(region["owner"])
        ]
        if left:
            log.info("bucket %x: %d regions of writers that are gone are closed", identity, len(left))
            await self._context.propose({"do": "close_regions", "bucket": identity, "regions": left})
        for _, group, chunk, region in found:
            await asyncio.sleep(0)
            if region["state"] == CLOSED:
                await self._sweep(identity, group, chunk)
            elif (
                region["state"] == SWEPT
                and self._is_unused(identity, group, chunk)
                and await self._discard(identity, group, {"regions": [[chunk, REGION_CHUNKS]]})
            ):
                await self._propose_region("forget_region", identity, group, chunk)

    def _is_unused(self, identity: int, group: int, chunk: int) -> bool:
        """Also by who reads still."""
        kv, end = self._context.replicated.kv, chunk + REGION_CHUNKS
        return (
            next(layout.extents(kv, identity, group, chunk, end), None) is None
            and next(layout.frees_of_region(kv, identity, group, chunk), None) is None
        )

    async def _sweep(self, identity: int, group: int, chunk: int) -> None:
        """Nothing can be put in it any more: what is not referred to there is garbage, but for what readers
        may still read, which is discarded in its turn."""
        gaps = _gaps(chunk, await self._used(identity, group, chunk))
        for at in range(0, len(gaps), AT_ONCE):
            if not await self._discard(identity, group, {"pieces": gaps[at : at + AT_ONCE]}):
                return
        await self._propose_region("region_swept", identity, group, chunk)

    async def _used(self, identity: int, group: int, chunk: int) -> list[Extent]:
        """Of a region in which nothing is put any more. What is free is looked at last: an extent that
        becomes free meanwhile is met there, if not before."""
        kv = self._context.replicated.kv
        used: list[Extent] = []
        for walk in (
            layout.extents(kv, identity, group, chunk, chunk + REGION_CHUNKS),
            layout.frees_of_region(kv, identity, group, chunk),
        ):
            while some := list(islice(walk, YIELD_AFTER)):
                used += some
                await asyncio.sleep(0)
        return sorted(used)

    async def _propose_region(self, do: str, identity: int, group: int, chunk: int) -> None:
        await self._context.propose({"do": do, "bucket": identity, "group": group, "chunk": chunk})

    # -- members that are damaged ---------------------------------------------------------------------------

    async def _see_to_damage(self, identity: int) -> None:
        """One may have lost blocks, or that some were discarded: it is looked through from there on, which
        goes on in later rounds until it is mended."""
        bucket, kv = self._bucket(identity), self._context.replicated.kv
        now = time.monotonic()
        is_due = now >= self._damage_next.setdefault(identity, now + REGIONS_S)
        if is_due:
            self._damage_next[identity] = now + REGIONS_S
        for group in bucket["groups"] if bucket is not None else ():
            for member in group["members"]:
                replica = member["replica"]
                is_begun = kv.get(layout.built_key(identity, replica)) is not None
                if is_due or (is_begun and replica not in self._damage):
                    await self._look_for_damage(identity, group["group"], member)
                if replica in self._damage and kv.get(layout.built_key(identity, replica)) is not None:
                    await self._rebuild(identity, group["group"], member)

    async def _look_for_damage(self, identity: int, number: int, member: dict[str, Any]) -> None:
        """What is found for the first time is looked through from the start. When there are other bad blocks
        than before, all members are asked for what they should have, before it is time."""
        replica = member["replica"]
        try:
            answer = await self._ask(member, "node.lacking_blocks", {"pieces": []}, ORDER_S)
        except Damaged as error:
            if (damage := str(error.details.get("damage", ""))) != self._damage.get(replica):
                log.warning("%s: %s", member["host"], error)
                about = {"bucket": identity, "group": number, "replica": replica}
                await self._context.propose({"do": "rebuild", **about})
                self._damage[replica] = damage
        except MoorageError:
            pass  # it is away: healing sees to that
        else:
            self._damage[replica] = ""
            bad = answer.get("bad", 0)  # an older node does not say
            if bad and bad != self._bad.get(replica):
                self._verify_next[identity] = 0.0
            self._bad[replica] = bad

    async def _rebuild(self, identity: int, number: int, member: dict[str, Any]) -> None:
        """Have it fetch what it lost, and discard what it may have again. What it has well stays."""
        try:
            await self._copy_all(identity, number, member)
            await self._discard_again(identity, number, member)
            damage = self._damage[member["replica"]]
            await self._ask(member, "node.mended_blocks", {"damage": damage}, ORDER_S)
        except NotLeader:
            raise
        except Stale as error:
            log.warning("bucket %x: device %s: %s", identity, member["device"], error)
            del self._damage[member["replica"]]  # which it is, is asked anew
            return
        except MoorageError as error:
            log.info("bucket %x: device %s: %s", identity, member["device"], error)
            return
        about = {"bucket": identity, "group": number, "replica": member["replica"]}
        await self._context.propose({"do": "rebuilt", **about})
        log.info("bucket %x: %s has a whole replica again", identity, member["host"])

    async def _discard_again(self, identity: int, number: int, member: dict[str, Any]) -> None:
        """All that is garbage for good: what lies between in swept regions, and regions that are forgotten.
        The others are swept in their turn."""
        kv, method = self._context.replicated.kv, "node.discard_blocks"
        given = int(kv.get(layout.next_region_key(identity, number)) or 0)
        for chunk in range(0, given, REGION_CHUNKS):
            region = kv.get(layout.region_key(identity, number, chunk))
            if region is None:
                await self._ask(member, method, {"regions": [[chunk, REGION_CHUNKS]]}, ORDER_S)
            elif region["state"] == SWEPT:
                gaps = _gaps(chunk, await self._used(identity, number, chunk))
                for at in range(0, len(gaps), AT_ONCE):
                    await self._ask(member, method, {"pieces": gaps[at : at + AT_ONCE]}, ORDER_S)

    # -- what members lack ---------------------------------------------------------------------------------

    async def _see_to_lacks(self, identity: int) -> None:
        kv, bucket = self._context.replicated.kv, self._bucket(identity)
        if bucket is None:
            return
        members = {
            member["replica"]: (group["group"], member)
            for group in bucket["groups"]
            for member in group["members"]
        }
        wishes = {wish["replica"] for group in bucket["groups"] if (wish := group["wish"])}
        for replica in list(layout.lacking_replicas(kv, identity)):
            if replica in members:
                await self._repair(identity, *members[replica])
            elif (
                replica not in wishes
            ):  # it is no member any more; the number of its group is not in the keys
                some = list(islice(layout.lacks(kv, identity, 0, replica), AT_ONCE))
                await self._propose_repaired(identity, replica, some)

    async def _propose_repaired(self, identity: int, replica: int, extents: list[Extent]) -> None:
        command = {"do": "repaired", "bucket": identity, "replica": replica}
        await self._context.propose({**command, "extents": [list(each) for each in extents]})

    async def _repair(self, identity: int, number: int, member: dict[str, Any]) -> bool:
        """Some of what one member lacks, if it answers: what could not be had does not keep the rest. Whether
        it has something that it lacked."""
        kv, replica = self._context.replicated.kv, member["replica"]
        walk = layout.lacks(kv, identity, number, replica, self._lack_at.pop(replica, ""))
        wanted, following = _some(walk)
        if following is not None:
            self._lack_at[replica] = layout.lack_key(identity, replica, following)
        fetched, _ = await self._fetch(identity, number, member, wanted)
        if fetched:
            await self._propose_repaired(identity, replica, fetched)
            where = f"{member['host']}, device {member['device']}"
            log.info("bucket %x: %s has %d extents that it lacked", identity, where, len(fetched))
        return bool(fetched)

    async def _fetch(
        self, identity: int, number: int, place: dict[str, Any], wanted: list[Extent]
    ) -> tuple[list[Extent], list[Extent]]:
        """Have the replica at ``place`` copy these from the members that have them: which it has then, and
        which could not be had. Of the others it was not asked, or did not answer."""
        bucket = self._bucket(identity)
        if bucket is None or not wanted or self._is_silent(place):
            return [], []
        others = [each for each in bucket["groups"][number]["members"] if each["replica"] != place["replica"]]
        sources = [
            {"address": address, "device": member["device"], "replica": member["replica"]}
            for member in sorted(others, key=self._is_silent)
            if (address := self._context.directory.address_of(member["device"]))
        ]
        done: dict[Extent, int] = dict.fromkeys(wanted, 0)  # blocks that it has of each
        missing: dict[Extent, None] = {}
        for some in _portions(wanted):
            order = {"sources": sources, "pieces": _pieces([part for _, part in some])}
            try:
                answer = await self._ask(place, "node.fetch_blocks", order, COPY_S)
            except MoorageError as error:
                log.debug("bucket %s: device %s: %s", bucket["name"], place["device"], error)
                break
            left = {tuple(each) for each in answer.get("left", [])}
            if left:
                log.info(
                    "bucket %s: %s lacks %d: %s", bucket["name"], place["host"], len(left), answer.get("why")
                )
            for whole, part in some:
                if (part.chunk, part.block, part.blocks) in left:
                    missing[whole] = None
                else:
                    done[whole] += part.blocks
        return [extent for extent, blocks in done.items() if blocks == extent.blocks], list(missing)

    async def _verify(self, identity: int) -> None:
        """Ask each member whether it has all that is in its group: some of it in each round, all from time to
        time."""
        kv, now = self._context.replicated.kv, time.monotonic()
        if identity not in self._verify_at:
            if now < self._verify_next.setdefault(identity, now + VERIFY_S):
                return
            self._verify_next[identity] = now + VERIFY_S
        number, address = self._verify_at.get(identity, (0, 0))
        for _ in range(VERIFIED_AT_ONCE):
            bucket = self._bucket(identity)
            if bucket is None or number >= len(bucket["groups"]):
                self._verify_at.pop(identity, None)
                return
            some, following = _some(layout.extents_from(kv, identity, number, address))
            for member in bucket["groups"][number]["members"] if some else ():
                await self._verify_member(identity, member, some)
            number, address = (number + 1, 0) if following is None else (number, some[-1].end)
        self._verify_at[identity] = number, address

    async def _verify_member(self, identity: int, member: dict[str, Any], some: list[Extent]) -> None:
        try:
            answer = await self._ask(member, "node.lacking_blocks", {"pieces": _pieces(some)}, ORDER_S)
        except MoorageError:
            return  # it is away: healing sees to that
        lacking = {tuple(each) for each in answer.get("lacking", [])}
        found = [list(each) for each in some if (each.chunk, each.block, each.blocks) in lacking]
        if found:
            log.warning(
                "bucket %x: %s lacks %d extents that it should have", identity, member["host"], len(found)
            )
            command = {"do": "note_lack", "bucket": identity, "replica": member["replica"]}
            await self._context.propose({**command, "extents": found})

    # -- a replica that is to become a member ----------------------------------------------------------------

    async def replace(self, bucket_id: int) -> None:
        """Until the state wishes for no change of this bucket any more."""
        while (bucket := self._wishing(bucket_id)) is not None:
            for group in records.wishes(bucket):
                try:
                    await self._build(bucket, group)
                except StaleConfiguration as error:  # called off, or another one
                    log.info("bucket %s: %s", bucket["name"], error)
                except NotLeader:
                    raise
                except MoorageError as error:
                    where = f"{group['wish']['host']}, device {group['wish']['device']}"
                    log.info("bucket %s: no replica at %s yet: %s", bucket["name"], where, error)
            await asyncio.sleep(ROUND_S)

    def _wishing(self, bucket_id: int) -> Bucket | None:
        bucket = self._bucket(bucket_id)
        return bucket if bucket is not None and records.wishes(bucket) else None

    async def _build(self, bucket: Bucket, group: Group) -> None:
        """Have it created, copy all that there is in order, then what came meanwhile; then it is a member."""
        context, wish, number = self._context, group["wish"], group["group"]
        orders = [order_of(bucket, group, wish["replica"])]
        (error,) = await context.orders.create_replicas(
            wish["device"], context.term, orders, context.order_timeout_s
        )
        if error is not None:
            raise error
        kv, identity = context.replicated.kv, bucket["id"]
        await self._copy_all(identity, number, wish)
        for _ in range(REPAIRS):  # of what is put meanwhile, until little is left
            if not await self._repair(identity, number, wish):
                break
        now = self._wishing(identity)
        if now is None or now["groups"][number]["wish"] != wish:
            return
        if not is_built(kv, now, number, wish["replica"]):
            return
        await context.propose(
            {
                "do": "reconfigure",
                "volume": identity,
                "group": number,
                "epoch": bucket["epoch"],
                "version": group["version"],
                "replace": {"old": wish["replaces"], "new": wish["replica"]},
                "now_ms": wall_ms(),
            }
        )
        text = f"bucket {bucket['name']} group {number}: {wish['host']} has taken a replica over"
        log.info("%s", text)
        context.directory.tell("moved", [bucket["name"], wish["host"]], text)

    def _is_silent(self, place: dict[str, Any]) -> bool:
        """Whether its device has not answered a moment ago."""
        until = self._silent.get(place["device"])
        if until is not None and time.monotonic() >= until:
            del self._silent[place["device"]]
        return place["device"] in self._silent

    async def _copy_all(self, identity: int, number: int, place: dict[str, Any]) -> None:
        """All that there is in a group, in order of its addresses, from where it was left."""
        context, kv = self._context, self._context.replicated.kv
        about = {"bucket": identity, "replica": place["replica"]}
        address = int(kv.get(layout.built_key(identity, place["replica"])) or 0)
        end = CHUNKS_MAX * BLOCKS_PER_CHUNK
        while address < end:
            some, following = _some(layout.extents_from(kv, identity, number, address))
            # What was put since it was planned is known to be lacking: this walk does not run after that.
            lacked = {each for each in some if kv.get(layout.lack_key(identity, place["replica"], each))}
            older = [each for each in some if each not in lacked]
            fetched, missing = map(set, await self._fetch(identity, number, place, older))
            known = list(takewhile((fetched | missing | lacked).__contains__, some))
            if some and not known:
                raise Unavailable("it did not say that it has copied anything")
            if left := [list(each) for each in known if each in missing]:  # it keeps nothing waiting
                await context.propose({"do": "note_lack", **about, "extents": left})
            address = known[-1].end if following is not None or len(known) < len(some) else end
            await context.propose({"do": "built", **about, "group": number, "address": address})

    async def _ask(self, place: dict[str, Any], method: str, params: dict[str, Any], timeout: float) -> Any:
        if self._is_silent(place):
            raise CannotConnect(f"device {place['device']} has not answered a moment ago")
        about = {"replica": place["replica"], **params}
        try:
            return await self._context.orders.ask(place["device"], method, about, self._context.term, timeout)
        except Unavailable:
            self._silent[place["device"]] = time.monotonic() + SILENT_S
            raise


def _pieces(extents: list[Extent]) -> list[list[int]]:
    return [[extent.chunk, extent.block, extent.blocks] for extent in extents]


def _portions(extents: list[Extent]) -> Iterator[list[tuple[Extent, Extent]]]:
    """No more than can be copied in the time of one order; a large extent in several: (extent, part)."""
    portion: list[tuple[Extent, Extent]] = []
    blocks = 0
    for extent in extents:
        for at in range(extent.first, extent.end, COPY_BLOCKS):
            size = min(COPY_BLOCKS, extent.end - at)
            if portion and blocks + size > COPY_BLOCKS:
                yield portion
                portion, blocks = [], 0
            part = Extent(extent.group, at // BLOCKS_PER_CHUNK, at % BLOCKS_PER_CHUNK, size)
            portion.append((extent, part))
            blocks += size
    if portion:
        yield portion


def _some(walk: Iterator[Extent]) -> tuple[list[Extent], Extent | None]:
    """As many as can be copied in a while, at least one; and the one that follows."""
    found: list[Extent] = []
    left = COPIED_BLOCKS
    for extent in walk:
        if found and (len(found) == AT_ONCE or extent.blocks > left):
            return found, extent
        found.append(extent)
        left -= extent.blocks
    return found, None


def _gaps(chunk: int, used: list[Extent]) -> list[list[int]]:
    """What lies between in the region, as pieces."""
    at, end = chunk * BLOCKS_PER_CHUNK, (chunk + REGION_CHUNKS) * BLOCKS_PER_CHUNK
    gaps = []
    for first, stop in [*((extent.first, extent.end) for extent in used), (end, end)]:
        if first > at:
            gaps.append([at // BLOCKS_PER_CHUNK, at % BLOCKS_PER_CHUNK, first - at])
        at = max(at, stop)
    return gaps
