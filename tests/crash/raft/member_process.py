"""One member as a process of its own: ``member_process.py NAME DIRECTORY NAME=ADDRESS...``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import uvloop

from moorage.service.kv import KV
from moorage.service.replicated import Replicated
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import serve


class Puts:
    def apply(self, kv: KV, command: dict[str, Any], index: int) -> Any:
        kv.put(command["key"], command["value"])
        return index


async def main(name: str, directory: str, *peers: str) -> None:
    addresses = dict(peer.split("=", 1) for peer in peers)
    secret = ClusterSecret("00" * 8, b"k" * 32)
    hello = Hello("registry", secret.cluster, name, "i")
    member = Replicated(
        directory=Path(directory),
        group="g",
        name=name,
        peers=addresses,
        machine=Puts(),
        hello=hello,
        secret=secret,
    )
    router = Router()

    async def put(context: CallContext, params: dict[str, Any]) -> Any:
        return await member.propose(params, timeout=3.0)

    async def everything(context: CallContext, params: dict[str, Any]) -> Any:
        await member.read_barrier()
        return dict(member.kv.scan(""))

    async def status(context: CallContext, params: dict[str, Any]) -> Any:
        return member.status()

    member.register(router)
    router.method("put", put)
    router.method("everything", everything)
    router.method("status", status)
    # Kept: a server that nothing refers to is collected one day, and listens no more.
    server = await serve(addresses[name], hello=hello, secret=secret, endpoint=router)
    await member.start()
    await asyncio.Event().wait()
    server.close()


uvloop.run(main(*sys.argv[1:]))
