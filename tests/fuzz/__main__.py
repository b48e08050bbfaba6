"""Fuzz the parsers: ``python -m tests.fuzz [--seconds N] [--target NAME] [--seed N]`` from the top.

``--seconds`` is for all targets together; each gets the same share, and ``--runs`` at most. A failure prints
the input that caused it, writes it into the directory ``--keep`` (nowhere by default), and ends with 1.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import resource
import sys
from pathlib import Path

from .engine import Failure, fuzz, install

MODULES = [
    f"moorage.{name}"
    for name in (
        *(
            "client.answers",
            "client.config",
            "client.mount_table",
            "client.backup_stream",
            "client.reads",
            "client.uri",
            "framework.master",
            "framework.messages",
            "framework.recordio",
            "gateway.csi.controller",
            "gateway.csi.node",
            "gateway.csi.terms",
            "gateway.docker.plugin",
            "gateway.docker.wish",
            "gateway.nbd.client",
            "gateway.nbd.negotiation",
            "gateway.nbd.protocol",
            "gateway.nbd.transmission",
            "gateway.s3.acl",
            "gateway.s3.body",
            "gateway.s3.checksums",
            "gateway.s3.chunked",
            "gateway.s3.conditions",
            "gateway.s3.cors",
            "gateway.s3.documents",
            "gateway.s3.form",
            "gateway.s3.lifecycle",
            "gateway.s3.listing",
            "gateway.s3.markup",
            "gateway.s3.multipart",
            "gateway.s3.names",
            "gateway.s3.policy",
            "gateway.s3.policy_document",
            "gateway.s3.ranges",
            "gateway.s3.request",
            "gateway.s3.routing",
            "gateway.s3.signature",
            "gateway.s3.times",
            "gateway.table.rendering",
        ),
        *(
            "node.checks",
            "node.copying",
            "node.fold",
            "node.handlers",
            "node.index",
            "node.replay",
            "node.recovery",
        ),
        *("node.replica", "node.segment", "node.superblock", "node.tombstones"),
        *(
            "metadata.attachments",
            "metadata.handlers",
            "metadata.limits",
            "metadata.params",
            "metadata.requests",
        ),
        *("metadata.healing", "metadata.moves"),
        *("metadata.records", "metadata.state", "registry.handlers", "registry.state"),
        *(
            "registry.balance",
            "registry.drains",
            "registry.events",
            "registry.mount_table",
            "registry.quota",
        ),
        *("quorum.history", "quorum.member", "quorum.orders", "quorum.raft_types", "quorum.record"),
        *("quorum.state", "service.http", "service.identity", "service.raft_transport", "service.replicated"),
        *(
            "wire.address",
            "wire.capability",
            "wire.connection",
            "wire.discovery",
            "wire.errors",
            "wire.frame",
            "wire.handshake",
        ),
        *("wire.log_messages", "wire.receiver", "wire.rpc", "wire.secret"),
    )
]
MEMORY_MAX = 2 << 30  # of the process: beyond it an allocation fails, and that is reported


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=1 << 60, help="of each target at most")
    parser.add_argument("--target", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    install(MODULES)
    from .targets import all_targets

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX, MEMORY_MAX))
    targets = [each for each in all_targets() if not options.target or each.name in options.target]
    if not targets:
        parser.error(f"no such target; there are: {', '.join(each.name for each in all_targets())}")
    gc.freeze()
    failed = False
    for target in targets:
        try:
            print(fuzz(target, options.seconds / len(targets), options.seed, options.runs), flush=True)
        except Failure as failure:
            failed = True
            print(f"FAILED {failure}", flush=True)
            if options.keep is not None:
                name = f"{target.name}-{hashlib.sha256(failure.data).hexdigest()[:8]}"
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / name).write_bytes(failure.data)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
