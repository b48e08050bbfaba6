"""What the takeover benchmark and the database demo compute from what they saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.cli.demo.databases import mariadb, postgres
from moorage.cli.demo.databases.mariadb import Noted
from moorage.cli.demo.databases.postgres import Books
from moorage.cli.takeover.main import document, percentile
from moorage.cli.takeover.runs import PHASES, Run, durations


def made(seconds: float, lost: int = 0) -> Run:
    phases = dict.fromkeys(PHASES, 0.0) | {"lease over": seconds}
    return Run("h1", "h2", ["metadata"], 100, lost, 0, phases)


@pytest.mark.parametrize(("percent", "expected"), [(1, 1.0), (50, 10.0), (99, 20.0), (100, 20.0)])
def test_percentile_is_a_value_that_was_seen(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(20, 0, -1)], percent) == expected


def test_phases_add_up_and_a_stamp_that_is_early_takes_no_time() -> None:
    found = durations(10.0, [10.1, 12.0, 11.9995, 12.2, 12.3, 12.4, 12.5])
    assert list(found) == list(PHASES)
    assert found["lease over"] == 0.0
    assert sum(found.values()) == pytest.approx(2.5)


def test_document_has_each_phase_and_each_run() -> None:
    value = document([made(4.0), made(5.0, lost=2)], False, True, in_time=True, clean=True)
    assert value["clean"] is True
    assert value["unplug"] is True and value["force"] is False
    assert value["phases"]["in all"] == {"p50_s": 4.0, "p99_s": 5.0}
    assert [run["lost"] for run in value["runs"]] == [0, 2]
    assert value["runs"][1]["seconds"] == 5.0


def test_what_clients_noted_is_told_apart_by_server() -> None:
    noted = Noted()
    for line in (b"sent 1 a\n", b"committed 1 a\n", b"sent 2 a\n", b"sent 3 b\n", b"committed 3 b\n"):
        noted.hear(line)
    assert noted.sent == {1, 2, 3}
    assert set(noted.committed["a"]) == {1} and noted.all_committed() == {1, 3}


def test_payload_is_what_the_client_computes() -> None:
    """In PHP: hash('sha256', "row 7")."""
    assert mariadb.payload(7) == "223623a53236648c1b83fa24c438783d64ca5108190ead61d8b024354424490d"


def test_transactions_that_pgbench_logged(tmp_path: Path) -> None:
    (tmp_path / "log.1").write_text("0 1 900 0 17 1\n1 1 800 0 17 2\n0 2 900 0 17 3\n")
    (tmp_path / "log.1.1").write_text("2 1 900 0 17 1\n")
    (tmp_path / "transfer.sql").write_text("9 9\n")
    assert postgres.committed(tmp_path) == {"0.1", "0.2", "1.1", "2.1"}


def test_books() -> None:
    assert Books((5, 5, 5, 5), set()).balanced
    assert not Books((5, 5, 5, 4), set()).balanced
