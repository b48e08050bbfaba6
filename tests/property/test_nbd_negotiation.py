"""Whatever a peer sends in the handshake: no exception, bounded memory, and the same however it is cut."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from moorage.gateway.memory import MemoryDevice
from moorage.gateway.nbd import protocol as p
from moorage.gateway.nbd.negotiation import Negotiation

EXPORTS = {"a": MemoryDevice(1 << 20), "vol": MemoryDevice(1 << 20, read_only=True)}

names = st.sampled_from([b"", b"a", b"vol", b"zz", b"\xff\xfe"]) | st.binary(max_size=20)
strings = names.map(lambda raw: struct.pack(">I", len(raw)) + raw)
counts = st.integers(0, 3).map(lambda n: struct.pack(">I", n)) | st.binary(min_size=4, max_size=4)
queries = st.sampled_from([b"base:", b"base:allocation", b"x-y:", b""]).map(
    lambda raw: struct.pack(">I", len(raw)) + raw
)
bodies = (
    st.binary(max_size=40)
    | st.tuples(strings, st.lists(st.integers(0, 4), max_size=4)).map(
        lambda t: t[0] + struct.pack(f">H{len(t[1])}H", len(t[1]), *t[1])
    )
    | st.tuples(strings, counts, st.lists(queries, max_size=3)).map(lambda t: t[0] + t[1] + b"".join(t[2]))
)
options = st.tuples(st.integers(0, 12), bodies).map(
    lambda t: p.OPTION.pack(p.OPTION_MAGIC, t[0], len(t[1])) + t[1]
)
flags = st.integers(0, 3).map(lambda n: struct.pack(">I", n))
sessions = st.tuples(flags, st.lists(options | st.binary(max_size=30), max_size=8)).map(
    lambda t: t[0] + b"".join(t[1])
)


def play(pieces: list[bytes]) -> tuple[bytes, str | None, object, bytes]:
    core = Negotiation(EXPORTS)
    said = b""
    for piece in pieces:
        core.feed(piece)
        while (answer := core.step()) is not None:
            said += answer
    if core.agreed is None and core.ended is None:
        assert len(core.rest()) < p.OPTION.size + p.OPTION_SIZE_MAX
    assert core.agreed is None or core.ended is None
    return said, core.ended, core.agreed, core.rest() if core.agreed is not None else b""


@given(sessions | st.binary(max_size=200), st.data())
def test_however_it_is_cut_the_answer_is_the_same(session: bytes, data: st.DataObject) -> None:
    whole = play([session])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(session)), max_size=5)))
    pieces = [session[i:j] for i, j in zip([0, *cuts], [*cuts, len(session)], strict=True)]
    assert play(pieces) == whole
    assert play([session[i : i + 1] for i in range(len(session))]) == whole


@given(sessions)
def test_every_answer_is_well_formed(session: bytes) -> None:
    core = Negotiation(EXPORTS)
    core.feed(session)
    while (answer := core.step()) is not None:
        if core.agreed is not None and not answer.startswith(struct.pack(">Q", p.OPTION_REPLY_MAGIC)):
            assert len(answer) in (10, 134)  # to EXPORT_NAME
            continue
        while answer:
            magic, _, kind, size = p.OPTION_REPLY.unpack_from(answer)
            assert magic == p.OPTION_REPLY_MAGIC and len(answer) >= 20 + size
            assert kind in (1, 2, 3, 4) or kind >> 31
            answer = answer[20 + size :]
