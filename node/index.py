"""The index in memory: where each block of each replica is, in pages of 32 blocks.

Owns: tables of pages (page.py), tombstones, snapshots, what of it is dirty, and how many bytes of each
segment, and of each table, are alive. Must never do I/O other than ``load`` (one lookup in LMDB), nor drop a
dirty page. Invariants: per block the greater LSN wins, whatever the order of arrival, and what a snapshot of
the table shows is kept; ``live[segment]`` is the sum of the blocks and versions that point there, over pages
in memory (as they are) and pages on disk (as stored), ``table.live`` the sum of those of that table; a page
is swept up to ``Tombstones.version`` before anybody looks at it.

A snapshot is an LSN: it shows of each block what was written last up to there. Which ones there are is one
more value that a record sets as a whole (``set_snapshots``), and of which the greater LSN wins.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from moorage.node.page import LSNS, PAGE_BLOCKS, PAGE_SIZE, PAGES_PER_CHUNK, Page, Version, is_kept
from moorage.node.segment import OFFSET_BITS
from moorage.node.tombstones import Range, Tombstones
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNKS_MAX, LSN_MAX, Buffer

_MASK = PAGE_BLOCKS - 1

Loader = Callable[[int, int], bytes | None]  # (handle, page number) -> what is stored; Corrupt when it is not


class Table:
    """One replica's blocks. ``handle`` names it on disk and is never used again. ``snapshots``: their LSNs,
    as of the record at ``snapshots_lsn``."""

    __slots__ = (
        "alive",
        "handle",
        "keep_all",
        "keep_to",
        "kept_blindly",
        "live",
        "pages",
        "prune",
        "snapshots",
        "snapshots_lsn",
        "tombstones",
    )

    def __init__(self, handle: int, tombstones: Tombstones, live: int = 0) -> None:
        self.handle = handle
        self.pages: dict[int, Page] = {}
        self.tombstones = tombstones
        self.live = live  # bytes of its blocks and versions
        self.alive = True
        self.snapshots: list[int] = []
        self.snapshots_lsn = 0
        # While it is being copied, and its source has not said yet which snapshots there are: versions up to
        # this LSN may be shown by one.
        self.keep_to = 0
        self.kept_blindly = False  # that had an effect
        # During a replay: what is on disk may be newer than the list of snapshots that the replay is at.
        self.keep_all = False
        self.prune = False  # it may have versions that no snapshot shows any more

    def keeps(self, lsn: int, following: int) -> bool:
        """Whether what was written at ``lsn`` is kept when something replaces it at ``following``. What is
        kept blindly is noted: it is looked at again once it is known which snapshots there are."""
        if self.keep_all or is_kept(self.snapshots, lsn, following):
            return True
        self.kept_blindly = self.kept_blindly or lsn <= self.keep_to
        return lsn <= self.keep_to

    @property
    def losses(self) -> tuple[tuple[int, int], list[Range]]:
        """What explains that stored pages have lost something: a version that rises with each change, and
        tombstones. One past all chunks is the record that said which snapshots there are."""
        ranges = list(self.tombstones)
        if self.snapshots_lsn:
            ranges.append((CHUNKS_MAX, CHUNKS_MAX + 1, self.snapshots_lsn))
        return (self.tombstones.version, self.snapshots_lsn), ranges

    def learn_of_snapshots(self) -> None:
        """Its source has said which there are, or it is whole again."""
        self.prune = self.prune or self.kept_blindly
        self.keep_to, self.kept_blindly = 0, False


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
        page = table.pages[number] = Page(table, number, self._load(table.handle, number))
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
        """Let the chunk's tombstones take what is older than them."""
        page.swept = page.table.tombstones.version
        cells = page.cells
        for lsn in page.table.tombstones.lsns(page.number // PAGES_PER_CHUNK):
            for at in range(PAGE_BLOCKS):
                if 0 < cells[LSNS + at] < lsn:
                    self._bury(page, at, lsn)
                elif at in page.older and page.older[at][0].lsn < lsn:
                    self._note_discard(page, at, lsn)
                    self._prune_block(page, at)

    def _bury(self, page: Page, at: int, lsn: int) -> None:
        cells = page.cells
        # (beside versions a tombstone of its own: it tells which snapshots it came before)
        kept = self._put_aside(page, at, lsn) or at in page.older
        cells[at] = cells[PAGE_BLOCKS + at] = 0
        cells[LSNS + at] = lsn if kept else 0
        self._touch(page)

    def _note_discard(self, page: Page, at: int, lsn: int) -> None:
        """Beside versions of a block: its chunk was discarded then."""
        there = page.cells[LSNS + at]
        if there < lsn:
            self._bury(page, at, lsn)
            page.cells[LSNS + at] = lsn
        elif there > lsn and page.find(at, lsn) is None and page.table.keeps(lsn, page.following(at, lsn)):
            self._keep(page, at, Version(lsn, 0, 0))

    def _put_aside(self, page: Page, at: int, lsn: int) -> bool:
        """The cell is about to be replaced at ``lsn``: keep what it says if a snapshot shows it."""
        cells, table = page.cells, page.table
        old, old_lsn = cells[at], cells[LSNS + at]
        if old_lsn and table.keeps(old_lsn, lsn):
            page.keep(at, Version(old_lsn, old, cells[PAGE_BLOCKS + at]))
            return True
        self._release(table, old)
        return False

    def _release(self, table: Table, location: int) -> None:
        if location and table.alive:  # (what is of a table that is gone was taken off when it went)
            self.live[location >> OFFSET_BITS] -= BLOCK_SIZE
            table.live -= BLOCK_SIZE

    def _account(self, table: Table, location: int) -> None:
        if location and table.alive:
            self.live[location >> OFFSET_BITS] += BLOCK_SIZE
            table.live += BLOCK_SIZE

    def _touch(self, page: Page) -> None:
        page.version += 1
        if not page.dirty and page.table.alive:
            page.dirty = True
            self.dirty[page] = None

    def stored(self, page: Page, version: int) -> None:
        """The page as it was at ``version`` is in LMDB."""
        if page.version == version and page.dirty:
            page.dirty = False
            del self.dirty[page]

    def forget(self, table: Table) -> set[int]:
        """Drop a table from memory; the numbers of the pages whose live bytes are accounted for here."""
        numbers = set(table.pages)
        for page in table.pages.values():
            for location in page.cells[:PAGE_BLOCKS]:
                self._release(table, location)
            for versions in page.older.values():
                for version in versions:
                    self._release(table, version.location)
            if page.dirty:
                page.dirty = False
                del self.dirty[page]
        table.pages = {}
        table.alive = False
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
        lsns = cells[LSNS + at : LSNS + at + count]
        discarded = page.table.tombstones.lsn(page.number // PAGES_PER_CHUNK)
        if max(max(lsns), discarded) >= lsn or min(lsns) <= self._kept_to(page.table):
            for each in range(count):
                self._set(page, at + each, location + each * BLOCK_SIZE, sums[each], lsn, discarded)
            return
        for old in cells[at : at + count]:
            if old:
                self.live[old >> OFFSET_BITS] -= BLOCK_SIZE
                page.table.live -= BLOCK_SIZE
        end = location + count * BLOCK_SIZE
        cells[at : at + count] = array("Q", range(location, end, BLOCK_SIZE))
        cells[PAGE_BLOCKS + at : PAGE_BLOCKS + at + count] = sums
        cells[LSNS + at : LSNS + at + count] = array("Q", [lsn]) * count
        self.live[location >> OFFSET_BITS] += count * BLOCK_SIZE
        page.table.live += count * BLOCK_SIZE
        self._touch(page)

    @staticmethod
    def _kept_to(table: Table) -> int:
        """What is newer can be replaced without a look at snapshots; -1: everything."""
        if table.keep_all:
            return LSN_MAX
        return max(table.keep_to, table.snapshots[-1] if table.snapshots else 0) or -1

    def put_block(self, table: Table, chunk: int, block: int, location: int, check: int, lsn: int) -> None:
        page = self.page(table, chunk * PAGES_PER_CHUNK + block // PAGE_BLOCKS)
        tombstones = table.tombstones
        self._set(
            page, block & _MASK, location, check, lsn, tombstones.lsn(chunk) if tombstones.version else 0
        )

    def _set(self, page: Page, at: int, location: int, check: int, lsn: int, discarded: int) -> None:
        """``discarded``: LSN at which the chunk was. It is greater only in a replay (of which the index had
        been ahead), and in a copy."""
        if lsn < discarded:
            self._merge_older(page, at, Version(lsn, location, check))
        elif page.cells[LSNS + at] < lsn:
            self._put_aside(page, at, lsn)
            self._fill(page, at, location, check, lsn)

    def _fill(self, page: Page, at: int, location: int, check: int, lsn: int) -> None:
        cells = page.cells
        self._account(page.table, location)
        cells[at] = location
        cells[PAGE_BLOCKS + at] = check
        cells[LSNS + at] = lsn
        self._touch(page)

    def merge(self, table: Table, chunk: int, block: int, location: int, check: int, lsn: int) -> None:
        """A block that was copied, from another member or by compaction: the same LSN takes the new place,
        and what is older than the block is now is kept if a snapshot shows it."""
        page = self.page(table, chunk * PAGES_PER_CHUNK + block // PAGE_BLOCKS)
        at = block & _MASK
        there, discarded = page.cells[LSNS + at], table.tombstones.lsn(chunk)
        if lsn < there:
            self._merge_older(page, at, Version(lsn, location, check))
        elif there < lsn:
            self._set(page, at, location, check, lsn, discarded)
        elif page.cells[PAGE_BLOCKS + at] == check:
            self._release(table, page.cells[at])
            self._fill(page, at, location, check, lsn)

    def _merge_older(self, page: Page, at: int, version: Version) -> None:
        table, lsn = page.table, version.lsn
        known = page.find(at, lsn)
        if known is not None:
            if known.check == version.check:
                page.older[at].remove(known)
                self._release(table, known.location)
                self._keep(page, at, version)
            return
        later = [each for each in table.tombstones.lsns(page.number // PAGES_PER_CHUNK) if each > lsn]
        following = page.following(at, lsn)
        if table.keeps(lsn, min([*later, following] if following else later)):
            self._keep(page, at, version)
            for each in later:
                self._note_discard(page, at, each)
            self._prune_block(page, at)  # the one before may have been kept for what this one shows

    def _keep(self, page: Page, at: int, version: Version) -> None:
        self._account(page.table, version.location)
        page.keep(at, version)
        self._touch(page)

    def prune(self, page: Page) -> None:
        """Let go of versions that no snapshot shows any more; the page was swept."""
        for at in list(page.older):
            self._prune_block(page, at)

    def _prune_block(self, page: Page, at: int) -> None:
        table, cells, versions = page.table, page.cells, page.older[at]
        for version in list(versions):
            if not table.keeps(version.lsn, page.following(at, version.lsn)):
                versions.remove(version)
                self._release(table, version.location)
                self._touch(page)
        if not versions:
            del page.older[at]
            if not cells[at] and cells[LSNS + at] == table.tombstones.lsn(page.number // PAGES_PER_CHUNK):
                cells[LSNS + at] = 0  # the chunk's says the same

    def set_snapshots(self, table: Table, snapshots: list[int], lsn: int) -> None:
        """Which there are, by a record at ``lsn``."""
        if lsn <= table.snapshots_lsn:
            return
        table.prune = table.prune or not set(table.snapshots) <= set(snapshots)
        table.snapshots, table.snapshots_lsn = snapshots, lsn

    def zero(self, table: Table, chunk: int, block: int, count: int, lsn: int) -> None:
        """Tombstones over blocks of one chunk."""
        if count == BLOCKS_PER_CHUNK:
            self.zero_chunks(table, chunk, 1, lsn)
            return
        discarded = table.tombstones.lsn(chunk)
        for each in range(block, block + count):
            page = self.page(table, chunk * PAGES_PER_CHUNK + each // PAGE_BLOCKS)
            self._set(page, each & _MASK, 0, 0, lsn, discarded)

    def zero_chunks(self, table: Table, chunk: int, count: int, lsn: int) -> None:
        """A tombstone over whole chunks; pages learn of it when they are next looked at, or swept."""
        table.tombstones.add(chunk, chunk + count, lsn, table.keeps)

    # -- look-ups -----------------------------------------------------------------------------------

    def has(self, table: Table, chunk: int, block: int, location: int, lsn: int) -> bool:
        """Whether the block, or what a snapshot shows of it, is there with this LSN. Unlike :meth:`page`, it
        brings nothing into memory: for who looks at all of a table once. Raises Corrupt."""
        number, at = chunk * PAGES_PER_CHUNK + block // PAGE_BLOCKS, block & _MASK
        page = table.pages.get(number) or Page(table, number, self._load(table.handle, number))
        return any(each[:2] == (lsn, location) for each in self.shown(page, at))

    @staticmethod
    def shown(page: Page, at: int) -> list[Version]:
        """All that there is of a block, also when its page has not been swept yet."""
        found = page.everything(at)
        if found:
            lsn = found[-1].lsn
            later = [
                each for each in page.table.tombstones.lsns(page.number // PAGES_PER_CHUNK) if each > lsn
            ]
            if later and not page.table.keeps(lsn, later[0]):
                found.pop()
        return found

    def located(
        self, table: Table, chunk: int, block: int, count: int, location: int
    ) -> list[tuple[int, int] | None]:
        """Of blocks that were written in one piece at ``location``: (LSN, checksum) of each that is referred
        to there, be it by a snapshot only."""
        found: list[tuple[int, int] | None] = []
        for each in range(block, block + count):
            page = self.page(table, chunk * PAGES_PER_CHUNK + each // PAGE_BLOCKS)
            at = each & _MASK
            if page.cells[at] == location:
                found.append((page.cells[LSNS + at], page.cells[PAGE_BLOCKS + at]))
            else:
                versions = page.older.get(at, ())
                found.append(next(((v.lsn, v.check) for v in versions if v.location == location), None))
            location += BLOCK_SIZE
        return found

    def find(
        self, table: Table, chunk: int, block: int, count: int, snapshot: int = 0
    ) -> Iterator[tuple[int, int, int]]:
        """(location, checksum, LSN) of each block, as it is or as a snapshot shows it; location 0 reads as
        zeroes."""
        for cells, at, part in self.parts(table, chunk, block, count, snapshot):
            yield from zip(
                cells[at : at + part],
                cells[PAGE_BLOCKS + at : PAGE_BLOCKS + at + part],
                cells[LSNS + at : LSNS + at + part],
                strict=True,
            )

    def parts(
        self, table: Table, chunk: int, block: int, count: int, snapshot: int = 0
    ) -> Iterator[tuple[array[int], int, int]]:
        """The same by page: (its cells, first one, how many). Locations are ``cells[at : at + part]``,
        checksums ``PAGE_BLOCKS`` further; a hole has 0 in both."""
        done = 0
        while done < count:
            first = block + done
            page = self.page(table, chunk * PAGES_PER_CHUNK + first // PAGE_BLOCKS)
            at = first & _MASK
            part = min(count - done, PAGE_BLOCKS - at)
            newest = max(page.cells[LSNS + at : LSNS + at + part]) if snapshot else 0
            yield page.cells if newest <= snapshot else _as_shown(page, at, part, snapshot), at, part
            done += part


def _as_shown(page: Page, first: int, count: int, snapshot: int) -> array[int]:
    cells = array("Q", bytes(PAGE_SIZE))
    for at in range(first, first + count):
        cells[LSNS + at], cells[at], cells[PAGE_BLOCKS + at] = page.shown(at, snapshot)
    return cells
