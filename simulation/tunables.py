"""Sizes and times of a history, drawn from its seed: small, so that rare branches are common.

Owns the ranges. They stay within what the code is written for; a limit that a user may meet is not one of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from moorage.client import front, session
from moorage.client.objects import space
from moorage.metadata import attachments, balance
from moorage.metadata.objects import calls as object_calls
from moorage.metadata.objects import layout, room
from moorage.metadata.objects import state as object_state
from moorage.metadata.objects import writers as object_writers
from moorage.metadata.tasks import heal
from moorage.metadata.tasks import objects as object_tasks
from moorage.node import copying, replica, service, superblock
from moorage.node.store import StoreConfig
from moorage.quorum.record import BLOCK_SIZE
from moorage.quorum.writer import Writer
from moorage.service import replicated
from moorage.simulation.chunks import SIZES, chunk_patches

MIB = 1 << 20
FAST_DISK_S = (50e-6, 1e-3)
BALANCES: list[tuple[Any, str, Any]] = [  # devices of 128 MiB hold some MiB
    (balance, "WITHIN", 0.005),
    (balance, "GAIN_MIN", 0.0005),
    (heal, "SURVEY_S", 1.0),
]
IMPATIENT = {"heartbeat_ms": "300", "suspect_ms": "700", "down_ms": "1000", "repair_after_s": "1"}


def _object_patches(blocks: int) -> list[tuple[Any, str, Any]]:
    """``blocks`` of a chunk. Small regions, of which a history uses many; minutes are seconds."""
    chunks = 16 if blocks < 1024 else 4
    return [
        *((module, "REGION_CHUNKS", chunks) for module in (layout, object_state, object_calls, object_tasks)),
        (object_tasks, "REGIONS_S", 1.0),
        (object_tasks, "VERIFY_S", 4.0),
        (object_tasks, "ROUND_S", 0.5),
        (object_writers, "SILENT_S", 3.0),
        (space, "RENEW_S", 0.5),
        (object_tasks, "READERS_S", 1.0),
        (room, "STEP", 1 << 20),
    ]


@dataclass(frozen=True)
class Tunables:
    segment_size: int
    capacity: int
    checkpoint_bytes: int
    checkpoint_seconds: float
    index_pages_max: int
    raft_log_keep: int
    tail_kept: int
    window_records: int  # of a writer
    window_bytes: int
    read_map_chunks: int
    piece_bytes: int  # of a client's record or read
    copy_bytes: int  # of a pull; with what its last pages give, 1 MiB, it fits into a segment
    groups: int  # of each volume
    spares: int  # hosts that run nothing but a node: replicas can move
    balances: bool  # devices are to be filled nearly the same
    patience: dict[str, str]  # options of the services: how soon a silent device is down, and left
    chunk_size: int
    disk_s: tuple[float, float]  # how long a write or a sync takes
    lease_ms: int  # of a holder with metadata
    recovery_grace_ms: int  # a reader waits so much longer

    @classmethod
    def draw(cls, rng: Random) -> Tunables:
        return cls(
            segment_size=rng.choice((2 * MIB, 2 * MIB, 6 * MIB)),
            capacity=128 * MIB,  # what idle sessions were promised must leave room for repairs
            checkpoint_bytes=rng.choice((64 << 10, 256 << 10, 4 * MIB)),
            checkpoint_seconds=rng.choice((0.1, 1.0, 10.0)),
            index_pages_max=rng.choice((2, 64, 65_536)),
            raft_log_keep=rng.choice((4, 32, 2048)),
            tail_kept=rng.choice((8, 64, 1024)),
            window_records=rng.choice((8, 64, 16_384)),
            window_bytes=rng.choice((2 * MIB, 64 * MIB)),
            read_map_chunks=rng.choice((1, 8_192)),
            piece_bytes=rng.choice((16 << 10, MIB)),
            copy_bytes=rng.choice((64 << 10, MIB // 2)),
            groups=rng.choice((1, 1, 2)),
            spares=(spares := rng.choice((0, 0, 1, 2))),
            balances=bool(spares) and rng.random() < 0.5,
            patience=rng.choice((IMPATIENT, {})) if spares else {},
            chunk_size=rng.choice(SIZES),
            disk_s=rng.choice((FAST_DISK_S, FAST_DISK_S, (1e-3, 3e-2))),
            lease_ms=rng.choice((2200, 2200, 4000)),
            recovery_grace_ms=rng.choice((0, 300, 2000)),
        )

    def patches(self) -> list[tuple[Any, str, Any]]:
        store_config = partial(
            StoreConfig,
            index_pages_max=self.index_pages_max,
            checkpoint_bytes=self.checkpoint_bytes,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        writer = partial(
            Writer,
            window_bytes=self.window_bytes,
            window_records=self.window_records,
            read_map_chunks=self.read_map_chunks,
        )
        return [
            (session, "Writer", writer),
            (front, "PIECE_SIZE", min(self.piece_bytes, self.chunk_size)),  # it divides a chunk
            (copying, "BATCH_BYTES", self.copy_bytes),
            (superblock, "segment_size_for", lambda capacity: self.segment_size),
            (service, "StoreConfig", store_config),
            (replicated, "LOG_KEEP", self.raft_log_keep),
            (replica, "TAIL_KEPT", self.tail_kept),
            *chunk_patches(self.chunk_size),
            *_object_patches(self.chunk_size // BLOCK_SIZE),
            (attachments, "RECOVERY_GRACE_MS", self.recovery_grace_ms),
            *(BALANCES if self.balances else []),
        ]
