"""Where the records of objects are in the replicated state, and where their bytes are in a group's address
space. Pure.

A bucket has replica groups as a volume has; each is an address space of its own, of blocks of 4 KiB in chunks
of 4 MiB, which is given out in *regions* of 64 chunks, in order, each address once. An *extent* is a run of
blocks inside of one region.

====================================== ==================================================================
key                                    value
====================================== ==================================================================
``region/BUCKET/GROUP/CHUNK``          ``{owner, state, gone}``: given to a writer; open, closed, then swept;
                                       ``gone``, while it is open: what was discarded of it, see ``go``
``next-region/BUCKET/GROUP``           the first chunk that was never given
``extent/BUCKET/GROUP/CHUNK/BLOCK``    blocks: of an object, or of a part of an upload
``free/BUCKET/GROUP/CHUNK/BLOCK``      ``[blocks, generation]``: was one, and is to be discarded
``generation``                         a number: those that became free two before may be discarded
``lack/BUCKET/REPLICA/CHUNK/BLOCK``    blocks of an extent that this replica is not known to have
``built/BUCKET/REPLICA``               of one to become a member, or damaged: has all below this address
``object/BUCKET/KEY``                  an object: see ``state.py``
``versioning/BUCKET``                  ``{state, locks}``: versions are on, or suspended: see ``versions.py``
``history/BUCKET/KEY``                 ``[number, null, kept]``: what the key had before, by NUMBER; ``seq``
                                       of the version named null, or None; how many there are
``long/BUCKET/NUMBER``                 an object with a long key, see below
``next-number/BUCKET``                 the first NUMBER of a history, or of a long key, that was never given
``version/BUCKET/NUMBER/ORDER``        an object that is not the current one of its key, or a delete marker
``upload/BUCKET/UPLOAD``               ``{key, attributes, created_ms}``: an upload in parts
``part/BUCKET/UPLOAD/NUMBER``          a part of it, with the fields of an object
``usage/BUCKET``                       ``[objects, bytes, former versions, their bytes]``; the last two once
                                       there was a former one
``answer/BUCKET/REQUEST``              ``{do, answer}``: of a command that may come again: see ``answers.py``
``answer-slot/BUCKET/SLOT``            its REQUEST: SLOT is its index in the log, modulo how many are kept
``document/BUCKET/NAME``               text that gateways keep about it: its policy, and so on
====================================== ==================================================================

BUCKET and REPLICA are 16 hex digits, GROUP 4, CHUNK 12, BLOCK 3, SLOT 5; NUMBER 12, of a part 5 decimal ones.
ORDER: 16, of 2^64 - 1 less the version's ``seq``: the newest is the first.

A key of an object may be longer than one of the store: of those that are, all with the same first bytes are
in one record, ``{rest of the key: NUMBER}``; so it is with histories, with what they have in place of NUMBER.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from moorage.quorum.record import BLOCKS_PER_CHUNK
from moorage.service.kv import KV, SCAN_BATCH

REGION_CHUNKS: Final = 64
DIRECT_BYTES: Final = 400  # of a key of an object, to be one of the store as it is

GENERATION: Final = "generation"
OPEN: Final = "open"
CLOSED: Final = "closed"
SWEPT: Final = "swept"


class Extent(NamedTuple):
    group: int
    chunk: int
    block: int
    blocks: int

    @property
    def first(self) -> int:
        """Address of its first block in the group."""
        return self.chunk * BLOCKS_PER_CHUNK + self.block

    @property
    def end(self) -> int:
        return self.first + self.blocks

    @property
    def region(self) -> int:
        """First chunk of its region."""
        return self.chunk - self.chunk % REGION_CHUNKS

    @property
    def is_sound(self) -> bool:
        return (
            self.blocks > 0
            and 0 <= self.block < BLOCKS_PER_CHUNK
            and self.end <= (self.region + REGION_CHUNKS) * BLOCKS_PER_CHUNK
        )


def generation(kv: KV) -> int:
    return int(kv.get(GENERATION) or 0)


def region_key(bucket: int, group: int, chunk: int) -> str:
    return f"region/{bucket:016x}/{group:04x}/{chunk:012x}"


def next_region_key(bucket: int, group: int) -> str:
    return f"next-region/{bucket:016x}/{group:04x}"


def extent_key(bucket: int, extent: Extent) -> str:
    return f"extent/{bucket:016x}/{extent.group:04x}/{extent.chunk:012x}/{extent.block:03x}"


def free_key(bucket: int, extent: Extent) -> str:
    return f"free/{bucket:016x}/{extent.group:04x}/{extent.chunk:012x}/{extent.block:03x}"


def lacks_prefix(bucket: int, replica: int) -> str:
    return f"lack/{bucket:016x}/{replica:016x}/"


def lack_key(bucket: int, replica: int, extent: Extent) -> str:
    return f"{lacks_prefix(bucket, replica)}{extent.chunk:012x}/{extent.block:03x}"


def objects_prefix(bucket: int) -> str:
    return f"object/{bucket:016x}/"


def histories_prefix(bucket: int) -> str:
    return f"history/{bucket:016x}/"


def long_key(bucket: int, number: int) -> str:
    return f"long/{bucket:016x}/{number:012x}"


def next_number_key(bucket: int) -> str:
    return f"next-number/{bucket:016x}"


def versions_prefix(bucket: int, number: int) -> str:
    return f"version/{bucket:016x}/{number:012x}/"


def version_key(bucket: int, number: int, seq: int) -> str:
    return f"{versions_prefix(bucket, number)}{(1 << 64) - 1 - seq:016x}"


def versioning_key(bucket: int) -> str:
    return f"versioning/{bucket:016x}"


def upload_key(bucket: int, upload: str) -> str:
    return f"upload/{bucket:016x}/{upload}"


def parts_prefix(bucket: int, upload: str) -> str:
    return f"part/{bucket:016x}/{upload}/"


def part_key(bucket: int, upload: str, number: int) -> str:
    return f"{parts_prefix(bucket, upload)}{number:05d}"


def document_key(bucket: int, name: str) -> str:
    return f"document/{bucket:016x}/{name}"


def documents(kv: KV, bucket: int) -> dict[str, str]:
    prefix = document_key(bucket, "")
    return {key[len(prefix) :]: value for key, value in kv.scan(prefix)}


def built_key(bucket: int, replica: int) -> str:
    return f"built/{bucket:016x}/{replica:016x}"


def answer_key(bucket: int, request: str) -> str:
    return f"answer/{bucket:016x}/{request}"


def answer_slot_key(bucket: int, slot: int) -> str:
    return f"answer-slot/{bucket:016x}/{slot:05x}"


def usage_key(bucket: int) -> str:
    return f"usage/{bucket:016x}"


def all_keys(kv: KV, bucket: int) -> Iterator[str]:
    """Everything that there is of a bucket's objects."""
    for kind in (
        "object",
        "long",
        "history",
        "version",
        "upload",
        "part",
        "extent",
        "free",
        "lack",
        "region",
        "next-region",
        "built",
        "document",
        "answer",
        "answer-slot",
    ):
        for key, _ in kv.scan(f"{kind}/{bucket:016x}/"):
            yield key
    for key in (usage_key(bucket), versioning_key(bucket), next_number_key(bucket)):
        if kv.get(key) is not None:
            yield key


