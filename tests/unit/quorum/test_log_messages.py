"""Layouts of the hot messages: fixed, and refused when the size is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moorage.wire import log_messages as m
from moorage.wire.errors import ProtocolError


def test_layouts_are_fixed() -> None:
    assert m.pack_append(1, 2, 3, 4, 5, 6, 7, 8).hex() == (
        "0100000000000000"
        "0200000000000000"
        "0300000000000000"
        "0400000000000000"
        "0500000000000000"
        "0600000000000000"
        "07000000"
        "08000000"
    )
    assert m.pack_ack(1, 2, 3, 4, 5, 6, 7, 8).hex()[-16:] == "0700000008000000"
    assert m.pack_nack(1, 2, 3, 4, 5, 6).hex()[-16:] == "0500000006000000"
    assert m.pack_read(1, 2, 3, 4, 5, 6).hex()[-16:] == "0500000006000000"


def test_what_is_packed_comes_back() -> None:
    big = (1 << 63) - 1
    assert m.unpack_append(m.pack_append(big, big, big, big, big, big, 7, 8) + b"heads") == (*[big] * 6, 7, 8)
    assert m.unpack_ack(m.pack_ack(big, 2, 3, 4, 5, 6, 7, 8)) == (big, 2, 3, 4, 5, 6, 7, 8)
    assert m.unpack_nack(m.pack_nack(1, 2, 3, big, 5, 6)) == (1, 2, 3, big, 5, 6)
    assert m.unpack_read(m.pack_read(1, 2, 3, big, 5, 6)) == (1, 2, 3, big, 5, 6)
    assert m.unpack_read_reply(m.pack_read_reply(9, 2, bytes(16))) == (9, 2, bytes(16))
    assert m.unpack_heartbeat(m.pack_heartbeat(big)) == big
    assert m.unpack_heartbeat_reply(m.pack_heartbeat_reply(big, 1000)) == (big, 1000)


@pytest.mark.parametrize(
    "unpack",
    [
        m.unpack_append,
        m.unpack_ack,
        m.unpack_nack,
        m.unpack_read,
        m.unpack_read_reply,
        m.unpack_heartbeat,
        m.unpack_heartbeat_reply,
    ],
)
def test_wrong_sizes_are_refused(unpack: Callable[[bytes], object]) -> None:
    for size in (0, 7, 13, 39, 41, 55, 57, 100):
        if (unpack, size) not in ((m.unpack_append, 57), (m.unpack_append, 100)):
            with pytest.raises(ProtocolError):
                unpack(bytes(size))


def test_a_reply_may_tell_an_epoch_at_its_end() -> None:
    body = m.pack_read_reply(9, 2, bytes(16))
    told = memoryview(body + (7).to_bytes(8, "little"))
    assert bytes(told)[-8:].hex() == "0700000000000000"
    assert m.split_epoch(told, m.PREFIX | m.HOLES) == (body, 7)
    for wrong, flags in ((told, m.HOLES), (told[:23], m.PREFIX), (memoryview(b""), m.PREFIX)):
        with pytest.raises(ProtocolError):
            m.split_epoch(wrong, flags)


def test_reply_to_read_tells_how_many_checksums() -> None:
    with pytest.raises(ProtocolError):
        m.unpack_read_reply(m.pack_read_reply(9, 3, bytes(16)))
