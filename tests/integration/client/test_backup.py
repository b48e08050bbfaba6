"""`moorage backup` and `moorage volume copy` as one uses them, and the library without asyncio."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import moorage.sync
from moorage.cli.local_cluster import LocalCluster

MIB = 1 << 20


class Shell:
    def __init__(self, hosts: LocalCluster, directory: Path) -> None:
        self._directory = directory
        self._env = os.environ | {
            "MOORAGE_REGISTRY": hosts.registry,
            "MOORAGE_SECRET_FILE": str(hosts.secret_file),
        }

    async def __call__(self, *arguments: str, given: bytes | None = None, code: int = 0) -> tuple[bytes, str]:
        """stdout and stderr of `moorage ARGUMENTS`, with ``given`` on stdin."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moorage.cli.main", *arguments),
            env=self._env,
            cwd=self._directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(given)
        assert process.returncode == code, (arguments, process.returncode, err)
        assert b"Traceback" not in err
        return out, err.decode()


@pytest.mark.slow
async def test_copies_and_backups(hosts: LocalCluster, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    run = Shell(hosts, here)
    data = random.Random(1).randbytes(3 * MIB)
    async with await moorage.connect(registry=hosts.registry, secret_file=hosts.secret_file) as cluster:
        await cluster.create_volume("db", 16 * MIB, groups=2)
        async with await cluster.attach("db") as volume:
            await volume.write(5 * MIB, data)
            await run("snapshot", "create", "db@mon")
            await volume.write(6 * MIB, b"tuesday" * 1000)
            await volume.discard(7 * MIB, MIB)
            await run("snapshot", "create", "db@tue")
            await volume.write(0, b"later")
        await check_the_commands(run, here)
        for name, snapshot in (("one", "db@mon"), ("two", "db@tue"), ("copy", "db@tue"), ("piped", "db@mon")):
            async with await cluster.attach(name) as found, await cluster.attach(snapshot) as wanted:
                assert await found.read(0, 16 * MIB) == await wanted.read(0, 16 * MIB), name
                assert await found.block_status(0, 16 * MIB) == await wanted.block_status(0, 16 * MIB), name
    await asyncio.to_thread(check_the_synchronous_twin, hosts)


async def check_the_commands(run: Shell, here: Path) -> None:
    _, err = await run("backup", "create", "db@mon", "mon")
    assert err == "" and (here / "mon").stat().st_mode & 0o777 == 0o600
    out, _ = await run("backup", "create", "db@tue", "tue", "--since", "db@mon", "--json")
    made = json.loads(out)
    assert made["header"]["base"]["snapshot"] == "mon" and made["totals"]["holes"] == MIB
    assert (here / "tue").stat().st_size == made["totals"]["stream"] < MIB
    out, _ = await run("backup", "show", "tue", "--verify", "--json")
    shown = json.loads(out)
    assert {key: shown[key] for key in ("header", "totals")} == {
        key: made[key] for key in ("header", "totals")
    }
    out, _ = await run("backup", "show", "mon")
    assert b"db@mon, made " in out and b"16 MiB, 3 replicas, 2 groups, sync" in out

    piped, err = await run("backup", "create", "db@mon", "-", "--json")
    assert piped == (here / "mon").read_bytes() and json.loads(err)["totals"]["stream"] == len(piped)
    out, _ = await run("backup", "restore", "-", "piped", given=piped)
    assert out.startswith(b"restored piped: 16 MiB in ")
    await run("backup", "restore", "mon", "one")
    out, _ = await run("backup", "restore", "mon", "tue", "two", "--replicas", "1", "--json")
    assert json.loads(out)["replicas"] == 1
    out, _ = await run("volume", "copy", "moorage:///db@tue", "copy")
    assert out.startswith(b"copied moorage:///db@tue to copy: 16 MiB in ")
    await check_refusals(run, here, piped)


async def check_refusals(run: Shell, here: Path, raw: bytes) -> None:
    for arguments, words in [
        (("backup", "create", "db@mon", "mon"), "mon exists: --force writes over it"),
        (("backup", "create", "db@mon", "."), "exists: name a file"),
        (("backup", "create", "db@mon", "no/where"), "cannot use"),
        (("backup", "create", "db", "x"), "'db' is not a snapshot"),
        (("backup", "create", "db@mon", "x", "--since", "db@tue"), "db@tue is not older than db@mon"),
        (("backup", "restore", "tue", "new"), "tue holds only what changed since db@mon"),
        (
            ("backup", "restore", "mon", "mon", "new"),
            "mon is a full backup, of db@mon: it can only be the first",
        ),
        (("backup", "restore", "mon", "db"), "'db'"),
        (("backup", "restore", "nothing", "new"), "cannot use nothing: No such file"),
        (("backup", "restore", "mon", "new", "--size", "8M"), "is too small for contents of 16777216 bytes"),
        (("backup", "restore", "-", "-", "new"), "- is given twice"),
        (("volume", "copy", "db@mon", "new", "--size", "8M"), "is too small"),
        (("volume", "copy", "db@mon", "db"), "'db'"),
        (("volume", "copy", "db@sun", "new"), "has no snapshot 'sun'"),
    ]:
        _, err = await run(*arguments, code=3)
        assert words in err, (arguments, err)
    _, err = await run("backup", "restore", "-", "new", given=raw[:-5000], code=5)
    assert f"standard input ends at byte {len(raw) - 5000}" in err
    damaged = bytearray(raw)
    damaged[len(raw) // 2] ^= 1
    (here / "mon").write_bytes(damaged)
    for command in (("restore", "mon", "new"), ("show", "mon", "--verify")):
        _, err = await run("backup", *command, code=5)
        assert "mon is damaged at byte" in err and "use another copy of it" in err
    await run("backup", "create", "db@mon", "mon", "--force")
    assert (here / "mon").read_bytes() == raw
    assert sorted(each.name for each in here.iterdir()) == ["mon", "tue"]
    out, _ = await run("volume", "list", "--json")
    assert {row["name"] for row in json.loads(out)} == {"db", "one", "two", "copy", "piped"}


def check_the_synchronous_twin(hosts: LocalCluster) -> None:
    with moorage.sync.connect(registry=hosts.registry, secret_file=hosts.secret_file) as cluster:
        seen: list[tuple[int, int]] = []
        stream = io.BytesIO()
        made = cluster.backup("db@mon", stream, progress=lambda done, size: seen.append((done, size)))
        assert made.totals is not None and made.totals.stream == len(stream.getvalue())
        assert seen == sorted(seen) and seen[-1] == (16 * MIB, 16 * MIB)
        stream.seek(0)
        assert cluster.restore([stream], "restored", size="20M").size == 20 * MIB
        assert cluster.copy_volume("db", "again").size == 16 * MIB
        assert [each.name for each in cluster.snapshots.list("db")] == ["mon", "tue"]
