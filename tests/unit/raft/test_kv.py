"""The key-value state, in memory and above a base, against a dict."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from moorage.service.kv import KV, MemoryBase
from moorage.wire import errors


def test_values_do_not_alias() -> None:
    kv = KV()
    value = {"list": [1]}
    kv.put("k", value)
    value["list"].append(2)
    kv.get("k")["list"].append(3)
    assert kv.get("k") == {"list": [1]}


def test_rollback_undoes_one_command() -> None:
    kv = KV()
    kv.put("a", 1)
    kv.commit()
    kv.put("a", 2)
    kv.delete("a")
    kv.put("b", 1)
    assert kv.get("a") is None
    kv.rollback()
    assert list(kv.scan("")) == [("a", 1)]


def test_deleting_during_a_scan() -> None:
    kv = KV()
    for n in range(1000):
        kv.put(f"k{n:04}", n)
    kv.commit()
    for key, value in kv.scan("k"):
        if value % 2:
            kv.delete(key)
    kv.commit()
    assert len(list(kv.scan("k"))) == 500


@pytest.mark.parametrize("key", ["", "x" * 501])
def test_keys_have_limits(key: str) -> None:
    with pytest.raises(errors.LimitExceeded):
        KV().put(key, 1)


@pytest.mark.parametrize("seed", range(20))
def test_against_a_dict(seed: int) -> None:
    rng = Random(seed)
    base = MemoryBase()
    kv, model, command = KV(base), {}, {}
    flushing: Any = None
    keys = [f"{p}/{n:03}" for p in "abc" for n in range(80)]
    for _ in range(1500):
        match rng.randrange(8):
            case 0 | 1 | 2:
                key = rng.choice(keys)
                kv.put(key, value := rng.randrange(1000))
                command[key] = value
            case 3:
                key = rng.choice(keys)
                kv.delete(key)
                command[key] = None
            case 4:
                kv.commit()
                model.update(command)
                command = {}
            case 5:
                kv.rollback()
                command = {}
            case 6:
                if flushing is None:
                    flushing = kv.take_batch()
                else:
                    base.write(flushing)
                    kv.stored()
                    flushing = None
            case _:
                seen = {key: value for key, value in {**model, **command}.items() if value is not None}
                prefix = rng.choice(["", "a/", "b/0", "c/07", "d"])
                expected = sorted((key, value) for key, value in seen.items() if key.startswith(prefix))
                assert list(kv.scan(prefix)) == expected
                key = rng.choice(keys)
                assert kv.get(key) == seen.get(key)
