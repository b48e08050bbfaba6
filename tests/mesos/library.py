"""The genuine Mesos: one shared library out of the Python package ``mesos.scheduler``, pinned by its hash.

The package is a Python 2.7 extension module that contains all of libmesos and exports every symbol. It was
published as a ``bdist_dumb``: it has a version that newer pips reject, and no setup.py, so no pip can install
it. A pip older than 24.1 still resolves it, checks its hash and unpacks it before it gives up, and
``--no-clean`` keeps what it unpacked. Nothing of the package is executed on the way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import run
from .errors import MesosError

PACKAGE = (
    "mesos.scheduler===1.11.0.linux-x86_64"
    " --hash=sha256:1d376f20bca6d05ee8b90c1c123a452b28753497ccc2f1c80ea3ac94c12e8f6e"
)
PIP = "pip==24.0 --hash=sha256:ba0d021a166865d2265246961bec0152ff124de910c5cc39f1156ce3fa7c69dc"
MEMBER = "_scheduler.so"
LIBRARY = "libmesos-1.11.0.so"
LIBRARY_SHA256 = "84d7ee9af27e912636b139de40257df1ee4f56c201de6bba834278aa1e8fd64c"


def fetch(cache: Path) -> Path:
    """The library in ``cache``; 118 MB, fetched once."""
    target = cache / LIBRARY
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix="pip-", dir=cache) as directory:
            unpacked = _unpack(Path(directory))
            if (digest := _sha256(unpacked)) != LIBRARY_SHA256:
                raise MesosError(f"{MEMBER} of {PACKAGE.split()[0]} has the digest {digest}")
            unpacked.chmod(0o755)
            os.rename(unpacked, target)
    return target


def _unpack(directory: Path) -> Path:
    venv = directory / "venv"
    run.output([sys.executable, "-m", "venv", str(venv)])
    pip = [str(venv / "bin" / "pip"), "--disable-pip-version-check", "--no-cache-dir"]
    run.output(
        [*pip, "install", "--quiet", "--require-hashes", "-r", _requirement(directory, "pip.txt", PIP)]
    )
    wanted = _requirement(directory, "mesos.txt", PACKAGE)
    downloads = directory / "downloads"
    done = run.attempt(
        [*pip, "download", "--no-deps", "--no-clean", "--require-hashes", "-r", wanted, "-d", str(downloads)],
        env={**os.environ, "TMPDIR": str(directory)},
    )
    shutil.rmtree(venv)
    found = list(directory.rglob(MEMBER))
    if not found:
        raise MesosError(f"pip did not leave {PACKAGE.split()[0]} unpacked:\n{done.stdout[-4000:]}")
    return found[0]


def _requirement(directory: Path, name: str, line: str) -> str:
    (directory / name).write_text(line + "\n")
    return str(directory / name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
