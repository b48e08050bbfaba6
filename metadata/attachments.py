"""Who may write to a volume: attach, renew, detach, and the leader's leases.

Owns the judgement of leases on the leader, the capabilities, and how a volume is shown. It must never
change state other than by a proposal, and never refuse by a state that may be old: a refusal comes after a
read barrier, a renewal that is granted needs none. Invariant: a lease is granted only for an (epoch,
writer) that the committed state holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from moorage.metadata import limits, records
from moorage.metadata.directory import Directory
from moorage.metadata.lease import LeaseTable, check_current, check_takeover, describe_holder
from moorage.metadata.params import check_known, flag_of, number_of, remaining_s
from moorage.metadata.tasks.context import wall_ms
from moorage.quorum.record import EPOCH_MAX
from moorage.service.replicated import Replicated
from moorage.wire.capability import Capability, sign
from moorage.wire.errors import Busy, Fenced, Invalid, StaleConfiguration
from moorage.wire.rpc import CallContext
from moorage.wire.secret import ClusterSecret

Params = dict[str, Any]
Reply = dict[str, Any]

# A capability opens a member once; later ones come with each renewal. Long, so that an outage of metadata
# does not keep a member that was away from being sealed; a revocation is a higher epoch, not an expiry.
CAPABILITY_MS: Final = 3_600_000
# A holder that metadata does not hear of may be well, and cut off from metadata only: a reader is no reason
# to fence it. One that has been silent for so long will hardly come back.
RECOVERY_GRACE_MS: Final = 15_000
NEVER_MS: Final = 1 << 62  # nobody holds it at all
SCAN_AT_ONCE: Final = 500  # volumes looked at before others are served
ATTACH_TRIES: Final = 8  # somebody else's attach came between that often: then say Busy


class Attachments:
    def __init__(
        self, replicated: Replicated, directory: Directory, secret: ClusterSecret, *, lease_ms: int
    ) -> None:
        self._replicated = replicated
        self._directory = directory
        self._secret = secret
        self._leases = LeaseTable(lease_ms)

    def lead(self) -> None:
        """Leadership begins: every holder there is gets a whole lease."""
        held = (
            (volume["id"], volume["epoch"])
            for volume in records.volumes(self._replicated.kv)
            if volume["holder"] is not None
        )
        self._leases.restart(held, _now_ms())

    def follow(self) -> None:
        self._leases.clear()

    @property
    def count(self) -> int:
        return len(self._leases)

    async def attach(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "writer", "mode", "force", "holder", "succeeds", "snapshot", "rollback")
        name = limits.check_name(params.get("name"))
        writer = limits.check_writer(params.get("writer"))
        mode = params.get("mode", "rw")
        if mode not in ("rw", "ro", "recover"):
            raise Invalid(f"mode {mode!r} is not accepted: use rw, ro or recover")
        recovers = mode == "recover"
        force = flag_of(params, "force") and not recovers
        holder = limits.check_holder(params.get("holder"))
        succeeds = limits.check_succeeds(params.get("succeeds", []))
        snapshot, rollback = _snapshot_of(params, "snapshot", "ro"), _snapshot_of(params, "rollback", "rw")
        await self._replicated.read_barrier(remaining_s(context))
        await self._know_members(records.volume_by_name(self._replicated.kv, name))
        volume = records.volume_by_name(self._replicated.kv, name)
        if mode == "ro":
            records.check_ready(volume)
            if snapshot:
                records.ready_snapshot(volume, snapshot)
            else:
                records.check_not_rolling_back(volume)
            return self._attachment(volume, writer, "ro")
        if volume["holder"] is None or volume["holder"]["writer"] != writer:  # else: sent again
            former = volume["holder"]
            volume = await self.against_epoch(
                name,
                lambda found: {
                    **(
                        {"do": "attach_to_roll_back", "rolls_back": rollback}
                        if rollback
                        else {"do": "attach"}
                    ),
                    "volume": found["id"],
                    "epoch": found["epoch"],
                    "writer": writer,
                    "holder": holder,
                    "recovers": recovers,
                    "succeeds": succeeds,
                    "now_ms": wall_ms(),
                },
                force or bool(succeeds),  # the lease is its own: whose it is not, is refused by the state
                "attach",
                RECOVERY_GRACE_MS if recovers else 0,
            )
            if former is not None and not former["recovers"] and not recovers:
                by = describe_holder(volume["holder"])
                text = f"volume {name} was taken over from {describe_holder(former)} by {by}"
                self._directory.tell("takeover", [name, former["host"], holder["host"]], text)
        self._leases.grant(volume["id"], volume["epoch"], _now_ms())
        return self._attachment(volume, writer, "rw")

    async def _know_members(self, volume: Params) -> None:
        """Have the addresses before the epoch is taken: what is a second old is good enough."""
        devices = {member["device"] for group in volume["groups"] for member in _all_members(group)}
        await self._directory.know(devices)

    async def renew(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "volume", "epoch", "writer", "name")
        found, epoch, writer = (number_of(params, key) for key in ("volume", "epoch", "writer"))
        name = params.get("name", f"{found}")
        try:
            volume = self.held(name, found, epoch, writer)
        except Fenced:
            await self._replicated.read_barrier()  # this copy may be the old one: refuse by the newest only
            volume = self.held(name, found, epoch, writer)
        self._leases.grant(found, epoch, _now_ms())
        return {
            "lease_ms": self._leases.lease_ms,
            "size": volume["size"],
            **{key: volume.get(key, 0) for key in ("iops", "bw", "snapshots_version")},
            "groups": self.groups(volume),
            "capability": self._capability(volume, writer, "rw"),
        }

    async def detach(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "volume", "epoch", "writer", "name")
        found, epoch, writer = (number_of(params, key) for key in ("volume", "epoch", "writer"))
        await self._replicated.read_barrier()
        if records.volume_by_id(self._replicated.kv, found) is None:
            return {}  # deleted: nothing is held
        await self._replicated.propose(
            {"do": "detach", "volume": found, "epoch": epoch, "writer": writer, "now_ms": wall_ms()}
        )
        self._leases.end(found, epoch)
        return {}

    async def note_fs(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "epoch", "writer", "fs")
        name = limits.check_name(params.get("name"))
        about = {key: number_of(params, key) for key in ("epoch", "writer")}
        fs = limits.check_fs(params.get("fs"))
        await self._replicated.read_barrier(remaining_s(context))
        volume = records.volume_by_name(self._replicated.kv, name)
        noted = await self._replicated.propose(
            {"do": "note_fs", "volume": volume["id"], "fs": fs, "now_ms": wall_ms(), **about}
        )
        return self.public(noted)

    async def current_epochs(self, context: CallContext | None, params: Params) -> Reply:
        """For a node that cannot read any more what a replica has promised: it cannot have been more than the
        newest epoch of its volume, as of a barrier that comes after the node's start. ``gone``: those that
        this group has given, and no volume has any more; no id is given twice, so that is for good."""
        check_known(params, "replicas")
        wanted = limits.check_replica_ids(params.get("replicas"))
        await self._replicated.read_barrier(remaining_s(context))
        kv = self._replicated.kv
        found: list[Reply] = []
        gone = {each for each in wanted if records.was_given(kv, self._replicated.group, each)}
        for number, volume in enumerate(records.volumes(kv)):
            if number % SCAN_AT_ONCE == 0:
                await asyncio.sleep(0)  # others are served meanwhile; what is read later is not older
            gone -= {member["replica"] for group in volume["groups"] for member in _all_members(group)}
            if volume["state"] != records.DELETING:
                found += _epochs(volume, wanted)
        return {"replicas": found, "gone": sorted(gone)}

    def held(self, name: Any, found: int, epoch: int, writer: int) -> Params:
        """The volume, as of this member's copy of the state; Fenced when others have it there."""
        volume = records.volume_by_id(self._replicated.kv, found)
        if volume is None:
            raise Fenced(f"volume {name!r} was deleted", volume=found)
        check_current(volume, epoch, writer, wall_ms())
        return volume

    async def against_epoch(
        self,
        name: str,
        command: Callable[[Params], Params],
        force: bool,
        verb: str,
        grace_ms: int = 0,
        kind: str = records.VOLUME,
    ) -> Params:
        """Propose by compare-and-set on the epoch that the lease was judged by; judge anew when it moved."""
        for _ in range(ATTACH_TRIES):
            volume = records.volume_by_name(self._replicated.kv, name, kind)
            check_takeover(volume, self._remaining_ms(volume), force, verb, grace_ms)
            try:
                changed: Params = await self._replicated.propose(command(volume))
                return changed
            except StaleConfiguration:
                continue
        raise Busy(f"volume {name!r} changes hands all the time: try again later", volume=name)

    def _attachment(self, volume: Params, writer: int, rights: Literal["rw", "ro"]) -> Reply:
        """Directly after a proposal or a barrier: no await between the state and the reply."""
        return {
            "volume": self.public(volume),
            "epoch": volume["epoch"],
            "lease_ms": self._leases.lease_ms,
            "capability": self._capability(volume, writer, rights),
            "groups": self.groups(volume),
            "holder_alive": self.is_alive(volume),
        }

    def _capability(self, volume: Params, writer: int, rights: Literal["rw", "ro"]) -> bytes:
        replicas = [member["replica"] for group in volume["groups"] for member in _all_members(group)]
        expires_ms = wall_ms() + CAPABILITY_MS
        return sign(
            self._secret, Capability(volume["id"], volume["epoch"], writer, replicas, rights, expires_ms)
        )

    def end(self, volume: int) -> None:
        """It was deleted: nobody holds it, in whatever epoch."""
        self._leases.end(volume, EPOCH_MAX)

    def public(self, volume: Params) -> Reply:
        left_ms = max(0, self._remaining_ms(volume))
        return {**records.public(volume), "holder_alive": left_ms > 0, "lease_left_ms": left_ms}

    def lapsed_ms(self, volume: Params) -> int:
        """For how long no lease has run, under this leader; 0: one does."""
        if volume["holder"] is None:
            return NEVER_MS
        return max(0, -self._remaining_ms(volume))

    def is_alive(self, volume: Params) -> bool:
        """Whether a holder's lease runs, or one that only recovers."""
        return self._remaining_ms(volume) > 0

    def _remaining_ms(self, volume: Params) -> int:
        if volume["holder"] is None:
            return 0
        return self._leases.remaining_ms(volume["id"], volume["epoch"], _now_ms())

    def groups(self, volume: Params) -> list[Reply]:
        return [
            {**group, "members": [self._with_address(member) for member in group["members"]]}
            | {"wish": self._with_address(group["wish"]) if group["wish"] else None}
            for group in volume["groups"]
        ]

    def _with_address(self, member: Params) -> Reply:
        return {**member, "address": self._directory.address_of(member["device"])}


def _snapshot_of(params: Params, key: str, mode: str) -> str:
    """The name of the snapshot that an attach is about; empty: none."""
    name = params.get(key, "")
    if name and params.get("mode", "rw") != mode:
        raise Invalid(f"{key} goes with mode {mode} only")
    return limits.check_snapshot_name(name) if name else ""


def _epochs(volume: Params, wanted: frozenset[int]) -> list[Reply]:
    durability = records.durability_of(volume)
    about = {"volume": volume["id"], "durability": durability, "epoch": volume["epoch"]}
    about["writer"] = volume["writers"][-1] if volume["writers"] else 0
    return [
        {"replica": member["replica"], "group": group["group"], "members": volume["replicas"], **about}
        for group in volume["groups"]
        for member in _all_members(group)
        if member["replica"] in wanted
    ]


def _all_members(group: Params) -> list[Params]:
    return [*group["members"], *([group["wish"]] if group["wish"] else [])]


def _now_ms() -> int:
    return int(time.monotonic() * 1000)
