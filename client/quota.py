"""Quotas of principals, as the registry tells of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Quota:
    """What a principal may have, None for any, and what it has: the sum of its volumes' sizes in bytes,
    however many replicas they have and however little is written, and their number."""

    principal: str
    capacity: int | None
    volumes: int | None
    used_bytes: int
    used_volumes: int

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> Quota:
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
