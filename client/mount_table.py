"""Lines of the mount table: what they say, and what is wrong with them.

A line is ``SOURCE TARGET KIND [OPTIONS]``, as in fstab(5): fields are separated by blanks (a blank inside is
``\\040``), ``#`` begins a comment. SOURCE is one of our volumes (``moorage://[CLUSTER]/NAME``) or foreign
storage; KIND is ``ext4``, ``xfs`` or ``auto`` for ours, else what mounts it (docs/mount-table.md). OPTIONS
are separated by commas: those of a volume URI, ``owner``, the table's own (``hosts``, ``name``,
``noauto``), and whatever else is for the one who mounts.

Owns parsing and its messages, each with the number of its line. A pure module: it looks at no host.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlencode

from moorage.client import uri
from moorage.wire.errors import Invalid, ProtocolError

VOLUME_KINDS = ("ext4", "xfs", "auto")
S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
KIND = re.compile(r"[a-z0-9][a-z0-9._+-]{0,30}")
HOST_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]+")
SECRETS = ("password", "passwd", "pass", "secret", "secret_key", "access_key")
IGNORED = ("defaults", "auto", "nofail", "_netdev", "rw")  # of fstab(5): nothing else is done here
_ESCAPE = re.compile(r"\\(040|011|043|134)")
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Line:
    """One line. ``source``: a volume's URI with all of its options, or as it stands; ``options``: those for
    the one who mounts; ``hosts``: patterns of the hosts that mount it, none for all; ``automatic``: it is
    mounted, not only named."""

    number: int
    name: str
    source: str
    target: str
    kind: str
    options: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None
    hosts: tuple[str, ...] = ()
    automatic: bool = True

    @property
    def address(self) -> uri.Address | None:
        """Of a volume of ours; None for foreign storage."""
        return uri.parse(self.source) if self.source.startswith(uri.SCHEME) else None

    @property
    def what(self) -> str:
        """All that is mounted, but not where: another text is another mount."""
        owner = "" if self.owner is None else f"owner={self.owner[0]}:{self.owner[1]}"
        return " ".join((self.source, self.kind, ",".join(self.options), owner)).rstrip()

    def is_for(self, host: str) -> bool:
        return not self.hosts or any(fnmatch.fnmatchcase(host, pattern) for pattern in self.hosts)

    def is_called(self, name: str) -> bool:
        return name in (self.name, self.target, self.source, self.source.partition("?")[0])


@dataclass(frozen=True)
class MountTable:
    """A version of the table. ``history``: version, by and at_ms of those that are kept."""

    version: int
    text: str
    by: str = ""
    at_ms: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> MountTable:
        """Raises ProtocolError for an answer without a text: it is one to somebody who has it already."""
        if value.get("text") is None:
            raise ProtocolError(f"version {value['version']} of the mount table came without its text")
        known = cls.__dataclass_fields__
        return cls(**{name: value[name] for name in known if value.get(name) is not None})

    def lines(self) -> tuple[list[Line], list[str]]:
        """What it says, and what is wrong with the rest."""
        return parse(self.text)


def check(text: str) -> list[Line]:
    """The lines of a table. Raises :class:`Invalid` that names each bad one by its number."""
    lines, problems = parse(text)
    if problems:
        more = f" (and {len(problems) - _PROBLEMS_SHOWN} more)" if len(problems) > _PROBLEMS_SHOWN else ""
        raise Invalid("; ".join(problems[:_PROBLEMS_SHOWN]) + more, problems=problems)
    return lines


def parse(text: str) -> tuple[list[Line], list[str]]:
    """The good lines, and what is wrong with the bad ones (``"line 3: ..."``)."""
    lines: list[Line] = []
    problems = []
    for number, row in enumerate(text.splitlines(), start=1):
        try:
            if fields := _fields(row):
                line = _line(number, fields)
                _check_target_is_free(line, lines)
                lines.append(line)
        except Invalid as error:
            problems.append(f"line {number}: {error}")
    return lines, problems


def _fields(row: str) -> list[str]:
    try:
        row.encode()
    except UnicodeEncodeError:
        raise Invalid("it is not UTF-8") from None
    fields = row.split()
    comment = next((i for i, each in enumerate(fields) if each.startswith("#")), len(fields))
    return [_ESCAPE.sub(lambda found: chr(int(found[1], 8)), each) for each in fields[:comment]]


def _line(number: int, fields: list[str]) -> Line:
    if not 3 <= len(fields) <= 4:
        raise Invalid(f"{len(fields)} fields: write SOURCE TARGET KIND [OPTIONS]")
    source, target, kind = fields[:3]
    options = _Options(fields[3] if len(fields) == 4 else "")
    _check_target(target)
    if not KIND.fullmatch(kind):
        raise Invalid(f"{kind!r} is not a kind of file system: such as ext4, s3, nfs4")
    ours = source.startswith(uri.SCHEME)
    hosts = options.take_hosts()
    name = options.take("name") or (uri.parse(source).name if ours else PurePosixPath(target).name)
    automatic = not options.take_flag("noauto")
    owner = None
    if ours:
        owner = options.take_owner()
        source = _volume(source, kind, options)
    else:
        _check_foreign(source, kind, options)
    for ignored in IGNORED:
        options.take_flag(ignored)
    return Line(number, name, source, target, kind, tuple(options.left), owner, hosts, automatic)


class _Options:
    """The fourth field; what is taken is not left for the one who mounts."""

    def __init__(self, text: str) -> None:
        self.left = [option for option in text.split(",") if option]

    def take(self, key: str) -> str | None:
        found = [option for option in self.left if option.startswith(f"{key}=")]
        if len(found) > 1:
            raise Invalid(f"option {key!r} is given twice")
        if not found:
            return None
        self.left.remove(found[0])
        return found[0].partition("=")[2]

    def take_flag(self, name: str) -> bool:
        found = name in self.left
        self.left = [option for option in self.left if option != name]
        return found

    def take_hosts(self) -> tuple[str, ...]:
        value = self.take("hosts")
        if value is None:
            return ()
        patterns = tuple(value.split(":"))
        if not all(HOST_PATTERN.fullmatch(pattern) for pattern in patterns):
            raise Invalid(f"hosts={value}: write names or patterns, such as hosts=agent1:db-*")
        return patterns

    def take_owner(self) -> tuple[int, int] | None:
        value = self.take("owner")
        return None if value is None else parse_owner(value)


def parse_owner(text: str) -> tuple[int, int]:
    """``UID:GID``, two numbers."""
    uid, _, gid = text.partition(":")
    if not all(each.isascii() and each.isdigit() and len(each) < 11 for each in (uid, gid)):
        raise Invalid(f"{text!r} is not UID:GID, two numbers such as 1000:1000")
    return int(uid), int(gid)


def _volume(source: str, kind: str, options: _Options) -> str:
    """The URI with the options of the line in it: so they mean what they mean everywhere."""
    if kind not in VOLUME_KINDS:
        raise Invalid(f"{kind!r} is not for a volume: write {', '.join(VOLUME_KINDS)}")
    address = uri.parse_volume(source)
    given = dict(address.options)
    taken = {key: value for key in sorted(uri.OPTIONS) if (value := options.take(key)) is not None}
    if kind != "auto":
        taken.setdefault("fs", kind)
    if options.take_flag("ro"):
        taken.setdefault("mode", "ro")
    for key, value in taken.items():
        if given.setdefault(key, value) != value:
            raise Invalid(f"{key}={value} contradicts {key}={given[key]} of the URI or the kind {kind}")
    if kind != "auto" and given["fs"] != kind:
        raise Invalid(f"fs={given['fs']} contradicts the kind {kind}")
    query = urlencode(given)
    return str(
        uri.parse_volume(f"moorage://{address.cluster}/{address.name}" + ("?" + query if query else ""))
    )


def _check_foreign(source: str, kind: str, options: _Options) -> None:
    if kind in VOLUME_KINDS:
        raise Invalid(f"{source!r} is no volume: write moorage:///NAME, or what mounts it instead of {kind}")
    if kind == "s3" and not S3.fullmatch(source):
        raise Invalid(f"{source!r} is not a bucket: write s3://BUCKET[/PREFIX]")
    if kind == "hdfs" and not source.startswith("hdfs://"):
        raise Invalid(f"{source!r} is not a file system of HDFS: write hdfs://NAMENODE:PORT")
    if source.startswith("-"):
        raise Invalid(f"{source!r} is an option, not a source")
    for option in options.left:
        if option.partition("=")[0] in SECRETS:
            raise Invalid(
                f"{option.partition('=')[0]}=... would be shown to everybody who reads the table: keep it in "
                "a file on the hosts, and name that (docs/mount-table.md)"
            )


def _check_target(target: str) -> None:
    if not target.startswith("/") or target[1:2] in ("", "/") or str(PurePosixPath(target)) != target:
        raise Invalid(f"{target!r} is not a mount point: write an absolute path without a slash at its end")
    if ".." in PurePosixPath(target).parts or "\n" in target:
        raise Invalid(f"{target!r} is not a mount point: write it without '..'")


def _check_target_is_free(line: Line, others: list[Line]) -> None:
    """Two lines may share a target when each of them is for hosts of its own."""
    for other in others:
        if other.target == line.target and not (other.hosts and line.hosts):
            raise Invalid(f"{line.target} is the target of line {other.number} already")
