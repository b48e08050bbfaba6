"""What a power failure can leave of a directory: the system calls of a process, recorded and cut at any
point.

``record`` runs a program under strace, so nothing is taken on trust: what LMDB writes, the superblock's
rename and the log's ``pwritev`` are all seen as the kernel was asked for them. ``Machine`` replays them into
what is durable and what is pending; ``crash`` picks what of the pending part the disk had taken,
``Image.build`` makes real files of it.

The rules, those of POSIX and not the kinder ones of one file system:

* a write, a truncation or an allocation is durable once an ``fsync`` or ``fdatasync`` of that file that began
  after it has returned, or the write itself when its descriptor has O_DSYNC; before, each is there or not, in
  any order, a write also by the sector (512 bytes) and its length without its bytes;
* a name (made, renamed, removed) is durable once its directory was fsynced; before, each is there or not.

Not covered: pages written through a map (nobody here maps writably but LMDB's lock file, which a start makes
anew), disks that lie about a flush, and sectors that change without being written. Crashes are cut between
system calls as strace saw them begin and end: one that runs beside a write in another thread may be seen
before or after it.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random

SECTOR = 512
# For longer looks: pending changes up to which every subset is tried; what share of all states in place of a
# test's own (1: all); how long a test may take in place of its own limits, in seconds.
EXHAUSTIVE = int(os.environ.get("POWER_EXHAUSTIVE", "6"))
SHARE = float(os.environ.get("POWER_SHARE", "0"))
SECONDS = float(os.environ.get("POWER_SECONDS", "0"))
CALLS = (
    "openat,open,creat,dup,dup2,dup3,close,lseek,write,writev,pwrite64,pwritev,pwritev2,fdatasync,fsync,msync,"
    "sync_file_range,syncfs,ftruncate,truncate,fallocate,rename,renameat,renameat2,link,linkat,symlink,unlink,"
    "unlinkat,rmdir,mkdir,mkdirat,copy_file_range,sendfile"
)
REFUSED = ("truncate", "link", "linkat", "copy_file_range", "sendfile", "creat", "dup2", "dup3")
NAMES = ("lock.mdb", "device.lock", "lock")  # flocks and maps of live processes: a start makes them anew


def at_most(seconds: float) -> float:
    return SECONDS or seconds


def unusable() -> str:
    """Why strace cannot be used here, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed: `make setup` as root installs it"
    tried = subprocess.run(["strace", "-f", "-e", "trace=none", "true"], capture_output=True, timeout=20)
    return "" if tried.returncode == 0 else f"strace cannot trace here: {tried.stderr.decode()[-200:]}"


def record(command: list[str], output: Path, environment: dict[str, str], timeout: float) -> None:
    """Run ``command`` to its end under strace; its system calls are in ``output``."""
    strace = ["strace", "-f", "-y", "--seccomp-bpf", "-xx", "-s", str(32 << 20), "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*strace, "-e", "signal=none", "-o", str(output), "--", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-4000:]


# -- the output of strace ----------------------------------------------------------------------------

_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*)>")


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str
    begins: bool
    ends: bool
    result: int = -1
    shown: str = ""  # behind the result: the path of a descriptor
    process: int = 0

    @cached_property
    def descriptor(self) -> int:
        found = _DESCRIPTOR.match(self.arguments)
        return int(found[1]) if found else -1

    @cached_property
    def path(self) -> str:
        """Of the descriptor that is the first argument."""
        found = _DESCRIPTOR.match(self.arguments)
        return _text(found[2]) if found else ""

    @cached_property
    def strings(self) -> list[bytes]:
        found = list(_STRING.finditer(self.arguments))
        assert not any(each[2] for each in found), f"strace has shortened {self.name}"
        return [_bytes(each[1]) for each in found]

    @property
    def numbers(self) -> list[str]:
        """The arguments behind the last string or bracket."""
        return self.arguments.rsplit('"', 1)[-1].rsplit("]", 1)[-1].lstrip(", ").split(", ")


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return os.fsdecode(_bytes(escaped))


def parse(output: Path) -> Iterator[Call]:
    """Calls in the order of the trace; one during which another thread ran comes twice: begun, and ended."""
    begun: dict[int, Call] = {}
    with output.open() as lines:
        for line in lines:
            call = _parse(line.rstrip("\n"), begun)
            if call is not None:
                yield call


