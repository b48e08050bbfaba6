"""Memory for payloads.

Owns the alignment of large ones: who writes them to a device past the page cache needs them at a page.
"""

from __future__ import annotations

from ctypes import addressof, c_char
from typing import Final

PAGE: Final = 4096
ALIGNED_SIZE: Final = 32 << 10  # smaller ones are not worth the page that it may cost


def payload_buffer(size: int) -> memoryview:
    """``size`` bytes to write to; from ``ALIGNED_SIZE`` on their address is a multiple of 4096."""
    if size < ALIGNED_SIZE:
        return memoryview(bytearray(size))
    room = bytearray(size + PAGE)
    skip = -addressof(c_char.from_buffer(room)) % PAGE
    return memoryview(room)[skip : skip + size]
