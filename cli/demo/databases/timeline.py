"""What happened after the kill, and when: one table for each host that died."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any

from rich.table import Table

from moorage.cli.machine_mounts import MountTimes, boot_clock

_REPLAYED = re.compile(r"EXT4-fs \((\w+)\): recovery complete")
KMSG = "/dev/kmsg"
RECORD_MAX = 8192


class Timeline:
    def __init__(self, title: str) -> None:
        self.title = title
        self.began = boot_clock()
        self._events: list[tuple[float, str, str]] = []

    def note(self, when: float, where: str, what: str) -> None:
        """``when``: boot clock."""
        self._events.append((when, where, what))

    def note_mount(self, name: str, times: MountTimes, given: float, replayed: float | None) -> None:
        where = f"volume {name}"
        self.note(times.connected, where, "moorage mount asks for it")
        self.note(given, where, "the dead host's lease is over: the volume is given")
        self.note(times.attached, where, "attached: the other devices are sealed, the log is recovered")
        if replayed is not None:
            self.note(replayed, where, "the file system's journal is replayed")
        self.note(times.mounted, where, "mounted")

    def rows(self) -> list[tuple[float, str, str]]:
        return [(when - self.began, where, what) for when, where, what in sorted(self._events)]

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        table.add_column("after the kill", justify="right")
        table.add_column("where")
        table.add_column("what")
        for seconds, where, what in self.rows():
            table.add_row(f"{seconds:.2f} s", where, what)
        return table

    def document(self) -> dict[str, Any]:
        events = [{"seconds": round(s, 3), "where": where, "what": what} for s, where, what in self.rows()]
        return {"title": self.title, "events": events}


class KernelLog:
    """When the kernel said that it had replayed the journal of a file system, by device. A context manager;
    where the log may not be read it hears nothing."""

    def __init__(self) -> None:
        self.replayed: dict[str, float] = {}
        self._file = -1

    def __enter__(self) -> KernelLog:
        try:
            self._file = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return self
        os.lseek(self._file, 0, os.SEEK_END)
        asyncio.get_running_loop().add_reader(self._file, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            asyncio.get_running_loop().remove_reader(self._file)
            os.close(self._file)

    def _hear(self) -> None:
        try:
            record = os.read(self._file, RECORD_MAX)
        except OSError:  # records were overwritten before they were read: go on with those that are left
            return
        if found := _REPLAYED.search(record.decode(errors="replace")):
            self.replayed[f"/dev/{found[1]}"] = boot_clock()
