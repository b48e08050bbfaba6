"""The DVDI environment: the volumes of a task, named by variables. Pure.

``DVDI_VOLUME_NAME``, ``DVDI_VOLUME_DRIVER``, ``DVDI_VOLUME_OPTS`` (``KEY=VALUE,...``) and
``DVDI_VOLUME_CONTAINERPATH`` describe one volume; the same names with 1 to 9 behind them, nine more. The task
finds where each is mounted in ``DVDI_VOLUME_PATH``, or with that digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moorage.client.uri import Address
from moorage.gateway.docker.wish import parse_pairs, wish
from moorage.wire.errors import Invalid

DRIVER = "moorage"
SUFFIXES = ("", *"123456789")


@dataclass(frozen=True)
class TaskVolume:
    """``container_path``: where the task wants to see it, or ""; ``variable``: where it is told the path."""

    address: Address
    container_path: str
    variable: str


def volumes_of(environment: Mapping[str, str]) -> list[TaskVolume]:
    """In their order. Raises Invalid that names the variable."""
    found = []
    for suffix in SUFFIXES:
        name = environment.get(f"DVDI_VOLUME_NAME{suffix}")
        if name:
            found.append(_volume(environment, suffix, name))
    names = [volume.address.name for volume in found]
    for name in names:
        if names.count(name) > 1:
            raise Invalid(f"volume {name!r} is named twice in DVDI_VOLUME_NAME, ..1 to ..9")
    return found


def _volume(environment: Mapping[str, str], suffix: str, name: str) -> TaskVolume:
    driver = environment.get(f"DVDI_VOLUME_DRIVER{suffix}") or DRIVER
    if driver != DRIVER:
        raise Invalid(f"DVDI_VOLUME_DRIVER{suffix} is {driver!r}: volumes of {DRIVER!r} are mounted here")
    pairs = (environment.get(f"DVDI_VOLUME_OPTS{suffix}") or "").split(",")
    try:
        address = wish(name, parse_pairs(pair.strip() for pair in pairs if pair.strip()))
    except Invalid as error:
        raise Invalid(f"DVDI_VOLUME_NAME{suffix}, DVDI_VOLUME_OPTS{suffix}: {error}") from None
    path = environment.get(f"DVDI_VOLUME_CONTAINERPATH{suffix}") or ""
    return TaskVolume(address, path, f"DVDI_VOLUME_PATH{suffix}")
