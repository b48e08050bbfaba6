"""What goes wrong with the device of one store, besides that its process dies.

Owns which faults a history has, how often, and that synced bytes change once in a life at most: several
changes may take the last group commits all at once, and nobody could tell.
"""

from __future__ import annotations

from moorage.node.page import PAGE_BLOCKS
from moorage.node.segment import FRAME_MAGIC, OFFSET_BITS, OFFSET_MASK
from moorage.node.store import Store
from moorage.quorum.record import BLOCK_SIZE
from moorage.simulation.disk import Device
from moorage.simulation.loop import SimLoop
from moorage.simulation.store_model import Wrong

FREE = 1 << 40  # bytes of a disk that is not full
ASTRAY = 128  # group commits that one write can cover
WEIGHTS = {"fails": 2, "full": 2, "rot": 4, "rot_alive": 4, "rot_late": 6, "rot_index": 4, "misdirected": 2}


class Faults:
    """``kinds``: which ones this history has, and their weights."""

    def __init__(self, loop: SimLoop, device: Device) -> None:
        self._loop = loop
        self._rng = rng = loop.rng
        self._device = device
        self._rotted = False  # in this life
        self._astray = False  # a write has gone astray since the last start
        self.kinds = {name: weight for name, weight in WEIGHTS.items() if rng.random() < 0.6}
        self._rots = rng.random() < 0.5  # bytes that were synced change

    def begin_life(self) -> None:
        """What was to come was for another one."""
        self._device.fails_at = self._device.misdirects_at = 0
        self._rotted = False

    def strike(self, store: Store) -> None:
        names = sorted(self.kinds)
        name = self._rng.choices(names, [self.kinds[each] for each in names])[0]
        getattr(self, "_fault_" + name)(store)

    def rot_before_a_scrub(self, store: Store) -> None:
        """All else is well: of a block or a page that rots now nobody can know before it is read back."""
        if self._rots and self._rng.random() < 0.7:
            self._rotted = False
            if self._rng.random() < 0.5:
                self._fault_rot_alive(store)
            else:
                # (of a table that is being swept it would leave what it held counted, until the next start)
                self._fault_rot_index(store, {each.table.handle for each in store.replicas.values()})

    def sure_before(self, group: int) -> int | None:
        """After a start: the group commit before which all is sure, of those that somebody was told something
        after. A write gone astray may have come down on several."""
        astray, self._astray = self._astray, False
        if not self._device.damaged:
            return None
        return max(0, group - ASTRAY) if astray else group

    def _fault_fails(self, store: Store) -> None:
        self._device.fails_at = self._rng.randint(1, 10)

    def _fault_full(self, store: Store) -> None:
        disk = self._device.disk
        disk.free = 0

        def undo() -> None:
            disk.free = FREE

        self._loop.at(self._rng.uniform(0.01, 0.3), undo)

    def _fault_rot(self, store: Store) -> None:
        if self._rots and not self._rotted:
            self._rotted = self._device.rot(self._rng)

    def _fault_rot_late(self, store: Store) -> None:
        """In the front of one of the last frames, which a replay will meet."""
        current = store.log.current
        if not self._rots or self._rotted or current is None:
            return
        file = self._device.disk.files[current.name]
        frames = [at for at in range(512, current.end, 512) if file.synced[at : at + 4] == FRAME_MAGIC]
        if frames:
            at = self._rng.choice(frames[-12:]) + self._rng.randrange(200)
            self._rotted = self._device.damaged = True
            file.now[at] ^= 1
            file.synced[at] ^= 1
            self._loop.note(f"byte {at} of {current.name} rots, in the front of a frame")

    def _fault_rot_alive(self, store: Store) -> None:
        """In a block that an index refers to."""
        if not self._rots or self._rotted:
            return
        places = [
            location
            for replica in store.replicas.values()
            for page in replica.table.pages.values()
            for at in range(PAGE_BLOCKS)
            for location in [version.location for version in page.everything(at)]
            if location
        ]
        if places:
            location = self._rng.choice(places)
            segment = store.log.segments.get(location >> OFFSET_BITS)
            if segment is None:
                raise Wrong(f"segment {location >> OFFSET_BITS} is referred to, and gone")
            file = self._device.disk.files[segment.name]
            at = (location & OFFSET_MASK) + self._rng.randrange(BLOCK_SIZE)
            self._rotted = self._device.damaged = True
            file.now[at] ^= 1
            file.synced[at] ^= 1
            self._loop.note(f"byte {at} of {segment.name} rots, in a block that is alive")

    def _fault_rot_index(self, store: Store, handles: set[int] | None = None) -> None:
        """In a page that a checkpoint has stored (of one of these tables)."""
        if not self._rots or self._rotted or store.index_store is None:
            return
        env = store.index_store._env
        with env.begin(write=True, db=store.index_store._pages) as txn:
            stored = [
                (key, value)
                for key, value in txn.cursor()
                if handles is None or int.from_bytes(key[:4], "big") in handles
            ]
            if stored:
                key, value = self._rng.choice(stored)
                rotten = bytearray(value)
                rotten[self._rng.randrange(len(rotten))] ^= 1 << self._rng.randrange(8)
                txn.put(key, bytes(rotten))
                self._rotted = self._device.damaged = True
                self._loop.note(f"page {key.hex()} of the index rots")

    def _fault_misdirected(self, store: Store) -> None:
        if self._rots and not self._rotted:
            self._rotted = self._astray = True
            self._device.misdirects_at = self._rng.randint(1, 5)
