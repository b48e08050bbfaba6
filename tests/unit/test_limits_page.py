"""docs/limits.md says what the code enforces: its table is rendered from the code's own constants.

After a change: ``python tests/unit/test_limits_page.py > docs/limits.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moorage.client import front, nodes
from moorage.framework import master as mesos
from moorage.framework import recordio
from moorage.gateway.docker import plugin as docker
from moorage.gateway.nbd import protocol as nbd
from moorage.metadata import limits
from moorage.metadata.limits import Limit
from moorage.node import config as node
from moorage.quorum import record
from moorage.registry import mount_table, quota
from moorage.registry import state as registry
from moorage.service import http, kv
from moorage.service.units import human
from moorage.wire import discovery, frame, handshake
from moorage.wire.limits import DEFAULT as WIRE

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"

HEAD = """# Limits

What Moorage accepts, and what happens just past it. A request that is refused changes nothing, and the
error says what would be accepted. The tables are rendered from the code (`tests/unit/test_limits_page.py`).
"""

ROWS = {
    "Volumes": limits.TABLE,
    "The cluster": (
        Limit("Hosts", str(registry.HOSTS_MAX), "`LimitExceeded`"),
        Limit("Devices", str(registry.DEVICES_MAX), "`LimitExceeded`: the node does not start"),
        Limit("Services (members of all groups)", str(registry.SERVICES_MAX), "`LimitExceeded`"),
        Limit(
            "Labels of a host",
            f"{registry.LABELS_MAX}, keys and values of {registry.LABEL_SIZE_MAX}",
            "`Invalid`",
        ),
        Limit("Mount table", human(mount_table.SIZE_MAX), "`LimitExceeded`"),
        Limit(
            "Versions of the mount table",
            f"the last {mount_table.VERSIONS_KEPT}",
            "an older one is forgotten",
        ),
        Limit("Quotas", str(quota.QUOTAS_MAX), "`LimitExceeded`"),
        Limit("Text (addresses, reasons)", f"{registry.TEXT_MAX} characters", "`Invalid`"),
        Limit(
            "Capacity of a device", f"from {human(node.CAPACITY_MIN)}", "`Invalid`: the node does not start"
        ),
    ),
    "Data": (
        Limit("Block, the unit of checksum and index", human(record.BLOCK_SIZE), "fixed"),
        Limit("Chunk, the unit of addressing", human(record.CHUNK_SIZE), "fixed"),
        Limit("LSN of a record", "2^63 - 1", "`LimitExceeded`"),
        Limit("Requests that wait for the ceilings of a volume", str(front.PIECES_MAX), "`Overloaded`"),
    ),
    "The binary protocol": (
        Limit("Body of a frame", human(frame.BODY_SIZE_MAX), "`ProtocolError`, the connection ends"),
        Limit("Payload of a frame", human(frame.PAYLOAD_SIZE_MAX), "`ProtocolError`, the connection ends"),
        Limit(
            "Message of a handshake",
            human(handshake.MESSAGE_SIZE_MAX),
            "`ProtocolError`, the connection ends",
        ),
        Limit("Connections of a listener", str(WIRE.connections), "`Overloaded`, one more is refused"),
        Limit(
            "Connections that have not proved the secret", str(WIRE.unauthenticated), "the oldest is dropped"
        ),
        Limit("Time for a handshake", f"{WIRE.handshake_s:g} s", "the connection ends"),
        Limit("Silence of a peer that is pinged", f"{WIRE.silence_s:g} s", "the connection ends"),
        Limit("Calls at once on a connection", str(WIRE.calls), "`Overloaded`"),
        Limit(
            "Addresses of the registry that an SRV name leads to",
            str(discovery.CANDIDATES_MAX),
            "the others are not tried",
        ),
        Limit(
            "Bytes queued for one peer", human(WIRE.write_queue_bytes), "`Overloaded`, the connection ends"
        ),
        Limit("Bytes of reads asked of one device", human(nodes.READING_MAX), "further reads wait"),
        Limit("Key of a replicated state", f"{kv.KEY_SIZE_MAX} bytes", "`LimitExceeded`"),
    ),
    "Gateways and HTTP": (
        Limit("Body of a JSON call", human(http.BODY_MAX), "413"),
        Limit(
            "HTTP connections of a process",
            str(http.CONNECTIONS_MAX),
            "the oldest without a whole request is dropped",
        ),
        Limit("Time for the headers of an HTTP request", f"{http.HEADERS_S:g} s", "the connection ends"),
        Limit("NBD request", human(nbd.PAYLOAD_SIZE_MAX), "EINVAL"),
        Limit("NBD option, handshake", human(nbd.OPTION_SIZE_MAX), "the connection ends"),
        Limit("Body of a call of the volume driver", human(docker.BODY_MAX), "413"),
        *(
            Limit(f"Time for {call} of the volume driver", f"{seconds:g} s", "an error; it is taken back")
            for call, seconds in docker.DEADLINES.items()
        ),
        Limit("Time for its other calls", f"{docker.LOCAL_DEADLINE:g} s", "an error"),
        Limit(
            "Event of a Mesos master", human(recordio.RECORD_SIZE_MAX), "`ProtocolError`, the connection ends"
        ),
        Limit("Answer of a Mesos master", human(mesos.ANSWER_SIZE_MAX), "`ProtocolError`"),
    ),
}


def render() -> str:
    page = HEAD
    for title, rows in ROWS.items():
        page += f"\n## {title}\n\n| what | limit | past it |\n|---|---|---|\n"
        page += "".join(f"| {row.what} | {row.limit} | {row.beyond} |\n" for row in rows)
    return page


def test_page_says_what_the_code_enforces() -> None:
    assert PAGE.read_text() == render(), "run: python tests/unit/test_limits_page.py > docs/limits.md"


def test_volume_limits_stand_in_the_table_as_they_are_checked() -> None:
    page = render()
    for text in ("[a-z0-9][a-z0-9._-]{0,62}", "1 MiB to 64 TiB", "| 1, 3, 5 |", "| 1 to 64 |", "| 10000 |"):
        assert text in page


if __name__ == "__main__":
    sys.stdout.write(render())
