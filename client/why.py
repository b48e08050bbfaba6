"""Why a volume, a bucket, a host or a device is not as it should be: what is wrong, since when, because of
what, what is being done about it, and what an operator could do.

A core: facts in (the registry's view, metadata's word, what copies are worth), findings out. Owns the
sentences. Nothing is asked here; which copies count is `redundancy.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from moorage.client.places import Moves
from moorage.client.redundancy import GOOD, UNTOLD, Copy, extents
from moorage.quorum.majority import majority

NEARLY_FULL_PER_CENT = 90


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. ``for_ms``: how long it has been so, as far as is known."""

    what: str
    because: str
    doing: str
    could: str
    for_ms: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Facts:
    """Of a volume or bucket: ``copies``, by replica id. Of a volume: ``learners``: rows of
    ``node.list_replicas`` of those that are to become copies, as far as their devices answered. ``now_ms``:
    the time of day."""

    view: Mapping[str, Any]
    moves: Moves
    copies: Mapping[int, Copy] = field(default_factory=dict)
    learners: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    now_ms: int = 0


def about_volume(volume: Mapping[str, Any], facts: Facts) -> list[Finding]:
    """``volume``: as ``metadata.show_volume`` answers."""
    return list(_volume(volume, facts))


def about_bucket(name: str, groups: Iterable[Mapping[str, Any]], facts: Facts) -> list[Finding]:
    """``groups``: as ``metadata.show_lacks`` answers."""
    return [finding for group in groups for finding in _group_of_bucket(name, group, facts)]


def about_device(device: str, facts: Facts) -> list[Finding]:
    return [*_device(device, facts), *_unevenness(facts)]


def about_host(host: str, facts: Facts) -> list[Finding]:
    row = facts.view["hosts"][host]
    on_it = sorted(each for each, entry in facts.view["devices"].items() if entry["host"] == host)
    found = [finding for device in on_it for finding in _device(device, facts)]
    if not on_it:
        what = f"host {host} has no device"
        found.append(Finding(what, row["reason"], "", "start `moorage node` there, or forget it"))
    return [*found, *_unevenness(facts)]


# -- volumes --------------------------------------------------------------------------------------------


