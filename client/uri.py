"""Volume and bucket addresses: ``moorage://[CLUSTER]/NAME[@SNAPSHOT][/PATH][?options]``.

Owns parsing and its error messages. An empty authority is the default cluster (``moorage:///NAME``),
``moorage:/NAME`` is the same, and a bare ``NAME`` is taken for ``moorage:///NAME``. A snapshot is read-only.
The option keys are the same everywhere a volume is described (command line, URIs, drivers), so the table of
keys lives here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from moorage.wire.errors import Invalid

SCHEME = "moorage:"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
# What a volume is made with, once; one that exists stays as it is.
CREATING = ("size", "replicas", "groups", "durability", "fs", "iops", "bw", "principal")
USING = ("mode", "io_timeout")
OPTIONS = frozenset((*CREATING, *USING))
CHOICES = {"durability": ("sync", "writeback"), "fs": ("ext4", "xfs"), "mode": ("rw", "ro")}
IO_TIMEOUT = "60"
SIZE_END = 1 << 63  # no message holds more
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([kmgtp]?)(i?b)?", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """What a URI says. ``cluster`` is "" for the default one; ``snapshot`` is "" for the volume as it is;
    ``path`` has no leading slash."""

    cluster: str
    name: str
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    snapshot: str = ""

    def __str__(self) -> str:
        path = "/" + quote(self.path) if self.path else ""
        query = "&".join(f"{quote(key)}={quote(value)}" for key, value in self.options.items())
        return f"moorage://{self.cluster}/{self.shown}{path}" + ("?" + query if query else "")

    @property
    def shown(self) -> str:
        """``NAME`` or ``NAME@SNAPSHOT``."""
        return f"{self.name}@{self.snapshot}" if self.snapshot else self.name


def parse(text: str) -> Address:
    """Parse a URI or a bare name. Raises :class:`Invalid` naming the part that is wrong."""
    if not text.startswith(SCHEME):
        if "://" in text:
            raise Invalid(f"{text!r} is not a moorage URI: write moorage://[CLUSTER]/NAME or just NAME")
        name, snapshot = _split_snapshot(text)
        return Address("", name, snapshot=snapshot)
    body, _, query = text[len(SCHEME) :].partition("?")
    cluster, rest = _split_authority(text, body)
    name, _, path = rest.partition("/")
    name, snapshot = _split_snapshot(unquote(name))
    return Address(unquote(cluster), name, unquote(path), _options(text, query), snapshot)


def parse_snapshot(text: str) -> tuple[str, str]:
    """Volume and snapshot of ``VOLUME@SNAPSHOT``, or of a URI that names one."""
    address = parse(text)
    if not address.snapshot:
        raise Invalid(f"{text!r} is not a snapshot: write VOLUME@SNAPSHOT, the latter {NAME_RULE}")
    return address.name, address.snapshot


def _split_snapshot(text: str) -> tuple[str, str]:
    name, at, snapshot = text.partition("@")
    if at and not NAME.fullmatch(snapshot):
        raise Invalid(f"{snapshot!r} is not the name of a snapshot: use {NAME_RULE}", name=snapshot)
    return check_name(name), snapshot


def check_name(name: str) -> str:
    """Return ``name`` when it is a legal volume name, else raise :class:`Invalid` with the rule."""
    if not NAME.fullmatch(name):
        raise Invalid(f"{name!r} is not a volume name: use {NAME_RULE}", name=name)
    return name


def parse_size(text: str | int) -> int:
    """Bytes of ``4096``, ``"10G"``, ``"10GiB"``, ``"1.5 TiB"`` (units are powers of 1024)."""
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    size = SIZE_END
    if match is not None:
        unit = _UNITS[match[2].lower()]
        size = int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)
    if size >= SIZE_END:
        raise Invalid(f"{text[:80]!r} is not a size: write bytes, or a number with K, M, G or T such as 10G")
    return size


def parse_count(key: str, text: str) -> int:
    """The number that an option says. Its limits are metadata's."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid(f"{key}={text!r}: write a whole number")
    return int(text)


def check_option(key: str, value: str) -> None:
    """Raises :class:`Invalid` for a value that no volume can have, whatever metadata's limits are."""
    if value not in CHOICES.get(key, (value,)):
        raise Invalid(f"{key}={value!r}: write {' or '.join(CHOICES[key])}")
    if key in ("size", "bw"):
        parse_size(value)
    elif key in ("replicas", "groups", "iops"):
        parse_count(key, value)
    elif key == "principal":
        check_principal(value)
    elif key == "io_timeout":
        parse_seconds(key, value)


def check_principal(name: str) -> str:
    """Return ``name`` when it can be a principal's, else raise :class:`Invalid` with the rule."""
    if not NAME.fullmatch(name):
        raise Invalid(f"{name!r} is not the name of a principal: use {NAME_RULE}")
    return name


def creation(options: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of :meth:`moorage.Cluster.create_volume`, but name and size, that options say."""
    counts = {key: parse_count(key, options[key]) for key in ("replicas", "groups", "iops") if key in options}
    texts = {key: options[key] for key in ("durability", "fs", "bw", "principal") if key in options}
    return {**counts, **texts}


def read_only(address: Address) -> bool:
    """``mode=ro``, which a snapshot is in any case. Raises :class:`Invalid` for ``mode=rw`` of one."""
    mode = address.options.get("mode", "ro" if address.snapshot else "rw")
    check_option("mode", mode)
    if address.snapshot and mode == "rw":
        raise Invalid(f"{address.shown} is a snapshot, which nobody writes to: clone it")
    return mode == "ro"


def parse_seconds(key: str, text: str) -> float:
    """The seconds that an option says; 0 is for ever."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise Invalid(f"{key}={text!r}: write seconds, or 0 to wait for ever")
    return seconds


def io_timeout(address: Address) -> float:
    """Seconds that an operation may wait for a majority, 0 for ever."""
    return parse_seconds("io_timeout", address.options.get("io_timeout", IO_TIMEOUT))


def parse_volume(text: str) -> Address:
    """The address of a whole volume, as what mounts it takes it (``docs/decisions/0005-a-uri-names-a-whole-
    volume.md``). Raises :class:`Invalid` also for a value that no volume can have, before anybody acts on
    it."""
    address = parse(text)
    if address.path:
        raise Invalid(f"{text} names a file in a volume: write moorage:///{address.name}")
    for key, value in address.options.items():
        check_option(key, value)
    return address


def _split_authority(text: str, body: str) -> tuple[str, str]:
    if body.startswith("//"):
        cluster, slash, rest = body[2:].partition("/")
        if not slash:
            raise Invalid(f"{text!r} names no volume: write moorage://{cluster}/NAME")
        return cluster, rest
    if body.startswith("/"):
        return "", body[1:]
    raise Invalid(f"{text!r} is not a moorage URI: write moorage:/NAME or moorage://[CLUSTER]/NAME")


def _options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in OPTIONS:
            raise Invalid(f"unknown option {key!r} in {text!r}: known are {', '.join(sorted(OPTIONS))}")
        if key in options:
            raise Invalid(f"option {key!r} is given twice in {text!r}")
        options[key] = value
    return options
