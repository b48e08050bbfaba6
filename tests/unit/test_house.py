"""The rules of the tree: what a review would ask for every time is asked here."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    "bench",
    "cli",
    "client",
    "framework",
    "gateway",
    "metadata",
    "node",
    "quorum",
    "registry",
    "service",
    "simulation",
    "wire",
)

# What a room may import of the others. The command line may import all, but only inside of functions.
MAY_IMPORT: dict[str, set[str]] = {
    "wire": set(),
    "quorum": {"wire"},
    "service": {"wire", "quorum"},
    "registry": {"wire", "quorum", "service"},
    "metadata": {"wire", "quorum", "service"},
    "node": {"wire", "quorum", "service"},
    "client": {"wire", "quorum"},
    "gateway": {"wire", "client"},
    "framework": {"wire", "client", "service"},
    "bench": {"wire", "client", "gateway", "quorum", "node"},
    "cli": set(ROOMS) - {"simulation"},
    "simulation": set(ROOMS) - {"bench", "framework"},
}

# The face of the library offers what is built on it; loaded when it is called.
FACE = {("client/cluster.py", "gateway")}

# Cores take time, randomness and identity as arguments: the same input gives the same history.
UNFIT_FOR_CORES = {
    *("asyncio", "datetime", "logging", "lmdb", "os", "random", "secrets", "selectors", "signal", "socket"),
    *("ssl", "subprocess", "tempfile", "threading", "time", "uuid", "uvloop", "aiohttp", "multiprocessing"),
}
# Pure modules outside of quorum/ that promise the same in their first lines.
OTHER_CORES = (
    "framework/core.py",
    "framework/inventory.py",
    "framework/kept.py",
    "framework/latency.py",
    "framework/maintenance.py",
    "framework/messages.py",
    "framework/operations.py",
    "framework/page.py",
    "framework/plan.py",
    "framework/recordio.py",
    "framework/rollout.py",
    "framework/spec.py",
    "framework/view.py",
    "gateway/docker/ledger.py",
    "gateway/s3/acl.py",
    "gateway/s3/answer.py",
    "gateway/s3/body.py",
    "gateway/s3/checksums.py",
    "gateway/s3/chunked.py",
    "gateway/s3/conditions.py",
    "gateway/s3/cors.py",
    "gateway/s3/documents.py",
    "gateway/s3/errors.py",
    "gateway/s3/form.py",
    "gateway/s3/lifecycle.py",
    "gateway/s3/markup.py",
    "gateway/s3/names.py",
    "gateway/s3/policy.py",
    "gateway/s3/policy_document.py",
    "gateway/s3/properties.py",
    "gateway/s3/ranges.py",
    "gateway/s3/request.py",
    "gateway/s3/results.py",
    "gateway/s3/routing.py",
    "gateway/s3/signature.py",
    "metadata/lease.py",
    "metadata/limits.py",
    "metadata/placement.py",
    "metadata/records.py",
    "metadata/requests.py",
    "metadata/snapshots.py",
    "metadata/state.py",
    "registry/health.py",
    "registry/mount_table.py",
    "registry/state.py",
)


def sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of each import that runs; those for type checkers alone are left out."""
    for node in _nodes(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno}: relative import"
            if node.module == "moorage":
                yield from ((f"moorage.{name.name}", node.lineno) for name in node.names)
            else:
                yield node.module or "", node.lineno


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _nodes(child)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rooms_imported(path: Path) -> list[tuple[str, int]]:
    found = ((module.split("."), line) for module, line in imports(path))
    return [(parts[1], line) for parts, line in found if parts[0] == "moorage" and len(parts) > 1]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    wrong = [
        f"{shown(path)}:{line} imports {other}"
        for path in sources(room)
        for other, line in rooms_imported(path)
        if other in ROOMS and other != room and other not in MAY_IMPORT[room]
        if (shown(path), other) not in FACE
    ]
    assert wrong == []


def test_quorum_takes_only_errors_from_wire() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {module}"
        for path in sources("quorum")
        for module, line in imports(path)
        if module == "moorage.wire" or module.startswith("moorage.wire.")
        if module != "moorage.wire.errors"
        and not (module == "moorage.wire" and _names(path, line) == {"errors"})
    ]
    assert wrong == []


def _names(path: Path, line: int) -> set[str]:
    return {
        name.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.lineno == line
        for name in node.names
    }


