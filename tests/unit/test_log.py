"""Log lines: one per event, and no flood."""

from __future__ import annotations

import logging

from moorage.service.log import BURST, PLACES_MAX, WINDOW_S, OneLine, RateLimit


def record(
    message: str = "disk %s is slow", args: tuple[object, ...] = ("d1",), line: int = 1
) -> logging.LogRecord:
    return logging.LogRecord("moorage.node", logging.WARNING, "f.py", line, message, args, None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_event_is_one_line_also_with_a_traceback() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError as error:
        event = record()
        event.exc_info = (type(error), error, error.__traceback__)
    text = OneLine().format(event)
    assert "\n" not in text
    assert "WARNING moorage.node disk d1 is slow" in text and "ValueError: bad" in text


def test_time_is_utc_with_milliseconds() -> None:
    event = record()
    event.created, event.msecs = 0.25, 250
    assert OneLine().format(event).startswith("1970-01-01T00:00:00.250Z ")


def test_repeated_lines_are_dropped_and_counted() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    passed = [limit.filter(record()) for _ in range(BURST + 7)]
    assert passed == [True] * BURST + [False] * 7
    assert limit.filter(record(line=2)), "another place has its own window"
    clock.now += WINDOW_S
    event = record()
    assert limit.filter(event)
    assert event.getMessage() == "disk d1 is slow (and 7 more like it before)"
    event = record()
    assert limit.filter(event)
    assert event.getMessage() == "disk d1 is slow"


def test_the_table_of_places_is_bounded() -> None:
    limit = RateLimit(Clock())
    for line in range(3 * PLACES_MAX):
        limit.filter(record(line=line))
    assert len(limit._seen) <= PLACES_MAX
