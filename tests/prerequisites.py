"""What a test needs of the machine: the one place that skips for want of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # Debian keeps such tools in sbin


def require(missing: str) -> None:
    """Skip the test that asks for what this machine lacks. A build machine (CI is set) has to have it: there
    the test fails, since one that is always skipped shows nothing."""
    if missing and os.environ.get("CI"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


def no_mounts(devices: Iterable[str] = ("/dev/fuse", "/dev/loop-control")) -> str:
    """Why no volume can be mounted here, or nothing."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if missing := [device for device in devices if not Path(device).exists()]:
        return f"{', '.join(missing)} not there"
    return ""


def no_programs(*names: str) -> str:
    """Which of these are not installed, or nothing."""
    if missing := [name for name in names if shutil.which(name, path=PATH) is None]:
        return f"{', '.join(missing)} not installed: `make setup` as root installs it"
    return ""
