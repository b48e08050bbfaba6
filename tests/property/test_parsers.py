"""Parsers of bytes and texts from outside under hypothesis: what comes out is a value, or their own error.

The functions are those that the fuzzer runs (`tests/fuzz/targets.py`); here inputs are seeds with pieces
cut out, doubled and replaced, and values of msgpack that are nearly right.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.wire import frame

from ..fuzz import services, targets
from ..fuzz.engine import Target

TARGETS = {each.name: each for each in targets.core_targets() if each.name != "nbd-transmission"}

numbers = st.sampled_from([-1, 0, 1, 2, 63, 64, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
texts = st.text(max_size=20) | st.sampled_from(["db", "m1", "h1:1", "sync", "rw", "a" * 32])
leaves = st.none() | st.booleans() | numbers | st.floats() | texts | st.binary(max_size=40)
values = st.recursive(
    leaves, lambda each: st.lists(each, max_size=4) | st.dictionaries(leaves, each, max_size=4), max_leaves=8
)


def check(target: Target, data: bytes) -> None:
    try:
        target.run(data)
    except target.unexpected:
        raise
    except target.expected:
        pass


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(max_examples=100)
@given(st.data())
def test_pieces_of_what_is_right(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    raw = bytearray(data.draw(st.sampled_from(list(target.seeds)), "seed"))
    for _ in range(data.draw(st.integers(0, 3), "changes")):
        at = data.draw(st.integers(0, len(raw)), "at")
        end = data.draw(st.integers(at, min(len(raw), at + 80)), "end")
        raw[at:end] = data.draw(st.binary(max_size=60) | st.just(bytes(raw[at:end]) * 2), "by")
    check(target, bytes(raw))


@pytest.mark.parametrize("mode", range(5))
@given(values)
def test_messages_that_are_nearly_right(mode: int, value: Any) -> None:
    try:
        body = frame.pack(value)
    except (TypeError, ValueError, OverflowError):
        return
    check(TARGETS["answers"], bytes([mode]) + body)
    check(TARGETS["hot"], b"\7" + body)
    check(TARGETS["state"], frame.pack([1, *value]) if isinstance(value, list) else body)
    for message in range(4):
        check(TARGETS["handshake"], bytes([message]) + body)


CALLS = services.METADATA_CALLS | services.REGISTRY_CALLS


@settings(max_examples=300)
@given(st.sampled_from(sorted(CALLS)), st.data())
def test_calls_whose_parameters_are_nearly_right(method: str, data: st.DataObject) -> None:
    params = dict(CALLS[method])
    for key in data.draw(st.lists(st.sampled_from([*params, "more"]), max_size=2), "changed"):
        params[key] = data.draw(values, key)
    try:
        body = frame.pack([method, params])
    except (TypeError, ValueError, OverflowError):
        return

    async def call() -> None:
        methods = services.metadata_methods() | services.registry_methods()
        await services._call(methods, body)

    check(Target(method, lambda _: asyncio.run(call()), [], (services.MoorageError,), services.OURS), b"")
