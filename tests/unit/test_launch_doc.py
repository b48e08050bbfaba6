"""docs/launch.md says what the code does: its tables are compared with the code's."""

from __future__ import annotations

import re
from pathlib import Path

from moorage.service import exits
from moorage.service.exits import Exit, exit_code
from moorage.service.options import OPTIONS, SERVICES, Option
from moorage.wire import errors

PAGE = (Path(__file__).parents[2] / "docs" / "launch.md").read_text()


def row(option: Option) -> str:
    services = [each for each in SERVICES if each in option.services]
    default = "**required**" if option.required else f"`{option.default}`" if option.default else ""
    cells = (
        f"`{option.variable}`",
        f"`{option.flag}`",
        option.type,
        default,
        "all" if len(services) == len(SERVICES) else ", ".join(services),
        option.help,
    )
    return f"| {' | '.join(cells)} |"


def test_the_table_of_options_is_the_codes() -> None:
    documented = [line for line in PAGE.splitlines() if line.startswith("| `MOORAGE_")]
    assert documented == [row(option) for option in OPTIONS]


def test_the_table_of_exit_codes_is_the_codes() -> None:
    documented = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", PAGE, re.MULTILINE)
    assert documented == [(str(int(code)), code.name) for code in Exit]


def test_every_variable_the_page_names_exists() -> None:
    named = set(re.findall(r"MOORAGE_[A-Z_]+", PAGE)) - {"MOORAGE_SECRET", "MOORAGE_TOKEN"}
    assert named == {option.variable for option in OPTIONS}


def test_every_error_has_its_own_exit_code() -> None:
    """Only what has no row is taken for our own mistake."""
    for kind in errors.BY_CODE.values():
        code = exit_code(kind("x"))
        assert (code is Exit.INTERNAL) == (
            kind in (errors.MoorageError, errors.InvariantViolation, errors.RemoteError)
        )
    assert exit_code(KeyError("x")) is Exit.INTERNAL
    assert exit_code(errors.CannotBind("x")) is Exit.CANNOT_BIND, "a narrow class wins over its base"
    assert exit_code(errors.Busy("held")) is Exit.UNAVAILABLE, "a lease ends by itself"
    rows = [kind for kind, _ in exits._BY_ERROR]
    for place, kind in enumerate(rows):
        assert not any(issubclass(later, kind) for later in rows[place + 1 :]), f"{kind} hides a later row"
