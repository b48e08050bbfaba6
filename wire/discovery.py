"""Where a service is: a list of addresses, or an SRV name."""

from __future__ import annotations


async def resolve(spec: str) -> list[str]:
    """``h1:p,h2:p`` or ``srv:_registry._tcp.moorage.mesos`` to addresses; raises Invalid or Unavailable."""
    raise NotImplementedError
