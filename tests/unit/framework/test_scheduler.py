"""The shell without a master: what is shared, what is kept, and what the JSON API takes for a word."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from moorage.framework import scheduler as module
from moorage.framework.api import Api
from moorage.framework.core import Core
from moorage.framework.inventory import Json
from moorage.framework.kept import framework_info, kept_in
from moorage.framework.master import Master
from moorage.framework.scheduler import Scheduler, find_spec
from moorage.framework.spec import parse
from moorage.framework.subscription import Subscription
from moorage.wire.errors import DeadlineExceeded, Invalid, MoorageError, Unavailable

from .test_core import DOCUMENT
from .world import World, subscribe, turn

NEW = {**DOCUMENT, "image": "moorage:2"}


class Kept:
    """What a master knows of the framework, or ``fails`` to take."""

    def __init__(self) -> None:
        self.infos: list[Json] = []
        self.fails: MoorageError | None = None

    async def update(self, info: Json) -> None:
        if self.fails is not None:
            raise self.fails
        self.infos.append(info)


@pytest.fixture
async def kept() -> Kept:
    return Kept()


@pytest.fixture
async def scheduler(kept: Kept) -> Scheduler:
    """Of a cluster that runs."""
    world = World()
    for name in ("h1", "h2", "h3"):
        world.add(name)
    spec = parse(DOCUMENT)
    made = Scheduler(spec, cast(Master, None))
    made.core = subscribe(world, spec)
    for number in range(6):
        turn(world, made.core, float(number))
    made._subscription, made._kept, made.is_subscribed = cast(Subscription, kept), spec, True
    return made


async def test_a_new_spec_is_kept_before_it_counts(scheduler: Scheduler, kept: Kept) -> None:
    answer = await Api(scheduler).apply({"spec": NEW, "dry_run": True})
    assert {each["step"] for each in answer["steps"]} == {"new release, in its turn"}
    assert kept.infos == [] and scheduler.core.spec == parse(DOCUMENT), "it was only asked what would be"
    assert await Api(scheduler).apply({"spec": NEW}) == answer
    assert scheduler.core.spec == parse(NEW) == kept_in(kept.infos[0])


async def test_what_the_master_does_not_keep_does_not_count(scheduler: Scheduler, kept: Kept) -> None:
    """And is not kept by chance either, when nobody knows whether it is."""
    kept.fails = DeadlineExceeded("the master does not answer")
    with pytest.raises(DeadlineExceeded):
        await Api(scheduler).apply({"spec": NEW})
    assert scheduler.core.spec == parse(DOCUMENT)
    await scheduler._keep_on()
    assert scheduler.core.problems() == ["the spec is not kept by the master: the master does not answer"]
    kept.fails = None
    await scheduler._keep_on()
    assert kept_in(kept.infos[-1]) == parse(DOCUMENT) and scheduler.core.problems() == []


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "spec is missing"),
        ({"dry_run": True}, "spec is missing"),
        ({"spec": {}}, "secret_file is missing"),
        ({"spec": None}, "the document: use fields"),
        ({"spec": NEW, "dry-run": True}, "unknown: dry-run"),
        ({"spec": NEW, "dry_run": "true"}, "dry_run: 'true': use true or false"),
        (DOCUMENT, "unknown: devices, options"),
        ({"spec": {**NEW, "imag": "x"}}, "unknown: imag"),
        ({"spec": {**NEW, "role": "other"}}, "role cannot be changed"),
    ],
)
async def test_what_is_no_instruction_changes_nothing(
    scheduler: Scheduler, kept: Kept, params: dict[str, Any], says: str
) -> None:
    with pytest.raises(Invalid, match=says):
        await Api(scheduler).apply(params)
    with pytest.raises(Invalid):
        await Api(scheduler).rollout({"action": "pause", **params})
    assert scheduler.core.spec == parse(DOCUMENT) and kept.infos == []


async def test_before_the_agents_are_known_nothing_is_applied(scheduler: Scheduler, kept: Kept) -> None:
    scheduler.core = Core(parse(DOCUMENT), str)
    with pytest.raises(Unavailable, match="agents are not known yet"):
        await Api(scheduler).apply({"spec": NEW})
    assert kept.infos == []


class Connection:
    """A cluster that says nothing of itself."""

    def __init__(self, registry: str) -> None:
        self.registry = registry
        self.members = self
        self.closed = False

    async def groups(self) -> list[str]:
        raise Unavailable("no leader")

    async def close(self) -> None:
        self.closed = True


async def test_all_share_one_connection_while_the_registry_is_where_it_was(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Connection] = []

    async def connect(registry: str, secret_file: str) -> Connection:
        await asyncio.sleep(0)
        made.append(Connection(registry))
        return made[-1]

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
    first, second, _ = await asyncio.gather(scheduler.cluster(), scheduler.cluster(), scheduler._look())
    assert first is second and len(made) == 1, "a look that failed is no reason for another one"
    assert made[0].registry == ",".join(scheduler.core.registry())
    assert list(scheduler.core.trouble.values()) == ["the cluster does not say how it is: no leader"]
    scheduler.core.heard({"registry": {"h9": "10.0.0.9:1"}}, [])
    await scheduler._look()
    assert made[0].closed, "it is somewhere else, and was not asked where"
    await scheduler.cluster()
    assert [each.registry for each in made][1:] == ["10.0.0.9:1"] and not made[1].closed
    await scheduler._disconnect()
    assert made[1].closed


class Answers:
    """A master that has only just begun to lead, and then knows ``infos``."""

    def __init__(self, *infos: Json) -> None:
        self.infos = infos
        self.recovered = 1

    async def query(self, kind: str) -> Json:
        if kind == "GET_AGENTS":
            self.recovered, left = 0, self.recovered
            return {"get_agents": {"recovered_agents": [{}] * left}}
        found = [] if self.recovered else [{"framework_info": each} for each in self.infos]
        return {"get_frameworks": {"frameworks": found}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], "knows no framework moorage"),
        ([{"name": "other"}], "knows no framework moorage"),
        ([{"labels": {}}], "keeps no spec of the framework moorage"),
        ([{"roles": ["other"]}], "is not used: it is of a framework moorage with role moorage"),
        ([{"principal": "mallory"}], "is not used: it is of a framework moorage"),
    ],
)
async def test_no_spec_is_found_for_a_reason(
    monkeypatch: pytest.MonkeyPatch, changes: list[Json], says: str
) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.0)
    spec = parse(DOCUMENT)
    master = Answers(*({**framework_info(spec), **each} for each in changes))
    with pytest.raises(Invalid, match=says):
        await find_spec(cast(Master, master), "moorage", "moorage")


async def test_the_spec_is_found_by_name_for_its_principal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.0)
    spec = parse({**DOCUMENT, "name": "prod", "principal": "me"})
    for principal in ("me", "mallory"):
        infos = framework_info(parse(DOCUMENT)), framework_info(spec)
        looking = find_spec(cast(Master, Answers(*infos)), "prod", principal)
        if principal == "me":
            assert await looking == spec
        else:
            with pytest.raises(Invalid, match="of the principal me: say --principal"):
                await looking
