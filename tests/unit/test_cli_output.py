"""How commands speak: what stands in a table, and what an error looks like."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moorage.cli import output


def shown(*cells: object) -> str:
    out = io.StringIO()
    columns = [f"c{number}" for number in range(len(cells))]
    Console(file=out, width=200).print(output.table("t", columns, [cells]))
    return out.getvalue()


@pytest.mark.parametrize(
    "text", ["[fe80::1]:7070", "fio [/tmp/x] (pid 7 on h1)", "[/x]", "[red]", "a\\", "\\[b]"]
)
def test_a_table_shows_what_it_is_given(text: str) -> None:
    assert text in shown(text)


def test_a_table_shows_health_as_a_word_and_nothing_as_nothing() -> None:
    row = shown(output.health("up"), output.health("[down]"), None, 7)
    assert "[green]" not in row and "None" not in row
    assert all(word in row for word in ("up", "[down]", "7"))
