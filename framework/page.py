"""The scheduler's page: what framework.status says, for a person with a browser. Pure.

One document without scripts, links or anything from elsewhere; it loads itself again. All that is shown comes
from masters, agents and tasks, and is escaped here: nothing else writes HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from moorage.framework.inventory import Json
from moorage.framework.view import RUNNING

AGAIN_S = 5
_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse;margin:.5em 0}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}"
    ".well{color:#070}.ill{color:#a00}"
)


def render(status: Json) -> str:
    """``status``: as view.status_of() has it."""
    name = escape(status["name"])
    return "".join(
        (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="refresh" content="{AGAIN_S}">',
            f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1>",
            _health(status),
            _release(status["rollout"]),
            _instances(status["instances"]),
            "<h2>Planned maintenance</h2>",
            _table(("host", "how far it is emptied"), sorted(status["maintenance"].items())),
            "<h2>Offers declined last</h2>",
            _table(("agent", "why"), sorted(status["declined"].items())),
            _paragraph(f"Framework {status['framework_id'] or 'without an id yet'}."),
            "</body></html>",
        )
    )


def _health(status: Json) -> str:
    looked_s = status["looked_s"]
    when = "" if looked_s is None else f" The services were looked at {looked_s:.0f} s ago."
    if not status["why_not"]:
        registry = ",".join(status["registry"])
        return _paragraph(f"All is well.{when}", "well") + _paragraph(f"MOORAGE_REGISTRY={registry}")
    reasons = "".join(f"<li>{escape(each)}</li>" for each in status["why_not"])
    return _paragraph(f"Not all is well.{when}", "ill") + f"<ul>{reasons}</ul>"


def _release(rollout: Json) -> str:
    said = [f"The release was taken back: {rollout['taken_back']}."] if rollout["taken_back"] else []
    if rollout["under_way"]:
        turn = f"It is the turn of {rollout['host'] or 'the next host'}."
        said += [f"A release goes round: {rollout['hosts_done']} of {rollout['hosts']} hosts have it.", turn]
        said += [f"It waits: {rollout['waits']}."] if rollout["waits"] else []
        said += ["It is paused."] if rollout["paused"] else []
    return "<h2>Release</h2>" + _paragraph(" ".join(said) or "All hosts have the same one.")


def _instances(instances: Sequence[Json]) -> str:
    wanted = [each for each in instances if not each["former"]]
    running = sum(each["state"] == RUNNING for each in wanted)
    columns = ("instance", "agent", "disk", "port", "task", "state", "waits for")
    rows = (
        (
            each["instance"],
            each["agent"],
            f"{each['disk_mib']} MiB{'' if each['reserved'] else ', to be reserved'}",
            each["port"],
            each["task"],
            each["state"],
            "nothing: another host has its place" if each["former"] else each["waits"],
        )
        for each in instances
    )
    return f"<h2>{running} of {len(wanted)} tasks run</h2>" + _table(columns, rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>" if body else _paragraph("None.")


def _paragraph(text: str, of: str = "") -> str:
    return f'<p class="{of}">{escape(text)}</p>' if of else f"<p>{escape(text)}</p>"
