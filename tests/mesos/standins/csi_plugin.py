"""A small CSI v1 plug-in (identity, controller, node): its volumes are directories in $CSI_ROOT.

Requests and responses are encoded by hand, so that no generated code is needed. Listens on $CSI_ENDPOINT;
appends every call to $CSI_ROOT/calls. With CSI_STAGE=1 volumes are to be staged before they are published.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

NAME = "org.moorage.csi.dir"
ROOT = Path(os.environ["CSI_ROOT"])
STAGED = os.environ.get("CSI_STAGE") == "1"
MIB = 1 << 20
Fields = dict[int, list[Any]]  # int or bytes, by field number

CREATE_DELETE_VOLUME, LIST_VOLUMES, GET_CAPACITY = 1, 3, 4  # of a controller
STAGE_UNSTAGE_VOLUME = 1  # of a node
CONTROLLER_SERVICE = 1  # of a plug-in


# ---- protocol buffers ----


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(*fields: tuple[int, int | bytes | str]) -> bytes:
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def decode(data: bytes) -> Fields:
    fields: Fields = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        value: int | bytes = number()
        if key & 7 == 2:
            value, at = data[at : at + int(value)], at + int(value)
        elif key & 7 != 0:
            raise ValueError("wire type")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def text(fields: Fields, number: int) -> str:
    return str(fields.get(number, [b""])[0].decode())


def mapping(fields: Fields, number: int) -> dict[str, str]:
    return {text(pair, 1): text(pair, 2) for pair in map(decode, fields.get(number, []))}


# ---- volumes ----


def path(volume: str) -> Path:
    return ROOT / "volumes" / volume


def size_file(volume: str) -> Path:
    return path(volume) / ".size"


def described(volume: str) -> bytes:
    size = int(size_file(volume).read_text()) if size_file(volume).exists() else 64 * MIB
    return encode((1, size), (2, volume))


def listed(_: Fields) -> bytes:
    names = sorted(each.name for each in path("").iterdir()) if path("").exists() else []
    return encode(*((1, encode((1, described(name)))) for name in names))


def create(request: Fields) -> bytes:
    size = decode(request[2][0]).get(1, [64 * MIB])[0] if 2 in request else 64 * MIB
    name = text(request, 1)
    path(name).mkdir(parents=True, exist_ok=True)
    size_file(name).write_text(str(size))
    return encode((1, described(name)))


def delete(request: Fields) -> bytes:
    shutil.rmtree(path(text(request, 1)), ignore_errors=True)
    return b""


def stage(request: Fields) -> bytes:
    source = path(text(request, 1))
    source.mkdir(parents=True, exist_ok=True)
    return mount(str(source), text(request, 3))


def publish(request: Fields) -> bytes:
    source = path(text(request, 1))
    source.mkdir(parents=True, exist_ok=True)
    return mount(text(request, 3) or str(source), text(request, 4), readonly=bool(request.get(6, [0])[0]))


def mount(source: str, target: str, *, readonly: bool = False) -> bytes:
    os.makedirs(target, exist_ok=True)
    subprocess.run(["mount", "--bind", source, target], check=True)
    if readonly:
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
    return b""


def unmount(request: Fields) -> bytes:
    subprocess.run(["umount", text(request, 2)], check=False)
    return b""


# ---- service ----


def capabilities(*kinds: int) -> bytes:
    return encode(*((1, encode((1, encode((1, kind))))) for kind in kinds))


METHODS: dict[str, Callable[[Fields], bytes]] = {
    "Identity/GetPluginInfo": lambda _: encode((1, NAME), (2, "1")),
    "Identity/GetPluginCapabilities": lambda _: capabilities(CONTROLLER_SERVICE),
    "Identity/Probe": lambda _: encode((1, encode((1, 1)))),
    "Controller/ControllerGetCapabilities": lambda _: capabilities(
        CREATE_DELETE_VOLUME, LIST_VOLUMES, GET_CAPACITY
    ),
    "Controller/ListVolumes": listed,
    "Controller/GetCapacity": lambda _: encode((1, 1024 * MIB)),
    "Controller/CreateVolume": create,
    "Controller/DeleteVolume": delete,
    "Controller/ValidateVolumeCapabilities": lambda request: encode(
        (1, encode(*((2, each) for each in request.get(3, []))))
    ),
    "Node/NodeGetCapabilities": lambda _: capabilities(STAGE_UNSTAGE_VOLUME) if STAGED else b"",
    "Node/NodeGetInfo": lambda _: encode((1, "node")),
    "Node/NodeStageVolume": stage,
    "Node/NodeUnstageVolume": unmount,
    "Node/NodePublishVolume": publish,
    "Node/NodeUnpublishVolume": unmount,
}


def note(method: str, request: Fields) -> None:
    words = [method]
    if method.startswith("Node/") and 1 in request:
        words.append(text(request, 1))
    if method == "Node/NodePublishVolume":
        words += [f"readonly={bool(request.get(6, [0])[0])}", f"context={mapping(request, 8)}"]
    with (ROOT / "calls").open("a") as file:
        file.write(" ".join(words) + "\n")


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        method = details.method.replace("/csi.v1.", "", 1)
        if method not in METHODS:
            return None

        def answer(data: bytes, context: Any) -> bytes:
            request = decode(data)
            note(method, request)
            try:
                return METHODS[method](request)
            except Exception as error:
                context.abort(grpc.StatusCode.INTERNAL, repr(error))
                raise

        return grpc.unary_unary_rpc_method_handler(answer)


def main() -> None:
    ROOT.mkdir(parents=True, exist_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handler()])
    server.add_insecure_port(os.environ["CSI_ENDPOINT"])
    server.start()
    threading.Event().wait()


main()
