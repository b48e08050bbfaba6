"""What a name and its options ask for. Pure; nothing is looked up.

Owns the rule that what a name says and what is said beside it must agree. The keys are those of a volume URI,
with one meaning everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from moorage.client import uri
from moorage.client.uri import Address
from moorage.wire.errors import Invalid


def wish(name: str, options: Mapping[str, str] | None = None) -> Address:
    """``name``: of a volume, or its URI, whose options these add to. Raises Invalid that names the part."""
    address = uri.parse_volume(name)
    merged = dict(address.options)
    for key, value in (options or {}).items():
        if merged.setdefault(key, value) != value:
            raise Invalid(f"option {key!r} is {merged[key]!r} in {name!r} and {value!r} beside it")
    for key, value in merged.items():
        if key not in uri.OPTIONS:
            raise Invalid(f"unknown option {key!r}: known are {', '.join((*uri.CREATING, *uri.USING))}")
        uri.check_option(key, value)
    return replace(address, options=merged)


def to_mount(address: Address) -> dict[str, str]:
    """How it is mounted on this host."""
    return {key: value for key, value in address.options.items() if key in uri.USING}


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
