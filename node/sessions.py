"""The members of a device and the connections that talk to them.

Owns: replica id -> member, connection -> read lease, and what happens when either goes. Must never answer a
heartbeat on a connection before the NACK of a member that was sealed away from it: members send that first.
Must never make a member of a replica that may have lost a promise, before metadata has told what it must
promise at least: a fenced writer could have it again. (Those of buckets promise nothing.)
"""

from __future__ import annotations

import logging

from moorage.node.copying import Copier
from moorage.node.member import MemberShell, boot_ms
from moorage.node.replica import OBJECTS, Replica, ReplicaInfo
from moorage.node.store import Store
from moorage.quorum.lease import GrantedLease
from moorage.wire.connection import Connection
from moorage.wire.errors import MoorageError, NoReplica

log = logging.getLogger(__name__)


class Sessions:
    def __init__(self, store: Store, copier: Copier) -> None:
        self.store = store
        self._copier = copier
        self.members: dict[int, MemberShell] = {}
        self.withheld: dict[int, Replica] = {}  # not offered: a promise may be lost
        self._leases: dict[Connection, GrantedLease] = {}
        store.on_damage = self._damaged
        store.scrubber.on_bad = self._bad

    def load(self) -> None:
        """Members for what the store found at its start."""
        for identity, replica in self.store.replicas.items():
            if replica.info.durability == OBJECTS:
                replica.state.promise_lost = False  # it gives none
            if replica.state.promise_lost or not replica.info.volume:
                self.withheld[identity] = replica
                log.error(
                    "replica %d is withheld: with what is damaged it may have lost a promise. Until metadata"
                    " has said which epoch its volume is in, it counts as dead",
                    identity,
                )
                continue
            self._enter(identity, MemberShell(self.store, replica, created=False))

    def promise_again(self, info: ReplicaInfo, epoch: int, writer: int) -> None:
        """Metadata has said what a withheld replica is, and what it must promise: offered from now on, for
        its writer to repair. Raises :class:`Corrupt` where that contradicts what is known here."""
        replica = self.withheld.get(info.replica)
        if replica is None:
            return  # dropped meanwhile
        self.store.fold.promise_again(replica, info, epoch, writer)
        del self.withheld[info.replica]
        self._enter(info.replica, MemberShell(self.store, replica, created=False))
        log.warning("replica %d promises epoch %d again, and waits to be repaired", info.replica, epoch)

    def created(self, replica: Replica) -> None:
        self._enter(replica.info.replica, MemberShell(self.store, replica, created=True))

    def mended(self, replica: Replica) -> None:
        """It is as well as any that is found at a start."""
        self._enter(replica.info.replica, MemberShell(self.store, replica, created=False))

    def _enter(self, identity: int, member: MemberShell) -> None:
        member.on_pull = self._copier.begin
        member.core.set_bad(bool(self.store.scrubber.check(member.replica).bad))
        self.members[identity] = member

    def dropped(self, identity: int) -> None:
        self.withheld.pop(identity, None)
        member = self.members.pop(identity, None)
        if member is not None:
            self._copier.end(member)
            member.dropped()

    def find(self, identity: int) -> MemberShell:
        found = self.members.get(identity)
        if found is not None:
            return found
        if identity in self.withheld:
            what = self.withheld[identity].damaged
            raise NoReplica(
                f"replica {identity} may have lost a promise ({what}): withheld until metadata is asked",
                replica=identity,
            )
        raise NoReplica(f"this device has no replica {identity}", replica=identity)

    # -- connections ------------------------------------------------------------------------------------

    def lease(self, conn: Connection) -> GrantedLease:
        found = self._leases.get(conn)
        if found is None:
            found = self._leases[conn] = GrantedLease()
        return found

    def renew(self, conn: Connection) -> None:
        """A heartbeat: the reply to it is the promise."""
        lease = self._leases.get(conn)
        if lease is not None:
            lease.renew(boot_ms())

    def connection_lost(self, conn: Connection, error: MoorageError) -> None:
        if self._leases.pop(conn, None) is None:
            return
        for member in self.members.values():
            member.connection_lost(conn)

    # -- the device ---------------------------------------------------------------------------------------

    def tick(self) -> None:
        for member in self.members.values():
            if member.conn is not None:
                member.regrant()

    def _damaged(self, replica: Replica, what: str) -> None:
        member = self.members.get(replica.info.replica)
        if member is not None and member.replica is replica:
            member.damage(what)

    def _bad(self, replica: Replica) -> None:
        member = self.members.get(replica.info.replica)
        if member is not None and member.replica is replica:
            member.bad_blocks(bool(self.store.scrubber.check(replica).bad))

    def end(self, error: MoorageError) -> None:
        """The device has failed, or is being closed: nobody waits for it any longer."""
        for member in list(self.members.values()):
            member.fail(error)
