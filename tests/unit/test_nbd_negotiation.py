"""The NBD handshake core, without a socket: each option, its mistakes, and the bounds."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from moorage.gateway.memory import MemoryDevice
from moorage.gateway.nbd import protocol as p
from moorage.gateway.nbd.negotiation import Negotiation

FIXED_NO_ZEROES = 3


def option(number: int, data: bytes = b"") -> bytes:
    return p.OPTION.pack(p.OPTION_MAGIC, number, len(data)) + data


def string(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def go(name: str, *wanted: int) -> bytes:
    return string(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta(name: str, *queries: str) -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while data:
        magic, number, kind, size = p.OPTION_REPLY.unpack_from(data)
        assert magic == p.OPTION_REPLY_MAGIC
        found.append((number, kind, data[20 : 20 + size]))
        data = data[20 + size :]
    return found


def kinds(data: bytes) -> list[int]:
    return [kind for _, kind, _ in replies(data)]


@pytest.fixture
def exports() -> Iterator[dict[str, MemoryDevice]]:
    devices = {"a": MemoryDevice(1 << 20), "b": MemoryDevice(2 << 20, read_only=True)}
    yield devices
    for device in devices.values():
        device.close()


@pytest.fixture
def core(exports: dict[str, MemoryDevice]) -> Negotiation:
    return started(Negotiation(exports))


def started(core: Negotiation, flags: int = FIXED_NO_ZEROES) -> Negotiation:
    assert core.greeting() == b"NBDMAGICIHAVEOPT\0\3"
    assert ask(core, struct.pack(">I", flags)) == b""
    return core


def ask(core: Negotiation, data: bytes) -> bytes:
    core.feed(data)
    said = b""
    while (answer := core.step()) is not None:
        said += answer
    return said


def test_go_agrees_and_describes_the_export(core: Negotiation) -> None:
    said = replies(ask(core, option(p.OPT_GO, go("b", p.INFO_NAME, p.INFO_DESCRIPTION)) + b"next"))
    assert [kind for _, kind, _ in said] == [p.REP_INFO] * 4 + [p.REP_ACK]
    kind, size, flags = p.EXPORT_INFO.unpack(said[0][2])
    assert (kind, size) == (p.INFO_EXPORT, 2 << 20)
    assert flags & p.FLAG_READ_ONLY and flags & p.FLAG_CAN_MULTI_CONN
    assert not flags & (p.FLAG_SEND_TRIM | p.FLAG_SEND_WRITE_ZEROES | p.FLAG_SEND_DF)
    assert p.BLOCK_SIZE_INFO.unpack(said[1][2]) == (p.INFO_BLOCK_SIZE, 1, 4096, 32 << 20)
    assert said[2][2] == b"\0\1b"
    assert core.agreed is not None and core.agreed.name == "b" and not core.agreed.structured
    assert core.rest() == b"next" and core.step() is None


def test_info_describes_and_goes_on(core: Negotiation) -> None:
    said = replies(ask(core, option(p.OPT_STRUCTURED_REPLY) + option(p.OPT_INFO, go("a"))))
    _, _, flags = p.EXPORT_INFO.unpack(said[1][2])
    assert flags & p.FLAG_SEND_DF and flags & p.FLAG_SEND_WRITE_ZEROES and not flags & p.FLAG_READ_ONLY
    assert core.agreed is None and core.ended is None


def test_unknown_export_is_refused_and_another_can_be_tried(core: Negotiation) -> None:
    ((_, kind, message),) = replies(ask(core, option(p.OPT_GO, go("zz"))))
    assert kind == p.REP_ERR_UNKNOWN and b"zz" in message
    ask(core, option(p.OPT_GO, go("a")))
    assert core.agreed is not None


def test_empty_name_is_the_only_export(core: Negotiation, exports: dict[str, MemoryDevice]) -> None:
    assert kinds(ask(core, option(p.OPT_GO, go("")))) == [p.REP_ERR_UNKNOWN]
    alone = started(Negotiation({"a": exports["a"]}))
    ask(alone, option(p.OPT_GO, go("")))
    assert alone.agreed is not None and alone.agreed.name == "a"


@pytest.mark.parametrize(("flags", "size"), [(1, 134), (3, 10)])
def test_export_name_has_124_zeroes_unless_declined(
    exports: dict[str, MemoryDevice], flags: int, size: int
) -> None:
    core = started(Negotiation(exports), flags)
    said = ask(core, option(p.OPT_EXPORT_NAME, b"a"))
    assert len(said) == size and struct.unpack_from(">Q", said) == (1 << 20,)
    assert core.agreed is not None


def test_export_name_of_no_export_ends(core: Negotiation) -> None:
    assert ask(core, option(p.OPT_EXPORT_NAME, b"zz")) == b""
    assert core.ended is not None and "zz" in core.ended and core.agreed is None


def test_list(core: Negotiation) -> None:
    said = replies(ask(core, option(p.OPT_LIST)))
    assert [data for _, kind, data in said if kind == p.REP_SERVER] == [b"\0\0\0\1a", b"\0\0\0\1b"]
    assert said[-1][1] == p.REP_ACK


def test_abort_is_acknowledged_and_ends(core: Negotiation) -> None:
    assert kinds(ask(core, option(p.OPT_ABORT))) == [p.REP_ACK]
    assert core.ended is not None


def test_starttls_is_refused_in_words(core: Negotiation) -> None:
    ((_, kind, message),) = replies(ask(core, option(p.OPT_STARTTLS)))
    assert kind == p.REP_ERR_POLICY and b"TLS" in message and core.ended is None


@pytest.mark.parametrize("number", [0, 4, 11, 12, 0xFFFFFFFF])
def test_unknown_option_is_unsupported(core: Negotiation, number: int) -> None:
    assert kinds(ask(core, option(number, b"anything"))) == [p.REP_ERR_UNSUP]
    assert core.ended is None


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (p.OPT_LIST, b"x"),
        (p.OPT_STRUCTURED_REPLY, b"x"),
        (p.OPT_GO, b""),
        (p.OPT_GO, go("a") + b"x"),
        (p.OPT_GO, struct.pack(">I", 0xFFFFFFFF) + b"a\0\0"),
        (p.OPT_GO, string("a") + b"\0\2\0\1"),
        (p.OPT_GO, go("a" * 5000)),
        (p.OPT_INFO, b"\0\0\0"),
        (p.OPT_SET_META_CONTEXT, meta("a", p.CONTEXT_ALLOCATION)),  # before structured replies
    ],
)
def test_malformed_option_is_invalid_and_the_handshake_lives(
    core: Negotiation, number: int, data: bytes
) -> None:
    assert kinds(ask(core, option(number, data))) == [p.REP_ERR_INVALID]
    assert core.ended is None and core.agreed is None


@pytest.mark.parametrize("data", [b"", string("a") + b"\0\0\0\2" + string("base:"), meta("a") + b"x"])
def test_malformed_meta_context_is_invalid(core: Negotiation, data: bytes) -> None:
    said = ask(core, option(p.OPT_STRUCTURED_REPLY) + option(p.OPT_SET_META_CONTEXT, data))
    assert kinds(said) == [p.REP_ACK, p.REP_ERR_INVALID]


@pytest.mark.parametrize(
    ("listing", "queries", "found"),
    [
        (True, (), True),
        (True, ("base:",), True),
        (True, ("x-other:", "base:allocation"), True),
        (True, ("x-other:",), False),
        (False, ("base:allocation",), True),
        (False, ("base:allocation", "base:allocation"), True),
        (False, ("base:",), False),
        (False, (), False),
    ],
)
def test_meta_context_queries(
    core: Negotiation, listing: bool, queries: tuple[str, ...], found: bool
) -> None:
    ask(core, option(p.OPT_STRUCTURED_REPLY))
    number = p.OPT_LIST_META_CONTEXT if listing else p.OPT_SET_META_CONTEXT
    said = replies(ask(core, option(number, meta("a", *queries))))
    names = [data[4:] for _, kind, data in said if kind == p.REP_META_CONTEXT]
    assert names == ([b"base:allocation"] if found else [])
    ask(core, option(p.OPT_GO, go("a")))
    assert core.agreed is not None and core.agreed.allocation is (found and not listing)


def test_meta_context_of_another_export_does_not_count(core: Negotiation) -> None:
    ask(core, option(p.OPT_STRUCTURED_REPLY) + option(p.OPT_SET_META_CONTEXT, meta("a", "base:allocation")))
    ask(core, option(p.OPT_GO, go("b")))
    assert core.agreed is not None and core.agreed.structured and not core.agreed.allocation


def test_option_at_the_size_limit_is_read_and_past_it_ends(exports: dict[str, MemoryDevice]) -> None:
    core = started(Negotiation(exports))
    assert kinds(ask(core, option(77, bytes(p.OPTION_SIZE_MAX)))) == [p.REP_ERR_UNSUP]
    said = ask(core, p.OPTION.pack(p.OPTION_MAGIC, 77, p.OPTION_SIZE_MAX + 1))
    assert kinds(said) == [p.REP_ERR_TOO_BIG] and core.ended is not None


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", bytes(16), b"\xff" * 64])
def test_bad_option_magic_ends(core: Negotiation, data: bytes) -> None:
    assert ask(core, data) == b"" and core.ended is not None


def test_unknown_client_flags_end(exports: dict[str, MemoryDevice]) -> None:
    core = Negotiation(exports)
    assert ask(core, struct.pack(">I", 5)) == b"" and core.ended is not None


def test_client_without_fixed_newstyle_may_only_name_an_export(exports: dict[str, MemoryDevice]) -> None:
    core = started(Negotiation(exports), 0)
    assert ask(core, option(p.OPT_LIST)) == b"" and core.ended is not None
    core = started(Negotiation(exports), 0)
    ask(core, option(p.OPT_EXPORT_NAME, b"a"))
    assert core.agreed is not None


def test_long_unknown_name_is_answered_briefly(core: Negotiation) -> None:
    ((_, kind, message),) = replies(ask(core, option(p.OPT_GO, go("n" * 4096))))
    assert kind == p.REP_ERR_UNKNOWN and len(message) < 300
