"""The handshake of one NBD connection as a sans-IO core: bytes in, bytes out, at last an agreement or an end.

Owns: the phase before the first request. Never touches a socket, a clock or a device's data; it reads a
device's size and ``read_only`` when it describes an export.

Invariants:

- at most ``OPTION_SIZE_MAX`` bytes of one option are awaited: what is longer ends the connection;
- one ``step`` answers one option, so that a shell may stop between two when its peer does not read;
- after ``agreed`` or ``ended`` is set nothing more is parsed; bytes behind GO belong to ``rest()``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from moorage.client.device import BlockDevice
from moorage.gateway.nbd import protocol as p

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

NO_TLS = "this server does not offer TLS; use a unix socket, or a tunnel that encrypts"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both ends settled on: the export, and the extensions in force."""

    name: str
    device: BlockDevice
    structured: bool
    allocation: bool
    """The client selected the metadata context ``base:allocation``, so it may ask for block status."""


class _Refused(Exception):
    """An option answered with an error reply; the handshake goes on."""

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(message)
        self.reply = reply
        self.message = message


class _Ended(Exception):
    """The handshake cannot go on; ``last_words`` are sent before the connection is closed."""

    def __init__(self, reason: str, last_words: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.last_words = last_words


class Negotiation:
    """Fixed-newstyle handshake. Send ``greeting``; ``feed`` what arrives; call ``step`` until it gives
    None.
    """

    def __init__(self, exports: Mapping[str, BlockDevice]) -> None:
        self.agreed: Agreement | None = None
        self.ended: str | None = None
        """Why the connection is to be closed, once what ``step`` returned has been sent."""
        self._exports = exports
        self._input = bytearray()
        self._client_flags: int | None = None
        self._structured = False
        self._allocation_of: str | None = None

    def greeting(self) -> bytes:
        return p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)

    def feed(self, data: bytes | memoryview) -> None:
        self._input += data

    def rest(self) -> bytes:
        """Bytes that came behind the last option: the first requests of an eager client."""
        return bytes(self._input)

    def step(self) -> bytes | None:
        """Consume one message. The bytes to send (may be empty), or None: more is needed, or it is over."""
        if self.agreed is not None or self.ended is not None:
            return None
        try:
            return self._take_flags() if self._client_flags is None else self._take_option()
        except _Ended as end:
            self.ended = end.reason
            return end.last_words

    # -- parsing -------------------------------------------------------------------------------------

    def _take_flags(self) -> bytes | None:
        if len(self._input) < p.CLIENT_FLAGS.size:
            return None
        (flags,) = p.CLIENT_FLAGS.unpack_from(self._input)
        del self._input[: p.CLIENT_FLAGS.size]
        if flags & ~(p.CLIENT_FIXED_NEWSTYLE | p.CLIENT_NO_ZEROES):
            raise _Ended(f"unknown client flags 0x{flags:x}")
        self._client_flags = flags
        return b""

    def _take_option(self) -> bytes | None:
        if len(self._input) < p.OPTION.size:
            return None
        magic, option, size = p.OPTION.unpack_from(self._input)
        if magic != p.OPTION_MAGIC:
            raise _Ended("bad option magic: not an NBD client, or out of step")
        if size > p.OPTION_SIZE_MAX:
            words = f"option data of {size} bytes is over the limit of {p.OPTION_SIZE_MAX}"
            raise _Ended(words, _reply(option, p.REP_ERR_TOO_BIG, words.encode()))
        end = p.OPTION.size + size
        if len(self._input) < end:
            return None
        data = bytes(self._input[p.OPTION.size : end])
        del self._input[:end]
        return self._answer(option, data)

    def _answer(self, option: int, data: bytes) -> bytes:
        assert self._client_flags is not None
        if option == p.OPT_EXPORT_NAME:
            return self._export_name(data)
        if not self._client_flags & p.CLIENT_FIXED_NEWSTYLE:
            raise _Ended(f"option {option} from a client that did not agree to fixed newstyle")
        try:
            return self._fixed_option(option, data)
        except _Refused as refusal:
            return _reply(option, refusal.reply, refusal.message.encode())

    def _fixed_option(self, option: int, data: bytes) -> bytes:
        if option in (p.OPT_GO, p.OPT_INFO):
            return self._info(option, data)
        if option in (p.OPT_LIST_META_CONTEXT, p.OPT_SET_META_CONTEXT):
            return self._meta_context(option, data)
        if option == p.OPT_LIST:
            return self._list(data)
        if option == p.OPT_STRUCTURED_REPLY:
            _expect_empty(data)
            self._structured = True
            return _reply(option, p.REP_ACK)
        if option == p.OPT_ABORT:
            raise _Ended("the client ended the handshake", _reply(option, p.REP_ACK))
        if option == p.OPT_STARTTLS:
            raise _Refused(p.REP_ERR_POLICY, NO_TLS)
        raise _Refused(p.REP_ERR_UNSUP, f"option {option} is not supported")

    # -- options -------------------------------------------------------------------------------------

    def _export_name(self, data: bytes) -> bytes:
        """The old way to choose an export: it has no error reply, so a mistake ends the connection."""
        try:
            name, device = self._find(data)
        except _Refused as refusal:
            raise _Ended(refusal.message) from None
        reply = p.EXPORT_NAME_REPLY.pack(device.size, self._flags(device))
        self._agree(name, device)
        assert self._client_flags is not None
        return reply if self._client_flags & p.CLIENT_NO_ZEROES else reply + p.EXPORT_NAME_PADDING

    def _info(self, option: int, data: bytes) -> bytes:
        fields = _Fields(data)
        raw_name = fields.string()
        wanted = {fields.u16() for _ in range(fields.u16())}
        fields.end()
        name, device = self._find(raw_name)
        infos = [
            p.EXPORT_INFO.pack(p.INFO_EXPORT, device.size, self._flags(device)),
            p.BLOCK_SIZE_INFO.pack(
                p.INFO_BLOCK_SIZE, p.BLOCK_SIZE_MIN, p.BLOCK_SIZE_PREFERRED, p.PAYLOAD_SIZE_MAX
            ),
        ]
        if p.INFO_NAME in wanted:
            infos.append(_U16.pack(p.INFO_NAME) + name.encode())
        if p.INFO_DESCRIPTION in wanted:
            infos.append(_U16.pack(p.INFO_DESCRIPTION) + f"Moorage volume {name}".encode())
        if option == p.OPT_GO:
            self._agree(name, device)
        return b"".join(_reply(option, p.REP_INFO, info) for info in infos) + _reply(option, p.REP_ACK)

    def _list(self, data: bytes) -> bytes:
        _expect_empty(data)
        names = [name.encode() for name in sorted(self._exports)]
        servers = [_reply(p.OPT_LIST, p.REP_SERVER, _U32.pack(len(name)) + name) for name in names]
        return b"".join(servers) + _reply(p.OPT_LIST, p.REP_ACK)

    def _meta_context(self, option: int, data: bytes) -> bytes:
        if not self._structured:
            raise _Refused(p.REP_ERR_INVALID, "negotiate structured replies first")
        fields = _Fields(data)
        raw_name = fields.string()
        queries = [fields.string() for _ in range(fields.u32())]
        fields.end()
        name, _ = self._find(raw_name)
        listing = option == p.OPT_LIST_META_CONTEXT
        accepted = {p.CONTEXT_ALLOCATION.encode()} | ({b"base:"} if listing else set())
        found = (listing and not queries) or any(query in accepted for query in queries)
        if not listing:
            self._allocation_of = name if found else None
        ack = _reply(option, p.REP_ACK)
        if not found:
            return ack
        number = 0 if listing else p.CONTEXT_ALLOCATION_ID
        return _reply(option, p.REP_META_CONTEXT, _U32.pack(number) + p.CONTEXT_ALLOCATION.encode()) + ack

    # -- helpers -------------------------------------------------------------------------------------

    def _find(self, raw_name: bytes) -> tuple[str, BlockDevice]:
        """The export of that name; the empty name is the only export, if there is only one."""
        if len(raw_name) > p.STRING_SIZE_MAX:
            raise _Refused(p.REP_ERR_INVALID, f"an export name has at most {p.STRING_SIZE_MAX} bytes")
        name = raw_name.decode(errors="replace")
        if not name and len(self._exports) == 1:
            name = next(iter(self._exports))
        device = self._exports.get(name)
        if device is None:
            raise _Refused(
                p.REP_ERR_UNKNOWN, f"no export {name[:100]!r}; list the exports to see their names"
            )
        return name, device

    def _flags(self, device: BlockDevice) -> int:
        flags = (
            p.FLAG_HAS_FLAGS | p.FLAG_SEND_FLUSH | p.FLAG_SEND_FUA | p.FLAG_CAN_MULTI_CONN | p.FLAG_SEND_CACHE
        )
        if self._structured:
            flags |= p.FLAG_SEND_DF
        if device.read_only:
            return flags | p.FLAG_READ_ONLY
        return flags | p.FLAG_SEND_TRIM | p.FLAG_SEND_WRITE_ZEROES | p.FLAG_SEND_FAST_ZERO

    def _agree(self, name: str, device: BlockDevice) -> None:
        self.agreed = Agreement(name, device, self._structured, self._allocation_of == name)


class _Fields:
    """A cursor over option data; running over its end refuses the option as malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise _Refused(p.REP_ERR_INVALID, "option data is shorter than its fields say")
        self._at += size
        return self._data[self._at - size : self._at]

    def u16(self) -> int:
        return int.from_bytes(self._take(2))

    def u32(self) -> int:
        return int.from_bytes(self._take(4))

    def string(self) -> bytes:
        return self._take(self.u32())

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Refused(p.REP_ERR_INVALID, "option data is longer than its fields say")


def _expect_empty(data: bytes) -> None:
    if data:
        raise _Refused(p.REP_ERR_INVALID, "this option takes no data")


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data
