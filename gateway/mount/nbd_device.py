"""The way through the kernel's nbd driver: it speaks to the daemon's socket itself.

The keeper only makes the connections, and a new one each time that the driver has lost its own; nothing that
is read or written passes it. The driver parks what it is asked meanwhile (``kernel_nbd.py``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import shutil
import subprocess
import threading
import time

from moorage.gateway.mount import kernel_nbd, system
from moorage.gateway.mount.kernel_nbd import KernelNbd, LostConnections
from moorage.gateway.mount.record import Place, Record
from moorage.gateway.nbd.client import NbdConnection
from moorage.wire.errors import Invalid, Unavailable

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 30.0
POLL_S = 0.01
RETRY_S = 0.05
LOST_TIMEOUT_S = 1.0
MODPROBE_TIMEOUT_S = 10.0


def backend(place: Place) -> str:
    """The mark of a mount's device."""
    return str(place.directory)


class NbdWay:
    name = "nbd"

    def check(self) -> None:
        if not available():
            raise Invalid("this kernel has no nbd driver here (Linux 5.14 or newer): load it (modprobe nbd)")

    def devices(self, place: Place) -> list[str]:
        return [kernel_nbd.path(index) for index in kernel_nbd.marked(backend(place))]

    async def open(self, place: Place, read_only: bool) -> str:
        """The keeper makes it, as soon as it hears the daemon."""
        end = time.monotonic() + OPEN_TIMEOUT_S
        while not (found := [device for device in self.devices(place) if _has_node(device)]):
            if time.monotonic() > end:
                made = ", ".join(self.devices(place))
                raise Unavailable(
                    f"{made} has no file here: give it to the container" if made else "no nbd device was made"
                )
            await asyncio.sleep(POLL_S)
        return found[0]

    async def resize(self, place: Place, device: str, size: int) -> None:
        await asyncio.to_thread(_resize, place, size)

    async def settle(self, place: Place, device: str) -> None:
        """The driver knows whose it is."""

    async def release(self, place: Place, device: str) -> None:
        await asyncio.to_thread(_disconnect, place)

    async def abandon(self, place: Place) -> None:
        """Nothing ends it but this: its requests would be parked for ever."""
        await asyncio.to_thread(_disconnect, place)

    async def end_session(self, place: Place) -> None:
        """It has ended with its device."""


def _has_node(device: str) -> bool:
    return os.path.exists(device)


def available() -> bool:
    """The module is loaded where there is one."""
    if kernel_nbd.available():
        return True
    modprobe = shutil.which("modprobe", path=system.PATH)
    if modprobe is None:
        return False
    command = [modprobe, "--quiet", "nbd"]
    try:
        subprocess.run(command, capture_output=True, check=False, timeout=MODPROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    return kernel_nbd.available()


def _resize(place: Place, size: int) -> None:
    with KernelNbd() as kernel:
        for index in kernel_nbd.marked(backend(place)):
            kernel.resize(backend(place), index, size)


def _disconnect(place: Place) -> None:
    if kernel_nbd.marked(backend(place)):
        with KernelNbd() as kernel:
            kernel.disconnect(backend(place))


class NbdSession:
    def __init__(self, place: Place, record: Record) -> None:
        self._place, self._backend, self._export = place, backend(place), record.volume
        self._kernel, self._lost = KernelNbd(), LostConnections()
        self._ending = threading.Event()

    def serve(self) -> None:
        try:
            self._serve()
        finally:
            self._kernel.disconnect(self._backend)  # of no use without its keeper

    def _serve(self) -> None:
        connection = self._connected()
        if connection is None:
            return
        descriptor, size, flags = connection.fileno(), connection.size, connection.flags
        index = self._kernel.connect(self._backend, descriptor, size, flags)
        log.info("%s is volume %s", kernel_nbd.path(index), self._export)
        while True:
            with connection:
                _until_closed(connection)
            connection = self._connected() if self._is_wanted(index) else None
            if connection is None:
                return
            try:
                self._kernel.reconnect(self._backend, index, connection.fileno())
            except OSError as error:
                log.info("%s takes no connection any more: %s", kernel_nbd.path(index), error)
                return

    def _connected(self) -> NbdConnection | None:
        while not self._ending.is_set():
            try:
                return NbdConnection(str(self._place.socket), self._export)
            except ConnectionError:
                self._ending.wait(RETRY_S)
        return None

    def _is_wanted(self, index: int) -> bool:
        """Whether the driver has lost its connection and would take another one; else it gave up its device.
        It is not asked before it has noted that: it would go on with the one that is dead."""
        end = time.monotonic() + LOST_TIMEOUT_S
        while time.monotonic() < end:
            if self._ending.is_set() or index not in kernel_nbd.marked(self._backend):
                return False
            if self._lost.wait(index, RETRY_S):
                break
        return True

    def end(self) -> None:
        self._ending.set()
        with KernelNbd() as kernel:
            kernel.disconnect(self._backend)


def _until_closed(connection: NbdConnection) -> None:
    """By the daemon, or by the driver, which shares the socket and alone reads from it."""
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    poll.poll()
