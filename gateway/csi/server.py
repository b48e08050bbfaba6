"""The driver's process: a unix socket, the three services on it, and an end that leaves all mounts alone.

Owns the way from a call to its service: every call runs to its end once it has begun, also when the caller
has gone away, so that the next one finds a whole state; errors become status codes here and nowhere else. Who
may call is who may open the socket: root.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from moorage.client.cluster import Cluster
from moorage.gateway.csi import csi_pb2
from moorage.gateway.csi.codes import Refused, code_of
from moorage.gateway.csi.controller import Controller
from moorage.gateway.csi.identity import Identity
from moorage.gateway.csi.node import Node
from moorage.gateway.csi.notes import Notes
from moorage.gateway.csi.pending import Pending
from moorage.gateway.csi.publishing import Publisher
from moorage.gateway.mount.record import SOCKET_PATH_MAX, StateDirectory
from moorage.wire.errors import CannotBind, Invalid, MoorageError

log = logging.getLogger(__name__)

Call = Callable[[Any], Awaitable[Message]]
GRACE_S = 5.0
MESSAGE_MAX = 1024  # characters: it travels in a header
QUIET = ("Probe", "GetPluginInfo", "GetPluginCapabilities", "NodeGetVolumeStats")


def socket_path(endpoint: str) -> Path:
    """Of ``unix:///run/csi.sock``, ``unix:/run/csi.sock`` or just the path."""
    match = re.fullmatch(r"(?:unix:(?://)?)?(/(?!/)[^\0]*)", endpoint)
    if match is None:
        raise Invalid(f"endpoint {endpoint!r} is not a unix socket: write unix:///PATH")
    if len(os.fsencode(match[1])) > SOCKET_PATH_MAX:
        raise Invalid(
            f"endpoint {endpoint!r} is too long: a socket's path has at most {SOCKET_PATH_MAX} bytes"
        )
    return Path(match[1])


class Server:
    def __init__(
        self, cluster: Cluster, endpoint: str, state_directory: StateDirectory, *, stages: bool = False
    ) -> None:
        self._path = socket_path(endpoint)
        self._state_directory = state_directory
        self._notes = Notes(state_directory.path)
        pending = Pending()
        publisher = Publisher(cluster, state_directory)
        self._node = Node(cluster, pending, self._notes, publisher, stages=stages)
        self._services = {
            "Identity": Identity(cluster),
            "Controller": Controller(cluster, pending),
            "Node": self._node,
        }
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._running: set[asyncio.Task[Message]] = set()

    async def start(self) -> None:
        """Raises CannotBind where another one serves this socket, or works on this state directory."""
        self._state_directory.prepare()
        self._notes.open()
        await self._node.put_right()
        _check_unserved(self._path)
        self._server.add_generic_rpc_handlers([self._handler(*each) for each in self._services.items()])
        before = os.umask(0o177)  # the socket is root's alone from its first moment
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as error:
            raise CannotBind(f"cannot listen on {self._path}: {error}") from error
        finally:
            os.umask(before)
        await self._server.start()

    async def stop(self) -> None:
        """No new calls; those that run come to their end. What is mounted stays."""
        await self._server.stop(GRACE_S)
        await asyncio.gather(*self._running, return_exceptions=True)
        self._path.unlink(missing_ok=True)
        self._notes.close()

    def _handler(self, name: str, service: object) -> grpc.GenericRpcHandler:
        methods = csi_pb2.DESCRIPTOR.services_by_name[name].methods
        return grpc.method_handlers_generic_handler(
            f"csi.v1.{name}",
            {
                method.name: grpc.unary_unary_rpc_method_handler(
                    self._answer(method.name, getattr(service, _snake(method.name))),
                    request_deserializer=GetMessageClass(method.input_type).FromString,
                    response_serializer=GetMessageClass(method.output_type).SerializeToString,
                )
                for method in methods
            },
        )

    def _answer(self, name: str, call: Call) -> Callable[[Any, Any], Awaitable[Message]]:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            task = asyncio.ensure_future(_logged(name, call, request))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            try:
                return await asyncio.shield(task)
            except Exception as error:
                message = str(error) or type(error).__name__
                await context.abort(code_of(error), message[:MESSAGE_MAX])

        return answer


async def _logged(name: str, call: Call, request: Any) -> Message:
    """One line for each call that changes or refuses something; names and paths, nothing else of it."""
    began = time.monotonic()
    fields = ("name", "volume_id", "staging_target_path", "target_path", "volume_path")
    shown = " ".join(str(getattr(request, field)) for field in fields if getattr(request, field, ""))
    try:
        answer = await call(request)
    except (Refused, MoorageError) as error:
        log.warning("%s %s: %s %s", name, shown, code_of(error).name, error)
        raise
    except Exception:
        log.exception("%s %s", name, shown)
        raise
    log.log(
        logging.DEBUG if name in QUIET else logging.INFO,
        "%s %s: done in %.3f s",
        name,
        shown,
        time.monotonic() - began,
    )
    return answer


def _check_unserved(path: Path) -> None:
    """A socket that nobody listens on is a dead one's, and makes room."""
    with socket.socket(socket.AF_UNIX) as knocking, contextlib.suppress(OSError):
        knocking.connect(str(path))
        raise CannotBind(f"somebody serves {path} already")


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
