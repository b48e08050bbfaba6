"""MariaDB on a mounted volume: made, started, asked; and clients that note what was committed.

Everything that makes a commit durable is on. The server runs as its own user, with its data on the volume,
its socket and process id below the machine's run directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moorage.cli.demo.databases.programs import Program, as_user, program, run
from moorage.cli.local_cluster import die_with_parent
from moorage.cli.machine_mounts import boot_clock
from moorage.cli.machines import MachineCluster

USER, PORT = "mysql", 3306
SECRET = "demo"  # of the databases' users: the network is the demo's own
READY = "ready for connections"
DURABLE = (
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-doublewrite=ON",
    "--innodb-flush-method=O_DIRECT",
    "--log-bin=binlog",
    "--sync-binlog=1",
)
_SMALL = ("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M")
_PREPARE = f"""
CREATE DATABASE demo; CREATE TABLE demo.`rows` (id BIGINT PRIMARY KEY, payload CHAR(64) NOT NULL);
CREATE DATABASE wordpress;
CREATE USER demo@'%' IDENTIFIED BY '{SECRET}'; GRANT ALL ON demo.* TO demo@'%';
CREATE USER wordpress@'%' IDENTIFIED BY '{SECRET}'; GRANT ALL ON wordpress.* TO wordpress@'%';
"""


class MariaDb:
    def __init__(self, cluster: MachineCluster, host: str, volume: Path) -> None:
        self._cluster, self._host = cluster, host
        self._data = volume / "data"
        self._run = cluster.machines[host].run / "mariadb"
        self.server = Program(f"mariadbd at {host}", cluster.directory / f"mariadbd-{host}.log")

    async def make(self) -> None:
        """A data directory on the empty volume."""
        await run(
            *self._as(USER, "mariadb-install-db", "--no-defaults", f"--datadir={self._data}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
        )
        # Tables of its own that are not transactional (help, statistics) are not synced by anybody else.
        await run(*self._as("root", "sync", "--file-system", str(self._data)))

    async def start(self) -> float:
        """Until it is ready; when that was."""
        await run(*self._as("root", "install", "-d", "-o", USER, str(self._run)))
        await self.server.start(
            *self._as(USER, "mariadbd", "--no-defaults", f"--datadir={self._data}", *DURABLE, *_SMALL),
            *(f"--socket={self._run}/socket", f"--pid-file={self._run}/pid", f"--tmpdir={self._run}"),
            *("--bind-address=0.0.0.0", f"--port={PORT}", "--skip-name-resolve", "--server-id=1"),
        )
        return await self.server.wait_for(READY)

    async def prepare(self) -> None:
        await self._ask("mariadb", stdin=_PREPARE)

    async def check(self) -> str:
        """What mariadb-check complains of, "" for nothing."""
        said = await self._ask("mariadb-check", "--all-databases", "--extended", "--silent")
        return said.strip()

    async def rows(self) -> dict[int, str]:
        said = await self._ask("mariadb", "-BN", stdin="SELECT id, payload FROM demo.`rows`;")
        return {int(number): payload for number, payload in map(str.split, said.splitlines())}

    async def _ask(self, name: str, *arguments: str, stdin: str = "") -> str:
        where = ("--no-defaults", "--user=root", f"--socket={self._run}/socket")
        return await run(*self._as("root", name, *where, *arguments), stdin=stdin)

    def _as(self, user: str, name: str, *arguments: str) -> tuple[str, ...]:
        return as_user(self._cluster, self._host, user, program(name), *arguments)


# Rows number FIRST + 1, FIRST + 2, ... into whichever server answers, for ever; one line for each that is
# sent, and one for each that is committed. One whose fate is not known is not sent again.
_INSERT = """
mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
[, $id, $secret] = $argv;
while (true) foreach (array_slice($argv, 3) as $host) try {
    $db = mysqli_init();
    $db->options(MYSQLI_OPT_CONNECT_TIMEOUT, 1);
    $db->options(MYSQLI_OPT_READ_TIMEOUT, 5);
    @$db->real_connect($host, 'demo', $secret, 'demo');
    while (true) {
        $id++;
        echo "sent $id $host\\n";
        $db->query("INSERT INTO `rows` VALUES ($id, '" . hash('sha256', "row $id") . "')");
        echo "committed $id $host\\n";
    }
} catch (mysqli_sql_exception) { usleep(20000); }
"""
ROWS_MAX = 1_000_000  # of a client


def payload(number: int) -> str:
    return hashlib.sha256(b"row %d" % number).hexdigest()


@dataclass
class Noted:
    """What clients have seen. ``committed``: by the address of the server, rows and when."""

    sent: set[int] = field(default_factory=set)
    committed: dict[str, dict[int, float]] = field(default_factory=dict)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, line: bytes) -> None:
        what, number, address = line.decode().split()
        if what == "sent":
            self.sent.add(int(number))
        else:
            self.committed.setdefault(address, {})[int(number)] = boot_clock()
            self.more.set()

    def all_committed(self) -> set[int]:
        return {number for rows in self.committed.values() for number in rows}


class Clients:
    """``count`` clients at c1 that insert rows. An async context manager."""

    def __init__(self, cluster: MachineCluster, addresses: Sequence[str], count: int) -> None:
        self.noted = Noted()
        self._commands = [
            as_user(
                cluster,
                "c1",
                "root",
                *(program("php"), "-r", _INSERT, "--", str(number * ROWS_MAX), SECRET, *addresses),
            )
            for number in range(count)
        ]
        self._processes: list[asyncio.subprocess.Process] = []
        self._hearing: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Clients:
        for command in self._commands:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                preexec_fn=die_with_parent,
            )
            self._processes.append(process)
            self._hearing.append(asyncio.ensure_future(self._hear(process)))
        return self

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):
            self.noted.hear(line)

    async def first_commit(self, address: str) -> float:
        """When the first row was committed by the server there."""
        while address not in self.noted.committed:
            self.noted.more.clear()
            await self.noted.more.wait()
        return min(self.noted.committed[address].values())

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                process.kill()
            await process.wait()
        await asyncio.gather(*self._hearing)
