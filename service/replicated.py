"""The shell around the Raft core: one replicated state machine on LMDB, with its peers over wire channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moorage.service.kv import KV

if TYPE_CHECKING:
    from moorage.wire.handshake import Hello
    from moorage.wire.rpc import Router
    from moorage.wire.secret import ClusterSecret


class StateMachine(Protocol):
    """What a service decides. ``apply`` is deterministic: no clock, no randomness, no I/O."""

    def apply(self, kv: KV, command: dict[str, Any], index: int) -> Any:
        """Execute one committed command; the result goes to its proposer. A MoorageError rolls back this
        command's writes and goes to the proposer instead; any other exception stops the member."""
        ...


class Replicated:
    """One member of a replicated group. See the methods; all are for the event loop's thread."""

    on_leader_change: list[Callable[[bool], None]]
    kv: KV

    def __init__(
        self,
        *,
        directory: Path,
        group: str,
        name: str,
        peers: Mapping[str, str],
        machine: StateMachine,
        hello: Hello,
        secret: ClusterSecret,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Open the state (Corrupt, IdentityConflict when that is impossible) and begin to take part."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Hand over leadership if possible, then close everything."""
        raise NotImplementedError

    async def propose(self, command: dict[str, Any], timeout: float = 5.0) -> Any:
        """Replicate and apply one command; its result, or the MoorageError that ``apply`` raised.
        NotLeader on a follower; DeadlineExceeded means that the outcome is unknown."""
        raise NotImplementedError

    async def read_barrier(self, timeout: float = 5.0) -> None:
        """After this, ``kv`` shows every command acknowledged before the call (leader only)."""
        raise NotImplementedError

    def register(self, router: Router) -> None:
        """Install the RAFT op and the methods ``raft.GROUP.status|add_member|promote|remove_member``."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def is_leader(self) -> bool:
        raise NotImplementedError

    @property
    def term(self) -> int:
        raise NotImplementedError

    @property
    def leader(self) -> dict[str, Any] | None:
        """{"name", "address"} of the leader as known here, or None."""
        raise NotImplementedError

    @property
    def members(self) -> list[dict[str, Any]]:
        """[{"name", "address", "voter"}] of the current configuration."""
        raise NotImplementedError
