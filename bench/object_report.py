"""What ``moorage bench object`` says: a JSON document (docs/bench.md is its schema) and a table.

Owns the names of the figures and their rounding; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from moorage.bench.objects import KIB, MIB, Measurement, Workload
from moorage.bench.report import heading

SCHEMA = "moorage.bench.object/1"
COMPARED = (("s3/lib", "s3", "library"), ("s3/end", "s3", "endpoint"))
PERCENTILES = ("p50", "p95", "p99")


def document(measurements: Sequence[Measurement], *, began: str, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured. ``began``: ISO 8601."""
    return {
        **heading(SCHEMA, began),
        "options": options,
        "results": [_result(one) for one in measurements],
        **{f"{one}_to_{other}": ratios(measurements, one, other) for _, one, other in COMPARED},
    }


def ratios(measurements: Sequence[Measurement], one: str, other: str) -> dict[str, float]:
    """Throughput by ``one`` over that by ``other``, for each workload measured both ways."""
    ended = (each for each in measurements if each.error is None)
    rates = {(each.workload.name, each.by): each.operations_per_s for each in ended}
    return {
        name: round(rate / rates[name, other], 3)
        for (name, by), rate in rates.items()
        if by == one and rates.get((name, other))
    }


def _result(one: Measurement) -> dict[str, Any]:
    def per_operation(seconds: float | None) -> float | None:
        return None if seconds is None else round(one.cpu_us_per_operation(seconds), 1)

    return {
        "workload": {"name": one.workload.name, **asdict(one.workload)},
        "by": one.by,
        "error": one.error,
        "operations": one.operations,
        "seconds": round(one.seconds, 3),
        "operations_per_s": round(one.operations_per_s, 2),
        "bytes_per_s": round(one.bytes_per_s) if one.workload.operation in ("put", "get") else None,
        "latency_us": {name: round(value, 1) for name, value in one.latency_us.items()},
        "cpu_us_per_operation": {
            "client": per_operation(one.client_cpu_s),
            "gateway": per_operation(one.gateway_cpu_s),
            "servers": per_operation(_servers(one)),
        },
    }


def _servers(one: Measurement) -> float | None:
    return sum(one.server_cpu_s.values()) if one.server_cpu_s else None


def table(measurements: Sequence[Measurement], title: str) -> Table:
    """One row per measurement, narrow enough for a terminal of 80 columns."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    made.box, made.show_edge, made.padding = box.SIMPLE_HEAD, False, (0, 0)
    made.caption_justify = "left"
    made.caption = (
        "xN under way; latencies and CPU per operation (client, gateway, nodes) in ms;\n"
        "s3/lib, s3/end: throughput by s3 over that by the library, by the endpoint."
    )
    compared = {title: found for title, one, other in COMPARED if (found := ratios(measurements, one, other))}
    for column in ("what", "by"):
        made.add_column(column, no_wrap=True)
    for column in ("per s", *PERCENTILES, "client", "gw", "nodes", *compared):
        made.add_column(column, justify="right", no_wrap=True)
    last = None
    for one in measurements:
        name = one.workload.name
        if last not in (None, name):
            made.add_section()
        shares = [found.get(name) if one.by == "s3" else None for found in compared.values()]
        label = "" if last == name else _label(one.workload)
        last = name
        if one.error is not None:
            made.add_row(label, one.by, "failed")
        else:
            made.add_row(label, *_figures(one), *map(_share, shares))
    return made


def _label(workload: Workload) -> str:
    size = workload.size
    if workload.operation == "list":
        what = str(workload.keys)
    else:
        what = f"{size // MIB}M" if size >= MIB else f"{size // KIB}K" if size >= KIB else f"{size}B"
    return f"{workload.operation} {what} x{workload.concurrency}"


def _figures(one: Measurement) -> list[str]:
    large = one.workload.size >= MIB and one.workload.operation != "delete"
    rate = f"{one.bytes_per_s / 1e6:,.0f}MB" if large else f"{one.operations_per_s:,.0f}"
    latency = [_short(one.latency_us[name] / 1e3) for name in PERCENTILES]
    spent = [one.client_cpu_s, one.gateway_cpu_s, _servers(one)]
    costs = ["" if used is None else _short(one.cpu_us_per_operation(used) / 1e3) for used in spent]
    return [one.by, rate, *latency, *costs]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _short(value: float) -> str:
    """From a get of 4 KiB to a put of 64 MiB."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
