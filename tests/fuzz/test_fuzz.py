"""All targets under the fuzzer, for a set time, in a process of their own: there the branches of the code
under test are noted."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = 32


def run(*arguments: str, timeout: float) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


def test_every_parser_for_a_moment() -> None:
    lines = run("--seconds", "8", timeout=100).splitlines()
    assert len(lines) == TARGETS, lines
    for line in lines:
        name, runs, *_, edges = line.split()
        assert int(runs) >= 20 and int(edges) >= 20, f"{name} was not exercised: {line}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_parser_for_long() -> None:
    seed = random.randrange(1 << 32)
    run("--seconds", "150", "--seed", str(seed), timeout=380)  # a failure shows its input
