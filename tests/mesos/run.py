"""Other programs, run to their end."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from .errors import MesosError


def output(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """stdout and stderr of a command that must succeed."""
    done = attempt(argv, env)
    if done.returncode:
        raise MesosError(f"{shlex.join(argv)} failed ({done.returncode}):\n{done.stdout[-4000:]}")
    return done.stdout


def attempt(argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
