"""After the storm, when everything has healed: what must hold of the stores, looked at from outside.

Replicas of a group are identical; an index equals what a replay of its log makes; every block matches its
checksum; the space of a segment that is counted as live is what the index refers to. Owns the looking: it may
read what the processes hold, and must never change it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.node.service import NodeService
from moorage.node.store import Store
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, block_sum
from moorage.simulation.cluster import Host, SimCluster

Contents = dict[tuple[int, int], dict[tuple[int, int], tuple[int, int]]]


def store_of(host: Host) -> Store:
    assert host.shell is not None
    (node,) = [each for each in host.shell._services if isinstance(each, NodeService)]
    assert node._store is not None
    return node._store


def has_failed(host: Host) -> bool:
    """Whether its device is out for good."""
    return host.ready and store_of(host).failed is not None


def contents(host: Host, chunks: int) -> Contents:
    """(volume, group) -> (chunk, block) -> (LSN, checksum) of each block that is not a hole. The bytes match,
    but for what rotted and nobody has read since."""
    assert host.process is not None
    return host.process.context.run(_contents, store_of(host), host, chunks)


def _contents(store: Store, host: Host, chunks: int) -> Contents:
    found: Contents = defaultdict(dict)
    files = host.device.disk.files
    for identity, replica in store.replicas.items():
        blocks = found[replica.info.volume, replica.info.group]
        for chunk in range(chunks):
            cells = store.index.find(replica.table, chunk, 0, BLOCKS_PER_CHUNK)
            for block, (location, total, lsn) in enumerate(cells):
                if not location:
                    continue
                segment = store.log.segments.get(location >> OFFSET_BITS)
                offset = location & OFFSET_MASK
                data = bytes(files[segment.name].now[offset : offset + BLOCK_SIZE]) if segment else b""
                assert host.device.damaged or block_sum(data) == total, (
                    f"{host.name}: {chunk}/{block} of replica {identity}, LSN {lsn}, is corrupt"
                )
                blocks[chunk, block] = (lsn, total)
    return found


def check_identical(cluster: SimCluster, chunks: int) -> int:
    """All hosts hold the same blocks of each group; the number of blocks."""
    of_host: dict[str, Any] = {host.name: contents(host, chunks) for host in cluster.hosts}
    blocks = 0
    for key in {key for held in of_host.values() for key in held}:
        held = {name: each[key] for name, each in of_host.items() if key in each}
        (first, reference), *others = held.items()
        for name, other in others:
            check_same(f"{first} and {name}", {key: reference}, {key: other})
        blocks += len(reference)
    return blocks


def check_same(what: str, one: Contents, other: Contents) -> None:
    for key in {*one, *other}:
        here, there = one.get(key, {}), other.get(key, {})
        wrong = sorted(each for each in {*here, *there} if here.get(each) != there.get(each))
        told = [(each, here.get(each), there.get(each)) for each in wrong[:5]]
        assert not wrong, f"{what}: {len(wrong)} blocks of volume, group {key} differ, as {told}"


def leaked(cluster: SimCluster, chunks: int) -> str:
    """What is counted as live, and nothing refers to; empty when all adds up. Raises if something alive is
    not counted: its segment could be taken for free."""
    for host in cluster.hosts:
        assert host.process is not None
        found = host.process.context.run(_leaked, store_of(host), host, chunks)
        if found:
            return found
    return ""


def _leaked(store: Store, host: Host, chunks: int) -> str:
    alive: dict[int, int] = defaultdict(int)
    for replica in store.replicas.values():
        replica.validate()
        for chunk in range(chunks):
            for location, _, _ in store.index.find(replica.table, chunk, 0, BLOCKS_PER_CHUNK):
                if location:
                    alive[location >> OFFSET_BITS] += BLOCK_SIZE
    counted = {number: count for number, count in store.index.live.items() if count}
    for number, size in alive.items():
        assert counted.get(number, 0) >= size, (
            f"{host.name}: segment {number} holds {size} alive, not {counted}"
        )
        assert number in store.log.segments, f"{host.name}: segment {number} is referred to, and gone"
    if counted != dict(alive):
        return f"{host.name}: live bytes {counted}, the indexes refer to {dict(alive)}"
    return ""
