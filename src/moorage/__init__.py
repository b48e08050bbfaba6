"""Moorage: replicated block and object storage for tasks on Mesos clusters.

The face of the library::

    cluster = await moorage.connect()            # or connect("prod"), connect(registry=..., secret_file=...)
    bucket = await cluster.buckets.create("photos")
    await bucket.put("2026/harbour.jpg", data)
    await cluster.create_volume("db", "10GiB")
    async with await cluster.attach("db") as volume:
        await volume.write(0, b"hello")
        print(await volume.read(0, 5))

:mod:`moorage.sync` is the same without ``await``. Names are loaded on first use: a service that only needs
:mod:`moorage.wire` pays for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage import sync
    from moorage.client.cluster import Cluster, VolumeInfo, connect
    from moorage.client.objects.bucket import Bucket, Condition, Lock
    from moorage.client.volume import Volume
    from moorage.wire import errors

__version__ = "0.1.0"

__all__ = [
    "Bucket",
    "Cluster",
    "Condition",
    "Lock",
    "Volume",
    "VolumeInfo",
    "__version__",
    "connect",
    "errors",
    "sync",
]

_HOMES = {
    "Cluster": "moorage.client.cluster",
    "VolumeInfo": "moorage.client.cluster",
    "connect": "moorage.client.cluster",
    "Volume": "moorage.client.volume",
    "Bucket": "moorage.client.objects.bucket",
    "Condition": "moorage.client.objects.bucket",
    "Lock": "moorage.client.objects.bucket",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        return import_module("moorage.wire.errors")
    if name == "sync":
        return import_module("moorage.sync")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moorage' has no attribute {name!r}")
