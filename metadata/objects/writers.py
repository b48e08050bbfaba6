"""When each writer of objects was heard of last, under this leader."""

from __future__ import annotations

import time
from typing import Final

SILENT_S: Final = 900.0  # then it is gone: what it wrote and did not put is garbage


class Writers:
    def __init__(self) -> None:
        self._heard: dict[int, float] = {}
        self._since = time.monotonic()

    def lead(self) -> None:
        """Leadership begins: every writer there is gets all its time."""
        self._heard.clear()
        self._since = time.monotonic()

    def heard(self, writer: int) -> None:
        self._heard[writer] = time.monotonic()

    def is_gone(self, writer: int) -> bool:
        return time.monotonic() - self._heard.get(writer, self._since) > SILENT_S

    def forget_silent(self) -> None:
        """Of those that are gone for twice as long nobody asks any more."""
        limit = time.monotonic() - 2 * SILENT_S
        self._heard = {writer: at for writer, at in self._heard.items() if at > limit}
