"""Each limit of volumes, at it and just past it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moorage.metadata import limits
from moorage.service.units import human
from moorage.wire.errors import Invalid, LimitExceeded

GOOD: list[tuple[Callable[[Any], Any], Any]] = [
    (limits.check_name, "a"),
    (limits.check_name, "0"),
    (limits.check_name, "a" * 63),
    (limits.check_name, "a.b_c-d"),
    (limits.check_size, 1 << 20),
    (limits.check_size, (1 << 20) + 4096),
    (limits.check_size, 64 << 40),
    (limits.check_replicas, 1),
    (limits.check_replicas, 3),
    (limits.check_replicas, 5),
    (limits.check_groups, 1),
    (limits.check_groups, 64),
    (limits.check_durability, "sync"),
    (limits.check_durability, "writeback"),
    (limits.check_request, "r"),
    (limits.check_request, "R" * 64),
    (limits.check_writer, 1),
    (limits.check_writer, (1 << 63) - 1),
]

BAD: list[tuple[Callable[[Any], Any], Any, type[Invalid], str]] = [
    (limits.check_name, "", Invalid, "use 1 to 63 of"),
    (limits.check_name, "a" * 64, Invalid, "use 1 to 63 of"),
    (limits.check_name, "-a", Invalid, "beginning with a letter or digit"),
    (limits.check_name, ".a", Invalid, "beginning with"),
    (limits.check_name, "A", Invalid, "a-z"),
    (limits.check_name, "a/b", Invalid, "a-z"),
    (limits.check_name, "a\n", Invalid, "a-z"),
    (limits.check_name, "ä", Invalid, "a-z"),
    (limits.check_name, None, Invalid, "a-z"),
    (limits.check_name, 7, Invalid, "a-z"),
    (limits.check_size, (1 << 20) - 4096, LimitExceeded, "use 1 MiB to 64 TiB"),
    (limits.check_size, (64 << 40) + 4096, LimitExceeded, "use 1 MiB to 64 TiB"),
    (limits.check_size, (1 << 20) + 1, Invalid, "use 1048576 or 1052672"),
    (limits.check_size, -4096, LimitExceeded, "1 MiB"),
    (limits.check_size, 1 << 80, LimitExceeded, "64 TiB"),
    (limits.check_size, True, Invalid, "whole number of bytes"),
    (limits.check_size, 1048576.0, Invalid, "whole number of bytes"),
    (limits.check_size, "1048576", Invalid, "whole number of bytes"),
    (limits.check_replicas, 0, Invalid, "use 1, 3 or 5"),
    (limits.check_replicas, 2, Invalid, "use 1, 3 or 5"),
    (limits.check_replicas, 7, Invalid, "use 1, 3 or 5"),
    (limits.check_replicas, True, Invalid, "use 1, 3 or 5"),
    (limits.check_groups, 0, LimitExceeded, "use 1 to 64"),
    (limits.check_groups, 65, LimitExceeded, "use 1 to 64"),
    (limits.check_groups, "8", Invalid, "whole number"),
    (limits.check_durability, "Sync", Invalid, "use sync or writeback"),
    (limits.check_durability, None, Invalid, "use sync or writeback"),
    (limits.check_request, "", Invalid, "use 1 to 64 of"),
    (limits.check_request, "r" * 65, Invalid, "use 1 to 64 of"),
    (limits.check_request, "r/../x", Invalid, "use 1 to 64 of"),
    (limits.check_writer, 0, Invalid, "from 1 to"),
    (limits.check_writer, 1 << 63, Invalid, "from 1 to"),
]


@pytest.mark.parametrize(("check", "value"), GOOD)
def test_at_the_limit(check: Callable[[Any], Any], value: Any) -> None:
    assert check(value) == value


@pytest.mark.parametrize(("check", "value", "error", "says"), BAD)
def test_past_the_limit(check: Callable[[Any], Any], value: Any, error: type[Invalid], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        check(value)
    assert type(caught.value) is error
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_holder_keeps_what_is_known() -> None:
    holder = {"host": "h1", "pid": 12, "program": "qemu", "secret": "x"}
    assert limits.check_holder(holder) == {"host": "h1", "pid": 12, "program": "qemu"}


@pytest.mark.parametrize(
    "change",
    [
        {"host": ""},
        {"host": "h" * 256},
        {"program": "a\nb"},
        {"program": 5},
        {"host": "ä" * 128},
        {"host": "\ud800"},
        {"pid": -1},
        {"pid": 1 << 32},
    ],
)
def test_holder_is_checked(change: dict[str, Any]) -> None:
    good = {"host": "h" * 255, "pid": (1 << 32) - 1, "program": "p" * 255}
    assert limits.check_holder(good) == good
    with pytest.raises(Invalid, match="holder: "):
        limits.check_holder({**good, **change})
    with pytest.raises(Invalid, match="must be a map"):
        limits.check_holder("h1")


def test_group_number() -> None:
    assert limits.group_number("m1") == 1
    assert limits.group_number("m32767") == 32767
    for bad in ("m0", "m32768", "m01", "x1", "m", "m-1", ""):
        with pytest.raises(Invalid, match="use m1 to m32767"):
            limits.group_number(bad)


def test_ids_fit_into_63_bits() -> None:
    greatest = limits.group_number("m32767") << limits.ID_COUNTER_BITS | limits.ID_COUNTER_MAX
    assert greatest == (1 << 63) - 1


def test_human_sizes() -> None:
    shown = [human(size) for size in (0, 4095, 4096, 1 << 20, 3 << 19, 64 << 40, (1 << 30) + 1)]
    assert shown == ["0 bytes", "4.0 KiB", "4 KiB", "1 MiB", "1.5 MiB", "64 TiB", "1.0 GiB"]
