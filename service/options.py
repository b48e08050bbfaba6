"""Every option of every service: ONE table, from which flags, environment variables and docs/launch.md come.

Owns names, types, defaults and the words of the help. An option ``http_port`` is the flag ``--http-port``
and the variable ``MOORAGE_HTTP_PORT``, with the same text for both. Must never hold a secret: only the
paths of files that do.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.wire import address
from moorage.wire.errors import Invalid

SERVICES = ("registry", "metadata", "node", "host")
_ALL = frozenset(SERVICES)
_REGISTRY = frozenset({"registry", "host"})
_METADATA = frozenset({"metadata", "host"})
_NODE = frozenset({"node", "host"})

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_COUNT = re.compile(r"[0-9]{1,10}")
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
SIZE_END = 1 << 63  # no state and no message holds more
_DURATION = re.compile(r"([0-9]{1,9})\s*([smhd]?)", re.IGNORECASE)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}


def parse_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise Invalid("use 1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit")
    return text


def name_of(text: str) -> str:
    """A name made of a machine's host name; "" if none can be."""
    return re.sub(r"[^a-z0-9._-]", "-", text.lower())[:63].lstrip("._-")


def parse_size(text: str) -> int:
    """Bytes, or with K, M, G, T, P (powers of 1024)."""
    match = _SIZE.fullmatch(text.strip())
    size = SIZE_END
    if match is not None:
        shift = _SHIFT[match[2].upper()]
        size = int(float(match[1]) * (1 << shift)) if "." in match[1] else int(match[1]) << shift
    if size >= SIZE_END:
        raise Invalid("use a number of bytes, or one with K, M, G, T (powers of 1024), such as 200G")
    return size


def parse_port(text: str) -> int:
    port = address.port_of(text)
    if port is None:
        raise Invalid("use a port from 1 to 65535, or 0 for any free one")
    return port


def parse_count(text: str) -> int:
    if not (_COUNT.fullmatch(text) and 0 < int(text) < 1 << 31):
        raise Invalid("use a whole number above 0")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds, or with s, m, h, d; 0 for never."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise Invalid("use a number with s, m, h or d, such as 7d or 90m; 0 for never")
    return int(match[1]) * _SECONDS[match[2].lower()]


def parse_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise Invalid("use an IP address, such as 10.0.0.5") from None


def parse_host(text: str) -> str:
    """An IP address or a host name; what others connect to."""
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", text.strip("[]")):
        raise Invalid("use an IP address or a host name")
    return text.strip("[]")


def parse_path(text: str) -> Path:
    if not text:
        raise Invalid("use a path")
    return Path(text).absolute()


def parse_map(text: str) -> dict[str, str]:
    """``key=value,...``"""
    found: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise Invalid(f"{part!r} is not KEY=VALUE: use KEY=VALUE,KEY=VALUE,...")
        if key in found:
            raise Invalid(f"{key!r} stands there twice")
        found[key] = value
    return found


def parse_peers(text: str) -> dict[str, str]:
    """``name=host:port,...``"""
    peers = parse_map(text)
    for name, where in peers.items():
        parse_name(name)
        host, _, port = where.rpartition(":")
        if not host or not address.port_of(port):
            raise Invalid(f"{where!r} is not HOST:PORT: use NAME=HOST:PORT,NAME=HOST:PORT,...")
    return peers


def parse_spec(text: str) -> str:
    """Addresses, or an SRV name; resolved later, and again and again."""
    if text.startswith("srv:"):
        if not re.fullmatch(r"[A-Za-z0-9._-]+", text[len("srv:") :]):
            raise Invalid("use srv:NAME, such as srv:_registry._tcp.moorage.mesos")
        return text
    for part in text.split(","):
        address.parse(part.strip())
    return text


