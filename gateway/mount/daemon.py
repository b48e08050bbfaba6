"""The daemon of one mount: ``python -m moorage.gateway.mount.daemon DIRECTORY``, started by the keeper.

Owns the attachment of the volume and everything that the record asks for: it attaches, serves the volume
over NBD, opens the block device, formats, mounts, and lets the file system grow with the volume.
A new life goes on where the record says that the former one was. It must never serve a volume that somebody
else may have written since its former life (what the kernel has in its caches would go over that), and never
touch the device or the mount from its own event loop: the answer is its own.

Ends: its stdin is closed (the keeper is gone or told to end): it writes out and detaches. SIGTERM: it
writes out, and keeps the volume for its next life. When the volume is lost (taken over, deleted, or
acknowledged writes of a ``writeback`` volume may be gone), it stays and answers with I/O errors, and the
status says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from moorage.client.attachment import after_the_lease
from moorage.client.cluster import Cluster, connect
from moorage.client.device import BlockDevice, Done
from moorage.client.succession import Succession, new_writer
from moorage.client.uri import parse
from moorage.client.volume import Volume
from moorage.gateway.mount import filesystem, system
from moorage.gateway.mount.record import FAILED, MOUNTED, Place, Record
from moorage.gateway.mount.ways import way_of
from moorage.gateway.mount.writeback import become_io_flusher
from moorage.gateway.nbd.server import NbdServer
from moorage.wire.buffers import reuse_payload_memory
from moorage.wire.errors import AttachmentLost, Busy, Fenced, MoorageError, NotFound

log = logging.getLogger("moorage.daemon")

CONNECT_TIMEOUT_S = 30.0
ATTACH_TIMEOUT_S = 30.0
AGAIN_S = 0.2
WATCH_S = 1.0  # a new size of the volume is heard of as often as the lease is renewed
LOOK_BYTES = 64 << 30


class MountDaemon:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._record: Record = place.load()
        self._way = way_of(self._record)
        self._status = place.status()
        self._first = not self._status.epoch  # no life came to serve it: the kernel has nothing of it
        self._ending = asyncio.Event()
        self._keeps = False  # the volume, for a next life

    async def run(self) -> int:
        """The exit code."""
        self._status.pid = os.getpid()
        if self._status.state != "lost":
            self._status.state = "starting"  # what the former life came to, this one does not serve yet
        self._place.save_status(self._status)
        await self._listen_to_the_keeper()
        work = asyncio.ensure_future(self._work())
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait((work, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            return 0
        except MoorageError as error:
            log.error("%s", error)
            if self._ending.is_set():
                return 0
            self._status.error = {"code": error.code, "message": error.message, "details": error.details}
            self._enter("failed", error.message)
            return FAILED
        return 0

    async def _listen_to_the_keeper(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

        async def until_it_is_gone() -> None:
            await reader.read()
            self._ending.set()

        def told_to_restart() -> None:
            self._keeps = True
            self._ending.set()

        self._listening = asyncio.ensure_future(until_it_is_gone())
        loop.add_signal_handler(signal.SIGTERM, told_to_restart)

    async def _work(self) -> None:
        record = self._record
        if self._status.state != "lost":
            async with await self._connect() as cluster:
                try:
                    volume = await self._attach(cluster)
                except (Fenced, NotFound, AttachmentLost) as error:
                    if self._first:
                        raise
                    self._enter("lost", error.message)
                else:
                    await self._hold(cluster, volume)
        async with self._served(LostDevice(self._status.size, record.read_only)):
            await asyncio.Event().wait()

    async def _connect(self) -> Cluster:
        """A first life fails; a later one has requests parked, and tries until it can."""
        record = self._record
        while True:
            try:
                return await connect(
                    registry=record.registry,
                    secret_file=record.secret_file,
                    host=record.host or None,
                    timeout=CONNECT_TIMEOUT_S,
                )
            except MoorageError as error:
                if self._first:
                    raise
                log.warning("the cluster is not reached: %s", error)
            await asyncio.sleep(AGAIN_S)

    async def _attach(self, cluster: Cluster) -> Volume:
        """The writer's id is noted before it is used: a next life can name it, whatever comes of this one."""
        record, status = self._record, self._status
        if not status.clean and status.durability == "writeback":
            raise AttachmentLost(
                f"the daemon of volume {record.volume!r} ended without a flush: writes that were "
                "acknowledged may be gone; unmount it and mount it again"
            )
        self._enter("attaching")
        snapshot = parse(record.volume).snapshot
        if record.read_only and not snapshot:
            await after_the_lease(lambda: self._check_at_rest(cluster), record.wait)
        while True:
            former = tuple(status.writers)
            writer = new_writer()
            try:
                await cluster.show(parse(record.volume).name)  # while nobody answers, no id is used up
                status.begin(writer)
                self._place.save_status(status)
                return await cluster.attach(
                    record.volume,
                    read_only=record.read_only,
                    force=record.force and self._first,
                    io_timeout=record.io_timeout,
                    timeout=ATTACH_TIMEOUT_S,
                    wait=record.wait,
                    succession=None
                    if record.read_only
                    else Succession(writer, () if self._first else former, self._note_writers),
                )
            except (Fenced, NotFound):
                raise
            except MoorageError as error:
                if self._first:
                    raise
                log.warning("volume %s is not attached yet: %s", record.volume, error)
            await asyncio.sleep(AGAIN_S)

    def _note_writers(self, writers: tuple[int, ...]) -> None:
        """The attachment is about to go on under another id, after a recovery."""
        self._status.writers = list(writers)
        self._place.save_status(self._status)

    async def _check_at_rest(self, cluster: Cluster) -> None:
        info = await cluster.show(self._record.volume)
        if info.has_writer and info.holder is not None:
            raise Busy(
                f"volume {info.name!r} is held by {info.holder['program']} on {info.holder['host']}: a file "
                "system that changes underneath cannot be read; unmount it there first",
                remaining_ms=info.lease_left_ms,
            )

    async def _hold(self, cluster: Cluster, volume: Volume) -> None:
        """Until told to end, or until the volume is lost and nothing is left to do for it here."""
        noting = asyncio.ensure_future(self._note_a_loss(volume))
        try:
            async with self._served(volume):
                self._status.epoch, self._status.size = volume.epoch, volume.size
                self._status.durability, self._status.clean = volume.durability, False
                self._status.writers = self._status.writers[-1:]
                self._enter("attached")
                try:
                    await self._carry_out(cluster, volume)
                except BaseException:
                    if self._record.phase != MOUNTED:
                        await self._take_back()
                    raise
                await self._watch_size(volume)
        finally:
            noting.cancel()
            await self._let_go(volume)

    @contextlib.asynccontextmanager
    async def _served(self, device: BlockDevice) -> AsyncIterator[None]:
        server = NbdServer({self._record.volume: device})
        await server.serve(f"unix:{self._place.socket}")
        try:
            yield
        finally:
            await server.stop()

    async def _take_back(self) -> None:
        """What was begun, while the volume is still served: else it could not be unmounted."""
        device = self._record.device
        for entry in system.mounts_of(device) if device else []:
            await system.run("umount", entry.target)
        for opened in self._way.devices(self._place):
            await self._way.release(self._place, opened)

    async def _note_a_loss(self, volume: Volume) -> None:
        """The volume answers with errors by itself from then on; the kernel must hear them, not wait."""
        try:
            await volume.wait_lost()
        except MoorageError as error:
            log.error("%s", error)
            self._enter("lost", error.message)

    async def _let_go(self, volume: Volume) -> None:
        lost = self._status.state == "lost"
        try:
            await volume.detach(keep=self._keeps)
            self._status.clean = not lost
        except MoorageError as error:
            log.error("volume %s: %s", volume.name, error)
        self._place.save_status(self._status)

    # -- what the record asks for ----------------------------------------------------------------------

    async def _carry_out(self, cluster: Cluster, volume: Volume) -> None:
        """From wherever a former life came to: what was done is noted, or is seen in the system."""
        if self._record.phase != MOUNTED:  # later it may be unmounted by hand: no reason to do it again
            self._note(device=await self._opened_device())
            await system.until_unused(self._record.device)
            entry = system.mounted_at(self._record.target)
            if entry is None or entry.source != self._record.device:
                await self._mount(cluster, volume)
            self._note(phase=MOUNTED)
        self._enter("serving")

    async def _opened_device(self) -> str:
        """One may have been made by a life that did not come to note it."""
        found = self._way.devices(self._place)
        return found[0] if found else await self._way.open(self._place, self._record.read_only)

    async def _mount(self, cluster: Cluster, volume: Volume) -> None:
        record, device = self._record, self._record.device
        address = parse(record.volume)
        noted = (await cluster.show(address.name)).fs if not address.snapshot else None
        noted = noted or {"type": "", "state": ""}  # (of a snapshot: what there is, whatever came later)
        found = await filesystem.probe(device)
        blank = not found and (await is_blank(volume))
        kind, formats = filesystem.plan(
            filesystem.Found(record.volume, blank, found, noted["state"], noted["type"]),
            record.fs,
            overwrite=record.overwrite,
            read_only=record.read_only,
        )
        if formats:
            await self._format(volume, kind)
        self._enter("mounting")
        self._note(fs=kind, overwrite=False)
        grows = not record.read_only and not formats
        if grows:
            await filesystem.grow_unmounted(kind, device)
        clone = f"`moorage snapshot clone {address.shown} NAME`, and mount that" if address.snapshot else ""
        await filesystem.mount(kind, device, record.target, record.options, record.read_only, replay_by=clone)
        if grows and kind == "xfs":
            await filesystem.grow(kind, device, record.target)
        await self._way.settle(self._place, device)

    async def _format(self, volume: Volume, kind: str) -> None:
        """The state "formatting" is committed before, and "ready" after: a host that dies in between leaves
        what the next mount formats anew. Nobody sees the file system before it is ready: nothing is lost."""
        record = self._record
        self._enter("formatting")
        await volume.note_fs(kind, "formatting")
        await filesystem.make(kind, record.device)
        if record.owner is not None:
            await filesystem.give(kind, record.device, self._place.inside, record.owner)
        await volume.flush()
        await volume.note_fs(kind, "ready")

    async def _watch_size(self, volume: Volume) -> None:
        record = self._record
        while True:
            await asyncio.sleep(WATCH_S)
            if volume.epoch != self._status.epoch:  # it went on after a recovery
                self._status.epoch = volume.epoch
                self._place.save_status(self._status)
            if volume.size == self._status.size or self._status.state != "serving":
                continue
            log.info("volume %s has %d bytes now, the file system grows", volume.name, volume.size)
            self._status.size = volume.size
            self._place.save_status(self._status)
            try:
                await self._way.resize(self._place, record.device, volume.size)
                if not record.read_only and system.mounts_of(record.device):
                    await filesystem.grow(record.fs, record.device, record.target)
            except (MoorageError, OSError) as error:
                log.error("%s", error)
                self._enter("serving", f"the file system did not grow, it will at the next mount: {error}")

    # -- notes -----------------------------------------------------------------------------------------

    def _note(self, **changes: object) -> None:
        self._record = dataclasses.replace(self._record, **changes)  # type: ignore[arg-type]
        self._place.save(self._record)

    def _enter(self, state: str, reason: str = "") -> None:
        if self._status.state == "lost":
            return  # for good: what else goes on has no device any more
        self._status.state, self._status.reason = state, reason
        self._status.times[state] = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._place.save_status(self._status)


