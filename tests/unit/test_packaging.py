"""What leaves the tree: the wheel and the sdist hold one package, and the image's recipe is clean."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"bench", "cli", "client", "gateway", "metadata", "node", "quorum", "registry", "service"}
ROOMS |= {"framework", "simulation", "wire"}


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the tree, links kept, without what belongs to this machine."""
    copy = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    return copy


def rooms(names: list[str]) -> set[str]:
    return {name.split("/")[1] for name in names if name.count("/") >= 2 and name.endswith(".py")}


def test_the_wheel_holds_moorage_alone(source: Path, tmp_path: Path) -> None:
    build = "from setuptools import build_meta; build_meta.build_wheel('{}')"
    run(sys.executable, "-c", build.format(tmp_path), cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"moorage"}
    assert rooms([name for name in names if name.startswith("moorage/")]) == ROOMS
    assert "moorage/py.typed" in names


def test_a_wheel_can_be_built_from_the_sdist(source: Path, tmp_path: Path) -> None:
    build = "from setuptools import build_meta; build_meta.build_sdist('{}')"
    run(sys.executable, "-c", build.format(tmp_path), cwd=source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    build = "from setuptools import build_meta; build_meta.build_wheel('{}')"
    run(sys.executable, "-c", build.format(tmp_path), cwd=unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert rooms([name for name in names if name.startswith("moorage/")]) == ROOMS


def test_the_image_recipe_is_clean() -> None:
    run(str(Path(sys.executable).parent / "hadolint"), "Dockerfile", cwd=ROOT)


def test_the_image_has_what_mounts_and_gateways_need() -> None:
    installed = set((ROOT / "Dockerfile").read_text().split())
    assert installed >= {"e2fsprogs", "fuse3", "mount", "s3fs", "util-linux", "xfsprogs"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    for wanted in (*extras["csi"], *extras["s3"]):
        name = wanted.partition(">=")[0]
        assert any(line.startswith(f"{name}==") for line in locked), f"{name}: run `make lock`"
