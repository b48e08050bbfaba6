"""The CSI driver's rules that need no mount: names, sizes, capacity, turns, and what is generated."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from moorage.client import uri
from moorage.gateway.csi import csi_pb2 as pb
from moorage.gateway.csi import terms
from moorage.gateway.csi.codes import Refused, code_of
from moorage.gateway.csi.controller import largest_volume
from moorage.gateway.csi.notes import Held, Notes, Publication
from moorage.gateway.csi.pending import Pending
from moorage.gateway.csi.server import socket_path
from moorage.gateway.mount import filesystem
from moorage.metadata import limits
from moorage.wire import errors

ROOT = Path(__file__).parents[3]


def test_what_is_generated_is_up_to_date(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}/gateway/csi"]
    command += [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "csi.proto"]
    subprocess.run(command, check=True, timeout=60)
    for name in ("csi_pb2.py", "csi_pb2.pyi"):
        made, kept = (tmp_path / name).read_text(), (ROOT / "gateway" / "csi" / name).read_text()
        assert made == kept, "run `make proto`"


def test_limits_are_those_of_metadata() -> None:
    sizes = (terms.SIZE_MIN, terms.SIZE_MAX, terms.SIZE_STEP, terms.GROUPS_MAX)
    assert sizes == (limits.SIZE_MIN, limits.SIZE_MAX, limits.SIZE_STEP, limits.GROUPS_MAX)
    assert terms.FILE_SYSTEMS == filesystem.KINDS
    assert terms.CREATION_KEYS <= uri.OPTIONS


@pytest.mark.parametrize(
    ("wished", "name"),
    [
        ("pvc-0a1b", "pvc-0a1b"),
        ("a" * 63, "a" * 63),
        ("PVC-0A1B", "pvc-0a1b-"),
        ("a" * 64, "a" * 40 + "-"),
        ("-x", "x-"),
        ("ü", ""),
    ],
)
def test_any_name_becomes_one_of_a_volume(wished: str, name: str) -> None:
    found = terms.name_for(wished)
    assert uri.NAME.fullmatch(found)
    assert found == name if wished == name else found.startswith(name)
    assert terms.name_for(wished) == found


def test_names_that_differ_stay_apart() -> None:
    wished = ["x y", "x-y", "X y", "x_y", "x  y", " x y"]
    assert len({terms.name_for(each) for each in wished}) == len(wished)


@pytest.mark.parametrize(
    ("required", "limit", "size"),
    [
        (0, 0, 1 << 30),
        (0, 1 << 20, 1 << 20),
        (0, (1 << 20) + 5, 1 << 20),
        (1, 0, 1 << 20),
        ((1 << 20) + 1, 0, (1 << 20) + 4096),
        (64 << 40, 64 << 40, 64 << 40),
        (0, 1 << 50, 1 << 30),
    ],
)
def test_size_within_bounds(required: int, limit: int, size: int) -> None:
    bounds = pb.CapacityRange(required_bytes=required, limit_bytes=limit)
    assert terms.size_for(bounds, 1 << 30) == size
    assert terms.fits(size, bounds)


def view(**free: int) -> dict[str, Any]:
    device = {"health": "up", "used": 0}
    return {"devices": {host: {**device, "host": host, "capacity": room} for host, room in free.items()}}


@pytest.mark.parametrize(
    ("room", "replicas", "size"),
    [
        ({"a": 8192}, 1, 8192),
        ({"a": 8192}, 3, 0),
        ({"a": 8192, "b": 8192, "c": 4096}, 3, 4096),
        ({"a": 8192, "b": 8192, "c": 8192, "d": 8192}, 3, 8192),
        ({"a": 1 << 40, "b": 4096, "c": 4096}, 3, 4096),
        ({"a": 8191, "b": 8191, "c": 8191}, 3, 4096),
    ],
)
def test_the_largest_volume_has_a_copy_per_host(room: dict[str, int], replicas: int, size: int) -> None:
    assert largest_volume(view(**room), replicas) == size


def test_a_device_that_is_not_up_has_no_room() -> None:
    found = view(a=8192)
    found["devices"]["a"]["health"] = "down"
    assert largest_volume(found, 1) == 0


async def test_calls_for_one_volume_take_turns() -> None:
    pending, order = Pending(timeout=5), list[int]()

    async def call(number: int) -> None:
        async with pending.on("v"):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*(call(number) for number in range(3)))
    assert order == [0, 0, 1, 1, 2, 2]


async def test_a_turn_that_does_not_come_is_aborted() -> None:
    pending = Pending(timeout=0.01)
    async with pending.on("v"):
        async with pending.on("another"):
            pass
        with pytest.raises(Refused) as refused:
            async with pending.on("v"):
                pass
    assert refused.value.code is StatusCode.ABORTED
    async with pending.on("v"):
        pass


def test_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.open()
    capability = terms.Capability(7, fs="xfs", flags=("noatime", "nodiratime"))
    held = Held("v.json", "/at", True, capability, {"size": "1G"}, "/dev/loop1")
    held.targets["/t"] = Publication(capability, True, "", {"size": "1G"})
    notes.save(held)
    assert notes.load("v.json") == held
    assert notes.volumes() == ["v.json"]
    with pytest.raises(errors.CannotBind):
        Notes(tmp_path).open()
    notes.drop("v.json")
    assert notes.load("v.json") is None
    notes.close()


def test_every_error_has_a_code() -> None:
    """Only what is our own mistake, or unknown, is INTERNAL."""
    internal = {kind for kind in errors.BY_CODE.values() if code_of(kind("x")) is StatusCode.INTERNAL}
    fatal = {errors.Fatal, errors.DeviceFailed, errors.AttachmentLost, errors.InvariantViolation}
    assert internal == {errors.MoorageError, errors.RemoteError, *fatal}


@pytest.mark.parametrize("endpoint", ["unix:///run/a.sock", "unix:/run/a.sock", "/run/a.sock"])
def test_endpoint(endpoint: str) -> None:
    assert socket_path(endpoint) == Path("/run/a.sock")


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "unix://run/a.sock", "", "unix:///" + "x" * 107])
def test_endpoint_that_is_refused(endpoint: str) -> None:
    with pytest.raises(errors.Invalid):
        socket_path(endpoint)
