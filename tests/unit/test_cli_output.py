"""How commands speak: what stands in a table, and what an error looks like; and how they are spoken to."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moorage.cli import options, output


def shown(*cells: object, width: int = 200) -> str:
    out = io.StringIO()
    columns = [f"c{number}" for number in range(len(cells))]
    Console(file=out, width=width).print(output.table("t", columns, [cells]))
    return out.getvalue()


@pytest.mark.parametrize(
    "text", ["[fe80::1]:7070", "fio [/tmp/x] (pid 7 on h1)", "[/x]", "[red]", "a\\", "\\[b]"]
)
def test_a_table_shows_what_it_is_given(text: str) -> None:
    assert text in shown(text)


def test_a_narrow_table_leaves_nothing_out() -> None:
    path = "/srv/a/long/path/that/somebody/wants/to/copy"
    lines = (line.split("│") for line in shown(path, "x" * 30, width=40).splitlines() if "│" in line)
    assert "".join(cells[1].strip() for cells in lines) == path


def test_a_table_shows_health_as_a_word_and_nothing_as_nothing() -> None:
    row = shown(output.health("up"), output.health("[down]"), None, 7)
    assert "[green]" not in row and "None" not in row
    assert all(word in row for word in ("up", "[down]", "7"))


@pytest.mark.parametrize(
    ("cluster", "registry", "texts", "named"),
    [
        (None, None, ["moorage://prod/db"], "prod"),
        (None, None, ["moorage:///db", 7, None, "moorage://10.0.0.1:7070/db?mode=ro"], "10.0.0.1:7070"),
        (None, None, ["db", "moorage:///db", "moorage://prod/no such name"], None),
        ("other", None, ["moorage://prod/db"], "other"),
        (None, "h:1", ["moorage://prod/db"], None),
    ],
)
def test_a_uri_says_which_cluster_unless_an_option_does(
    cluster: str | None, registry: str | None, texts: list[object], named: str | None
) -> None:
    assert options.cluster_of(cluster, registry, texts) == named
