"""The machine that simulated processes believe in: while a history runs, clocks, randomness, threads, LMDB's
environments and file locks are the world's.

Owns the patches, and the temporary directory of the history. LMDB and the small identity files are real files
in memory: each transaction or file replacement happens at one moment, whole, and is durable then (what
lies between is the business of tests/crash). Must never leave a patch behind.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lmdb

from moorage.simulation.disk import Device, SimDisk, SimLane
from moorage.simulation.loop import SimLoop, current, stable_hash
from moorage.simulation.network import Network

PID = 4711
WALL_S = 1_800_000_000.0  # some day in 2027, when no history is running


class World:
    """One history's machines. ``loop.rng`` decides everything."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.directory = directory
        self.loop = SimLoop(seed)  # type: ignore[abstract]
        self.network = Network(self.loop)
        self.devices: dict[str, Device] = {}
        self.loop.devices = self.devices
        self.descriptors: list[_Descriptor] = []

    @property
    def rng(self) -> random.Random:
        return self.loop.rng

    def device(self, host: str) -> Device:
        if host not in self.devices:
            self.devices[host] = Device(self.loop, host)
        return self.devices[host]

    def close(self) -> None:
        with _silence():
            self.loop.close()
            gc.collect()


def bury() -> None:
    """Let go of what is left of dead processes."""
    with _silence():
        gc.collect()


@contextmanager
def _silence() -> Iterator[None]:
    """What coroutines of dead processes do when they are closed, and say, is nobody's business."""
    hook, sys.unraisablehook = sys.unraisablehook, _ignore
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
        logging.disable(disabled)


def _ignore(_: Any) -> None:
    pass


@contextmanager
def world(seed: int) -> Iterator[World]:
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="moorage-simulation-", dir=base))
    made = World(seed, directory)
    before = random.getstate()
    try:
        with ExitStack() as stack:
            for target, name, stand_in in _patches(made):
                stack.enter_context(patch.object(target, name, stand_in))
            random.seed(seed)
            collects = gc.isenabled()
            bury()
            gc.disable()  # when it runs depends on what ran before, and weak references on when it runs
            try:
                yield made
            finally:
                if collects:
                    gc.enable()
                made.close()
    finally:
        random.setstate(before)
        for descriptor in made.descriptors:
            descriptor.close()
        shutil.rmtree(directory, ignore_errors=True)


def _patches(made: World) -> list[tuple[Any, str, Any]]:
    from moorage.client.volume import Volume
    from moorage.gateway.nbd.server import _Handshake
    from moorage.gateway.nbd.transmission import Transmission
    from moorage.node import checkpoint, reader, store, superblock
    from moorage.service import raft_storage, raft_transport
    from moorage.wire.connection import Connection

    loop = made.loop
    draws = random.Random(f"entropy of {made.seed}")  # apart: what processes draw does not move the faults

    def monotonic() -> float:
        process = current.get()
        return loop.now if process is None else process.time()

    def wall() -> float:
        process = current.get()
        return WALL_S + loop.now + (0.0 if process is None else process.wall_s)

    class SeededRandom(random.Random):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(draws.getrandbits(64) if seed is None else seed)

    def real_disk(directory: Path) -> SimDisk:
        process = current.get()
        assert process is not None
        return made.device(process.host).open()

    async def no_check(path: Path, **_: Any) -> None:
        """The environments are ours alone, and their checks have tests of their own."""

    async def no_index_check(path: Path) -> None:
        pass

    real_open, real_lock = lmdb.open, superblock._lock

    def open_environment(*args: Any, **named: Any) -> Any:
        environment = real_open(*args, **{**named, "sync": False, "lock": False})
        process = current.get()
        if process is not None:
            process.resources.append(_Environment(environment))
        return environment

    def lock(directory: Path) -> int:
        descriptor = real_lock(directory)
        process = current.get()
        if process is not None:
            held = _Descriptor(descriptor)
            process.resources.append(held)
            made.descriptors.append(held)
        return descriptor

    return [
        (time, "monotonic", monotonic),
        (time, "monotonic_ns", lambda: int(monotonic() * 1e9)),
        (time, "time", wall),
        (time, "time_ns", lambda: int(wall() * 1e9)),
        (time, "clock_gettime_ns", lambda _: int(monotonic() * 1e9)),
        (random, "Random", SeededRandom),
        # A holder says both to metadata: their lengths are of the history, as how long a message takes is.
        (os, "getpid", lambda: PID),
        (sys, "argv", ["simulated"]),
        (secrets, "token_bytes", lambda count=32: draws.randbytes(count)),
        (secrets, "token_hex", lambda count=32: draws.randbytes(count).hex()),
        (secrets, "randbits", draws.getrandbits),
        (store, "Lane", SimLane),
        (reader, "Lane", SimLane),
        (store, "RealDisk", real_disk),
        (store, "check_index", no_index_check),
        (raft_storage, "check_in_child", no_check),
        (raft_transport, "_DISPATCHERS", {}),  # what of it leads back to its keys would outlive the history
        (superblock, "_lock", lock),
        (lmdb, "open", open_environment),
        *((kind, "__hash__", stable_hash) for kind in (Connection, Volume, Transmission, _Handshake)),
        (checkpoint, "MAP_SIZE", 1 << 28),
        (raft_storage, "MAP_SIZE", 1 << 28),
    ]


class _Environment:
    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def release(self) -> None:
        self._environment.close()


class _Descriptor:
    """A lock. It is let go when the process dies, and closed at the end: what is left of the process may
    still know its number."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._inode = os.fstat(descriptor)

    def _is_ours(self) -> bool:
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self._inode.st_dev, self._inode.st_ino)

    def release(self) -> None:
        if self._is_ours():
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._is_ours():
            os.close(self._descriptor)
