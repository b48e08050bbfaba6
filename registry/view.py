"""What the parts of the registry's state may do with it: read it, and within a command change it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class View(Protocol):
    def get(self, key: str) -> Any | None: ...
    def scan(self, prefix: str) -> Iterator[tuple[str, Any]]: ...


class Store(View, Protocol):
    def put(self, key: str, value: Any) -> None: ...
    def delete(self, key: str) -> None: ...
