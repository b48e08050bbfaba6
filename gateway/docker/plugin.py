"""Docker's volume plugin protocol, version 1, over a unix socket.

Owns the calls, their deadlines and the words of their answers. Get, List, Path and Capabilities are answered
from this host's notes alone. Every call is answered within its deadline, which is shorter than the engine's
patience; what it had begun is taken back then. An engine repeats a call whose connection broke, sends
``null`` for no options and no content type, and asks Get of a volume before it creates it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from moorage.client.uri import Address
from moorage.gateway.docker import users
from moorage.gateway.docker.known import Known, KnownVolume
from moorage.gateway.docker.volumes import HostVolumes
from moorage.gateway.docker.wish import wish
from moorage.gateway.nbd.listener import Listener
from moorage.wire.errors import DeadlineExceeded, Invalid, MoorageError, NotFound

log = logging.getLogger(__name__)

BODY_MAX = 1 << 20
_CREDENTIALS = struct.Struct("=iII")  # process, user and group of who connected
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
# Seconds. The engine waits for two minutes for Create and Mount, and for one minute for the others.
DEADLINES = {"Create": 50.0, "Mount": 100.0, "Unmount": 50.0, "Remove": 50.0}
LOCAL_DEADLINE = 5.0

Params = dict[str, Any]
Answer = dict[str, Any]


class DockerPlugin:
    def __init__(
        self, volumes: HostVolumes, known: Known, path: Path, refresh_soon: Callable[[], None]
    ) -> None:
        self._volumes = volumes
        self._known = known
        self._refresh_soon = refresh_soon
        self._listener = Listener(f"unix:{path}")
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._calls: dict[str, Callable[[Params], Coroutine[Any, Any, Answer]]] = {
            "Create": self._create,
            "Remove": self._remove,
            "Unmount": self._unmount,
            "Path": self._path,
            "Get": self._get,
            "List": self._list,
            "Capabilities": self._capabilities,
        }

    async def start(self) -> None:
        app = web.Application(client_max_size=BODY_MAX)
        app.router.add_post("/Plugin.Activate", self._activate)
        app.router.add_post("/VolumeDriver.{call}", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        assert self._runner.server is not None
        await self._listener.start(self._runner.server)

    async def stop(self) -> None:
        """What is under way is taken back; mounts stay."""
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._runner.cleanup()

    # -- the way of a call -----------------------------------------------------------------------------

    async def _activate(self, _: web.Request) -> web.Response:
        return _response({"Implements": ["VolumeDriver"]})

    async def _serve(self, request: web.Request) -> web.Response:
        call = request.match_info["call"]
        if call != "Mount" and call not in self._calls:
            return _response({"Err": f"VolumeDriver.{call} is not a call of this driver"}, 404)
        try:
            params = _parse(await request.read())
            work = self._mount(params, _engine(request)) if call == "Mount" else self._calls[call](params)
            return _response(await self._within_deadline(call, work))
        except MoorageError as error:
            log.info("%s: %s", call, error)
            return _response({"Err": str(error)}, 500)
        except OSError as error:
            log.exception("%s", call)
            return _response({"Err": f"{call}: {error}"}, 500)

    async def _within_deadline(self, call: str, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The answer comes in time even where taking back what was begun does not."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        deadline = DEADLINES.get(call, LOCAL_DEADLINE)
        await asyncio.wait({task}, timeout=deadline)
        if not task.done():
            task.cancel()
            raise DeadlineExceeded(f"{call} did not end within {deadline:g} s: see `moorage status`")
        if task.cancelled():
            raise DeadlineExceeded(f"{call} ends with this service: try again")
        return task.result()

    def _ended(self, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to who asked, unless he was told of the deadline

    # -- the calls -------------------------------------------------------------------------------------

    async def _create(self, params: Params) -> Answer:
        options = params.get("Opts") or {}
        if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
            raise Invalid("Opts must be a map of texts")
        self._known.add(await self._volumes.create(wish(_name(params), options)))
        return {}

    async def _remove(self, params: Params) -> Answer:
        address = _address(params)
        await self._volumes.remove(address)
        self._known.remove(address.name)
        return {}

    async def _mount(self, params: Params, engine: str) -> Answer:
        address, user = _address(params), _id(params)
        return {"Mountpoint": await self._volumes.mount(address, user, f"docker ({user[:12]})", engine)}

    async def _unmount(self, params: Params) -> Answer:
        await self._volumes.unmount(_address(params).name, _id(params))
        return {}

    async def _path(self, params: Params) -> Answer:
        return {"Mountpoint": self._volumes.path(_address(params).name)}

    async def _get(self, params: Params) -> Answer:
        name = _address(params).name
        path, known = self._volumes.path(name), self._known.get(name)
        if known is None and not path:
            self._refresh_soon()
            raise NotFound(f"volume {name!r} does not exist")
        return {"Volume": _described(_name(params), path, known)}

    async def _list(self, params: Params) -> Answer:
        return {
            "Volumes": [
                {"Name": each.name, "Mountpoint": self._volumes.path(each.name)} for each in self._known.all()
            ]
        }

    async def _capabilities(self, params: Params) -> Answer:
        return {"Capabilities": {"Scope": "global"}}


def _parse(body: bytes) -> Params:
    try:
        params = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Invalid("the body is not JSON") from None
    if not isinstance(params, dict):
        raise Invalid("the body is not a JSON object")
    return params


def _name(params: Params) -> str:
    name = params.get("Name")
    if not isinstance(name, str):
        raise Invalid("Name, a text, is missing")
    return name


def _address(params: Params) -> Address:
    return wish(_name(params))


def _id(params: Params) -> str:
    user = params.get("ID") or ""
    if not isinstance(user, str):
        raise Invalid("ID must be a text")
    return user


def _engine(request: web.Request) -> str:
    """Who is at the other end, if it is an engine."""
    assert request.transport is not None
    descriptor = os.dup(request.transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=descriptor) as peer:
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return users.of_engine(_CREDENTIALS.unpack(credentials)[0])


def _described(name: str, path: str, known: KnownVolume | None) -> Answer:
    described: Answer = {"Name": name, "Mountpoint": path, "Status": {}}
    if known is not None:
        described["Status"] = {"size": known.size}
        described["CreatedAt"] = datetime.fromtimestamp(known.created_ms / 1e3, UTC).isoformat(
            timespec="seconds"
        )
    return described


def _response(value: Answer, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, content_type=CONTENT_TYPE)
