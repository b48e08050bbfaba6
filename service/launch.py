"""From flags and environment to checked settings: all that can be wrong is found before anything is touched.

Precedence: flag, then ``MOORAGE_*``, then what Mesos sets (``$PORT0``, ``$PORTS``, ``$LIBPROCESS_IP``),
then the default. Raises Invalid with the option's name, the value, and what would be accepted.
docs/launch.md is the contract.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.service.options import BY_NAME, OPTIONS, Option, name_of, options_of
from moorage.wire.errors import Invalid

# Not options: a secret in the environment is seen by whoever may read /proc or the scheduler's own pages.
_FORBIDDEN = {"MOORAGE_SECRET": "MOORAGE_SECRET_FILE", "MOORAGE_TOKEN": "MOORAGE_TOKEN_FILE"}

SHOWN_MAX = 80  # characters of a bad value that an error repeats


@dataclass(frozen=True)
class Settings:
    """One field per option of the table; an option that is not the service's has its default."""

    service: str
    name: str
    data_dir: Path
    secret_file: Path
    token_file: Path | None
    bind: str
    advertise: str
    port: int
    http_port: int
    peers: dict[str, str]
    join: bool
    registry: str | None  # always there for those who have the option
    group: str
    capacity: int | None
    labels: dict[str, str]
    heartbeat_ms: int
    suspect_ms: int
    down_ms: int
    lease_ms: int
    read_lease_ms: int
    repair_after_s: int
    scrub_period: float
    copy_within: float
    background_rate: int
    drain_s: int
    log_level: str

    def validate(self) -> None:
        """Options against each other; each relation says which two contradict."""
        if self.bind in ("0.0.0.0", "::") and self.advertise in ("0.0.0.0", "::"):
            raise Invalid(
                f"--bind {self.bind} is every address: say with --advertise HOST which one others shall use"
            )
        if self.join and not set(self.peers) - {self.name}:
            raise Invalid("--join needs --peers: say NAME=HOST:PORT,... of the group's other members")
        if self.peers and self.name not in self.peers and not self.join:
            raise Invalid(f"--peers does not name this member: add {self.name}=HOST:PORT, or correct --name")
        if self.peers and len(self.peers) not in (1, 3, 5) and not self.join:
            raise Invalid(f"--peers names {len(self.peers)} members: a Raft group starts with 1, 3 or 5")
        if self.port and self.port == self.http_port:
            raise Invalid(f"--port and --http-port are both {self.port}: give each its own")
        self._validate_timings()

    def _validate_timings(self) -> None:
        _ordered(
            "heartbeat_ms",
            self.heartbeat_ms,
            2,
            "suspect_ms",
            self.suspect_ms,
            "one lost report is no silence",
        )
        _ordered(
            "suspect_ms", self.suspect_ms, 1, "down_ms", self.down_ms, "a device is suspect before it is down"
        )
        # A holder renews four times per lease: at least one renewal may be lost, and a leader change fits in.
        _ordered(
            "read_lease_ms",
            self.read_lease_ms,
            2,
            "lease_ms",
            self.lease_ms,
            "reads end before the lease does",
        )


def _ordered(small: str, a: int, factor: int, large: str, b: int, why: str) -> None:
    if a * factor >= b:
        times = f"{factor} times " if factor > 1 else ""
        raise Invalid(f"{BY_NAME[large].flag} {b} must be more than {times}{BY_NAME[small].flag} {a}: {why}")


def load_settings(service: str, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """``flags``: option name -> text as typed, None when not given."""
    for variable, instead in _FORBIDDEN.items():
        if variable in environ:
            raise Invalid(f"{variable} is set: secrets come from a file, say its path in {instead}")
    own = {option.name for option in options_of(service)}
    values: dict[str, Any] = {
        option.name: _value(option, flags, environ) if option.name in own else _default(option)
        for option in OPTIONS
    }
    for option in options_of(service):
        if option.required and not values[option.name]:
            raise Invalid(f"{option.flag} ({option.variable}) is missing: {option.help}")
    _fill_in(values, environ)
    settings = Settings(service=service, **values)
    settings.validate()
    return settings


def http_address(environ: Mapping[str, str]) -> str:
    """HOST:PORT at which the service of this environment answers HTTP on its own machine."""
    names = ("name", "bind", "advertise", "port", "http_port")
    values: dict[str, Any] = {name: _value(BY_NAME[name], {}, environ) for name in names}
    _fill_in(values, environ)
    if not values["http_port"]:
        raise Invalid("no HTTP port is set: a health check needs MOORAGE_HTTP_PORT, PORT1 or PORTS")
    return join_address(
        "127.0.0.1" if values["bind"] == "0.0.0.0" else str(values["bind"]), values["http_port"]
    )


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """``MOORAGE_*`` that no option has: most likely misspelt, worth a warning."""
    known = {option.variable for option in OPTIONS}
    return sorted(each for each in environ if each.startswith("MOORAGE_") and each not in known)


def _value(option: Option, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> object:
    for source, text in (
        (option.flag, flags.get(option.name)),
        (option.variable, environ.get(option.variable)),
    ):
        if text is not None and (text != "" or source == option.flag):
            return _parsed(option, source, text)
    return _default(option)


def _default(option: Option) -> object:
    return None if option.default is None else option.parse(option.default)


def _parsed(option: Option, source: str, text: str) -> object:
    try:
        return option.parse(text)
    except Invalid as error:
        raise Invalid(f"{source} {_shown(text)}: {error}") from None


def _shown(text: str) -> str:
    return repr(text) if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]!r}..."


def _fill_in(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Defaults that depend on the environment."""
    if values["name"] is None:
        values["name"] = _host_name()
    mesos_ip = environ.get("LIBPROCESS_IP")
    if mesos_ip:
        mesos_ip = str(_parsed(BY_NAME["bind"], "LIBPROCESS_IP", mesos_ip))
    values["bind"] = values["bind"] or mesos_ip or "127.0.0.1"
    values["advertise"] = values["advertise"] or mesos_ip or values["bind"]
    for place, name in enumerate(("port", "http_port")):
        if values[name] is None:
            values[name] = _mesos_port(place, name, environ)


def _mesos_port(place: int, name: str, environ: Mapping[str, str]) -> object:
    source, text = f"PORT{place}", environ.get(f"PORT{place}", "")
    if not text:
        listed = environ.get("PORTS", "").split(",")
        source, text = "PORTS", listed[place].strip() if place < len(listed) else ""
    return _parsed(BY_NAME[name], source, text) if text else 0


def _host_name() -> str:
    name = name_of(socket.gethostname())
    if not name:
        raise Invalid("this machine has no usable host name: give one with --name")
    return name


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