def _volume(volume: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    name = volume["name"]
    if volume["state"] == "creating":
        yield Finding(f"volume {name} is being created", "", "its replicas are ordered", "wait some seconds")
        return
    if volume["state"] == "deleting":
        yield Finding(f"volume {name} is being deleted", "", "its replicas are dropped", "nothing")
        return
    for group in volume["groups"]:
        yield from _group(name, group, facts)
    yield from _snapshots(name, volume, facts)
    holder = volume["holder"]
    if holder is not None and not volume["holder_alive"] and not holder["recovers"]:
        who = f"{holder['program']} (pid {holder['pid']}) on {holder['host']}"
        yield Finding(
            f"volume {name} has a holder that metadata does not hear of",
            f"{who} has not renewed its lease: it is dead, frozen or cut off",
            "whoever attaches takes it over, and fences that one",
            "attach or mount it elsewhere",
        )


def _snapshots(name: str, volume: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    holder = volume["holder"]
    who = (
        f"{holder['program']} (pid {holder['pid']}) on {holder['host']}" if holder else "metadata's repairer"
    )
    for entry in volume.get("snapshots", ()):
        if entry["state"] == "creating":
            for_ms = max(0, facts.now_ms - entry["created_ms"])
            because = f"{who} has yet to write it into the log of each group"
            could = "nothing: it is given up when it takes too long, and who asked for it is told"
            doing = "it is made as soon as each group has a majority"
            yield Finding(f"snapshot {name}@{entry['name']} is being created", because, doing, could, for_ms)
        elif entry["state"] == "deleting":
            because = f"{who} has yet to take it out of the log of each group"
            doing = "it goes as soon as each group has a majority; its space comes back after that"
            yield Finding(f"snapshot {name}@{entry['name']} is being deleted", because, doing, "nothing")
    back_to = next((s["name"] for s in volume.get("snapshots", ()) if s["id"] == volume.get("rollback")), "")
    if back_to:
        yield Finding(
            f"volume {name} is being rolled back: nobody else can attach it",
            f"it is to be what it was at snapshot {back_to}, and is partly what it was since",
            f"{who} is at it" if holder and volume["holder_alive"] else "nothing: who began it has ended",
            f"`moorage snapshot rollback {name}@{back_to}` completes it",
        )


def _group(name: str, group: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    members = group["members"]
    yield from _copies(
        "volume", name, group, facts, lambda _: "whoever leads the volume brings it up to date"
    )
    good = sum(_lacks(each, facts) is None for each in members)
    if good < majority(len(members)):
        yield Finding(
            f"volume {name} group {group['group']} has no majority: reads and writes of its part wait",
            f"{good} of {len(members)} copies are there, {majority(len(members))} are needed",
            "they go on by themselves when enough are back",
            "bring back what is named above; what has not been copied is there only",
        )


def _copies(
    kind: str,
    name: str,
    group: Mapping[str, Any],
    facts: Facts,
    mending: Callable[[Mapping[str, Any]], str],
) -> Iterator[Finding]:
    """Those that do not count, or one that is on its way. ``mending(member)``: what is done for one that
    stays a member."""
    members, wish = group["members"], group["wish"]
    lacking = [(each, *found) for each in members if (found := _lacks(each, facts))]
    for member, because, for_ms, could in lacking:
        yield Finding(
            f"{kind} {name} group {group['group']}: the copy on {member['host']} does not count",
            because,
            _doing(name, group, member, facts) or mending(member),
            could,
            for_ms,
        )
    if wish is not None and not lacking:
        yield Finding(
            f"{kind} {name} group {group['group']}: a copy is on its way to {wish['host']}",
            wish.get("why", ""),
            _doing(name, group, next(e for e in members if e["replica"] == wish["replaces"]), facts),
            "nothing",
            max(0, facts.now_ms - wish["since_ms"]) if wish.get("since_ms") else None,
        )


def _lacks(member: Mapping[str, Any], facts: Facts) -> tuple[str, int | None, str] | None:
    """(because of what, for how long, what one could do) when the copy does not count."""
    device, host = member["device"], member["host"]
    row = facts.view["devices"].get(device)
    if row is None:
        return f"device {device} is not in the registry", None, f"start the node of {host}"
    if row["health"] in ("refused", "failed"):
        return (
            f"device {device} is {row['health']}: {row['reason']}",
            row["since_ms"],
            "nothing: it is placed anew",
        )
    if row["health"] != "up":
        could = f"bring {host} up; or, if it is gone for good, `moorage device evict {device}`"
        return f"device {device} is {row['health']}: {row['reason']}", row["since_ms"], could
    state = facts.copies[member["replica"]].state
    if state == GOOD:
        return None
    if state == UNTOLD:
        return state, None, "upgrade the hosts of its metadata group"
    if member.get("lacks") and state.startswith("lacks"):
        state += ": put while it did not answer, or found to be missing"
    return state, None, f"nothing, unless it stays so: then look at the log of {host}"


def _doing(name: str, group: Mapping[str, Any], member: Mapping[str, Any], facts: Facts) -> str:
    wish = group["wish"]
    if wish is not None and wish["replaces"] == member["replica"]:
        move = next(
            (each for each in facts.moves.moves if (each["volume"], each["group"]) == (name, group["group"])),
            None,
        )
        led = (
            f", led by {move['led_by']['program']} on {move['led_by']['host']}"
            if move and move["led_by"]
            else ""
        )
        return f"its successor is made on {wish['host']}{_how_far(group, wish, facts)}{led}"
    for each in facts.moves.blocked:
        if (each["name"], each["group"], each["device"]) == (name, group["group"], member["device"]):
            return f"its successor cannot be placed: {each['text']}"
    row = facts.view["devices"].get(member["device"])
    if row is not None and row["health"] == "down":
        left_s = max(0, facts.moves.repair_after_ms - row["since_ms"]) // 1000
        then = f"; it gets {extents(lacks)} then" if (lacks := member.get("lacks")) else ""
        return f"it is placed anew in {left_s} s, unless it is back before{then}"
    return ""


def _how_far(group: Mapping[str, Any], wish: Mapping[str, Any], facts: Facts) -> str:
    """By what the new copy holds against what the fullest of the others does; the rate is that since it was
    wished for."""
    if "built" in wish:  # of a bucket
        if wish["built"] == 100:
            return (
                f" ({extents(wish['lacks'])} that came meanwhile are left)" if wish["lacks"] else " (whole)"
            )
        return f" ({wish['built']} % copied{_time_left(wish, wish['built'], 100, facts)})"
    told = facts.learners.get(wish["replica"])
    if told is None:
        return ""
    if told["whole"]:
        return " (whole)"
    total = max(facts.copies[each["replica"]].bytes for each in group["members"])
    done = told.get("bytes", 0)
    if not total:
        return " (being copied)"
    left = _time_left(wish, done, total, facts)
    return f" ({min(100, done * 100 // total)} % of {total >> 20} MiB copied{left})"


def _time_left(wish: Mapping[str, Any], done: int, total: int, facts: Facts) -> str:
    took_ms = facts.now_ms - wish.get("since_ms", 0)
    if not 0 < done < total or took_ms <= 0:
        return ""
    return f", about {took_ms * (total - done) // done // 1000} s more"


# -- buckets --------------------------------------------------------------------------------------------


def _group_of_bucket(name: str, group: Mapping[str, Any], facts: Facts) -> Iterator[Finding]:
    members, needed = group["members"], majority(len(group["members"]))
    yield from _copies("bucket", name, group, facts, lambda member: _mending(group, member, facts))
    there = sum(_answers(each, facts) for each in members)
    if there < needed:
        yield Finding(
            f"bucket {name} group {group['group']} has no majority: nothing is put there",
            f"{there} of {len(members)} copies are there, {needed} are needed",
            "what is put goes to other groups, if the bucket has any; this one goes on when enough are back",
            "bring back what is named above; objects that have not been copied are there only",
        )


def _answers(member: Mapping[str, Any], facts: Facts) -> bool:
    """Whether it takes what is put, and gives what it has: also one that lacks something does."""
    row = facts.view["devices"].get(member["device"])
    is_up = row is not None and row["health"] == "up"
    return is_up and not facts.copies[member["replica"]].state.startswith("does not answer")


def _mending(group: Mapping[str, Any], member: Mapping[str, Any], facts: Facts) -> str:
    """What metadata's leader does for a copy that does not count."""
    copy, lacks = facts.copies[member["replica"]], member.get("lacks")
    others = [each for each in group["members"] if each["replica"] != member["replica"]]
    row = facts.view["devices"].get(member["device"])
    if row is not None and row["health"] in ("refused", "failed"):
        return "its successor is ordered within some seconds"
    if not _answers(member, facts):
        return f"waits for {member['host']}" + (f", which gets {extents(lacks)} then" if lacks else "")
    if copy.state == UNTOLD:
        return "unknown until that one is upgraded"
    if others and not any(_answers(each, facts) for each in others):
        return f"waits for {' and '.join(each['host'] for each in others)}: what it lacks is there only"
    if member.get("built") is not None:
        return f"it is looked through, and gets what it lost from the others: {member['built']} % done"
    if lacks:
        return f"copying {extents(lacks)} to {member['host']}"
    if copy.bad_blocks:
        return "it is asked for all that it should have, and gets what is bad from the others"
    return "it is looked at within half a minute, and what it lost is copied from the others"


def _unevenness(facts: Facts) -> Iterator[Finding]:
    balance = facts.view.get("balance") or {}
    if balance.get("paused") and facts.moves.unevenness:
        because = f"{balance['by']} has paused it, and devices are not filled alike"
        could = "`moorage balance resume`; `moorage balance show` says how full each device is"
        for_ms = max(0, facts.now_ms - balance["at_ms"])
        yield Finding("replicas do not move to even devices out", because, "nothing", could, for_ms)


# -- devices --------------------------------------------------------------------------------------------


def _device(device: str, facts: Facts) -> Iterator[Finding]:
    row = facts.view["devices"][device]
    where = f"device {device} of {row['host']}"
    left = facts.moves.left.get(device, 0)
    if row["health"] != "up":
        doing = "nothing: it holds no replica"
        if left:
            doing = f"its {left} replicas are placed anew"
            if row["health"] in ("down", "suspect"):
                doing += f" when it has been down for {facts.moves.repair_after_ms // 1000} s"
        could = f"bring it up, or `moorage device evict {device}` if it is gone for good"
        if row["health"] == "refused":
            could = f"`moorage device evict {device}` makes the registry forget it once it holds nothing"
        yield Finding(f"{where} is {row['health']}", row["reason"], doing, could, row["since_ms"])
    drain = row.get("drain")
    if drain:
        on_way = [each for each in facts.moves.moves if each["from"]["device"] == device]
        stuck = [each for each in facts.moves.blocked if each["device"] == device]
        doing = f"{left} replicas are left, {len(on_way)} are on their way"
        could = f"`moorage device undrain {device}` stops it, or `moorage host undrain {row['host']}`"
        if stuck:
            doing += f"; {stuck[0]['name']} group {stuck[0]['group']}: {stuck[0]['text']}"
        if not left:
            doing, could = (
                "it is empty",
                f"take it away; or use it again: `moorage host undrain {row['host']}`",
            )
        yield Finding(f"{where} is being emptied", f"{drain['by']} asked for it", doing, could)
    if row["capacity"] and row["used"] * 100 >= row["capacity"] * NEARLY_FULL_PER_CENT:
        used = f"{row['used'] * 100 // row['capacity']} % of its capacity are used"
        could = "discard or delete data, add a device, or drain some volumes away"
        yield Finding(f"{where} is nearly full", used, "writers are told NoSpace before it is full", could)