def test_command_line_starts_without_the_other_rooms() -> None:
    """``moorage --help`` and a mistyped command must not pay for a data node."""
    code = (
        "import sys, moorage.cli.main; print(*(name for name in sys.modules if name.startswith('moorage.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = {name.split(".")[1] for name in run.stdout.split()}
    assert "cli" in loaded
    assert loaded <= {"cli", "wire"}


def core_files() -> list[Path]:
    simulation = ROOT / "quorum" / "simulation"
    cores = [path for path in sources("quorum") if simulation not in path.parents]
    return cores + [ROOT / name for name in OTHER_CORES]


def test_cores_import_no_clock_no_chance_and_no_io() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {module}"
        for path in core_files()
        for module, line in imports(path)
        if module.split(".")[0] in UNFIT_FOR_CORES
    ]
    assert wrong == []


def test_simulation_runs_without_real_time_or_sockets() -> None:
    """Chance comes from the seed (``random.Random``), time from the kernel; only the command has a clock."""
    wrong = [
        f"{shown(path)}:{line} imports {module}"
        for path in sources("quorum/simulation")
        if path.name != "__main__.py"
        for module, line in imports(path)
        if module.split(".")[0] in UNFIT_FOR_CORES - {"random"}
    ]
    assert wrong == []


def test_cores_do_not_wait() -> None:
    waiting = [
        f"{shown(path)}:{node.lineno}"
        for path in core_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]
    assert waiting == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        shown(path)
        for path in sources(*ROOMS, "src")
        if not ast.get_docstring(tree(path)) and path.read_text().strip()
    ]
    assert silent == []


def test_nothing_prints_but_the_command_line() -> None:
    loud = [
        f"{shown(path)}:{node.lineno}"
        for path in sources(*(room for room in ROOMS if room not in ("cli", "bench")))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in ("print", "breakpoint")
    ]
    assert loud == []


def test_package_has_a_relative_link_to_each_room() -> None:
    package = ROOT / "src" / "moorage"
    links = {path.name: os.readlink(path) for path in package.iterdir() if path.is_symlink()}
    assert links == {room: f"../../{room}" for room in ROOMS}
    assert (package / "py.typed").exists()
    assert all((package / room / "__init__.py").exists() for room in ROOMS)


def tracked() -> list[Path]:
    """Files that belong to the project; outside of a checkout, all there are."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        skipped = {".venv", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", "build", "dist"}
        found = (path for path in ROOT.rglob("*") if skipped.isdisjoint(path.relative_to(ROOT).parts))
    else:
        found = (ROOT / name for name in listed.split("\0") if name)
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""  # a binary file


# Directories of somebody's machine: nothing in the tree may depend on them, or tell of them.
_PRIVATE = re.compile(r"(?<![\w.$}-])/(?:home/[a-z]|root/|work/|Users/|mnt/[a-z])[\w./-]*")


def test_no_path_of_one_machine() -> None:
    found = [
        f"{shown(path)}: {match[0]}"
        for path in tracked()
        if path != Path(__file__) and path.suffix != ".lock"
        for match in _PRIVATE.finditer(text_of(path))
    ]
    assert found == []


def test_what_a_machine_lacks_is_skipped_in_one_place() -> None:
    """There a build machine fails instead. The others: what no machine can be given."""
    others = {"tests/integration/wire/test_wire_connection.py", "tests/unit/test_drill.py"}
    skipping = {
        shown(path)
        for path in tracked()
        if path.suffix == ".py" and path != Path(__file__)
        if re.search(r"pytest\.(?:mark\.)?skip(?:if)?\(|importorskip", text_of(path))
    }
    assert skipping - others == {"tests/prerequisites.py"}


def test_no_leftovers() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b|^(?:<{7}|>{7}) ", re.MULTILINE)
    found = [
        f"{shown(path)}: {match[0]}"
        for path in tracked()
        if path != Path(__file__) and path.suffix != ".lock"
        for match in marks.finditer(text_of(path))
    ]
    assert found == []


def test_links_of_the_docs_lead_somewhere() -> None:
    broken = []
    for page in [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{shown(page)}: ({target})")
        for target in re.findall(r"`((?:docs|tests|" + "|".join(ROOMS) + r")/[\w./-]+)`", text):
            if not (ROOT / target).exists():
                broken.append(f"{shown(page)}: `{target}`")
    assert broken == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_pin_versions_and_hashes_and_name_no_host(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE), "an index or another option"
    packages = re.split(
        r"\n(?=[A-Za-z0-9])", "\n".join(line for line in text.splitlines() if "# " not in line)
    )
    for package in packages:
        first = package.splitlines()[0]
        assert re.match(r"[A-Za-z0-9._-]+(\[[^]]+\])?==[^\s]+", first), f"{first}: no exact version"
        assert "--hash=sha256:" in package, f"{first}: no hash"


def test_dependencies_of_the_package_are_locked() -> None:
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("]")[0]
    wanted = set(re.findall(r'"([A-Za-z0-9._-]+)', project))
    assert wanted and wanted <= locked
