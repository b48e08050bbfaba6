"""The programs of a Mesos installation, made from the library, ``src/host.cpp`` and ``libexec/``.

They are kept in a cache outside of the tree, in one directory for each version of what they are made from, so
that checkouts that differ can share a cache. A directory appears whole, by a rename, and never changes.

    CACHE/libmesos-1.11.0.so
    CACHE/VERSION/lib      stand-ins for OpenSSL 1.0 and libcurl, and a link to the library
    CACHE/VERSION/bin      mesos-master, mesos-agent
    CACHE/VERSION/libexec  mesos-containerizer, mesos-executor, mesos-fetcher
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path

from . import library, machine, run

HERE = Path(__file__).resolve().parent
HOST_SOURCE = HERE / "src" / "host.cpp"
# Each helper is one file: a zip archive that Python runs. Sources by the name that they have in it.
HELPERS = {
    "mesos-executor": {
        **{path.name: path for path in sorted((HERE / "libexec" / "executor").glob("*.py"))},
        "processes.py": HERE / "processes.py",
    },
    "mesos-fetcher": {path.name: path for path in sorted((HERE / "libexec" / "fetcher").glob("*.py"))},
}
STUBS = {"libssl.so.1.0.0": "OPENSSL", "libcrypto.so.1.0.0": "OPENSSL", "libcurl.so.4": "CURL"}


def default_cache() -> Path:
    """Root's own home is closed to others, and tasks may run as other users: not there."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "moorage-mesos"
    return Path("/var/cache/moorage-mesos") if os.geteuid() == 0 else Path.home() / ".cache" / "moorage-mesos"


def install(cache: Path) -> Path:
    """Fetch and build what is missing; the directory that has bin, lib and libexec."""
    machine.check()
    machine.ensure_packages()
    cache.mkdir(parents=True, exist_ok=True)
    python = interpreter()
    target = cache / _version(python)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would fetch twice
        genuine = library.fetch(cache)
        if not target.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as directory:
                built = Path(directory) / "installed"
                _build(built, genuine, python)
                os.rename(built, target)
    return target


def _version(python: str) -> str:
    digest = hashlib.sha256(f"{library.LIBRARY_SHA256} {python}\n".encode())
    helpers = [path for sources in HELPERS.values() for path in sources.values()]
    for path in (Path(__file__), HOST_SOURCE, *helpers):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def interpreter() -> str:
    """The Python that runs the executor, as the user of the task: one that every user can execute, if any."""
    candidates = [path for path in (sys.executable, "/usr/bin/python3") if os.path.exists(path)]
    return os.path.realpath(next(filter(public, candidates), sys.executable))


def public(path: str | Path) -> bool:
    """Whether other users can reach and execute it."""
    real = Path(os.path.realpath(path))
    return all(each.stat().st_mode & 0o001 for each in (real, *real.parents))


def _build(target: Path, genuine: Path, python: str) -> None:
    for name in ("bin", "lib", "libexec"):
        (target / name).mkdir(parents=True)
    (target / "lib" / genuine.name).symlink_to(Path("..", "..", genuine.name))
    _stubs(target / "lib", genuine)
    host = target / "bin" / "mesos-host"
    run.output(["g++", "-std=c++17", "-O1", "-rdynamic", "-o", str(host), str(HOST_SOURCE), "-ldl"])
    for name in ("bin/mesos-master", "bin/mesos-agent", "libexec/mesos-containerizer"):
        (target / name).symlink_to("../bin/mesos-host")
    for name, sources in HELPERS.items():
        _archive(target / "libexec" / name, sources, python)


def _stubs(directory: Path, genuine: Path) -> None:
    """Debian has no OpenSSL 1.0, and no libcurl with the old symbol version.

    Mesos calls neither unless TLS, or fetching through its cache, is turned on: functions that return 0 are
    enough to load it.
    """
    versions = _foreign_symbols(genuine)
    for name, family in STUBS.items():
        nodes = sorted((node, symbols) for node, symbols in versions.items() if node.startswith(family + "_"))
        code, script, previous = "", "", ""
        for node, symbols in nodes:
            code += "".join(f"long {symbol}(void) {{ return 0; }}\n" for symbol in sorted(symbols))
            hidden = "" if previous else "local: *; "
            script += f"{node} {{ global: {'; '.join(sorted(symbols))}; {hidden}}} {previous};\n"
            previous = node
        with tempfile.TemporaryDirectory() as temporary:
            (source := Path(temporary, "stub.c")).write_text(code)
            (version_script := Path(temporary, "stub.map")).write_text(script)
            options = ["-x", "c", "-w", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{name}"]
            linked = f"-Wl,--version-script,{version_script}"
            run.output(["g++", *options, linked, "-o", str(directory / name), str(source)])


def _foreign_symbols(genuine: Path) -> dict[str, set[str]]:
    """Undefined symbols of the library that have a version of OpenSSL or libcurl, by version."""
    found: dict[str, set[str]] = {}
    for line in run.output(["readelf", "--dyn-syms", "-W", str(genuine)]).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[6] == "UND":
            match = re.match(r"(\w+)@((?:OPENSSL|CURL)_\w[\w.]*)$", fields[7])
            if match:
                found.setdefault(match[2], set()).add(match[1])
    return found


def _archive(target: Path, sources: dict[str, Path], python: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, path in sources.items():
            archive.write(path, name)
    # -I and -S: neither the task's environment nor what is installed for this Python must matter.
    target.write_bytes(f"#!{python} -IS\n".encode() + packed.getvalue())
    target.chmod(0o755)
