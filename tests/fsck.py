"""Is the file system on a volume whole? What `e2fsck -f` or `xfs_repair` says of a copy of it."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import moorage

PIECE = 4 << 20


async def check_clean(cluster: moorage.Cluster, name: str) -> None:
    """Nothing is to be mended. The volume is unmounted, or its journal would be what is found."""
    with tempfile.TemporaryDirectory(prefix="moorage-fsck-") as directory:
        image = Path(directory) / "image"
        async with await cluster.attach(name, read_only=True) as volume:
            with image.open("wb") as file:
                for offset in range(0, volume.size, PIECE):
                    part = await volume.read(offset, min(PIECE, volume.size - offset))
                    if part.strip(b"\0"):
                        file.seek(offset)
                        file.write(part)
                file.truncate(volume.size)
        with image.open("rb") as file:
            xfs = file.read(4) == b"XFSB"
        command = ["/usr/sbin/xfs_repair", "-f", "-n"] if xfs else ["/usr/sbin/e2fsck", "-f", "-n"]
        command.append(str(image))
        found = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


async def check_clean_at(environment: Mapping[str, str], name: str) -> None:
    """Of the cluster that the programs with this environment use."""
    connecting = moorage.connect(
        registry=environment["MOORAGE_REGISTRY"], secret_file=environment["MOORAGE_SECRET_FILE"]
    )
    async with await connecting as cluster:
        await check_clean(cluster, name)
