"""What a name and its options ask for. Pure; nothing is looked up.

Owns the keys that drivers take: those of a volume URI, with one meaning everywhere. What nothing would
honour is refused: a limit that is accepted and not kept is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from moorage.client import uri
from moorage.client.uri import Address
from moorage.wire.errors import Invalid

CREATING = ("size", "replicas", "groups", "durability", "fs")  # what a volume is made with, once
MOUNTING = ("mode", "io_timeout")  # how it is mounted on this host
_NOT_KEPT = ("iops", "bw")
_CHOICES = {"durability": ("sync", "writeback"), "fs": ("ext4", "xfs"), "mode": ("ro", "rw")}


def wish(name: str, options: Mapping[str, str] | None = None) -> Address:
    """``name``: of a volume, or its URI, whose options these add to. Raises Invalid that names the part."""
    address = uri.parse(name)
    if address.path:
        raise Invalid(f"{name!r} names a file in a volume: name the volume, {address.name!r}")
    merged = dict(address.options)
    for key, value in (options or {}).items():
        if merged.setdefault(key, value) != value:
            raise Invalid(f"option {key!r} is {merged[key]!r} in {name!r} and {value!r} beside it")
    for key, value in merged.items():
        _check(key, value)
    return replace(address, options=merged)


def _check(key: str, value: str) -> None:
    if key in _NOT_KEPT:
        raise Invalid(f"option {key!r} is not supported: nothing limits the {key} of a volume")
    if key not in CREATING + MOUNTING:
        raise Invalid(f"unknown option {key!r}: known are {', '.join(CREATING + MOUNTING)}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise Invalid(f"{key}={value!r}: write {' or '.join(_CHOICES[key])}")
    if key == "size":
        uri.parse_size(value)
    elif key in ("replicas", "groups"):
        uri.parse_count(key, value)
    elif key == "io_timeout":
        uri.parse_seconds(key, value)


def to_mount(address: Address) -> dict[str, str]:
    return {key: value for key, value in address.options.items() if key in MOUNTING}


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """Of ``KEY=VALUE`` texts."""
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise Invalid(f"option {pair!r} is not KEY=VALUE")
        if options.setdefault(key, value) != value:
            raise Invalid(f"option {key!r} is given twice: {options[key]!r} and {value!r}")
    return options