def _parse(line: str, begun: dict[int, Call]) -> Call | None:
    # By hand: lines have megabytes, and regular expressions try each of their places.
    number, _, rest = line.partition(" ")
    process, rest = int(number), rest.lstrip()
    if rest.startswith(("+++", "---")):
        return None
    if rest.endswith(" <unfinished ...>"):
        name, _, arguments = rest.removesuffix(" <unfinished ...>").partition("(")
        call = begun[process] = Call(name, arguments.rstrip(", "), True, False, process=process)
        return call
    at = rest.rfind(" = ")
    head, (result, _, shown) = rest[:at].rstrip().removesuffix(")"), rest[at + 3 :].partition("<")
    if result.startswith("?"):
        return None
    value, shown = int(result.split(" ")[0]), "<" + shown if shown else ""
    if head.startswith("<... "):
        call = begun.pop(process)
        more = head.partition(" resumed>")[2].lstrip(", ")
        whole = f"{call.arguments}, {more}" if more else call.arguments
        return Call(call.name, whole, False, True, value, shown, process)
    name, _, arguments = head.partition("(")
    return Call(name, arguments, True, True, value, shown, process)


# -- what is durable ---------------------------------------------------------------------------------


@dataclass
class Change:
    """Of a file's bytes: written at ``offset``, or (no bytes) its size set to ``offset``."""

    number: int
    offset: int
    data: bytes | None
    grows_only: bool = False  # an allocation


@dataclass
class Inode:
    number: int
    folder: bool = False
    durable: bytearray = field(default_factory=bytearray)
    version: int = 0  # counts what became durable
    pending: list[Change] = field(default_factory=list)
    size: int = 0  # as the process sees it
    entries: dict[str, int] = field(default_factory=dict)  # of a folder, as the process sees it
    durable_entries: dict[str, int] = field(default_factory=dict)
    renames: list[tuple[int, list[tuple[str, int | None]]]] = field(default_factory=list)  # pending


@dataclass(frozen=True)
class Choice:
    """What of the pending changes the disk had taken. ``kept``: numbers; ``torn``: number -> sectors that are
    there; ``grown``: writes of which only the length is there."""

    kept: frozenset[int]
    torn: tuple[tuple[int, frozenset[int]], ...] = ()
    grown: frozenset[int] = frozenset()


