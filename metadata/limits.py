"""The limits of volumes: one table, used by the checks below and rendered into docs/limits.md.

Owns what a request about a volume may ask for, and the sentence that says so. Pure: no I/O, no clock.
Limits of other rooms (frames, connections, devices) live with the code that enforces them; docs/limits.md
collects all. Invariant: each check accepts its limit and refuses the next value beyond it, with a message
that says what would be accepted. Raises :class:`LimitExceeded` for a value out of range, :class:`Invalid`
for one of the wrong kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from moorage.service.units import human
from moorage.wire.errors import Invalid, LimitExceeded

KIB: Final = 1 << 10
MIB: Final = 1 << 20
TIB: Final = 1 << 40

NAME_PATTERN: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
NAME_SIZE_MAX: Final = 63
SIZE_STEP: Final = 4 * KIB
SIZE_MIN: Final = 1 * MIB
SIZE_MAX: Final = 64 * TIB
REPLICAS: Final = (1, 3, 5)
GROUPS_MIN: Final = 1
GROUPS_MAX: Final = 64
DURABILITIES: Final = ("sync", "writeback")
FS_TYPES: Final = ("ext4", "xfs")
FS_STATES: Final = ("new", "formatting", "ready")
VOLUMES_PER_GROUP_MAX: Final = 10_000
SNAPSHOTS_MAX: Final = 500
SNAPSHOTS_AT_ONCE_MAX: Final = 64
REQUESTS_KEPT: Final = 16_384
ANSWERS_KEPT: Final = 65_536  # at a thousand commands a second: for longer than any client tries
REQUEST_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
REQUEST_SIZE_MAX: Final = 64
IOPS_MAX: Final = 10_000_000
BW_MIN: Final = 64 * KIB  # less is a unit that was forgotten: a mount would take minutes
BW_MAX: Final = TIB
HOLDER_TEXT_MAX: Final = 255
REPLICAS_ASKED_MAX: Final = 1000
KEY_BYTES_MAX: Final = 1024
ATTRIBUTES_MAX: Final = 32 * KIB
DOCUMENT_MAX: Final = 64 * KIB
DOCUMENTS_MAX: Final = 512 * KIB  # of a bucket together: they are shown with it, in one frame
EXTENTS_MAX: Final = 8192  # of an object, or a part: 2 TiB in whole regions
OBJECT_EXTENTS_MAX: Final = 40_000  # of all parts: what is told of an object fits into one frame
PARTS_MAX: Final = 10_000
LONG_KEYS_MAX: Final = 1000
KEYS_AT_ONCE: Final = 1000
WRITER_MAX: Final = (1 << 63) - 1
# Of each volume. An attach is sent again for some seconds: so many takeovers of one volume do not fit in.
WRITERS_KEPT: Final = 16
SUCCEEDS_MAX: Final = 16
# Ids of volumes and replicas are u63: the number of the metadata group above, a counter below.
ID_COUNTER_BITS: Final = 48
ID_COUNTER_MAX: Final = (1 << ID_COUNTER_BITS) - 1
METADATA_GROUPS_MAX: Final = (1 << (63 - ID_COUNTER_BITS)) - 1

_NAME = re.compile(NAME_PATTERN)
_REQUEST = re.compile(REQUEST_PATTERN)
_GROUP = re.compile(r"m[1-9][0-9]{0,4}")


class Limit(NamedTuple):
    """One row of docs/limits.md."""

    what: str
    limit: str
    beyond: str  # what happens just past it


TABLE: Final = (
    Limit("Name of a volume", f"`{NAME_PATTERN}`", "`Invalid`"),
    Limit("Size of a volume", f"{human(SIZE_MIN)} to {human(SIZE_MAX)}", "`LimitExceeded`"),
    Limit("Step of the size", human(SIZE_STEP), "`Invalid`"),
    Limit("Resize", "up only", "`Invalid`"),
    Limit("Replicas of a volume", ", ".join(map(str, REPLICAS)), "`Invalid`"),
    Limit("Replica groups per volume", f"{GROUPS_MIN} to {GROUPS_MAX}", "`LimitExceeded`"),
    Limit("Durability", ", ".join(f"`{name}`" for name in DURABILITIES), "`Invalid`"),
    Limit("Ceiling `iops` of a volume, operations a second", f"1 to {IOPS_MAX}, 0: none", "`LimitExceeded`"),
    Limit(
        "Ceiling `bw` of a volume, bytes a second",
        f"{human(BW_MIN)} to {human(BW_MAX)}, 0: none",
        "`LimitExceeded`",
    ),
    Limit("Name of a principal", f"`{NAME_PATTERN}`", "`Invalid`"),
    Limit("Volumes per metadata group", f"{VOLUMES_PER_GROUP_MAX}", "`LimitExceeded`"),
    Limit("Name of a snapshot", f"`{NAME_PATTERN}`", "`Invalid`"),
    Limit("Snapshots of a volume", f"{SNAPSHOTS_MAX}", "`LimitExceeded`"),
    Limit("Volumes of which snapshots are made in one call", f"{SNAPSHOTS_AT_ONCE_MAX}", "`LimitExceeded`"),
    Limit("Number of a metadata group", f"`m1` to `m{METADATA_GROUPS_MAX}`", "`Invalid` at start"),
    Limit("Volume and replica ids ever given by a metadata group", f"{ID_COUNTER_MAX}", "`LimitExceeded`"),
    Limit("Epoch of a volume", "2^63 - 1", "`LimitExceeded`"),
    Limit("Writer id", "1 to 2^63 - 1", "`Invalid`"),
    Limit("Former writers of a volume remembered", f"the last {WRITERS_KEPT}", "an older id is a new writer"),
    Limit("Former lives that an attach goes on for", f"{SUCCEEDS_MAX}", "`Invalid`"),
    Limit("File systems of mounts", ", ".join(f"`{name}`" for name in FS_TYPES), "`Invalid`"),
    Limit("Replicas asked for in one `metadata.current_epochs`", f"{REPLICAS_ASKED_MAX}", "`LimitExceeded`"),
    Limit("Key of an object", f"1 to {KEY_BYTES_MAX} bytes of UTF-8", "`Invalid`"),
    Limit("Keys of more than 400 bytes that begin with the same ones", f"{LONG_KEYS_MAX}", "`LimitExceeded`"),
    Limit("What a writer notes of an object", human(ATTRIBUTES_MAX), "`LimitExceeded`"),
    Limit("A document of a bucket (its policy, and so on)", human(DOCUMENT_MAX), "`LimitExceeded`"),
    Limit("All documents of a bucket", human(DOCUMENTS_MAX), "`LimitExceeded`"),
    Limit("Pieces of an object, or of a part of an upload", f"{EXTENTS_MAX}", "`LimitExceeded`"),
    Limit("Pieces of all parts of an upload together", f"{OBJECT_EXTENTS_MAX}", "`LimitExceeded`"),
    Limit("Number of a part of an upload", f"1 to {PARTS_MAX}", "`Invalid`"),
    Limit("Objects deleted in one call", f"{KEYS_AT_ONCE}", "`LimitExceeded`"),
    Limit("Request id of a retried command", f"`{REQUEST_PATTERN}`", "`Invalid`"),
    Limit("Finished requests remembered", f"the last {REQUESTS_KEPT}", "an older retry is a new request"),
    Limit(
        "Deletions of objects, and changes of what is noted, that are remembered",
        f"in the last {ANSWERS_KEPT} commands of the metadata group",
        "an older retry is a new command",
    ),
    Limit("Text that describes a holder (host, program)", f"{HOLDER_TEXT_MAX} bytes", "`Invalid`"),
)


def check_name(name: Any) -> str:
    return _checked_name("volume", name)


def check_snapshot_name(name: Any) -> str:
    return _checked_name("snapshot", name)


def _checked_name(of: str, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Invalid(
            f"{of} name {_shown(name)} is not accepted: use 1 to {NAME_SIZE_MAX} of a-z, 0-9, '.', '_' and "
            "'-', beginning with a letter or digit",
            name=str(name)[:80],
        )
    return name


def check_at_once(volumes: Any) -> list[Any]:
    """Names or ids of the volumes of which snapshots are asked for in one command."""
    if not isinstance(volumes, list | tuple) or not volumes or len(set(map(str, volumes))) < len(volumes):
        raise Invalid(f"volumes {_shown(volumes)} is not a list of volumes, each named once")
    if len(volumes) > SNAPSHOTS_AT_ONCE_MAX:
        raise LimitExceeded(
            f"snapshots of {len(volumes)} volumes at once: ask for {SNAPSHOTS_AT_ONCE_MAX} at most"
        )
    return list(volumes)


def check_snapshot_ids(ids: Any) -> list[int]:
    if not isinstance(ids, list | tuple) or not all(map(_is_int, ids)) or len(ids) > SNAPSHOTS_MAX:
        raise Invalid(f"ids {_shown(ids)} is not a list of at most {SNAPSHOTS_MAX} ids of snapshots")
    return list(ids)


def check_created(created: Any) -> list[list[Any]]:
    """``[id, lsns]`` of each snapshot that its holder has put into the logs."""
    if not isinstance(created, list | tuple) or len(created) > SNAPSHOTS_MAX:
        raise Invalid(f"created {_shown(created)} is not a list of at most {SNAPSHOTS_MAX} snapshots")
    for row in created:
        if not isinstance(row, list | tuple) or len(row) != 2 or not _is_int(row[0]):
            raise Invalid(f"created: {_shown(row)} is not the id of a snapshot and its lsns")
        if not isinstance(row[1], list | tuple) or not all(map(_is_lsn, row[1])):
            raise Invalid(f"created: lsns {_shown(row[1])} is not a list of numbers from 1 to 2^63 - 1")
    return [[snapshot, list(lsns)] for snapshot, lsns in created]


def check_parent(parent: Any) -> tuple[str, str]:
    """``{"volume", "snapshot"}``, the names of what is to be cloned."""
    if not isinstance(parent, dict) or set(parent) != {"volume", "snapshot"}:
        raise Invalid(f"parent {_shown(parent)} must be a map of volume and snapshot, their names")
    return check_name(parent["volume"]), check_snapshot_name(parent["snapshot"])


def check_size(size: Any) -> int:
    if not _is_int(size):
        raise Invalid(f"volume size {_shown(size)} is not a whole number of bytes")
    if not SIZE_MIN <= size <= SIZE_MAX:
        shown = f"{size} bytes"
        raise LimitExceeded(
            f"volume size {shown} is out of range: use {human(SIZE_MIN)} to {human(SIZE_MAX)}",
            size=size if abs(size) < 1 << 63 else 0,
        )
    if size % SIZE_STEP:
        down = size - size % SIZE_STEP
        raise Invalid(
            f"volume size {size} is not a multiple of {human(SIZE_STEP)}: use {down} or {down + SIZE_STEP}",
            size=size,
        )
    return int(size)


def check_replicas(replicas: Any) -> int:
    if not _is_int(replicas) or replicas not in REPLICAS:
        raise Invalid(
            f"replicas {_shown(replicas)} is not accepted: use 1, 3 or 5 (a majority needs an odd number)"
        )
    return int(replicas)


def check_groups(groups: Any) -> int:
    if not _is_int(groups):
        raise Invalid(f"groups {_shown(groups)} is not a whole number")
    if not GROUPS_MIN <= groups <= GROUPS_MAX:
        raise LimitExceeded(
            f"groups {groups} is out of range: use {GROUPS_MIN} to {GROUPS_MAX}, or leave it out"
        )
    return int(groups)


def check_durability(durability: Any) -> str:
    if durability not in DURABILITIES:
        raise Invalid(f"durability {_shown(durability)} is not accepted: use sync or writeback")
    return str(durability)


def check_iops(iops: Any) -> int:
    if not _is_int(iops):
        raise Invalid(f"iops {_shown(iops)} is not a whole number of operations a second")
    if not 0 <= iops <= IOPS_MAX:
        raise LimitExceeded(f"iops {_shown(iops)} is out of range: use 1 to {IOPS_MAX}, or 0 for no ceiling")
    return int(iops)


def check_bw(bw: Any) -> int:
    if not _is_int(bw):
        raise Invalid(f"bw {_shown(bw)} is not a whole number of bytes a second")
    if bw != 0 and not BW_MIN <= bw <= BW_MAX:
        raise LimitExceeded(
            f"bw {_shown(bw)} is out of range: use {human(BW_MIN)} to {human(BW_MAX)} a second, or 0 for no"
            " ceiling"
        )
    return int(bw)


def check_principal(principal: Any) -> str:
    if not isinstance(principal, str) or not _NAME.fullmatch(principal):
        raise Invalid(
            f"principal {_shown(principal)} is not accepted: use 1 to {NAME_SIZE_MAX} of a-z, 0-9, '.', '_' "
            "and '-', beginning with a letter or digit"
        )
    return principal


LATER: Final = {"iops": check_iops, "bw": check_bw, "principal": check_principal}


def check_later(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of what volumes could not always be created with (``records.LATER``) that which is given."""
    return {key: check(values[key]) for key, check in LATER.items() if values.get(key) is not None}


