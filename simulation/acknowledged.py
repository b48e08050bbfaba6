"""What replicas have acknowledged as being on stable storage: no restart brings one back below it.

Owns the watch from outside: what leaves a member of a ``sync`` volume, and what the next life on the same
disk begins with. A copy of a disk from before knows nothing of what was acknowledged since; a device whose
synced bytes have changed, and a replica that says that it is damaged, have promised nothing.
"""

from __future__ import annotations

from typing import Any

from moorage.node.sessions import Sessions
from moorage.quorum.history import position_at
from moorage.quorum.member import Member
from moorage.quorum.record import Position
from moorage.quorum.state import MemberState
from moorage.simulation.disk import Device
from moorage.simulation.loop import current

Noted = dict[int, Position]  # by replica


def patches() -> list[tuple[Any, str, Any]]:
    take_ack, load = Member.take_ack, Sessions.load

    def takes_ack(self: Member) -> Any:
        ack = take_ack(self)
        if ack is not None and self.sync and self.whole and ack[2]:
            _note(self.state, ack[2])
        return ack

    def loads(self: Sessions) -> None:
        for replica in self.store.replicas.values():
            _check(replica.state)
        load(self)

    return [(Member, "take_ack", takes_ack), (Sessions, "load", loads)]


def _device() -> Device:
    process = current.get()
    assert process is not None
    device: Device = process.loop.devices[process.host]
    return device


def _noted(device: Device) -> Noted:
    noted: Noted = vars(device.disk).setdefault("acknowledged", {})
    return noted


def _note(state: MemberState, durable: int) -> None:
    noted = _noted(_device())
    position = position_at(state.history, durable)
    noted[state.replica] = max(position, noted.get(state.replica, position))


def _check(state: MemberState) -> None:
    device = _device()
    noted = _noted(device)
    if device.damaged or state.damaged or state.promise_lost:
        noted.pop(state.replica, None)
    elif (was := noted.get(state.replica)) is not None:
        assert state.vote >= was, (
            f"replica {state.replica} has acknowledged {was}, and comes back with {state.vote}"
        )
