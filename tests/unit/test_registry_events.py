"""The log of events: order, repeats, pages, and which changes of health are events."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.registry import events
from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV
from moorage.wire.errors import Invalid, LimitExceeded


class Log:
    def __init__(self) -> None:
        self.kv = KV()
        self._machine = RegistryMachine()
        self._sent = 0

    def note(self, *texts: str, about: tuple[str, ...] = ("db",), **fields: Any) -> None:
        noted = []
        for text in texts:
            self._sent += 1
            noted.append(
                {"at_ms": 5, "kind": "k", "about": about, "text": text, "id": f"{self._sent}", **fields}
            )
        self._machine.apply(self.kv, {"op": "note_events", "events": noted}, 1)
        self.kv.commit()

    def health(self, health: str, reason: str = "") -> None:
        command = {"op": "note_health", "device": "d1", "host": "h1", "health": health, "reason": reason}
        self._machine.apply(self.kv, {**command, "at_ms": 7}, 1)
        self.kv.commit()

    def texts(self, after: int = -1000, about: str = "", limit: int = 500) -> list[str]:
        return [event["text"] for event in events.page(self.kv, after, about, limit)["events"]]


@pytest.fixture
def log() -> Log:
    return Log()


def test_they_come_in_their_order_and_by_name(log: Log) -> None:
    assert events.page(log.kv, -20, "", 10) == {"events": [], "next": 0}
    log.note("one", "two")
    log.note("three", about=("h1", "d1"))
    assert log.texts() == ["one", "two", "three"]
    assert log.texts(after=-1) == ["three"] and log.texts(after=1) == ["two", "three"]
    assert log.texts(about="d1") == ["three"] and log.texts(about="nothing") == []
    first = events.page(log.kv, 0, "", 2)
    assert [event["number"] for event in first["events"]] == [1, 2]
    rest = events.page(log.kv, first["next"], "", 2)
    assert [event["text"] for event in rest["events"]] == ["three"] and rest["next"] == 3
    assert events.page(log.kv, 3, "", 2) == {"events": [], "next": 3}


def test_one_that_is_sent_again_is_there_once(log: Log) -> None:
    log.note("one", id="a")
    log.note("two", id="b")
    log.note("one", id="a")
    assert log.texts() == ["one", "two"]


def test_the_oldest_are_forgotten(log: Log) -> None:
    for number in range(events.KEPT + 5):
        log.note(str(number))
    assert len(list(log.kv.scan("event/"))) == events.KEPT
    assert log.texts(after=0, limit=1) == ["5"]


def test_health_is_an_event_when_it_is_another_one(log: Log) -> None:
    for health in ("up", "suspect", "up", "down", "suspect", "down", "up", "up"):
        log.health(health, "silent for 10 s" if health == "down" else "")
    assert log.texts(about="h1") == [
        "device d1 of host h1 is down: silent for 10 s",
        "device d1 of host h1 is up",
    ]


def test_what_is_refused(log: Log) -> None:
    for change in ({"text": "x" * 600}, {"at_ms": "now"}, {"about": "db"}):
        with pytest.raises(Invalid):
            log.note("one", **{"about": ("db",), **change})
        log.kv.rollback()
    with pytest.raises(LimitExceeded):
        log.note(*map(str, range(100)))
