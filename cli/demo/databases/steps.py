"""The two parts of the demo: MariaDB with WordPress, and PostgreSQL; each loses its host, and is judged."""

from __future__ import annotations

import asyncio
import time

from moorage.cli.demo.databases import mariadb, postgres, wordpress
from moorage.cli.demo.databases.mariadb import Clients, MariaDb, Noted
from moorage.cli.demo.databases.postgres import Postgres
from moorage.cli.demo.databases.stage import Stage
from moorage.cli.demo.databases.wordpress import Post, WordPress
from moorage.cli.machine_mounts import boot_clock
from moorage.cli.takeover.runs import settle

CLIENTS = 4
BEFORE_S, AFTER_S = 5.0, 2.0
ROWS_MIN = 20  # of a client, before the kill: less would show nothing
TITLE = "Written before the kill"
TEXT = "This was said on a host that no longer is."


async def web_site(stage: Stage, first: str, second: str) -> None:
    """MariaDB on one volume and the files of WordPress on another, at ``first``, then at ``second``."""
    report = stage.report
    began = time.perf_counter()
    report.step(f"{first}: MariaDB on one volume, the files of WordPress on another, each with its own user")
    await asyncio.gather(
        stage.mount_new(first, "db", "1G", mariadb.USER), stage.mount_new(first, "site", "1G", wordpress.USER)
    )
    database = MariaDb(stage.cluster, first, stage.path("db"))
    await database.make()
    await database.start()
    await database.prepare()
    site = WordPress(stage.cluster, first, stage.path("site"))
    await site.make()
    post = await site.publish(TITLE, TEXT)
    await site.served(post.page, post.title)
    report.promise("a page shows a post", True, f"{time.perf_counter() - began:.0f} s to set all up")

    addresses = [stage.cluster.network.addresses[host] for host in (first, second)]
    async with Clients(stage.cluster, addresses, CLIENTS) as clients:
        report.step(f"{CLIENTS} clients insert rows, and note each one that was committed")
        await asyncio.sleep(BEFORE_S)
        report.step(f"SIGKILL of everything at {first}; {second} mounts both volumes")
        title = f"MariaDB and WordPress: {first} is killed, {second} goes on"
        async with stage.killed(title, first, second, "db", "site") as timeline:
            database = MariaDb(stage.cluster, second, stage.path("db"))
            site = WordPress(stage.cluster, second, stage.path("site"))
            ready, _ = await asyncio.gather(database.start(), site.start())
            timeline.note(ready, f"mariadbd at {second}", "ready: its redo log is replayed")
            first_row = asyncio.ensure_future(clients.first_commit(addresses[1]))
            page = await site.served(post.page, post.title)
            timeline.note(page, f"php at {second}", "the page is served")
            timeline.note(await first_row, "client", "the first row is committed")
        await asyncio.sleep(AFTER_S)
    await _judge_rows(stage, database, clients.noted, addresses[0])
    await _judge_site(stage, site, post)
    report.step(f"{first} comes back, the programs at {second} are stopped, and the volumes looked at")
    await asyncio.gather(stage.cluster.power_on(first), site.server.stop(), database.server.stop())
    await stage.unmount(second, "db", "site")


async def _judge_rows(stage: Stage, database: MariaDb, noted: Noted, before: str) -> None:
    rows, committed = await database.rows(), noted.all_committed()
    lost = committed - rows.keys()
    old = len(noted.committed.get(before, {}))
    figure = f"{old:,} before the kill, {len(committed) - old:,} after; "
    figure += (
        f"{len(lost)} LOST" if lost else f"{len(rows.keys() - committed)} more whose client heard nothing"
    )
    report = stage.report
    report.promise("every committed row is there", not lost and old >= CLIENTS * ROWS_MIN, figure)
    wrong = [n for n, found in rows.items() if found != mariadb.payload(n) or n not in noted.sent]
    report.promise("no row is there that was not sent", not wrong, f"{len(wrong)} of {len(rows):,} are wrong")
    complaint = await database.check()
    report.promise("mariadb-check finds nothing", not complaint, complaint)


async def _judge_site(stage: Stage, site: WordPress, post: Post) -> None:
    page, file = await site.fetch(post.page), await site.fetch(post.file)
    report = stage.report
    report.promise("the page shows the post", post.title in page and post.text in page, post.page)
    report.promise("the file that came with it is there", file.endswith(post.text), post.file)


async def bank(stage: Stage, first: str, second: str) -> None:
    """PostgreSQL under pgbench at ``first``, then at ``second``."""
    report, cluster = stage.report, stage.cluster
    began = time.perf_counter()
    report.step(f"{first}: PostgreSQL on a volume of its own")
    await settle(cluster)
    await stage.mount_new(first, "bank", "1G", postgres.USER)
    database = Postgres(cluster, first, stage.path("bank"))
    await database.make()
    await database.start()
    await database.prepare()
    report.promise("pgbench has made its tables", True, f"{time.perf_counter() - began:.0f} s to set all up")

    report.step(f"pgbench, {postgres.CLIENTS} clients, and a log of each transaction")
    logs = cluster.directory / "pgbench"
    logs.mkdir()
    bench = await database.bench(logs, seconds=600)
    await asyncio.sleep(BEFORE_S)
    report.step(f"SIGKILL of everything at {first}; {second} mounts the volume")
    title = f"PostgreSQL: {first} is killed, {second} goes on"
    async with stage.killed(title, first, second, "bank") as timeline:
        database = Postgres(cluster, second, stage.path("bank"))
        ready = await database.start()
        await database.query("SELECT 1")
        timeline.note(boot_clock(), "client", "the first query is answered")
        await database.query("CREATE TABLE again AS SELECT now() AS at")
        timeline.note(boot_clock(), "client", "the first transaction is committed")
        timeline.note(ready, f"postgres at {second}", "ready")
        if replayed := database.server.heard(postgres.REPLAYED):
            timeline.note(replayed, f"postgres at {second}", "the write-ahead log is replayed")
    await bench.wait()  # it has lost its server
    books, noted = await database.books(), postgres.committed(logs)
    lost = noted - books.history
    figure = f"{len(noted):,}; {len(lost)} LOST" if lost else f"{len(noted):,}"
    kept = not lost and len(noted) >= postgres.CLIENTS * ROWS_MIN
    report.promise("every transaction that pgbench logged as committed is there", kept, figure)
    more = len(books.history - noted)
    report.promise("and at most one more of each client", more <= postgres.CLIENTS, str(more))
    accounts, tellers, branches, history = books.sums
    figure = f"accounts {accounts:,}, tellers {tellers:,}, branches {branches:,}, history {history:,}"
    report.promise("the books balance", books.balanced, figure)
    await asyncio.gather(cluster.power_on(first), database.server.stop())
    await stage.unmount(second, "bank")
