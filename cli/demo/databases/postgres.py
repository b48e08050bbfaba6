"""PostgreSQL on a mounted volume under pgbench, and what must hold of its books.

Everything that makes a commit durable is on. The script is pgbench's own (a transfer between an account, a
teller and a branch, and a line of history), and each line of history says which transaction of which client
it is of: so each one that pgbench has logged as committed can be looked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from moorage.cli.demo.databases.programs import Program, as_user, program, run
from moorage.cli.machines import MachineCluster

USER, PORT = "postgres", 5432
READY = "database system is ready to accept connections"
REPLAYED = "redo done"
DURABLE = ("fsync=on", "full_page_writes=on", "synchronous_commit=on")
SCALE, CLIENTS = 2, 4
_SCRIPT = """
\\set aid random(1, 100000 * :scale)
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
\\set n :n + 1
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler)
    VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP, ':client_id.:n');
END;
"""
_SUMS = """SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"""


@dataclass(frozen=True)
class Books:
    """``sums``: of accounts, tellers, branches and history; ``history``: transactions that are there."""

    sums: tuple[int, ...]
    history: set[str]

    @property
    def balanced(self) -> bool:
        return len(set(self.sums)) == 1


class Postgres:
    def __init__(self, cluster: MachineCluster, host: str, volume: Path) -> None:
        self._cluster, self._host = cluster, host
        self._data = volume / "data"
        self._run = cluster.machines[host].run / "postgres"
        self.server = Program(f"postgres at {host}", cluster.directory / f"postgres-{host}.log")

    async def make(self) -> None:
        """A data directory on the empty volume; clients of the demo's network are believed."""
        await run(
            *self._as(USER, "initdb", f"--pgdata={self._data}", f"--username={USER}"),
            *("--auth=trust", "--data-checksums", "--encoding=UTF8", "--locale=C"),
        )
        rule = "host all all 10.77.0.0/24 trust\n"
        await run(*self._as(USER, "tee", "--append", f"{self._data}/pg_hba.conf"), stdin=rule)
        await run(*self._as("root", "sync", f"{self._data}/pg_hba.conf"))  # tee does not

    async def start(self) -> float:
        """Until it is ready; when that was."""
        await run(*self._as("root", "install", "-d", "-o", USER, str(self._run)))
        options = [*DURABLE, "listen_addresses=*", f"port={PORT}", f"unix_socket_directories={self._run}"]
        settings = [part for option in options for part in ("-c", option)]
        await self.server.start(*self._as(USER, "postgres", "-D", str(self._data), *settings))
        return await self.server.wait_for(READY)

    async def prepare(self) -> None:
        await run(*self._client("createdb"), "bench")
        await run(*self._client("pgbench"), "--initialize", "--quiet", f"--scale={SCALE}", "bench")

    async def bench(self, directory: Path, seconds: int) -> Program:
        """pgbench, for so long, or until it loses its server; it logs transactions below ``directory``."""
        script = directory / "transfer.sql"
        await asyncio.to_thread(script.write_text, _SCRIPT)
        bench = Program("pgbench", directory / "pgbench.out")
        await bench.start(
            *self._client("pgbench"),
            *("--no-vacuum", f"--client={CLIENTS}", f"--time={seconds}", f"--file={script}"),
            *("--define=n=0", "--log", f"--log-prefix={directory}/log", "bench"),
        )
        return bench

    async def query(self, statement: str) -> str:
        return (await run(*self._client("psql"), "-AtF", " ", "-c", statement, "bench")).strip()

    async def books(self) -> Books:
        sums = tuple(int(number) for number in (await self.query(_SUMS)).split())
        return Books(sums, set((await self.query("SELECT trim(filler) FROM pgbench_history")).split()))

    def _client(self, name: str) -> tuple[str, ...]:
        """A program at the client."""
        address = self._cluster.network.addresses[self._host]
        return as_user(
            self._cluster,
            "c1",
            "root",
            program(name),
            f"--host={address}",
            f"--port={PORT}",
            f"--username={USER}",
        )

    def _as(self, user: str, name: str, *arguments: str) -> tuple[str, ...]:
        return as_user(self._cluster, self._host, user, program(name), *arguments)


def committed(directory: Path) -> set[str]:
    """Transactions that pgbench has logged, by client and number: it logs each one once it is committed, and
    a client has one at a time, so those of a client are its first ones."""
    counts = Counter(
        line.split()[0]
        for log in directory.glob("log.*")
        for line in log.read_text().splitlines()
        if line.strip()
    )
    return {f"{client}.{number}" for client, count in counts.items() for number in range(1, count + 1)}
