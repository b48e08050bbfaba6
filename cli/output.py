"""How commands speak: a table for a person, JSON for a program, one line for an error.

Owns stdout and stderr of the client commands. With ``--json`` stdout holds JSON and nothing else,
and an error is one line of JSON on stderr.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moorage.wire.errors import MoorageError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False)


def emit_json(value: Any, *, err: bool = False) -> None:
    """``err``: to stderr, where stdout is for other things."""
    click.echo(json.dumps(value, indent=2, default=_encode), err=err)


def emit_json_line(value: Any) -> None:
    """One of many that come one after the other."""
    click.echo(json.dumps(value, default=_encode))


def _encode(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes | bytearray) else str(value)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A cell is shown as it is, also where it looks like markup ([fe80::1]:7070), and whole, also where the
    terminal is narrow: paths and names are there to be copied. A Text has a colour."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(_plain(cell)) for cell in row))
    return made


def _plain(cell: object) -> str:
    return "" if cell is None else str(cell)


def size(count: int | float | None) -> str:
    """Bytes as a person reads them: 1536 -> '1.5 KiB'."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if value == int(value) else f"{value:.1f} {UNITS[unit]}"


def since(timestamp_ms: int | None) -> str:
    """How long ago, in the unit that reads best."""
    if not timestamp_ms:
        return "-"
    seconds = max(0.0, time.time() - timestamp_ms / 1e3)
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def health(word: str) -> Text:
    colour = {"up": "green", "ready": "green", "suspect": "yellow", "creating": "yellow"}.get(word, "red")
    return Text(word, style=colour)


def emit_error(error: MoorageError, *, as_json: bool) -> None:
    name = type(error).__name__
    if as_json:
        said = {"name": name, "code": error.code, "message": str(error), "details": error.details}
        click.echo(json.dumps({"error": said}, default=_encode), err=True)
    else:
        click.echo(f"moorage: {error}", err=True)
