"""A full device: writes get ENOSPC through NBD, reads and discards go on, and after discards writes work."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import moorage
from moorage.cli.clients import ClientProcess
from moorage.wire.errors import NoSpace

MIB = 1 << 20

# Runs under the system's Python, which has libnbd's own binding: a client that we did not write.
FILL = """
import json, sys, nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
filled, errors = 0, []
while filled < handle.get_size() and len(errors) < 3:
    try:
        handle.pwrite(bytes([filled % 251 + 1]) * (1 << 20), filled)
        filled += 1 << 20
    except nbd.Error as error:
        errors.append(error.errno)
good = lambda at: handle.pread(1 << 20, at) == bytes([at % 251 + 1]) * (1 << 20)
wrong = [at for at in range(0, filled, 1 << 20) if not good(at)]
handle.trim(filled, 0)
again = 0
for at in range(0, filled // 2, 1 << 20):
    for attempt in range(200):
        try:
            handle.pwrite(b"again" + bytes((1 << 20) - 5), at)
            again += 1
            break
        except nbd.Error as error:
            import time; time.sleep(0.1)
print(json.dumps({"filled": filled, "errors": errors, "wrong": wrong, "again": again}))
handle.shutdown()
"""


async def test_a_full_device_refuses_writes_and_recovers_by_discards(
    make_cluster: object, tmp_path: Path
) -> None:
    local = await make_cluster(MOORAGE_CAPACITY="96M")  # type: ignore[operator]
    env = {"MOORAGE_REGISTRY": local.registry, "MOORAGE_SECRET_FILE": str(local.secret_file)}
    async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
        await cluster.create_volume("full", size=256 * MIB, replicas=3)
        path = tmp_path / "nbd"
        arguments = ["attach", "full", "--nbd", f"unix:{path}", "--json"]
        async with ClientProcess(arguments, env, tmp_path / "log"):
            process = await asyncio.create_subprocess_exec(
                "/usr/bin/python3",
                "-c",
                FILL,
                f"nbd+unix:///full?socket={path}",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            async with asyncio.timeout(100):
                out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found = json.loads(out)
    assert found["errors"] == ["ENOSPC"] * 3
    assert 16 * MIB <= found["filled"] < 96 * MIB
    assert found["wrong"] == []
    assert found["again"] == len(range(0, found["filled"] // 2, MIB))


async def test_the_library_says_who_is_full(make_cluster: object) -> None:
    local = await make_cluster(MOORAGE_CAPACITY="64M")  # type: ignore[operator]
    async with (
        await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster,
    ):
        await cluster.create_volume("full", size=256 * MIB, replicas=3)
        async with await cluster.attach("full") as volume:
            error: NoSpace | None = None
            for at in range(0, volume.size, MIB):
                try:
                    await volume.write(at, b"x" * MIB)
                except NoSpace as refused:
                    error = refused
                    break
            assert error is not None and "discard" in str(error)
            assert await volume.read(0, MIB) == b"x" * MIB