async def is_blank(volume: Volume) -> bool:
    """Whether no block is stored anywhere: each was never written, or discarded since."""
    if volume.epoch == 1 and not volume.read_only:
        return True  # nobody was here before
    for offset in range(0, volume.size, LOOK_BYTES):
        extents = await volume.block_status(offset, min(LOOK_BYTES, volume.size - offset))
        if not all(is_hole for _, is_hole in extents):
            return False
    return True


class LostDevice:
    """In the place of a volume that is not ours any more: every operation fails."""

    block_size = 4096

    def __init__(self, size: int, read_only: bool) -> None:
        self.size = size
        self.read_only = read_only

    def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
        done(LOST)

    def write_nowait(self, offset: int, data: memoryview, done: Done, fua: bool = False) -> None:
        done(LOST)

    def zero_nowait(self, offset: int, length: int, done: Done, discard: bool, fua: bool = False) -> None:
        done(LOST)

    def flush_nowait(self, done: Done) -> None:
        done(LOST)

    async def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, False)]


LOST = Fenced("the volume is lost to this mount: unmount it")


async def main(directory: str) -> int:
    return await MountDaemon(Place(Path(directory))).run()


if __name__ == "__main__":
    import uvloop

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("moorage.gateway.nbd").setLevel(logging.WARNING)  # the keeper comes and goes
    sys.argv[0] = "moorage mount"  # the holder's name, for others
    reuse_payload_memory()
    become_io_flusher()
    sys.exit(uvloop.run(main(sys.argv[1])))