def check_replica_ids(replicas: Any) -> frozenset[int]:
    if not isinstance(replicas, list | tuple) or not all(map(_is_int, replicas)):
        raise Invalid(f"replicas {_shown(replicas)} is not a list of replica ids")
    if len(replicas) > REPLICAS_ASKED_MAX:
        raise LimitExceeded(f"{len(replicas)} replica ids at once: ask for {REPLICAS_ASKED_MAX} at most")
    return frozenset(replicas)


def check_request(request: Any) -> str:
    if not isinstance(request, str) or not _REQUEST.fullmatch(request):
        raise Invalid(
            f"request id {_shown(request)} is not accepted: use 1 to {REQUEST_SIZE_MAX} of A-Z, a-z, 0-9, "
            "'.', '_' and '-', beginning with a letter or digit"
        )
    return request


def check_key(key: Any) -> str:
    """Of an object."""
    try:
        size = len(key.encode()) if isinstance(key, str) else 0
    except UnicodeEncodeError:  # a lone surrogate
        size = 0
    if not 0 < size <= KEY_BYTES_MAX:
        raise Invalid(f"key {_shown(key)} is not 1 to {KEY_BYTES_MAX} bytes of UTF-8")
    return str(key)


def check_document(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Invalid(f"document {_shown(name)} is no name")
    return name


def check_text(text: Any) -> str:
    """Of a document."""
    if not isinstance(text, str) or len(text.encode(errors="replace")) > DOCUMENT_MAX:
        raise LimitExceeded(f"a document of a bucket is text of at most {human(DOCUMENT_MAX)}")
    return text


def check_upload(upload: Any) -> str:
    if not isinstance(upload, str) or not _REQUEST.fullmatch(upload):
        raise Invalid(f"upload {_shown(upload)} is no id of an upload")
    return upload


def check_part(number: Any) -> int:
    if not _is_int(number) or not 1 <= number <= PARTS_MAX:
        raise Invalid(f"part number {_shown(number)} is not a number from 1 to {PARTS_MAX}")
    return int(number)


def check_writer(writer: Any) -> int:
    if not _is_int(writer) or not 1 <= writer <= WRITER_MAX:
        raise Invalid(f"writer id {_shown(writer)} is not accepted: use a random number from 1 to 2^63 - 1")
    return int(writer)


def check_succeeds(writers: Any) -> list[int]:
    """The former lives of one writer, any order; empty: it has none."""
    if not isinstance(writers, list | tuple) or len(writers) > SUCCEEDS_MAX:
        raise Invalid(f"succeeds {_shown(writers)} is not a list of at most {SUCCEEDS_MAX} writer ids")
    return [check_writer(writer) for writer in writers]


def check_fs(fs: Any) -> dict[str, str] | None:
    """``{"type", "state"}``, or None: nobody said what the volume is for. ``new``: the first mount formats;
    ``formatting``: begun, and to be begun anew if it was not finished; ``ready``."""
    if fs is None:
        return None
    if not isinstance(fs, dict) or fs.get("type") not in FS_TYPES or fs.get("state") not in FS_STATES:
        types, states = ", ".join(FS_TYPES), ", ".join(FS_STATES)
        raise Invalid(f"fs {_shown(fs)} is not accepted: use {{type: {types}; state: {states}}}")
    return {"type": fs["type"], "state": fs["state"]}


def check_holder(holder: Any) -> dict[str, Any]:
    """``{"host": str, "pid": int, "program": str}``; nothing else is kept."""
    if not isinstance(holder, dict):
        raise Invalid("holder must be a map of host, pid and program")
    host, pid, program = holder.get("host"), holder.get("pid"), holder.get("program")
    for key, text in (("host", host), ("program", program)):
        fits = isinstance(text, str) and text.isprintable() and 1 <= len(text.encode()) <= HOLDER_TEXT_MAX
        if not fits:
            raise Invalid(
                f"holder: {key} {_shown(text)} must be 1 to {HOLDER_TEXT_MAX} bytes of printable text"
            )
    if not _is_int(pid) or not 0 <= pid < 1 << 32:
        raise Invalid(f"holder: pid {_shown(pid)} must be a number from 0 to 2^32 - 1")
    return {"host": host, "pid": pid, "program": program}


def group_number(group: str) -> int:
    """``"m7"`` -> 7, which goes into the high bits of each id that this metadata group gives."""
    number = int(group[1:]) if _GROUP.fullmatch(group) else 0
    if not 1 <= number <= METADATA_GROUPS_MAX:
        raise Invalid(f"metadata group {_shown(group)} is not accepted: use m1 to m{METADATA_GROUPS_MAX}")
    return number


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)  # True is no size


def _is_lsn(value: Any) -> bool:
    return _is_int(value) and 1 <= value < 1 << 63


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
