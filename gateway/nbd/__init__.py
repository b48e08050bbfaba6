"""NBD: block devices served to any NBD client (the Linux kernel, qemu, libnbd, fio)."""

from __future__ import annotations

from moorage.gateway.nbd.server import NbdServer
from moorage.gateway.nbd.transmission import Limits

__all__ = ["Limits", "NbdServer"]
