"""What ``moorage bench bucket`` says: a JSON document (docs/bench.md is its schema) and a table.

Owns the names of the figures, their rounding and their ratios; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moorage.bench.bucket import Stage
from moorage.bench.report import heading

SCHEMA = "moorage.bench.bucket/1"


def document(stages: Sequence[Stage], *, began: str, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured. ``began``: ISO 8601."""
    return {
        **heading(SCHEMA, began),
        "options": options,
        "stages": [_stage(each) for each in stages],
        "ratios": ratios(stages),
    }


def figures(stage: Stage) -> dict[str, float]:
    """One number for each thing that may grow with the bucket: latencies in us, sizes in bytes, of hosts the
    largest."""
    found = {
        f"{name}, {rank}": one.latency_us[rank]
        for name, one in stage.operations.items()
        for rank in ("p50", "p99")
    }
    found["filling, per s"] = stage.put_per_s
    if stage.memory:
        found["memory of a host"] = max(each.resident for each in stage.memory)
        found["memory of a host, private"] = max(each.private for each in stage.memory)
        found["memory of a host, peak"] = max(each.peak for each in stage.memory)
    if stage.metadata_bytes:
        found["metadata on disk"] = max(stage.metadata_bytes)
    if stage.ready_s:
        found["a host is back, s"] = max(stage.ready_s)
    return found


def ratios(stages: Sequence[Stage]) -> dict[str, float]:
    """Of all objects to a hundredth of them; empty while there is one stage."""
    if len(stages) < 2:
        return {}
    few, many = figures(stages[0]), figures(stages[-1])
    return {name: round(value / few[name], 2) for name, value in many.items() if few.get(name)}


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "objects": stage.objects,
        "fill_per_s": round(stage.put_per_s, 1),
        "operations": {
            name: {
                "operations": one.operations,
                "entries": one.entries,
                "latency_us": {rank: round(value, 1) for rank, value in one.latency_us.items()},
            }
            for name, one in stage.operations.items()
        },
        "memory": [each._asdict() for each in stage.memory],
        "metadata_bytes": stage.metadata_bytes,
        "ready_s": [round(each, 3) for each in stage.ready_s],
    }


def rows(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """What, one column for each stage, and the ratio when there are two."""
    columns = [figures(stage) for stage in stages]
    compared = ratios(stages)
    return [
        (
            _named(name),
            *(_shown(name, each.get(name)) for each in columns),
            *([f"{compared[name]:.2f}" if name in compared else ""] if len(stages) > 1 else []),
        )
        for name in columns[0]
    ]


def _is_latency(name: str) -> bool:
    return name.endswith((", p50", ", p99"))


def _is_bytes(name: str) -> bool:
    return name.startswith(("memory", "metadata"))


def _named(name: str) -> str:
    return f"{name}, ms" if _is_latency(name) else f"{name}, MB" if _is_bytes(name) else name


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if _is_latency(name):
        return f"{value / 1e3:,.2f}"
    if _is_bytes(name):
        return f"{value / 1e6:,.1f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
