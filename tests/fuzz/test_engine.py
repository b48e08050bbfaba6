"""The fuzzer finds what was planted: a value behind two checks, a loop without an end, a greedy length."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from . import engine
from .engine import Failure, Hook, Target, fuzz, mutate

PLANTED = '''
"""A careless parser."""
import struct


def parse(data):
    if len(data) < 8 or data[:2] != b"MO":
        raise ValueError("magic")
    kind, _, size = struct.unpack_from("<BBI", data, 2)
    if kind == 7:
        if size == 0xDEAD:
            raise KeyError("planted")
        return [step for step in range(3) if step > 1 and size]
    if kind == 8:
        while size:
            pass
    if kind == 9:
        return bytearray(size & 0xFFFFFF)
    try:
        value = 1 if size else 2
    except ValueError:
        value = 3
    else:
        value += 1
    match value:
        case 2:
            return None
    for _ in data:
        break
'''


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    name = "planted_for_the_fuzzer"
    (tmp_path / f"{name}.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    hook = Hook([name])
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    monkeypatch.setattr(engine, "constants", set())
    monkeypatch.setattr(engine, "RUN_LIMIT_S", 0.2)
    before = signal.getsignal(signal.SIGPROF)
    yield importlib.import_module(name).parse
    signal.signal(signal.SIGPROF, before)
    del sys.modules[name]


def only(parse: Callable[[bytes], None], kind: int) -> Target:
    """Inputs of one kind; the seed has nothing of what is to be found but the right length."""

    def run(data: bytes) -> None:
        if len(data) < 3 or data[2] in (0, kind):
            parse(data)

    return Target(f"planted {kind}", run, [bytes(8)], (ValueError,), size_max=64)


@pytest.mark.parametrize(
    ("kind", "says"), [(7, "KeyError: 'planted'"), (8, "no end after"), (9, "bytes of memory, at most")]
)
def test_what_was_planted_is_found(parse: Callable[[bytes], None], kind: int, says: str) -> None:
    with pytest.raises(Failure, match=says) as caught:
        fuzz(only(parse, kind), 20, 1)
    assert caught.value.data[:2] == b"MO" and caught.value.data[2] == kind


def test_a_seed_and_a_number_of_runs_make_one_history(parse: Callable[[bytes], None]) -> None:
    found = [fuzz(only(parse, 0), 20, seed, runs_max=3000) for seed in (1, 1, 2)]
    assert found[0].corpus == found[1].corpus and found[0].edges == found[1].edges
    assert found[0].corpus != found[2].corpus and found[0].runs == 3000
    assert len(found[0].edges) > 10


def test_mutations_stay_within_the_size() -> None:
    rng = Random(1)
    data = b"seed"
    for _ in range(5000):
        data = mutate(data, rng, [b"word"], b"other", 100)
        assert len(data) <= 100