def parse_bool(text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise Invalid("use yes or no")
    return text.lower() == "yes"


def parse_level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise Invalid("use DEBUG, INFO, WARNING or ERROR")
    return text.upper()


@dataclass(frozen=True)
class Option:
    """``default`` is text, parsed like any other; None: the option must be given, or has the stated rule."""

    name: str
    type: str  # the word that help and docs show
    parse: Callable[[str], Any]
    default: str | None
    services: frozenset[str]
    help: str
    required: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "MOORAGE_" + self.name.upper()


OPTIONS: tuple[Option, ...] = (
    Option(
        "name", "NAME", parse_name, None, _ALL,
        "Name of this host, the failure domain, and of its Raft members. Default: the machine's host name.",
    ),
    Option(
        "data_dir", "PATH", parse_path, None, _ALL,
        "Directory of the service's state; must persist. One process each.", required=True,
    ),
    Option(
        "secret_file", "PATH", parse_path, None, _ALL,
        "File (mode 0600) with the cluster secret, from `moorage secret create`.", required=True,
    ),
    Option(
        "token_file", "PATH", parse_path, None, _ALL,
        "File (mode 0600) with the bearer token of the JSON API. Without it the API refuses every call.",
    ),
    Option(
        "bind", "IP", parse_ip, None, _ALL,
        "Address to listen on. Default: $LIBPROCESS_IP, else 127.0.0.1.",
    ),
    Option(
        "advertise", "HOST", parse_host, None, _ALL,
        "Address that others are told. Default: $LIBPROCESS_IP, else the one of --bind.",
    ),
    Option(
        "port", "PORT", parse_port, None, _ALL,
        "Port of the binary protocol. Default: $PORT0, else the first of $PORTS, else 0 (any free one).",
    ),
    Option(
        "http_port", "PORT", parse_port, None, _ALL,
        "Port of HTTP. Default: $PORT1, else the second of $PORTS, else 0 (any free one).",
    ),
    Option(
        "peers", "NAME=HOST:PORT,...", parse_peers, "", _REGISTRY | _METADATA,
        "First members of the Raft group, this one included; used only while --data-dir is empty."
        " Default: this one alone.",
    ),
    Option(
        "join", "BOOL", parse_bool, "no", _REGISTRY | _METADATA,
        "yes: this member is to be added to a group that exists; --peers names the others.",
    ),
    Option(
        "registry", "SPEC", parse_spec, None, frozenset({"metadata", "node"}),
        "Where the registry is: HOST:PORT,... or srv:NAME (a DNS SRV record).", required=True,
    ),
    Option(
        "group", "NAME", parse_name, "m1", _METADATA,
        "Metadata group that this process is a member of.",
    ),
    Option(
        "capacity", "SIZE", parse_size, None, _NODE,
        "Bytes that the device may use, such as 200G. Default: 90 % of what is free at the first start.",
    ),
    Option(
        "labels", "KEY=VALUE,...", parse_map, "", _NODE,
        "Failure domains of this host, such as rack=r1,zone=a.",
    ),
    Option(
        "heartbeat_ms", "MS", parse_count, "1000", _REGISTRY,
        "How often devices report to the registry.",
    ),
    Option(
        "suspect_ms", "MS", parse_count, "3000", _REGISTRY,
        "Silence after which a device is suspect: nothing new is placed there.",
    ),
    Option(
        "down_ms", "MS", parse_count, "10000", _REGISTRY,
        "Silence after which a device is down.",
    ),
    Option(
        "lease_ms", "MS", parse_count, "4000", _METADATA,
        "Silence of a volume's holder after which others may attach unasked.",
    ),
    Option(
        "repair_after_s", "S", parse_count, "600", _METADATA,
        "How long a device may be down before its replicas are placed anew.",
    ),
    Option(
        "read_lease_ms", "MS", parse_count, "1000", _NODE,
        "How long a device holds back a takeover for a silent holder's reads.",
    ),
    Option(
        "scrub_period", "DURATION", parse_duration, "7d", _NODE,
        "Within this, all data and index of a device are read back from the disk and checked; 0: never.",
    ),
    Option(
        "copy_within", "DURATION", parse_duration, "2h", _NODE,
        "A copy that brings redundancy back is complete so soon, whatever users do; 0: it only takes what"
        " they leave.",
    ),
    Option(
        "background_rate", "SIZE", parse_size, "0", _NODE,
        "Bytes per second that copies, compaction and scrub never exceed together, such as 200M. 0: what"
        " users leave.",
    ),
    Option(
        "drain_s", "S", parse_count, "5", _ALL,
        "Seconds that a stop may take after SIGTERM before the process ends anyhow.",
    ),
    Option(
        "log_level", "LEVEL", parse_level, "INFO", _ALL,
        "DEBUG, INFO, WARNING or ERROR.",
    ),
)  # fmt: skip

BY_NAME = {option.name: option for option in OPTIONS}


def options_of(service: str) -> list[Option]:
    return [option for option in OPTIONS if service in option.services]
