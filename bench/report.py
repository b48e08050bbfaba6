"""What ``moorage bench block`` says: a JSON document (docs/bench.md is its schema) and a table; and what all
benches say of themselves.

Owns the names of the figures and their rounding; measures nothing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

import moorage
from moorage.bench.block import KIB, MIB, Measurement

SCHEMA = "moorage.bench.block/1"


def document(
    measurements: Sequence[Measurement], *, began: str, volume: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Everything that was measured, and on what. ``began``: ISO 8601."""
    return {
        **heading(SCHEMA, began),
        "volume": volume,
        "options": options,
        "results": [_result(one) for one in measurements],
        "nbd_to_library": ratios(measurements),
    }


def heading(schema: str, began: str) -> dict[str, Any]:
    """What each document begins with: its schema, and on what it was measured."""
    return {
        "schema": schema,
        "began": began,
        "moorage": moorage.__version__,
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
    }


def ratios(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Throughput by NBD over that by library, for each workload measured both ways."""
    by = {(one.workload.name, one.by): one.operations_per_s for one in measurements}
    return {
        name: round(rate / by[name, "library"], 3)
        for (name, way), rate in by.items()
        if way == "nbd" and by.get((name, "library"))
    }


def _result(one: Measurement) -> dict[str, Any]:
    def per_operation(seconds: float) -> float:
        return round(one.cpu_us_per_operation(seconds), 2)

    return {
        "workload": asdict(one.workload),
        "by": one.by,
        "operations": one.operations,
        "seconds": round(one.seconds, 3),
        "operations_per_s": round(one.operations_per_s, 1),
        "bytes_per_s": round(one.bytes_per_s),
        "latency_us": {name: round(value, 1) for name, value in one.latency_us.items()},
        "cpu_us_per_operation": {
            "client": per_operation(one.client_cpu_s),
            "load": None if one.load_cpu_s is None else per_operation(one.load_cpu_s),
            "servers": per_operation(sum(one.server_cpu_s.values())) if one.server_cpu_s else None,
            "by_server": {str(pid): per_operation(used) for pid, used in one.server_cpu_s.items()},
        },
    }


def table(measurements: Sequence[Measurement], title: str) -> Table:
    """One row per measurement, narrow enough for a terminal of 80 columns."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    made.box, made.show_edge, made.padding = box.SIMPLE_HEAD, False, (0, 0)
    made.caption_justify = "left"
    made.caption = (
        "4K random, 1M sequential; xN in flight; latencies in us; client, fio,\n"
        "nodes: CPU us per operation; nbd %: of the library's throughput."
    )
    for column in ("what", "by"):
        made.add_column(column, no_wrap=True)
    for column in ("per s", "p50", "p95", "p99", "max", "client", "fio", "nodes"):
        made.add_column(column, justify="right", no_wrap=True)
    shares = ratios(measurements)
    last = None
    for one in measurements:
        if last not in (None, one.workload.name):
            made.add_section()
        label = "" if last == one.workload.name else _label(one)
        last = one.workload.name
        share = shares.get(one.workload.name) if one.by == "nbd" else None
        made.add_row(label, one.by if share is None else f"nbd {share:.0%}", _throughput(one), *_costs(one))
    return made


def _label(one: Measurement) -> str:
    size = one.workload.size
    return (
        f"{one.workload.kind} {f'{size // MIB}M' if size >= MIB else f'{size // KIB}K'} x{one.workload.depth}"
    )


def _throughput(one: Measurement) -> str:
    if one.workload.size >= MIB:
        return f"{one.bytes_per_s / 1e6:,.0f} MB"
    return f"{one.operations_per_s:,.0f}"


def _costs(one: Measurement) -> list[str]:
    latency = [f"{one.latency_us[name]:,.0f}" for name in ("p50", "p95", "p99", "max")]
    servers = sum(one.server_cpu_s.values()) if one.server_cpu_s else None
    spent = [one.client_cpu_s, one.load_cpu_s, servers]
    return latency + ["-" if used is None else _short(one.cpu_us_per_operation(used)) for used in spent]


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
