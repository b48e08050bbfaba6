"""No call is out of the fuzzer's reach: each method and each route has a seed."""

from __future__ import annotations

import asyncio
from typing import Any

from moorage.client import answers
from moorage.wire import frame

from . import services


def test_every_method_of_metadata_and_of_the_registry_has_a_seed() -> None:
    assert set(services.METADATA_CALLS) == set(services.metadata_methods())
    assert set(services.REGISTRY_CALLS) == set(services.registry_methods())


def test_every_method_of_a_node_has_a_seed() -> None:
    with asyncio.Runner() as runner:
        node = services.Node(runner.get_loop())
        assert {method for method, _ in services._NODE_CALLS} == set(node.methods)
        runner.run(node.store.close(checkpoint=False))
        node.directory.cleanup()


def test_every_route_has_a_seed() -> None:
    assert {name for _, name in services.HTTP_ROUTES} <= set(services.HTTP_SEEDS)


ASKED = [
    *("registry.describe", "registry.view", "registry.locate", "registry.set_quota", "registry.quotas"),
    *("registry.remove_quota", "registry.set_mount_table", "registry.mount_table", "registry.note_events"),
    *("registry.events", "metadata.describe", "metadata.show_volume", "metadata.list_volumes"),
    *("metadata.attach", "metadata.set_volume", "metadata.resize_volume", "metadata.moves"),
    *("metadata.check_departure", "metadata.move_replica", "metadata.show_bucket", "metadata.list_buckets"),
    *("metadata.open_region", "metadata.put_object", "metadata.set_attributes", "metadata.get_object"),
    *("metadata.list_objects", "metadata.put_part", "metadata.show_upload", "metadata.list_uploads"),
    *("metadata.complete_upload", "metadata.delete_objects", "metadata.show_lacks"),
    *("registry.create_key", "registry.key", "registry.keys"),
]


def test_what_is_answered_fits_its_shape() -> None:
    """Asked with their seeds: what services say is what clients take for an answer."""
    methods = services.metadata_methods() | services.registry_methods()
    calls: dict[str, Any] = services.METADATA_CALLS | services.REGISTRY_CALLS

    async def ask() -> None:
        connection: Any = services._Connection()
        for method in ASKED:
            end = asyncio.get_running_loop().time() + 10
            context = services.CallContext(connection, memoryview(b""), end)
            answer = await methods[method](context, calls[method])
            answers.check(method, frame.unpack(frame.pack(answer)))

    asyncio.run(ask())
