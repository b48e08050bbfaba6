"""The store's counters as Prometheus metrics, read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
        gauges = {
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
            "failed": int(store.failed is not None),
        }
        for name, number in gauges.items():
            yield GaugeMetricFamily(f"moorage_node_{name}", f"{name.replace('_', ' ')} now", value=number)
