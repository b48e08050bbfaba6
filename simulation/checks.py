"""What must hold, looked at from outside.

While it goes on: who is told that a volume is attached leads all its groups. When everything has healed:
replicas of a group are identical; an index equals what a replay of its log makes; every block matches its
checksum; the space of a segment that is counted as live is what the index refers to. Owns the looking: it may
read what the processes hold, and must never change it.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import Any

from moorage.client.layers import Layer
from moorage.client.session import GroupSession
from moorage.client.volume import Volume
from moorage.metadata import records
from moorage.metadata.objects import layout, room
from moorage.metadata.objects.versions import usage
from moorage.metadata.service import MetadataService
from moorage.node.replica import OBJECTS
from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.node.service import NodeService
from moorage.node.store import Store
from moorage.quorum.counting import Phase
from moorage.quorum.record import BLOCK_SIZE, block_sum
from moorage.registry import state
from moorage.registry.service import RegistryService
from moorage.service.kv import KV
from moorage.simulation.chunks import blocks_per_chunk
from moorage.simulation.cluster import Host, SimCluster
from moorage.simulation.store_checks import everything, kept_for_nothing

# (volume, group) -> (chunk, block, LSN of the snapshot that shows it so, 0: as it is) -> (LSN, checksum)
Contents = dict[tuple[int, int], dict[tuple[int, int, int], tuple[int, int]]]


def check_leads_all(volume: Volume) -> None:
    """Nothing is served before the barriers of all groups are committed."""
    for group in volume.groups if volume.failed is None else ():
        session = group._group if isinstance(group, Layer) else group
        assert isinstance(session, GroupSession)
        writer = session.writer
        assert writer.phase is Phase.SERVING and writer.commit >= writer.barrier > 0, (
            f"volume {volume.name} is served while group {session.index} is {writer.phase.name}"
        )


def _service(host: Host, kind: type[Any]) -> Any:
    """Of its present life, or None."""
    shell, process = host.shell, host.process
    services = shell._services if shell is not None and process is not None and process.alive else []
    return next((each for each in services if isinstance(each, kind)), None)


def store_of(host: Host) -> Store:
    store: Store | None = _service(host, NodeService)._store
    assert store is not None
    return store


def leads_metadata(host: Host) -> bool:
    found = _service(host, MetadataService)
    return found is not None and bool(found.replicated.is_leader)


def leads_registry(host: Host) -> bool:
    found = _service(host, RegistryService)
    return found is not None and bool(found.group.is_leader)


def nothing_to_mend(cluster: SimCluster) -> bool:
    """Whether no device knows of a bad block, or suspects one: its holder writes it again."""
    for host in cluster.hosts:
        node = _service(host, NodeService)
        scrubber = node._store.scrubber if node is not None and node._store is not None else None
        if scrubber is None or scrubber._suspects or any(each.bad for each in scrubber.checks.values()):
            return False
    return True


def charged_well(cluster: SimCluster) -> bool:
    """Whether the registry counts for principals what the volumes are, by their names; of buckets a little
    more than that."""
    volumes: dict[str, range] = {}
    charged: dict[str, int] = {}
    for host in cluster.hosts:
        metadata, registry = _service(host, MetadataService), _service(host, RegistryService)
        if metadata is not None and metadata.replicated.is_leader:
            kv = metadata.replicated.kv
            found = [each for each in records.volumes(kv) if not each["released"]]
            volumes = {each["name"]: _charge_of(kv, each) for each in found}
        if registry is not None and registry.group.is_leader:
            names = state.table(registry.group.kv, "name")
            charged = {name: row.get("size", -1) for name, row in names.items()}
    if not volumes or charged.keys() != volumes.keys():
        return False
    return all(charged[name] in wanted for name, wanted in volumes.items())


def _charge_of(kv: KV, volume: dict[str, Any]) -> range:
    size = volume["size"]
    if records.kind_of(volume) == records.BUCKET:
        _, size, _, former_size = usage(kv, volume["id"])
        return range(size + former_size, size + former_size + 2 * room.STEP + 1)
    return range(size, size + 1)


def members_agree(cluster: SimCluster) -> bool:
    """Whether all members of metadata, and all of the registry, have applied as much: then they have to hold
    the same."""
    for kind, name in ((MetadataService, "replicated"), (RegistryService, "group")):
        services = {host.name: _service(host, kind) for host in cluster.masters}
        if None in services.values():
            return False
        members = {host: getattr(service, name) for host, service in services.items()}
        if len({member.status()["applied_index"] for member in members.values()}) > 1:
            return False
        (first, reference), *others = ((host, dict(each.kv.scan(""))) for host, each in members.items())
        for host, held in others:
            wrong = sorted(key for key in {*reference, *held} if reference.get(key) != held.get(key))
            told = [(key, reference.get(key), held.get(key)) for key in wrong[:3]]
            assert not wrong, (
                f"{kind.__name__}: members {first} and {host} differ in {len(wrong)} keys: {told}"
            )
    return True


def serves_blocks(host: Host) -> bool:
    """Whether the registry has accepted its device in this life."""
    found = _service(host, NodeService)
    return found is not None and found._handlers is not None


def has_failed(host: Host) -> bool:
    """Whether its device is out for good."""
    return host.ready and store_of(host).failed is not None


def contents(host: Host, chunks: int) -> Contents:
    """Each block that is not a hole, as it is and as each snapshot shows it. The bytes match, but for what
    rotted and nobody has read since."""
    assert host.process is not None
    return host.process.context.run(_contents, store_of(host), host, chunks)


def _contents(store: Store, host: Host, chunks: int) -> Contents:
    found: Contents = defaultdict(dict)
    files = host.device.disk.files
    for identity, replica in store.replicas.items():
        if replica.info.durability == OBJECTS:
            continue  # object_checks.py looks at these
        blocks = found[replica.info.volume, replica.info.group]
        for snapshot, chunk in product((0, *replica.table.snapshots), range(chunks)):
            cells = store.index.find(replica.table, chunk, 0, blocks_per_chunk(), snapshot)
            for block, (location, total, lsn) in enumerate(cells):
                if not location:
                    continue
                segment = store.log.segments.get(location >> OFFSET_BITS)
                offset = location & OFFSET_MASK
                data = bytes(files[segment.name].now[offset : offset + BLOCK_SIZE]) if segment else b""
                assert host.device.damaged or block_sum(data) == total, (
                    f"{host.name}: {chunk}/{block} of replica {identity}, LSN {lsn}, is corrupt"
                )
                blocks[chunk, block, snapshot] = (lsn, total)
    return found


def metadata_state(cluster: SimCluster) -> KV | None:
    """Of its leader, if there is one."""
    leaders = [each for host in cluster.masters if (each := _service(host, MetadataService)) is not None]
    found = [each.replicated.kv for each in leaders if each.replicated.is_leader]
    return found[0] if len(found) == 1 else None


def misplaced(cluster: SimCluster) -> str:
    """Each device holds what metadata has placed there, also after it had lost a replica, and no others
    but those that come or go just then; empty when it is so."""
    kv = metadata_state(cluster)
    if kv is None:
        return "nobody leads metadata"
    placed: dict[str, set[int]] = defaultdict(set)
    passing: dict[str, set[int]] = defaultdict(set)
    for volume in records.volumes(kv):
        for replica, device, _ in records.drops(kv, volume["id"]):
            passing[device].add(replica)
        for group in volume["groups"]:
            if len({member["host"] for member in group["members"]}) < volume["replicas"]:
                return f"two members of volume {volume['name']} are on one host: {group['members']}"
            stays = placed if volume["state"] == records.READY else passing
            for member in group["members"]:
                stays[member["device"]].add(member["replica"])
            if group["wish"] is not None:
                passing[group["wish"]["device"]].add(group["wish"]["replica"])
    for host in cluster.hosts:
        store = store_of(host)
        device, held = store.config.device.hex(), set(store.replicas)
        if not placed[device] <= held <= placed[device] | passing[device]:
            return (
                f"{host.name} holds {held}, placed there are {placed[device]}; {passing[device]} come or go"
            )
    return ""


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


def check_replayed(host: Host, was: Contents, found: Contents) -> None:
    """The replay of its log has given the same. A group that has moved since is another matter, and so is a
    block that was mended since: the same bytes, written again behind all that there was."""
    both = was.keys() & found.keys()
    replayed: Contents = {}
    for key in both:
        end = max((lsn for lsn, _ in was[key].values()), default=0)
        replayed[key] = {
            block: was[key][block] if lsn > end and was[key].get(block, (0, 0))[1] == total else (lsn, total)
            for block, (lsn, total) in found[key].items()
        }
    check_same(f"{host.name} before and after the replay", {key: was[key] for key in both}, replayed)


def check_same(what: str, one: Contents, other: Contents) -> None:
    for key in {*one, *other}:
        here, there = one.get(key, {}), other.get(key, {})
        wrong = sorted(each for each in {*here, *there} if here.get(each) != there.get(each))
        told = [(each, here.get(each), there.get(each)) for each in wrong[:5]]
        assert not wrong, f"{what}: {len(wrong)} blocks of volume, group {key} differ, as {told}"


def leaked(cluster: SimCluster, chunks: int) -> str:
    """What is counted as live, and nothing refers to, or is kept, and no snapshot shows it; empty when all
    adds up. Raises if something alive is not counted: its segment could be taken for free."""
    given = _given(cluster)
    for host in cluster.hosts:
        assert host.process is not None
        found = host.process.context.run(_leaked, store_of(host), host, chunks, given)
        if found:
            return found
    return ""


def _given(cluster: SimCluster) -> dict[tuple[int, int], int]:
    """By bucket and group: as many chunks of its address space have been given out."""
    kv = metadata_state(cluster)
    if kv is None:
        return {}
    return {
        (bucket["id"], group["group"]): int(kv.get(layout.next_region_key(bucket["id"], group["group"])) or 0)
        for bucket in records.volumes(kv)
        if records.kind_of(bucket) == records.BUCKET
        for group in bucket["groups"]
    }


def _leaked(store: Store, host: Host, chunks: int, given: dict[tuple[int, int], int]) -> str:
    alive: dict[int, int] = defaultdict(int)
    for replica in store.replicas.values():
        replica.validate()
        count = given.get((replica.info.volume, replica.info.group), chunks)
        for block, versions in everything(store, replica, count):
            for each in versions:
                if each.location:
                    alive[each.location >> OFFSET_BITS] += BLOCK_SIZE
            if found := kept_for_nothing(replica, versions):
                return f"{host.name}: {found} of block {block} of replica {replica.info.replica}"
    counted = {number: count for number, count in store.index.live.items() if count}
    for number, size in alive.items():
        assert counted.get(number, 0) >= size, (
            f"{host.name}: segment {number} holds {size} alive, not {counted}"
        )
        assert number in store.log.segments, f"{host.name}: segment {number} is referred to, and gone"
    if counted != dict(alive):
        return f"{host.name}: live bytes {counted}, the indexes refer to {dict(alive)}"
    return ""
