"""What requests ask for: capabilities, capacities, names and options, checked and in our own words. Pure.

Owns the rules that need no look at the world, and the messages that say what would be accepted. A wrong value
is INVALID_ARGUMENT; whether what is asked for can be had is the callers' question.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from grpc import StatusCode

from moorage.client import uri
from moorage.gateway.csi.codes import Refused, invalid
from moorage.gateway.csi.csi_pb2 import CapacityRange, VolumeCapability
from moorage.wire.errors import Invalid

Mode = VolumeCapability.AccessMode
READERS: Final = frozenset({Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY})
# May be published at several targets of one node.
SHARED: Final = frozenset({Mode.MULTI_NODE_READER_ONLY, Mode.SINGLE_NODE_MULTI_WRITER})
WRITERS: Final = frozenset(
    {Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER}
)
FILE_SYSTEMS: Final = ("ext4", "xfs")
NAME_BYTES_MAX: Final = 128
FLAGS_BYTES_MAX: Final = 4096
SIZE_MIN: Final = 1 << 20
SIZE_MAX: Final = 64 << 40
SIZE_STEP: Final = 4096
SIZE_DEFAULT: Final = 1 << 30
GROUPS_MAX: Final = 64
REPLICAS: Final = (1, 3, 5)

IOPS_MAX: Final = 10_000_000
BW_MIN: Final = 64 << 10
BW_MAX: Final = 1 << 40

CREATION_KEYS: Final = frozenset(uri.CREATING)
CONTEXT_KEYS: Final = CREATION_KEYS | {"force", "io_timeout", "mode", "owner"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Capability:
    """How a volume is to be used on a node. ``block``: as a device; else as a file system, ``fs`` "" for
    whatever it holds."""

    mode: int
    block: bool = False
    fs: str = ""
    flags: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        return self.mode in READERS

    @property
    def shared(self) -> bool:
        return self.mode in SHARED

    def serves(self, other: Capability) -> bool:
        """Whether a volume that is mounted so can be published as ``other`` says."""
        same = (self.read_only, self.flags) == (other.read_only, other.flags)
        return same and other.fs in ("", self.fs)

    def unsupported(self) -> str:
        """Why no volume of ours can be used so, or nothing."""
        if self.mode not in READERS | WRITERS:
            name = {number: name for name, number in Mode.Mode.items()}.get(self.mode, self.mode)
            return f"access mode {name} is not supported: a volume has one writer, or any number of readers"
        if self.block:
            return "access type block is not supported: use mount, or serve the volume by moorage attach"
        if self.fs and self.fs not in FILE_SYSTEMS:
            return f"file system {self.fs!r} is not supported: use {' or '.join(FILE_SYSTEMS)}"
        return ""


def capability_of(message: VolumeCapability | None) -> Capability:
    """Whole, whether it is supported or not."""
    if message is None or not message.HasField("access_mode") or not message.access_mode.mode:
        raise invalid("volume_capability has no access_mode: set access_mode.mode")
    kind = message.WhichOneof("access_type")
    if kind is None:
        raise invalid("volume_capability has no access type: set mount or block")
    flags = tuple(message.mount.mount_flags)
    if sum(len(flag.encode()) for flag in flags) > FLAGS_BYTES_MAX:
        raise invalid(f"mount_flags have more than {FLAGS_BYTES_MAX} bytes")
    return Capability(message.access_mode.mode, kind == "block", message.mount.fs_type, flags)


def capabilities_of(messages: Iterable[VolumeCapability]) -> list[Capability]:
    found = [capability_of(message) for message in messages]
    if not found:
        raise invalid("volume_capabilities are missing: say how the volume is to be used")
    return found


def volume_name(volume_id: str) -> str:
    """The name of the volume that an id means: ids are names."""
    if not volume_id:
        raise invalid("volume_id is missing")
    try:
        return uri.check_name(volume_id)
    except Invalid as error:
        raise invalid(f"volume_id: {error}") from None


def name_for(wished: str) -> str:
    """The volume name for the name that an orchestrator gave: that one where it is legal, else one that is
    derived from it, the same each time."""
    if not wished:
        raise invalid("name is missing")
    if len(wished.encode()) > NAME_BYTES_MAX or _CONTROL.search(wished):
        raise invalid(f"name: use at most {NAME_BYTES_MAX} bytes without control characters")
    if uri.NAME.fullmatch(wished):
        return wished
    readable = re.sub(r"[^a-z0-9._-]+", "-", wished.lower()).strip("-._")[:40]
    digest = hashlib.blake2s(wished.encode(), digest_size=10).hexdigest()
    return f"{readable}-{digest}" if readable else digest


def path_of(path: str, field: str) -> str:
    if not path:
        raise invalid(f"{field} is missing")
    if not path.startswith("/") or "\0" in path:
        raise invalid(f"{field} {path!r} is not an absolute path")
    return path


def options_of(given: Mapping[str, str], known: frozenset[str], field: str) -> dict[str, str]:
    """The options among ``given``. Keys with a slash are other programs' (``storage.kubernetes.io/...``)."""
    options = {key: value for key, value in given.items() if "/" not in key}
    if unknown := sorted(options.keys() - known):
        raise invalid(f"{field} has unknown keys {', '.join(unknown)}: known are {', '.join(sorted(known))}")
    if options.get("force", "true") not in ("true", "false"):
        raise invalid(f"{field}: force={options['force']!r}: use true or false")
    for key, value in options.items():
        try:
            uri.check_option(key, value)
        except Invalid as error:
            raise invalid(f"{field}: {error}") from None
    owner_of(options)
    return options


