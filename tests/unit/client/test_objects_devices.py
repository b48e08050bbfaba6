"""Which links to devices are kept for objects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from moorage.client.objects.devices import IDLE_S, Devices


class Pool:
    def __init__(self) -> None:
        self.links: dict[str, object] = {}
        self.users: dict[object, set[Any]] = {}

    def link(self, device: str, host: str, address: str) -> object:
        return self.links.setdefault(device, object())

    def join(self, user: Any, link: object) -> None:
        self.users.setdefault(link, set()).add(user.key)

    def leave(self, user: Any, link: object) -> None:
        self.users[link].remove(user.key)

    def kept(self) -> list[str]:
        return sorted(device for device, link in self.links.items() if self.users.get(link))


def place(device: str) -> dict[str, str]:
    return {"device": device, "host": "h1", "address": "h1:1"}


async def test_the_link_of_a_device_that_is_not_used_any_more_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool: Any = Pool()
    devices = Devices(pool)
    loop, now = asyncio.get_running_loop(), 1000.0
    monkeypatch.setattr(loop, "time", lambda: now)
    for device in ("d1", "d2", "d3"):
        devices.link(place(device))
    now += IDLE_S - 1
    devices.link(place("d1"))
    now += 2
    devices.link(place("d1"))
    assert pool.kept() == ["d1", "d2", "d3"]
    devices.link(place("d4"))  # in the place of one that left
    assert pool.kept() == ["d1", "d4"]
    devices.link(place("d2"))
    assert pool.kept() == ["d1", "d2", "d4"]
    del pool.links["d1"]
    devices.link(place("d1"))  # a link that was closed by others
    devices.close()
    assert pool.kept() == [] and not any(pool.users.values())
