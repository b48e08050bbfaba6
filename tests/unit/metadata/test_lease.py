"""Leases: who may take over unasked, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.metadata.lease import LeaseTable, check_current, check_takeover
from moorage.wire.errors import Busy, Fenced

HOLDER = {
    "host": "h1",
    "pid": 42,
    "program": "qemu",
    "recovers": False,
    "writer": 7,
    "since_ms": 10_000,
}


def volume(**change: Any) -> dict[str, Any]:
    fresh = {"id": 5, "name": "db", "epoch": 3, "state": "ready", "holder": HOLDER, "ended_ms": 0}
    return {**fresh, **change}


def test_lease_runs_out_unless_it_is_renewed() -> None:
    leases = LeaseTable(4000)
    leases.grant(5, 3, 1000)
    assert leases.remaining_ms(5, 3, 1000) == 4000
    assert leases.remaining_ms(5, 3, 4999) == 1
    assert leases.remaining_ms(5, 3, 5000) == 0
    assert leases.remaining_ms(5, 3, 5500) == -500
    leases.grant(5, 3, 4999)
    assert leases.remaining_ms(5, 3, 5000) == 3999


def test_leases_start_afresh_with_the_leader() -> None:
    leases = LeaseTable(4000)
    leases.grant(5, 3, 0)
    leases.restart([(5, 3), (6, 1)], 3999)
    assert leases.remaining_ms(5, 3, 4000) == 3999
    assert leases.remaining_ms(6, 1, 4000) == 3999
    assert len(leases) == 2
    leases.clear()
    assert len(leases) == 0


def test_holder_that_the_table_has_not_heard_of_has_a_whole_lease() -> None:
    leases = LeaseTable(4000)
    assert leases.remaining_ms(5, 3, 100) == 4000  # committed, its handler has yet to grant
    assert leases.remaining_ms(5, 3, 4099) == 1  # and that counts from the first look on
    assert leases.remaining_ms(5, 4, 4099) == 4000
    assert leases.remaining_ms(5, 3, 4099) == 0  # of the past


def test_late_renewal_of_an_older_epoch_changes_nothing() -> None:
    leases = LeaseTable(4000)
    leases.grant(5, 3, 0)
    leases.grant(5, 2, 3000)
    assert leases.remaining_ms(5, 3, 3000) == 1000
    leases.end(5, 2)
    assert leases.remaining_ms(5, 3, 3000) == 1000


def test_end() -> None:
    leases = LeaseTable(4000)
    leases.grant(5, 3, 0)
    leases.end(5, 3)
    assert len(leases) == 0


def test_takeover_is_refused_while_the_lease_runs() -> None:
    with pytest.raises(Busy) as caught:
        check_takeover(volume(), 3200, False, "attach")
    message = str(caught.value)
    for said in ("'db'", "qemu on h1 (pid 42)", "3.2 s more", "attach with --force", "detach it there"):
        assert said in message
    assert caught.value.details["holder"] == HOLDER


def test_takeover_is_allowed_by_force_or_without_a_running_lease() -> None:
    check_takeover(volume(), 3200, True, "attach")
    check_takeover(volume(), 0, False, "attach")
    check_takeover(volume(holder=None), 3200, False, "attach")


def test_a_recovery_waits_out_a_grace_and_makes_room_for_writers() -> None:
    with pytest.raises(Busy, match=r"its lease runs 0\.0 s more"):
        check_takeover(volume(), -4999, False, "recover", 5000)
    check_takeover(volume(), -5000, False, "recover", 5000)
    recovering = volume(holder={**HOLDER, "recovers": True})
    check_takeover(recovering, 3200, False, "attach")
    with pytest.raises(Busy, match="held by a recovery by qemu on h1"):
        check_takeover(recovering, 3200, False, "recover", 5000)
    check_takeover(recovering, 0, False, "recover", 5000)


def test_current_holder_is_not_fenced() -> None:
    check_current(volume(), 3, 7, 0)


@pytest.mark.parametrize(
    ("change", "epoch", "writer", "says"),
    [
        ({"epoch": 4}, 3, 9, r"taken over by qemu on h1 \(pid 42\) 2\.5 s ago \(epoch 4, yours was 3\)"),
        ({}, 3, 8, "taken over by qemu"),
        ({"holder": None}, 3, 7, "was detached: epoch 3 has ended"),
        ({"holder": None, "epoch": 4}, 3, 7, "at epoch 4 now, without a holder"),
        ({}, 9, 7, "never had epoch 9"),
        (
            {"state": "deleting", "ended_ms": 11_500, "holder": None, "epoch": 4},
            3,
            7,
            r"was deleted 1\.0 s ago",
        ),
    ],
)
def test_fenced_says_by_whom_and_when(change: dict[str, Any], epoch: int, writer: int, says: str) -> None:
    with pytest.raises(Fenced, match=says):
        check_current(volume(**change), epoch, writer, 12_500)