def owner_of(options: Mapping[str, str]) -> tuple[int, int] | None:
    if "owner" not in options:
        return None
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", options["owner"], re.ASCII)
    if match is None:
        raise invalid(f"owner={options['owner']!r}: write UID:GID, two numbers such as 1000:1000")
    return int(match[1]), int(match[2])


def creation_of(options: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of :meth:`moorage.Cluster.create_volume` but name and size."""
    wanted = uri.creation(options)
    if wanted.get("replicas", 1) not in REPLICAS:
        raise invalid(f"replicas={wanted['replicas']}: use 1, 3 or 5")
    if wanted.get("groups", 0) > GROUPS_MAX:
        raise invalid(f"groups={wanted['groups']}: use at most {GROUPS_MAX}")
    if wanted.get("iops", 0) > IOPS_MAX:
        raise invalid(f"iops={wanted['iops']}: use at most {IOPS_MAX}, or 0 for no ceiling")
    bw = uri.parse_size(wanted.get("bw", 0))
    if bw and not BW_MIN <= bw <= BW_MAX:
        raise invalid(f"bw={wanted['bw']}: use {BW_MIN} to {BW_MAX} bytes a second, or 0 for no ceiling")
    return wanted


def size_for(bounds: CapacityRange, default: int) -> int:
    """The least size that is within ``bounds``; ``default`` where they leave it open."""
    check_bounds(bounds)
    size = bounds.required_bytes or min(default, bounds.limit_bytes or default)
    size = max(SIZE_MIN, -(-size // SIZE_STEP) * SIZE_STEP)
    if not bounds.required_bytes and bounds.limit_bytes and size > bounds.limit_bytes:
        size -= SIZE_STEP  # an open size was rounded past the limit
    if size > SIZE_MAX or size < SIZE_MIN or (bounds.limit_bytes and size > bounds.limit_bytes):
        raise Refused(
            StatusCode.OUT_OF_RANGE,
            f"no size is within the capacity_range: sizes are multiples of {SIZE_STEP} from {SIZE_MIN} to "
            f"{SIZE_MAX} bytes",
        )
    return size


def check_bounds(bounds: CapacityRange) -> None:
    if bounds.required_bytes < 0 or bounds.limit_bytes < 0:
        raise invalid("capacity_range has a negative number of bytes")
    if bounds.limit_bytes and bounds.required_bytes > bounds.limit_bytes:
        raise Refused(StatusCode.OUT_OF_RANGE, "capacity_range requires more than its limit")


def fits(size: int, bounds: CapacityRange) -> bool:
    return size >= bounds.required_bytes and (not bounds.limit_bytes or size <= bounds.limit_bytes)
