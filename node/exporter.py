"""The store's counters as Prometheus metrics, read when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from moorage.node.metrics import BOUNDS_S
from moorage.node.scheduler import Work
from moorage.node.store import Store


class StoreCollector(Collector):
    """``store`` is set once it is open."""

    def __init__(self) -> None:
        self.store: Store | None = None

    def collect(self) -> Iterator[Metric]:
        store = self.store
        if store is None:
            return
        for name, value in store.metrics.as_dict().items():
            words = name.replace("_", " ")
            yield CounterMetricFamily(f"moorage_node_{name}", f"{words} since the start", value=value)
        durations = HistogramMetricFamily(
            "moorage_node_append_seconds", "how long users' records took to be durable", labels=["size"]
        )
        for size, found in (("small", store.metrics.appends), ("large", store.metrics.large_appends)):
            above = zip([*map(str, BOUNDS_S), "+Inf"], map(float, accumulate(found.counts)), strict=True)
            durations.add_metric([size], list(above), found.total_s)
        yield durations
        by_work: dict[str, Mapping[Work, float]] = {
            "background_bytes": store.pacer.scheduler.given,
            "background_wait_seconds": store.pacer.waited_s,
        }
        for name, values in by_work.items():
            family = CounterMetricFamily(
                f"moorage_node_{name}", f"{name.replace('_', ' ')} since the start", labels=["work"]
            )
            for work, amount in values.items():
                family.add_metric([work.name.lower()], amount)
            yield family
        checks = [store.scrubber.check(each) for each in store.replicas.values()]
        verified = [check.verified_ms for check in checks if check.verified_ms]
        gauges: dict[str, float] = {
            "capacity_bytes": store.config.capacity,
            "used_bytes": store.used,
            "room_bytes": store.room(),
            "granted_bytes": store.granted,
            "segments": len(store.log.segments),
            "segments_free": store.free_slots,
            "index_pages": store.index.size(),
            "index_pages_dirty": len(store.index.dirty),
            "replicas": len(store.replicas),
            "replicas_damaged": sum(1 for each in store.replicas.values() if each.damaged),
            "replicas_never_verified": len(checks) - len(verified),
            "bad_blocks": sum(check.count for check in checks),
            "verified_age_seconds": max(0.0, time.time() - min(verified) / 1000) if verified else 0.0,
            "background_budget_bytes_per_second": store.pacer.scheduler.budget,
            "failed": int(store.failed is not None),
        }
        for name, level in gauges.items():
            yield GaugeMetricFamily(f"moorage_node_{name}", f"{name.replace('_', ' ')} now", value=level)
