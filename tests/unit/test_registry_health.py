"""The health board: what is heard, what is not, and what comes late."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.registry.health import Health, HealthBoard, Timings, Verdict, host_health

BEGAN = 1_000_000


class Board:
    def __init__(self) -> None:
        self.board = HealthBoard(Timings())
        self.board.restart(BEGAN)

    def beat(self, now: int, count: int, **changes: Any) -> Verdict:
        fields: dict[str, Any] = {
            "token": "t1", "noted": 0, "source": 1, "used": 10, "capacity": 100, "failed": "",
        }  # fmt: skip
        return self.board.heartbeat("d1", count=count, now_ms=BEGAN + now, **{**fields, **changes})

    def health(self, now: int, refused: str = "") -> Health:
        return self.board.health("d1", refused, BEGAN + now)


@pytest.fixture
def board() -> Board:
    return Board()


def test_a_new_leader_knows_nothing(board: Board) -> None:
    assert board.health(1).health == "suspect"
    assert "since this leader began" in board.health(1).reason
    assert board.health(9_999).health == "suspect"
    assert board.health(10_000).health == "down"


def test_up_suspect_down_and_up_again(board: Board) -> None:
    assert board.beat(100, 1) is Verdict.ACCEPTED
    board.beat(1_100, 2)
    assert board.health(1_100) == Health("up", "", 1_000)
    assert board.health(4_099).health == "up"
    assert board.health(4_100) == Health("suspect", "silent for 3 s", 0)
    assert board.health(11_099).health == "suspect"
    assert board.health(11_600) == Health("down", "silent for 10 s", 500)
    board.beat(20_000, 3)
    assert board.health(20_010) == Health("up", "", 10), "up since it came back, not since it first came"


def test_a_failed_disk_is_failed_while_it_says_so(board: Board) -> None:
    board.beat(0, 1, failed="fdatasync: Input/output error")
    board.beat(1_000, 2, failed="fdatasync: Input/output error")
    assert board.health(1_500) == Health("failed", "fdatasync: Input/output error", 1_500)
    assert board.health(60_000).health == "failed", "silence makes a failed disk no better"


def test_a_refused_device_is_refused_whatever_it_says(board: Board) -> None:
    board.beat(0, 1)
    assert board.health(10, refused="a clone") == Health("refused", "a clone", 10)


def test_usage_is_what_was_reported_last(board: Board) -> None:
    assert board.board.usage("d1") is None
    board.beat(0, 1)
    board.beat(1, 2, used=20, capacity=90)
    assert board.board.usage("d1") == (20, 90)


def test_leadership_starts_afresh(board: Board) -> None:
    board.beat(0, 5)
    board.board.restart(BEGAN + 50)
    assert board.health(60).health == "suspect"
    assert board.board.usage("d1") is None


# -- counts that go back -------------------------------------------------------------------------------


def test_the_same_count_again_is_a_message_sent_twice(board: Board) -> None:
    assert [board.beat(0, 5), board.beat(1, 5), board.beat(2, 5, source=2)] == [Verdict.ACCEPTED] * 3


def test_a_lower_count_on_the_same_connection_went_back(board: Board) -> None:
    board.beat(0, 5)
    assert board.beat(1, 4) is Verdict.WENT_BACK


def test_a_late_heartbeat_of_an_old_connection_refuses_nobody(board: Board) -> None:
    board.beat(0, 4, source=1)
    board.beat(2_000, 6, source=2)
    assert board.beat(2_100, 5, source=1) is Verdict.LATE
    assert board.beat(3_000, 7, source=2) is Verdict.ACCEPTED
    for late in range(100):  # however often, as long as the device itself goes on
        assert board.beat(4_000 + late * 1_000, 5, source=1) is Verdict.LATE
        assert board.beat(4_001 + late * 1_000, 8 + late, source=2) is Verdict.ACCEPTED


def test_a_reverted_process_is_refused_once_it_has_gone_on(board: Board) -> None:
    board.beat(0, 100, source=1)
    assert board.beat(1_000, 50, source=2) is Verdict.LATE
    assert board.beat(2_000, 51, source=2) is Verdict.LATE
    assert board.beat(3_999, 52, source=2) is Verdict.LATE
    assert board.health(3_999).health == "suspect", "a lower count is no sign of life"
    assert "older count" in board.health(3_999).reason
    assert board.beat(4_000, 53, source=2) is Verdict.WENT_BACK


def test_what_was_noted_counts_for_a_leader_that_heard_nothing_yet(board: Board) -> None:
    assert board.beat(0, 50, noted=60) is Verdict.LATE
    assert board.beat(3_000, 51, noted=60) is Verdict.WENT_BACK


def test_a_new_token_begins_anew(board: Board) -> None:
    board.beat(0, 100)
    assert board.beat(1, 3, token="t2") is Verdict.ACCEPTED
    board.board.started("d1")
    assert board.board.last_heard("d1") is None
    assert board.beat(2, 1, token="t3") is Verdict.ACCEPTED


def test_counts_are_noted_once_and_again_when_that_failed(board: Board) -> None:
    assert board.board.counts_to_note() == {}
    board.beat(0, 5)
    counts = board.board.counts_to_note()
    assert counts == {"d1": ["t1", 5]}
    assert board.board.counts_to_note() == {}
    board.board.not_noted(counts)
    assert board.board.counts_to_note() == counts
    board.beat(1, 6)
    assert board.board.counts_to_note() == {"d1": ["t1", 6]}


# -- hosts, and what is told ---------------------------------------------------------------------------


def test_a_host_is_as_well_as_its_best_device() -> None:
    up, down, failed = Health("up", "", 5), Health("down", "silent for 12 s", 9), Health("failed", "EIO", 1)
    assert host_health([down, up, failed]) is up
    assert host_health([failed, down]) is down
    assert host_health([]).health == "suspect"


def test_changes_are_told_once(board: Board) -> None:
    def told(now: int, refused: str = "") -> list[str]:
        return [
            f"{device} {health.health}"
            for device, health in board.board.changes({"d1": refused}, BEGAN + now)
        ]

    assert told(0) == ["d1 suspect"]
    board.beat(10, 1)
    assert told(20) == ["d1 up"]
    assert told(30) == []
    assert told(3_010) == ["d1 suspect"]
    assert told(10_010) == ["d1 down"]
    assert told(10_020, refused="a clone") == ["d1 refused"]
