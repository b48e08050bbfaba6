"""What the commands share that move whole volumes: their options, a bar on stderr, and how fast it was."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from moorage.cli import output
from moorage.cli.options import SIZE

F = TypeVar("F", bound=Callable[..., Any])

_SHAPE = [
    click.option("--size", type=SIZE, help="Not smaller than the contents; default: as the source."),
    click.option("--replicas", type=int, help="1, 3 or 5, each on another host; default: as the source."),
    click.option("--groups", type=int, help="Replica groups, 0 chooses; default: as the source."),
    click.option("--durability", type=click.Choice(["sync", "writeback"]), help="Default: as the source."),
]


def shape_options(command: F) -> F:
    """--size, --replicas, --groups and --durability of a volume that is made like another one."""
    for option in reversed(_SHAPE):
        command = option(command)
    return command


class _Rate(ProgressColumn):
    """Bytes a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f"{output.size(round(task.speed))}/s" if task.speed else "")


@contextmanager
def transfer_bar(what: str, *, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Gives the function to call with (bytes done, of how many). Only where a person looks on."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        _Rate(),
        TimeRemainingColumn(),
        console=output.console(stderr=True),
        transient=True,
        disable=as_json or not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, size: bar.update(task, completed=done, total=size)


class Stopwatch:
    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)
