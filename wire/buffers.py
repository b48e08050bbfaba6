"""Memory for payloads.

Owns the alignment of large ones (who writes them to a device past the page cache needs them at a page), and
that a process of ours uses their memory again.
"""

from __future__ import annotations

from ctypes import CDLL, addressof, c_char
from typing import Final

PAGE: Final = 4096
ALIGNED_SIZE: Final = 32 << 10  # smaller ones are not worth the page that it may cost


_M_TRIM_THRESHOLD: Final = -1  # of malloc.h
_M_MMAP_THRESHOLD: Final = -3
_KEPT_SIZE: Final = 32 << 20  # the most that glibc takes
_KEPT_FREE: Final = 256 << 20


def reuse_payload_memory() -> None:
    """Have glibc keep the memory of freed payloads, up to 256 MiB. Given back to the kernel after each one, a
    buffer of 1 MiB begins with 256 page faults. For processes of ours only: in a program that uses the
    library this is not ours to decide. Does nothing with another libc."""
    mallopt = getattr(CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_SIZE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def payload_buffer(size: int) -> memoryview:
    """``size`` bytes to write to; from ``ALIGNED_SIZE`` on their address is a multiple of 4096."""
    if size < ALIGNED_SIZE:
        return memoryview(bytearray(size))
    room = bytearray(size + PAGE)
    skip = -addressof(c_char.from_buffer(room)) % PAGE
    return memoryview(room)[skip : skip + size]
