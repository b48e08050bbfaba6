"""How redundancy is shown, of volumes and of buckets: what it survives, and its copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from moorage.cli import output
from moorage.client.redundancy import LACKS_MAX, Redundancy


def redundancy_text(redundancy: Redundancy) -> list[str]:
    """What it survives, and how old the knowledge is that this rests on."""
    k, no_loss = redundancy.survives, redundancy.loses_nothing
    if k >= 0:
        lines = [f"survives {_losses(k)} now without waiting, {_losses(no_loss)} without losing data"]
    else:
        worst = "a group lacks a majority of good copies"
        lines = [f"survives no more host loss now: {worst}; {_losses(no_loss)} without losing data"]
    oldest = output.since(redundancy.verified_ms)
    checked = f"oldest check {oldest} ago" if redundancy.verified_ms else "no copy was ever checked"
    if redundancy.verified_ms and redundancy.never_verified:
        checked += f"; {redundancy.never_verified} copies were never checked"
    return [*lines, checked]


def _losses(count: int) -> str:
    return f"{count or 'no'} more host loss{'es' if count > 1 else ''}"


def copies_table(groups: Iterable[dict[str, Any]], redundancy: Redundancy) -> Table:
    """``groups``: as metadata describes them."""
    versions = {group["group"]: group["version"] for group in groups}
    columns = ("group", "version", "replica", "host", "device", "copy", "checked")
    rows = [
        (
            copy.group,
            versions[copy.group],
            copy.replica,
            copy.host,
            copy.device,
            copy.state,
            f"{output.since(copy.verified_ms)} ago" if copy.verified_ms else "never",
        )
        for copy in redundancy.copies
    ]
    return output.table("Replicas", columns, rows)


def bucket_copies_table(groups: Iterable[dict[str, Any]], redundancy: Redundancy) -> Table:
    """And what each lacks; below the copies of a group, the one that is to take the place of one of them."""
    columns = ("group", "host", "device", "copy", "lacks", "bad blocks", "checked")
    rows: list[tuple[object, ...]] = []
    for group in groups:
        own = [copy for copy in redundancy.copies if copy.group == group["group"]]
        rows += [
            (
                copy.group,
                copy.host,
                copy.device,
                copy.state,
                _lacks(copy.lacks),
                copy.bad_blocks,
                f"{output.since(copy.verified_ms)} ago" if copy.verified_ms else "never",
            )
            for copy in own
        ]
        if (wish := group["wish"]) is not None:
            (off,) = (copy.host for copy in own if copy.replica == wish["replaces"])
            built = f", {wish['built']} %" if "built" in wish else ""
            state = f"is built, in place of that on {off}{built}"
            rows.append(
                (group["group"], wish["host"], wish["device"], state, _lacks(wish.get("lacks")), "", "")
            )
    return output.table("Replicas", columns, rows)


def _lacks(lacks: int | None) -> str:
    if lacks is None:
        return "unknown"
    return f"{lacks} or more" if lacks >= LACKS_MAX else str(lacks)