class Machine:
    """Replays calls below ``root``, a directory that was durable before. ``marks`` is a file whose writes are
    what the program had to say: ``feed`` tells them apart."""

    def __init__(self, root: Path, marks: Path) -> None:
        self._root, self.marks = str(root), str(marks)
        self._inodes: dict[int, Inode] = {0: Inode(0, folder=True)}
        self._open: dict[tuple[int, int], tuple[int, bool]] = {}  # (process, descriptor) -> inode, O_DSYNC
        self._offsets: dict[tuple[int, int], int] = {}
        self._syncs: dict[int, int] = {}  # thread -> number of changes when its sync began
        self._written: dict[int, Change] = {}  # thread -> its write under way
        self._number = 0

    @classmethod
    def of(cls, root: Path, marks: Path) -> Machine:
        """One whose disk holds what is below ``root`` now, all of it durable."""
        machine = cls(root, marks)
        machine._load(root, machine._inodes[0])
        return machine

    def _load(self, path: Path, folder: Inode) -> None:
        for each in sorted(path.iterdir()):
            inode = self._make(folder=each.is_dir())
            folder.entries[each.name] = folder.durable_entries[each.name] = inode.number
            if each.is_dir():
                self._load(each, inode)
            else:
                inode.durable = bytearray(each.read_bytes())
                inode.size = len(inode.durable)

    def _make(self, folder: bool) -> Inode:
        inode = Inode(len(self._inodes), folder)
        self._inodes[inode.number] = inode
        return inode

    # -- names ----------------------------------------------------------------------------------------

    def _find(self, path: str) -> tuple[Inode, str] | None:
        """(folder, name) of a path below the root; None for others."""
        if not path.startswith(self._root + "/"):
            return None
        *parts, name = path[len(self._root) + 1 :].split("/")
        folder = self._inodes[0]
        for part in parts:
            folder = self._inodes[folder.entries[part]]
        return folder, name

    def _inode(self, path: str) -> Inode | None:
        if path == self._root:
            return self._inodes[0]
        found = self._find(path)
        if found is None:
            return None
        number = found[0].entries.get(found[1])
        return None if number is None else self._inodes[number]

    def _rename(self, folder: Inode, changes: list[tuple[str, int | None]]) -> None:
        self._number += 1
        folder.renames.append((self._number, changes))
        for name, number in changes:
            if number is None:
                folder.entries.pop(name, None)
            else:
                folder.entries[name] = number

    # -- calls ----------------------------------------------------------------------------------------

    def feed(self, call: Call) -> bool:
        """Take one call; whether it was a mark."""
        if call.path == self.marks and call.name == "write":
            return call.begins
        handler = getattr(self, f"_on_{call.name}", None)
        if handler is not None:
            handler(call)
        elif call.begins and self._root in str(call.strings) + call.path:
            assert call.name not in REFUSED, f"a call that the shim does not know: {call}"
        return False

    def changed(self, call: Call) -> bool:
        """Whether a crash may leave something else after this call: not for those of files elsewhere."""
        if call.name in ("close", "lseek") or (not call.ends and call.name in ("fsync", "fdatasync")):
            return False
        paths = call.path + "".join(os.fsdecode(each) for each in call.strings if each.startswith(b"/"))
        return self._root in paths

    def _on_openat(self, call: Call) -> None:
        if not call.ends or call.result < 0:
            return
        path = os.fsdecode(call.strings[0])
        inode = self._inode(path)
        if path.startswith("/proc/self/fd/"):
            shown = re.search(r"<((?:\\x[0-9a-f]{2})*)>", call.shown)
            inode = self._inode(_text(shown[1])) if shown else None
        found = self._find(path)
        if inode is None and found is not None:
            assert "O_CREAT" in call.arguments, call
            inode = self._make(folder=False)
            self._rename(found[0], [(found[1], inode.number)])
        if inode is None:
            return
        if "O_TRUNC" in call.arguments and inode.size:
            self._resize(inode, 0, False)
        key = (0, call.result)
        self._open[key] = (inode.number, "O_DSYNC" in call.arguments or "O_SYNC" in call.arguments)
        self._offsets[key] = 0

    def _on_close(self, call: Call) -> None:
        if call.begins:
            self._open.pop((0, call.descriptor), None)

    def _of(self, call: Call) -> Inode | None:
        """By the path that strace shows, which follows renames, as the descriptor does."""
        opened = self._open.get((0, call.descriptor))
        return None if opened is None else self._inodes[opened[0]]

    def _on_lseek(self, call: Call) -> None:
        if call.ends and (0, call.descriptor) in self._offsets:
            self._offsets[0, call.descriptor] = call.result

    def _on_fallocate(self, call: Call) -> None:
        inode = self._of(call)
        if inode is not None and call.begins:
            mode, offset, size = call.arguments.split(", ")[1:4]
            assert mode == "0", call
            self._resize(inode, int(offset) + int(size), True)

    def _on_ftruncate(self, call: Call) -> None:
        inode = self._of(call)
        if inode is not None and call.begins:
            self._resize(inode, int(call.arguments.split(", ")[1]), False)

    def _resize(self, inode: Inode, size: int, grows_only: bool) -> None:
        self._number += 1
        inode.pending.append(Change(self._number, size, None, grows_only))
        inode.size = max(size, inode.size) if grows_only else size

    def _write(self, call: Call, offset: int | None) -> None:
        inode = self._of(call)
        if inode is None:
            return
        key = (0, call.descriptor)
        if call.begins:
            at = self._offsets[key] if offset is None else offset
            self._number += 1
            change = Change(self._number, at, b"".join(call.strings))
            assert change.data is not None
            inode.pending.append(change)
            self._written[call.process] = change
            inode.size = max(inode.size, at + len(change.data))
            if offset is None:
                self._offsets[key] = at + len(change.data)
        if call.ends:
            change = self._written.pop(call.process)
            if call.result < 0:  # refused, as direct I/O is from memory that is not aligned
                inode.pending.remove(change)
                return
            assert call.result == len(change.data or b""), f"a short write: {call.name} {call.result}"
            if self._open[key][1]:
                inode.pending.remove(change)
                _apply(inode.durable, change)
                inode.version += 1

    def _on_write(self, call: Call) -> None:
        self._write(call, None)

    _on_writev = _on_write

    def _on_pwrite64(self, call: Call) -> None:
        self._write(call, int(call.numbers[-1]))

    def _on_pwritev(self, call: Call) -> None:
        self._write(call, int(call.numbers[1]))

    _on_pwritev2 = _on_pwritev

    def _on_fdatasync(self, call: Call) -> None:
        if call.begins:
            self._syncs[call.process] = self._number
        if call.ends:
            inode, upto = self._of(call), self._syncs.pop(call.process)
            if inode is not None:
                assert call.result == 0, call
                self._sync(inode, upto)

    _on_fsync = _on_fdatasync

    def _sync(self, inode: Inode, upto: int) -> None:
        inode.version += 1
        for change in [each for each in inode.pending if each.number <= upto]:
            _apply(inode.durable, change)
            inode.pending.remove(change)
        for number, changes in [each for each in inode.renames if each[0] <= upto]:
            _link(inode.durable_entries, changes)
            inode.renames.remove((number, changes))

    def _on_mkdir(self, call: Call) -> None:
        found = self._find(os.fsdecode(call.strings[0])) if call.ends and call.result == 0 else None
        if found is not None:
            self._rename(found[0], [(found[1], self._make(folder=True).number)])

    def _on_mkdirat(self, call: Call) -> None:
        self._on_mkdir(call)

    def _on_unlink(self, call: Call) -> None:
        found = self._find(os.fsdecode(call.strings[0])) if call.ends and call.result == 0 else None
        if found is not None:
            self._rename(found[0], [(found[1], None)])

    _on_unlinkat = _on_rmdir = _on_unlink

    def _on_rename(self, call: Call) -> None:
        if not call.ends or call.result != 0:
            return
        old, new = (self._find(os.fsdecode(each)) for each in call.strings)
        if old is None and new is None:
            return
        assert old is not None and new is not None and old[0] is new[0], f"renamed across directories: {call}"
        self._rename(old[0], [(old[1], None), (new[1], old[0].entries[old[1]])])

    _on_renameat = _on_renameat2 = _on_rename

    # -- crashes --------------------------------------------------------------------------------------

    def pending(self) -> list[int]:
        """Numbers of all pending changes."""
        found = [each.number for inode in self._inodes.values() for each in inode.pending]
        return sorted(found + [number for inode in self._inodes.values() for number, _ in inode.renames])

    def _pending_writes(self) -> list[Change]:
        changes = [each for inode in self._inodes.values() for each in inode.pending]
        return sorted((each for each in changes if each.data), key=lambda each: each.number)

    def choices(self, rng: Random, torn: int) -> list[Choice]:
        """Every subset of the pending changes when they are few, else as many at random; and ``torn`` more,
        each with some write in pieces."""
        numbers = self.pending()
        if len(numbers) <= EXHAUSTIVE:
            sizes = range(len(numbers) + 1)
            subsets = [frozenset(each) for n in sizes for each in itertools.combinations(numbers, n)]
        else:
            subsets = [frozenset(), frozenset(numbers)]
            shares = [rng.random() for _ in range((1 << EXHAUSTIVE) - 2)]
            subsets += [frozenset(n for n in numbers if rng.random() < share) for share in shares]
        writes = self._pending_writes()
        return [Choice(each) for each in subsets] + [
            _tear(rng, writes, numbers) for _ in range(torn if writes else 0)
        ]

    def crash(self, choice: Choice) -> Image:
        """What the disk holds when power comes back."""
        return Image(self._durable(self._inodes[0], choice), self._key(choice))

    def _key(self, choice: Choice) -> tuple[object, ...]:
        """Equal for choices that leave the same bytes behind."""
        return (tuple(each.version for each in self._inodes.values()), choice)

    def _durable(self, folder: Inode, choice: Choice) -> dict[str, bytes | dict]:  # type: ignore[type-arg]
        entries = dict(folder.durable_entries)
        for number, changes in folder.renames:
            if number in choice.kept:
                _link(entries, changes)
        found: dict[str, bytes | dict] = {}  # type: ignore[type-arg]
        for name, number in sorted(entries.items()):
            inode = self._inodes[number]
            if name not in NAMES:
                found[name] = self._durable(inode, choice) if inode.folder else _content(inode, choice)
        return found


