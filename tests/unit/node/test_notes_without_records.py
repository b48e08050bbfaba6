"""Notes of a replica whose records are damaged: it is damaged, and the store goes on."""

from __future__ import annotations

import pytest

from moorage.node.checkpointer import pack_replica
from moorage.node.index import Index, Table
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.tombstones import Tombstones
from moorage.quorum.state import MemberState
from moorage.wire.errors import Corrupt


@pytest.mark.parametrize("last", [8, 10, 12])
def test_a_later_note_without_its_records_is_damage_too(last: int) -> None:
    """A device that could not be started any more: the records were found missing with the first note, a
    later one spoke of less that is committed, and the checkpoint after the replay asked for what lies
    between."""
    index = Index(lambda handle, number: None, 8)
    replica = Replica(ReplicaInfo(1, 1, 0, "sync", 3), Table(1, Tombstones()), MemberState(1))
    for epoch, end in ((2, 10), (3, last)):
        note = MemberState(1, epoch=epoch, writer=epoch, history=[(1, 1)], commit=2, last=end)
        with pytest.raises(Corrupt):
            replica.fold_note(index, note.pack())
        replica.validate()
        assert replica.state.epoch == epoch and replica.state.last == end
        pack_replica(replica)
