"""The index in memory: where each block of each replica is, in pages of 32 blocks.

Owns: pages (location, checksum and LSN per block), tombstones, what of it is dirty, and how many bytes of
each segment, and of each table, are alive. Must never do I/O other than ``load`` (one lookup in LMDB), nor
drop a dirty page. Invariants: per block the greater LSN wins, whatever the order of arrival;
``live[segment]`` is the sum of the blocks that point there, over pages in memory (as they are) and pages on
disk (as stored), ``table.live`` the sum of the blocks of that table; a page is swept up to
``Tombstones.version`` before anybody looks at it.

A cell with location 0 and an LSN is a tombstone; with both 0 the block was never written.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from moorage.node.segment import OFFSET_BITS
from moorage.node.tombstones import Tombstones
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, Buffer

PAGE_BLOCKS = 32
PAGES_PER_CHUNK = BLOCKS_PER_CHUNK // PAGE_BLOCKS
PAGE_SIZE = PAGE_BLOCKS * 24
_MASK = PAGE_BLOCKS - 1
_LSN = 2 * PAGE_BLOCKS  # cells: 32 locations, 32 checksums, 32 LSNs
_EMPTY = bytes(PAGE_SIZE)

Loader = Callable[
    [int, int], bytes | None
]  # (handle, page number) -> stored cells; Corrupt when they are not


class Page:
    __slots__ = ("cells", "dirty", "number", "swept", "table", "used", "version")

    def __init__(self, table: Table, number: int, cells: array[int]) -> None:
        self.table = table
        self.number = number
        self.cells = cells
        self.swept = -1
        self.used = True
        self.dirty = False
        self.version = 0  # counts changes: what was stored meanwhile is compared with it

    def empty(self) -> bool:
        return not any(self.cells[_LSN:])

    def lsn_max(self) -> int:
        return max(self.cells[_LSN:])


class Table:
    """One replica's blocks. ``handle`` names it on disk and is never used again."""

    __slots__ = ("alive", "handle", "live", "pages", "tombstones")

    def __init__(self, handle: int, tombstones: Tombstones, live: int = 0) -> None:
        self.handle = handle
        self.pages: dict[int, Page] = {}
        self.tombstones = tombstones
        self.live = live  # bytes of its blocks
        self.alive = True


