"""Planted bugs of replicas that move, for whole clusters with hosts to spare."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import pytest

from moorage.client.membership import Membership
from moorage.client.session import GroupSession
from moorage.metadata import healing, placement, records
from moorage.metadata.state import StateMachine
from moorage.metadata.tasks import replace
from moorage.metadata.tasks.runner import TaskRunner
from moorage.simulation.run import run_seed

from .catalogue import planted
from .cluster import verdict as verdict


def run(seed: int) -> object:
    with redirect_stderr(StringIO()):
        return run_seed(seed, aim="storm", moves=True, snapshots=False, objects=False)


@planted(
    "moves",
    "7",
    rare=True,
    excuse="a leader of metadata that was deposed must answer a renewal just after its successor has"
    " committed the new members, and the holder die before it hears of that; a unit test has it"
    " (test_one_stale_renewal_ends_no_change)",
)
def one_renewal_calls_a_change_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder lets the old members count again by the word of any leader of metadata."""
    real = Membership.heard

    def heard(self: Membership, group: dict[str, Any]) -> None:
        wish = self._wish
        if wish is not None and group["wish"] is None and group["version"] <= self._version:
            self._refused(wish)
        else:
            real(self, group)

    monkeypatch.setattr(Membership, "heard", heard)


@planted("moves", "7", rare=True)
def members_are_committed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata commits new members when the holder hears of the wish, before they have anything."""
    real = Membership._begin

    def begin(self: Membership, wish: dict[str, Any]) -> None:
        real(self, wish)
        self.ready()

    monkeypatch.setattr(Membership, "_begin", begin)


@planted("moves", "7", rare=True)
def the_old_one_is_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica that is to be replaced is dropped when its successor is wished for."""
    real = StateMachine._plan_replacement

    def plan(self: StateMachine, kv: Any, command: Any, index: int) -> Any:
        wish = real(self, kv, command, index)
        volume, group = self._group(kv, command)
        (old,) = [each for each in group["members"] if each["replica"] == command["old"]]
        key = f"{records.drops_prefix(volume['id'])}{old['replica']:016x}"
        kv.put(key, {"device": old["device"], "host": old["host"]})
        return wish

    monkeypatch.setattr(StateMachine, "_plan_replacement", plan)


@planted("moves", "drop", rare=True)
def the_old_one_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is no member any more stays on its device."""
    real = StateMachine._reconfigure

    def reconfigure(self: StateMachine, kv: Any, command: Any, index: int) -> Any:
        found = real(self, kv, command, index)
        kv.delete(f"{records.drops_prefix(command['volume'])}{command['replace']['old']:016x}")
        return found

    monkeypatch.setattr(StateMachine, "_reconfigure", reconfigure)


@planted("moves", "drop", rare=True)
def what_was_called_off_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that is not needed any more stays on its device."""
    real = StateMachine._cancel_replacement

    def cancel(self: StateMachine, kv: Any, command: Any, index: int) -> Any:
        real(self, kv, command, index)
        kv.delete(f"{records.drops_prefix(command['volume'])}{command['replica']:016x}")

    monkeypatch.setattr(StateMachine, "_cancel_replacement", cancel)


@planted("moves", "placement", rare=True)
def two_replicas_on_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor is placed without a look at where the other members are."""
    real = placement.place_replacement

    def place(cluster: Any, *, size: int, groups: int, keep: Any, only: str = "") -> Any:
        return real(cluster, size=size, groups=groups, keep=(), only=only)

    monkeypatch.setattr(placement, "place_replacement", place)
    real_plan = StateMachine._plan_replacement

    def plan(self: StateMachine, kv: Any, command: Any, index: int) -> Any:
        volume, group = self._group(kv, command)
        hosts = [each["host"] for each in group["members"]]
        for each in group["members"]:
            if each["replica"] != command["old"]:
                each["host"] = ""
        self._put(kv, volume)
        wish = real_plan(self, kv, command, index)
        volume, group = self._group(kv, command)
        for each, host in zip(group["members"], hosts, strict=True):
            each["host"] = host
        self._put(kv, volume)
        return wish

    monkeypatch.setattr(StateMachine, "_plan_replacement", plan)


@planted("moves", "liveness", rare=True)
def nobody_leads_what_nobody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata's leader leaves volumes that nobody holds alone."""

    async def lead(context: Any, volume: Any) -> None:
        pass

    monkeypatch.setattr(replace, "_lead", lead)


@planted("moves", "liveness", rare=True)
def the_next_leader_forgets_the_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new leader of metadata does not take up changes that a former one began."""
    real = TaskRunner.start_volume

    def start_volume(self: TaskRunner, volume_id: int) -> None:
        if volume_id not in getattr(self, "_left", {volume_id}):
            real(self, volume_id)

    real_lead = TaskRunner.lead

    def lead(self: TaskRunner) -> None:
        kv = self._context.replicated.kv
        self._left = {volume["id"] for volume in records.volumes(kv) if records.wishes(volume)}  # type: ignore[attr-defined]
        real_lead(self)

    monkeypatch.setattr(TaskRunner, "lead", lead)
    monkeypatch.setattr(TaskRunner, "start_volume", start_volume)


@planted("moves", "liveness", rare=True)
def learners_are_created_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wish that comes while another one of the volume is under way is not seen to."""
    real = replace._create_learners
    seen: dict[int, int] = {}

    async def create(context: Any, volume: Any, created: set[int]) -> None:
        if created and len(created) >= seen.get(volume["id"], 1):
            return
        await real(context, volume, created)
        seen[volume["id"]] = len(created)

    monkeypatch.setattr(replace, "_create_learners", create)


@planted("moves", "liveness", rare=True)
def the_holder_hears_of_no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder looks at addresses only, not at who should be a member."""
    monkeypatch.setattr(Membership, "heard", lambda self, group: None)


@planted(
    "moves",
    "22",
    rare=True,
    excuse="a replica that is not whole refuses reads by itself, and one that is behind says so: the client"
    " reads elsewhere",
)
def reads_of_a_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner is read as soon as it is connected."""
    real = GroupSession._carry

    def carry(self: GroupSession) -> None:
        real(self)
        for member in self.members:
            member.target.readable = member.conn is not None

    monkeypatch.setattr(GroupSession, "_carry", carry)


@planted("moves", "placement", rare=True)
def drains_into_what_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor may be placed on a host that is being emptied: replicas go round and round."""
    real = placement.cluster_from_view

    def cluster_from_view(view: Any, provisioned: Any) -> Any:
        rows = {device: {**row, "drain": None} for device, row in view["devices"].items()}
        hosts = {host: {**row, "drain": None} for host, row in view["hosts"].items()}
        return real({**view, "devices": rows, "hosts": hosts}, provisioned)

    monkeypatch.setattr(healing.placement, "cluster_from_view", cluster_from_view)
