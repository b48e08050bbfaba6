"""Bounds of a wire listener or connection (docs/limits.md). What happens at each bound is said beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    # queued bytes towards one peer; past it the peer does not read, and the connection ends (Overloaded)
    write_queue_bytes: int = 64 << 20
    # pause_writing and drain() act here: a chunk's worth of payload is in flight without a pause
    high_water_bytes: int = 4 << 20
    connections: int = 1024  # one more is refused with Overloaded
    unauthenticated: int = 64  # one more, and the oldest of them is dropped
    handshake_s: float = 5.0  # then the connection is dropped
    ping_after_s: float = 10.0  # an accepted connection silent for so long is asked for a sign of life
    silence_s: float = 60.0  # ... and closed after so long
    calls: int = 256  # CALLs running at once per connection; one more is answered Overloaded


DEFAULT = Limits()