def _tear(rng: Random, writes: list[Change], numbers: list[int]) -> Choice:
    share = rng.random()
    kept = {number for number in numbers if rng.random() < share}
    victims = {writes[-1].number} if rng.random() < 0.5 else set()
    victims.add(rng.choice(writes).number)
    torn, grown = [], set()
    for change in writes:
        if change.number not in victims:
            continue
        kept.discard(change.number)
        sectors = _sectors(change)
        cut = rng.choice(sectors)
        match rng.randrange(4):
            case 0:
                torn.append((change.number, frozenset(each for each in sectors if each < cut)))
            case 1:
                torn.append((change.number, frozenset(each for each in sectors if each >= cut)))
            case 2:
                torn.append((change.number, frozenset(each for each in sectors if rng.random() < 0.5)))
            case 3:
                grown.add(change.number)
    return Choice(frozenset(kept), tuple(torn), frozenset(grown))


def _sectors(change: Change) -> range:
    end = change.offset + len(change.data or b"")
    return range(change.offset // SECTOR, -(-end // SECTOR))


def _apply(image: bytearray, change: Change, sectors: frozenset[int] | None = None) -> None:
    offset, data = change.offset, change.data
    if data is None:
        if len(image) < offset:
            image.extend(bytes(offset - len(image)))
        elif not change.grows_only:
            del image[offset:]
        return
    for sector in _sectors(change) if sectors is not None else (-1,):
        if sectors is not None and sector not in sectors:
            continue
        start = offset if sector < 0 else max(offset, sector * SECTOR)
        end = offset + len(data) if sector < 0 else min(offset + len(data), (sector + 1) * SECTOR)
        if len(image) < end:
            image.extend(bytes(end - len(image)))
        image[start:end] = data[start - offset : end - offset]


def _content(inode: Inode, choice: Choice) -> bytes:
    image, torn = bytearray(inode.durable), dict(choice.torn)
    for change in inode.pending:
        if change.number in choice.kept:
            _apply(image, change)
        elif change.number in torn:
            _apply(image, change, torn[change.number])
        elif change.number in choice.grown and change.data:
            end = change.offset + len(change.data)
            image.extend(bytes(max(0, end - len(image))))
    return bytes(image)


def _link(entries: dict[str, int], changes: list[tuple[str, int | None]]) -> None:
    for name, number in changes:
        if number is None:
            entries.pop(name, None)
        else:
            entries[name] = number


@dataclass(frozen=True)
class Image:
    tree: dict[str, bytes | dict]  # type: ignore[type-arg]
    key: tuple[object, ...]

    def build(self, root: Path) -> None:
        """Make these files below ``root``, in place of what is there."""
        shutil.rmtree(root, ignore_errors=True)
        _build(root, self.tree)


def _build(path: Path, tree: dict[str, bytes | dict]) -> None:  # type: ignore[type-arg]
    path.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            _build(path / name, content)
        else:
            (path / name).write_bytes(content)


# -- all of it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crash:
    """One state to look at: what is on the disk, and how many of the marks had been said before."""

    image: Image
    said: int
    name: str


class Trace:
    """A recorded run: ``machine`` as it was before, the calls, and what was said."""

    def __init__(self, machine: Machine, output: Path) -> None:
        self._machine = machine
        self.calls = list(parse(output))
        self.said = [
            call.strings[0].decode()
            for call in self.calls
            if call.begins and call.name == "write" and call.path == machine.marks
        ]

    def crashes(self, rng: Random, *, torn: int, share: float = 1.0) -> Iterator[Crash]:
        """States after each call that changes what a crash may leave; ``share`` of them, by chance. Once."""
        share = SHARE or share
        machine, said = self._machine, 0
        for at, call in enumerate(self.calls):
            if machine.feed(call):
                said += 1
            elif machine.changed(call):
                for choice in machine.choices(rng, torn):
                    if share >= 1 or rng.random() < share:
                        yield Crash(machine.crash(choice), said, f"call {at} ({call.name}), {choice}")
        yield Crash(machine.crash(Choice(frozenset(machine.pending()))), said, "the end")