# -- what is where --------------------------------------------------------------------------------------


def regions(kv: KV, bucket: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(group, first chunk, record), in order."""
    for key, value in kv.scan(f"region/{bucket:016x}/"):
        _, _, group, chunk = key.split("/")
        yield int(group, 16), int(chunk, 16), value


def regions_from(kv: KV, bucket: int, start: str) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """As :func:`regions`, each behind its key, from the key ``start`` on."""
    for key, value in kv.scan(f"region/{bucket:016x}/", start):
        _, _, group, chunk = key.split("/")
        yield key, int(group, 16), int(chunk, 16), value


def extents(
    kv: KV, bucket: int, group: int, first_chunk: int = 0, end_chunk: int = 1 << 48
) -> Iterator[Extent]:
    """Of objects and parts, those that begin in these chunks, in order."""
    prefix = f"extent/{bucket:016x}/{group:04x}/"
    for key, blocks in kv.scan(prefix, f"{prefix}{first_chunk:012x}"):
        chunk, block = key[len(prefix) :].split("/")
        found = Extent(group, int(chunk, 16), int(block, 16), blocks)
        if found.chunk >= end_chunk:
            return
        yield found


def extents_from(kv: KV, bucket: int, group: int, address: int) -> Iterator[Extent]:
    """Of objects and parts, those that begin at this address or behind it, in order."""
    walk = extents(kv, bucket, group, address // BLOCKS_PER_CHUNK)
    return (extent for extent in walk if extent.first >= address)


def frees(kv: KV, bucket: int, start: str = "") -> Iterator[tuple[Extent, int]]:
    """What is to be discarded, each with the generation that it became free in, from the key ``start`` on."""
    for key, (blocks, born) in kv.scan(f"free/{bucket:016x}/", start):
        _, _, group, chunk, block = key.split("/")
        yield Extent(int(group, 16), int(chunk, 16), int(block, 16), blocks), born


def frees_of_region(kv: KV, bucket: int, group: int, chunk: int) -> Iterator[Extent]:
    """What is to be discarded in the region that begins with ``chunk``."""
    for extent, _ in frees(kv, bucket, free_key(bucket, Extent(group, chunk, 0, 1))):
        if (extent.group, extent.region) != (group, chunk):
            return
        yield extent


def lacks(kv: KV, bucket: int, group: int, replica: int, start: str = "") -> Iterator[Extent]:
    """What a replica of ``group`` is not known to have, from the key ``start`` on."""
    prefix = lacks_prefix(bucket, replica)
    for key, blocks in kv.scan(prefix, start):
        chunk, block = key[len(prefix) :].split("/")
        yield Extent(group, int(chunk, 16), int(block, 16), blocks)


def lacking_replicas(kv: KV, bucket: int) -> Iterator[int]:
    """Those that are said to lack something, members or not; at the cost of one look for each."""
    base = f"lack/{bucket:016x}/"
    start = base
    while (found := next(kv.scan(base, start), None)) is not None:
        replica = int(found[0][len(base) :].split("/")[0], 16)
        yield replica
        start = lacks_prefix(bucket, replica) + "~"


# -- what was discarded of an open region -----------------------------------------------------------------


def is_gone(gone: list[int], extent: Extent) -> bool:
    """Whether all of it was an object once. ``gone``: first, end, first, end, ... of blocks, from the
    beginning of the region, ascending, with something between two pairs."""
    first = extent.first - extent.region * BLOCKS_PER_CHUNK
    at = bisect_right(gone, first)
    return at % 2 == 1 and first + extent.blocks <= gone[at]


def go(gone: list[int], extent: Extent) -> None:
    """It is gone as well."""
    first = extent.first - extent.region * BLOCKS_PER_CHUNK
    end = first + extent.blocks
    at = bisect_right(gone, first)
    if at % 2 or (at < len(gone) and gone[at] < end):
        return  # it was already: extents are disjoint
    gone[at:at] = [first, end]
    if at + 2 < len(gone) and gone[at + 2] == end:
        del gone[at + 1 : at + 3]
    if at and gone[at - 1] == first:
        del gone[at - 1 : at + 1]


# -- objects by key -------------------------------------------------------------------------------------


def _place(key: str) -> tuple[str, str | None]:
    """(key of the record behind the prefix, rest of the key; None: it is the record's alone)."""
    raw = key.encode()
    if len(raw) <= DIRECT_BYTES:
        return key, None
    # No key that is a record's alone begins with this: it is longer than any of them.
    end = DIRECT_BYTES + 1
    while end < len(raw) and raw[end] & 0xC0 == 0x80:
        end += 1
    return raw[:end].decode(), raw[end:].decode()


class History(NamedTuple):
    number: int
    null: int | None  # ``seq`` of the null version
    kept: int  # versions


def find_object(kv: KV, bucket: int, key: str) -> dict[str, Any] | None:
    found: Any = _find(kv, objects_prefix(bucket), key)
    if isinstance(found, int):
        found = kv.get(long_key(bucket, found))
    return found  # type: ignore[no-any-return]


def find_history(kv: KV, bucket: int, key: str) -> History | None:
    found = _find(kv, histories_prefix(bucket), key)
    return None if found is None else History(*found)


def put_object(kv: KV, bucket: int, key: str, value: dict[str, Any] | None) -> None:
    """None: it goes."""
    base = objects_prefix(bucket)
    if not is_long(key):
        _put(kv, base, key, value)
        return
    number = _find(kv, base, key)
    if value is None:
        if number is not None:
            _put(kv, base, key, None)
            kv.delete(long_key(bucket, number))
        return
    if number is None:
        number = next_number(kv, bucket)
        _put(kv, base, key, number)
    kv.put(long_key(bucket, number), value)


def put_history(kv: KV, bucket: int, key: str, value: History | None) -> None:
    """None: it goes."""
    _put(kv, histories_prefix(bucket), key, value)


def next_number(kv: KV, bucket: int) -> int:
    """One that was never given."""
    number = int(kv.get(next_number_key(bucket)) or 0)
    kv.put(next_number_key(bucket), number + 1)
    return number


def is_long(key: str) -> bool:
    """Whether it shares a record with others."""
    return len(key.encode()) > DIRECT_BYTES


def long_keys_beside(kv: KV, bucket: int, key: str) -> set[str]:
    """Of a long key: what those that begin as it does end with, with an object, or a history."""
    place, _ = _place(key)
    bases = objects_prefix(bucket), histories_prefix(bucket)
    return {rest for base in bases for rest in kv.get(base + place) or {}}


def scan_objects(
    kv: KV, bucket: int, prefix: str, start: bytes, batch: int = SCAN_BATCH
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, object) of all keys that begin with ``prefix`` and are not below ``start``, in order of their
    bytes. ``batch``: as :meth:`KV.scan_from` has it."""
    for key, found in _scan(kv, objects_prefix(bucket), prefix, start, batch):
        if isinstance(found, int):
            found = kv.get(long_key(bucket, found))
            if found is None:  # it went while this scan was under way
                continue
        yield key, found


def scan_histories(
    kv: KV, bucket: int, prefix: str, start: bytes, batch: int = SCAN_BATCH
) -> Iterator[tuple[str, History]]:
    """The same of histories."""
    for key, found in _scan(kv, histories_prefix(bucket), prefix, start, batch):
        yield key, History(*found)


def _find(kv: KV, base: str, key: str) -> Any | None:
    place, rest = _place(key)
    found = kv.get(base + place)
    return found if rest is None or found is None else found.get(rest)


def _put(kv: KV, base: str, key: str, value: Any | None) -> None:
    place, rest = _place(key)
    if rest is not None:
        together: dict[str, Any] = kv.get(base + place) or {}
        together.pop(rest, None)
        if value is not None:
            together[rest] = value
        value = dict(sorted(together.items())) or None
    if value is None:
        kv.delete(base + place)
    else:
        kv.put(base + place, value)


def _scan(kv: KV, base_text: str, prefix: str, start: bytes, batch: int) -> Iterator[tuple[str, Any]]:
    base = base_text.encode()
    wanted, from_key = prefix.encode(), max(start, prefix.encode())
    for key, value in kv.scan_from(base + wanted[:DIRECT_BYTES], base + from_key[: DIRECT_BYTES + 1], batch):
        place = key[len(base) :]
        if len(place.encode()) <= DIRECT_BYTES:
            found: Sequence[tuple[str, Any]] = [(place, value)]
        else:
            found = [(place + rest, each) for rest, each in value.items()]
        for name, each in found:
            raw = name.encode()
            if raw >= from_key and raw.startswith(wanted):
                yield name, each