class Index:
    def __init__(self, load: Loader, pages_max: int) -> None:
        self._load = load
        self._pages_max = pages_max  # of clean pages: dirty ones stay until they are stored
        self._ring: deque[Page] = deque()
        self.dirty: dict[Page, None] = {}
        self.live: defaultdict[int, int] = defaultdict(int)

    # -- pages ----------------------------------------------------------------------------------

    def page(self, table: Table, number: int) -> Page:
        page = table.pages.get(number)
        if page is None:
            page = self._fetch(table, number)
        page.used = True
        if page.swept != table.tombstones.version:
            self._sweep(page)
        return page

    def _fetch(self, table: Table, number: int) -> Page:
        cells = array("Q", self._load(table.handle, number) or _EMPTY)
        page = table.pages[number] = Page(table, number, cells)
        self._ring.append(page)
        if len(self._ring) - len(self.dirty) > self._pages_max:
            self._evict()
        return page

    def _evict(self) -> None:
        """Second chance: a page used since the last look stays for one more round. A few per fetch; never as
        far as the newest, which is about to be used."""
        for _ in range(min(8, len(self._ring) - 1)):
            page = self._ring.popleft()
            if not page.table.alive:
                continue
            if page.dirty or page.used:
                page.used = False
                self._ring.append(page)
                continue
            del page.table.pages[page.number]

    def _sweep(self, page: Page) -> None:
        """Let the chunk's tombstone take what is older than it."""
        lsn = page.table.tombstones.lsn(page.number // PAGES_PER_CHUNK)
        page.swept = page.table.tombstones.version
        if not lsn:
            return
        cells = page.cells
        for at in range(PAGE_BLOCKS):
            if 0 < cells[_LSN + at] < lsn:
                self._release(page.table, cells[at])
                cells[at] = cells[PAGE_BLOCKS + at] = cells[_LSN + at] = 0
                self._touch(page)

    def _release(self, table: Table, location: int) -> None:
        if location:
            self.live[location >> OFFSET_BITS] -= BLOCK_SIZE
            table.live -= BLOCK_SIZE

    def _touch(self, page: Page) -> None:
        page.version += 1
        if not page.dirty:
            page.dirty = True
            self.dirty[page] = None

    def stored(self, page: Page, version: int) -> None:
        """The page as it was at ``version`` is in LMDB."""
        if page.version == version and page.dirty:
            page.dirty = False
            del self.dirty[page]

    def forget(self, table: Table) -> set[int]:
        """Drop a table from memory; the numbers of the pages whose live bytes are accounted for here."""
        table.alive = False
        numbers = set(table.pages)
        for page in table.pages.values():
            for location in page.cells[:PAGE_BLOCKS]:
                self._release(table, location)
            if page.dirty:
                page.dirty = False
                del self.dirty[page]
        table.pages = {}
        return numbers

    def refresh(self, table: Table, number: int) -> bool:
        """What LMDB has of this page is bad. Have it stored again with the next checkpoint: False when it is
        not in memory."""
        page = table.pages.get(number)
        if page is not None:
            self._touch(page)
        return page is not None

    def size(self) -> int:
        return len(self._ring)

    # -- changes ----------------------------------------------------------------------------------

    def put(self, table: Table, chunk: int, block: int, location: int, sums: Buffer, lsn: int) -> None:
        """A WRITE: consecutive blocks, their data in one piece at ``location``."""
        count = len(sums) // 8
        if count == 1:
            self.put_block(table, chunk, block, location, int.from_bytes(sums, "little"), lsn)
            return
        values = array("Q", bytes(sums))
        done = 0
        while done < count:
            first = block + done
            part = min(count - done, PAGE_BLOCKS - (first & _MASK))
            page = self.page(table, chunk * PAGES_PER_CHUNK + first // PAGE_BLOCKS)
            self._put_part(page, first & _MASK, location + done * BLOCK_SIZE, values[done : done + part], lsn)
            done += part

    def _put_part(self, page: Page, at: int, location: int, sums: array[int], lsn: int) -> None:
        count, cells = len(sums), page.cells
        if page.table.tombstones.lsn(page.number // PAGES_PER_CHUNK) >= lsn:
            return
        if max(cells[_LSN + at : _LSN + at + count]) >= lsn:
            for each in range(count):
                self._set(page, at + each, location + each * BLOCK_SIZE, sums[each], lsn)
            return
        for old in cells[at : at + count]:
            if old:
                self.live[old >> OFFSET_BITS] -= BLOCK_SIZE
                page.table.live -= BLOCK_SIZE
        end = location + count * BLOCK_SIZE
        cells[at : at + count] = array("Q", range(location, end, BLOCK_SIZE))
        cells[PAGE_BLOCKS + at : PAGE_BLOCKS + at + count] = sums
        cells[_LSN + at : _LSN + at + count] = array("Q", [lsn]) * count
        self.live[location >> OFFSET_BITS] += count * BLOCK_SIZE
        page.table.live += count * BLOCK_SIZE
        self._touch(page)

    def put_block(self, table: Table, chunk: int, block: int, location: int, check: int, lsn: int) -> None:
        page = self.page(table, chunk * PAGES_PER_CHUNK + block // PAGE_BLOCKS)
        tombstones = table.tombstones
        if tombstones.version and tombstones.lsn(chunk) >= lsn:
            return
        self._set(page, block & _MASK, location, check, lsn)

    def _set(self, page: Page, at: int, location: int, check: int, lsn: int) -> None:
        cells = page.cells
        if cells[_LSN + at] >= lsn:
            return
        self._place(page, at, location, check, lsn)

    def _place(self, page: Page, at: int, location: int, check: int, lsn: int) -> None:
        cells, live = page.cells, self.live
        old = cells[at]
        if old:
            live[old >> OFFSET_BITS] -= BLOCK_SIZE
            page.table.live -= BLOCK_SIZE
        if location:
            live[location >> OFFSET_BITS] += BLOCK_SIZE
            page.table.live += BLOCK_SIZE
        cells[at] = location
        cells[PAGE_BLOCKS + at] = check
        cells[_LSN + at] = lsn
        self._touch(page)

    def move_block(self, table: Table, chunk: int, block: int, location: int, check: int, lsn: int) -> None:
        """As :meth:`put_block`, but the same LSN takes the new place too: it is the same block, copied."""
        page = self.page(table, chunk * PAGES_PER_CHUNK + block // PAGE_BLOCKS)
        at = block & _MASK
        there = page.cells[_LSN + at]
        if there > lsn or (there == lsn and page.cells[PAGE_BLOCKS + at] != check):
            return
        if table.tombstones.lsn(chunk) >= lsn:
            return
        self._place(page, at, location, check, lsn)

    def zero(self, table: Table, chunk: int, block: int, count: int, lsn: int) -> None:
        """Tombstones over blocks of one chunk."""
        if count == BLOCKS_PER_CHUNK:
            self.zero_chunks(table, chunk, 1, lsn)
            return
        if table.tombstones.lsn(chunk) >= lsn:
            return
        for each in range(block, block + count):
            page = self.page(table, chunk * PAGES_PER_CHUNK + each // PAGE_BLOCKS)
            self._set(page, each & _MASK, 0, 0, lsn)

    def zero_chunks(self, table: Table, chunk: int, count: int, lsn: int) -> None:
        """A tombstone over whole chunks; pages learn of it when they are next looked at, or swept."""
        table.tombstones.add(chunk, chunk + count, lsn)

    # -- look-ups -----------------------------------------------------------------------------------

    def cell(self, table: Table, chunk: int, block: int) -> tuple[int, int]:
        """(location, LSN) of a block. Unlike :meth:`page`, it brings nothing into memory: for who looks at
        all of a table once. Raises Corrupt."""
        number, at = chunk * PAGES_PER_CHUNK + block // PAGE_BLOCKS, block & _MASK
        page = table.pages.get(number)
        cells = page.cells if page is not None else array("Q", self._load(table.handle, number) or _EMPTY)
        lsn = cells[_LSN + at]
        return (0, 0) if lsn < table.tombstones.lsn(chunk) else (cells[at], lsn)

    def find(self, table: Table, chunk: int, block: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(location, checksum, LSN) of each block; location 0 reads as zeroes."""
        for cells, at, part in self.parts(table, chunk, block, count):
            yield from zip(
                cells[at : at + part],
                cells[PAGE_BLOCKS + at : PAGE_BLOCKS + at + part],
                cells[_LSN + at : _LSN + at + part],
                strict=True,
            )

    def parts(
        self, table: Table, chunk: int, block: int, count: int
    ) -> Iterator[tuple[array[int], int, int]]:
        """The same by page: (its cells, first one, how many). Locations are ``cells[at : at + part]``,
        checksums ``PAGE_BLOCKS`` further; a hole has 0 in both."""
        done = 0
        while done < count:
            first = block + done
            page = self.page(table, chunk * PAGES_PER_CHUNK + first // PAGE_BLOCKS)
            at = first & _MASK
            part = min(count - done, PAGE_BLOCKS - at)
            yield page.cells, at, part
            done += part
