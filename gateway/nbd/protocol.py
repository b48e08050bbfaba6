"""The NBD protocol's numbers and layouts, and nothing that acts on them.

Follows the public specification (github.com/NetworkBlockDevice/nbd, doc/proto.md); all integers are
big-endian.

Handshake, server first: ``NBDMAGIC`` ``IHAVEOPT`` u16 handshake flags; the client answers u32 client flags;
then options until EXPORT_NAME, GO or ABORT:

====== ==== ==========================  ====== ==== ==========================
option size field                       reply  size field
====== ==== ==========================  ====== ==== ==========================
0      8    ``IHAVEOPT``                0      8    0x0003e889045565a9
8      4    option                      8      4    option
12     4    length of data              12     4    reply type
16     n    data                        16     4    length of data, then data
====== ==== ==========================  ====== ==== ==========================

Transmission:

======= ==== =================  ====== ==== =================  ========== ==== =========================
request size field              simple size field              structured size field
======= ==== =================  ====== ==== =================  ========== ==== =========================
0       4    0x25609513         0      4    0x67446698         0          4    0x668e33ef
4       2    command flags      4      4    error              4          2    flags (1: last chunk)
6       2    command            8      8    cookie             6          2    chunk type
8       8    cookie             16     n    data (of READ)     8          8    cookie
16      8    offset                                            16         4    length, then the payload
24      4    length
28      n    data (of WRITE)
======= ==== =================  ====== ==== =================  ========== ==== =========================
"""

from __future__ import annotations

import errno
import struct

from moorage.wire import errors

# -- limits ------------------------------------------------------------------------------------------

STRING_SIZE_MAX = 4096
"""Of an export name, a query or a message: the specification's own limit."""

OPTION_SIZE_MAX = 64 * 1024
"""Room for a name and a dozen long queries; no known client sends a tenth of it."""

PAYLOAD_SIZE_MAX = 32 * 1024 * 1024
"""Of one READ or WRITE. What the kernel, qemu and libnbd assume when nothing is said, said all the same."""

BLOCK_SIZE_MIN = 1
BLOCK_SIZE_PREFERRED = 4096

# -- handshake ---------------------------------------------------------------------------------------

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1
CLIENT_FIXED_NEWSTYLE = 1 << 0
CLIENT_NO_ZEROES = 1 << 1

GREETING = struct.Struct(">8s8sH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT_NAME_REPLY = struct.Struct(">QH")
EXPORT_NAME_PADDING = bytes(124)

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERR_UNSUP = 1 << 31 | 1
REP_ERR_POLICY = 1 << 31 | 2
REP_ERR_INVALID = 1 << 31 | 3
REP_ERR_UNKNOWN = 1 << 31 | 6
REP_ERR_TOO_BIG = 1 << 31 | 9

INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

EXPORT_INFO = struct.Struct(">HQH")
BLOCK_SIZE_INFO = struct.Struct(">HIII")

CONTEXT_ALLOCATION = "base:allocation"
CONTEXT_ALLOCATION_ID = 1

# -- transmission ------------------------------------------------------------------------------------

FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_SEND_TRIM = 1 << 5
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_SEND_DF = 1 << 7
FLAG_CAN_MULTI_CONN = 1 << 8
FLAG_SEND_CACHE = 1 << 10
FLAG_SEND_FAST_ZERO = 1 << 11

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
CHUNK = struct.Struct(">IHHQI")
DATA_CHUNK = struct.Struct(">IHHQIQ")
HOLE_CHUNK = struct.Struct(">IHHQIQI")
ERROR_CHUNK = struct.Struct(">IHHQIIH")
STATUS_CHUNK = struct.Struct(">IHHQII")
EXTENT = struct.Struct(">II")

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4

COMMAND_FLAGS: dict[int, int] = {
    CMD_READ: CMD_FLAG_FUA | CMD_FLAG_DF,
    CMD_WRITE: CMD_FLAG_FUA,
    CMD_DISC: 0xFFFF,  # nothing can be answered to it, so nothing is refused
    CMD_FLUSH: CMD_FLAG_FUA,
    CMD_TRIM: CMD_FLAG_FUA,
    CMD_CACHE: CMD_FLAG_FUA,
    CMD_WRITE_ZEROES: CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: CMD_FLAG_FUA | CMD_FLAG_REQ_ONE,
}
"""The flags that each command takes. FUA must be accepted everywhere: clients set it where it means
nothing.
"""

REPLY_FLAG_DONE = 1
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR = 1 << 15 | 1

STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1

for _layout, _size in (
    (GREETING, 18),
    (OPTION, 16),
    (OPTION_REPLY, 20),
    (EXPORT_NAME_REPLY, 10),
    (EXPORT_INFO, 12),
    (BLOCK_SIZE_INFO, 14),
    (REQUEST, 28),
    (SIMPLE_REPLY, 16),
    (CHUNK, 20),
    (DATA_CHUNK, 28),
    (HOLE_CHUNK, 32),
    (ERROR_CHUNK, 26),
    (STATUS_CHUNK, 24),
    (EXTENT, 8),
):
    assert _layout.size == _size, _layout.format

# -- errors ------------------------------------------------------------------------------------------

ERRNO_TABLE: tuple[tuple[type[BaseException], int], ...] = (
    (errors.NoSpace, errno.ENOSPC),
    (errors.ReadOnly, errno.EPERM),
    (errors.Invalid, errno.EINVAL),
)
"""The first row that matches decides; what is in no row is EIO (fenced, no quorum, damaged, our own
mistakes).
"""


def error_number(error: BaseException) -> int:
    """The NBD error value (equal to Linux errno) that a client sees for ``error``."""
    for kind, number in ERRNO_TABLE:
        if isinstance(error, kind):
            return number
    return errno.EIO
