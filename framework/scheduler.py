"""The shell around the scheduler's core: events of the master in, the core's calls out.

Owns the subscription, the clock and the one connection to the cluster. Keeps nothing on disk: its id, its
spec, its tasks and its reservations are asked of the master, so a scheduler that is started elsewhere takes
over, and the former one is not heard any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping

from moorage.client.cluster import Cluster, connect
from moorage.framework.core import Core
from moorage.framework.health import appends_of, what_is_wrong
from moorage.framework.inventory import Json
from moorage.framework.kept import framework_info, kept_in
from moorage.framework.maintenance import BY
from moorage.framework.master import Master
from moorage.framework.messages import FrameworkRemoved
from moorage.framework.plan import Plan
from moorage.framework.spec import Spec, check_change, differences
from moorage.framework.subscription import Event, Lost, Subscription
from moorage.framework.view import status_of
from moorage.wire.errors import Invalid, MoorageError, NotFound, Unavailable

log = logging.getLogger(__name__)

TICK_S = 1.0
LOOK_S = 30.0  # for all answers
LOOK_AGAIN_S = 3.0
JUDGE_S = 30.0  # every volume is looked at then; while a release goes round, at each look
EVENTS_MAX = 1000  # that wait for us; the others wait in the connection


async def find_framework(master: Master, name: str) -> Json | None:
    """The FrameworkInfo of the framework of that name; None if there is none, or none any more. Of a master
    that has only just begun to lead, when the agents that know frameworks are back."""
    while True:
        found = (await master.query("GET_FRAMEWORKS"))["get_frameworks"].get("frameworks", [])
        infos: list[Json] = [each["framework_info"] for each in found]
        info = next((each for each in infos if each["name"] == name), None)
        agents = (await master.query("GET_AGENTS"))["get_agents"]
        if info is not None or not (missing := len(agents.get("recovered_agents", []))):
            return info
        log.warning("%d agents have not come back to the master yet: they are waited for", missing)
        await asyncio.sleep(TICK_S)


async def find_spec(master: Master, name: str, principal: str) -> Spec:
    """What the framework of that name was run with last. Raises NotFound or Invalid."""
    info = await find_framework(master, name)
    if info is None:
        raise NotFound(f"the master knows no framework {name}: give the file with its spec")
    try:
        spec = kept_in(info)
    except Invalid as error:
        raise Invalid(f"the spec that the master keeps of {name} is not used: {error}: give a file") from None
    if spec is None:
        raise NotFound(f"the master keeps no spec of the framework {name}: give the file with it")
    if spec.principal != principal:
        raise Invalid(f"the framework {name} is of the principal {spec.principal}: say --principal")
    return spec


def id_of(info: Json, spec: Spec) -> str:
    """Of the framework that this one goes on as. Raises Invalid when it has another role or principal: what
    it has would be out of reach."""
    has, wanted = (info.get("principal", ""), info.get("roles", [])), (spec.principal, [spec.role])
    if has != wanted:
        raise Invalid(
            f"there is a framework {spec.name} with principal {has[0]!r} and roles {has[1]}: give the"
            " spec the same, or another name"
        )
    return str(info["id"]["value"])


async def look_at_agents(master: Master) -> tuple[Json, int]:
    """GET_AGENTS, and how many agents the master has lost sight of."""
    found = await master.query("GET_AGENTS")
    metrics = (await master.query("GET_METRICS", {}))["get_metrics"]["metrics"]
    lost = [each.get("value", 0) for each in metrics if each["name"] == "master/slaves_unreachable"]
    return found, int(sum(lost))


async def look_at_maintenance(master: Master) -> tuple[Json, Json]:
    """Its schedule, and its status: which machines are down for it."""
    schedule = (await master.query("GET_MAINTENANCE_SCHEDULE"))["get_maintenance_schedule"]["schedule"]
    status = (await master.query("GET_MAINTENANCE_STATUS"))["get_maintenance_status"]["status"]
    return schedule, status


class Scheduler:
    """``on_change``: called after each decision, for whoever shows what happens. ``is_new``: see Core."""

    def __init__(
        self,
        spec: Spec,
        master: Master,
        on_change: Callable[[Core], None] = lambda _: None,
        is_new: bool = False,
    ) -> None:
        self.core = Core(spec, lambda: uuid.uuid4().hex[:12], is_new)
        self._master = master
        self._on_change = on_change
        self.is_subscribed = False
        self.framework_id = ""
        self._subscription: Subscription | None = None
        self._kept: Spec | None = None  # by the master, as it told us
        self._keeping = asyncio.Lock()  # between what the master keeps and what counts here nothing comes
        self._knows_tasks = False  # since it subscribed
        self._replacing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._saw_at = self._judge_at = _now()
        self._cluster: Cluster | None = None
        self._connecting = asyncio.Lock()
        self._told: list[str] = []  # where the registry was when it was connected to

    async def run(self) -> None:
        """Until it is cancelled. Raises FailedOver when another scheduler took over, Invalid or
        AuthenticationFailed when the master does not take this framework."""
        framework_id = await self._find()
        try:
            while True:
                self._kept = self.core.spec
                subscription = Subscription(self._master, framework_info(self._kept), framework_id)
                self._subscription = subscription
                try:
                    await self._follow(subscription)
                except FrameworkRemoved as error:
                    log.warning("%s", error)
                    framework_id = None
                finally:
                    subscription.close()
                    for task in filter(None, (self._replacing, self._looking)):
                        task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
        finally:
            await self._disconnect()

    async def _find(self) -> str | None:
        spec = self.core.spec
        info = await find_framework(self._master, spec.name)
        if info is None:
            return None
        framework_id = id_of(info, spec)
        try:
            kept = kept_in(info)
        except Invalid as error:
            log.warning("the spec that the master keeps is not used: %s; ours takes its place", error)
        else:
            if kept is not None and (names := differences(kept, spec)):
                said = "the spec differs from the one that the master keeps in %s, and takes its place"
                log.warning(said, ", ".join(names))
        return framework_id

    def status(self) -> Json:
        return status_of(self.core, self.is_subscribed, self.framework_id, _now())

    def abort_rollout(self, why: str) -> None:
        self.core.abort_rollout(why, _now())

    async def apply(self, spec: Spec, dry_run: bool = False) -> Plan:
        """Have ``spec`` count from now on: the plan that follows. It is kept before anything of it is done,
        so whoever takes over does the same. ``dry_run``: the plan alone. Raises Invalid with the reason when
        it cannot be changed to that; an error of the master when it is not kept: then nothing is done."""
        check_change(self.core.spec, spec)
        if not self.core.has_inventory:
            raise Unavailable("the agents are not known yet: try again in a moment")
        if not dry_run:
            async with self._keeping:
                await self._keep(spec)
                self.core.apply(spec)  # no await since: what counts is what is kept
        return self.core.planned(spec)

    async def _keep(self, spec: Spec) -> None:
        if spec != self._kept:
            if self._subscription is None:
                raise Unavailable("not subscribed to a Mesos master")
            self._kept = None  # nobody knows, until the master answers
            await self._subscription.update(framework_info(spec))
            self._kept = spec

    async def cluster(self) -> Cluster:
        """The connection that all share; made when it is first asked for."""
        async with self._connecting:
            if self._cluster is None:
                if not (registry := self.core.registry()):
                    raise Unavailable("no member of the registry has its place yet: try again when they run")
                secret_file = self.core.spec.secret_file
                self._cluster = await connect(registry=",".join(registry), secret_file=secret_file)
                self._told = registry
            return self._cluster

    async def _disconnect(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await cluster.close()

    async def _follow(self, subscription: Subscription) -> None:
        events: asyncio.Queue[Event] = asyncio.Queue(EVENTS_MAX)
        # In a task of its own: an attempt to subscribe takes as long as it takes.
        reader = asyncio.create_task(_read(subscription, events), name="events of the master")
        try:
            while True:
                try:
                    async with asyncio.timeout(TICK_S):
                        event: Event | None = await events.get()
                except TimeoutError:
                    event = None
                if event is None and reader.done():
                    return reader.result()
                await self._turn(subscription, event)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _turn(self, subscription: Subscription, event: Event | None) -> None:
        """What comes of an event, or of time."""
        if isinstance(event, Lost):
            self.is_subscribed = False
        elif event is not None:
            self._take(event)
        if self.is_subscribed:
            try:
                await self._act(subscription)
            except MoorageError as error:
                log.warning("%s", error)  # decided anew at the next tick
        if self.core.replacements() and (self._replacing is None or self._replacing.done()):
            self._replacing = asyncio.create_task(self._replace(), name="replace members")
        if self.core.registry() and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look(), name="look how the cluster is")
        self._on_change(self.core)

    def _take(self, event: Json) -> None:
        core, now = self.core, _now()
        match event["type"]:
            case "SUBSCRIBED":
                core.subscribed()
                self.is_subscribed, self._knows_tasks = True, False
                self.framework_id = event["subscribed"]["framework_id"]["value"]
            case "OFFERS":
                core.offers(event["offers"].get("offers", []))
            case "RESCIND":
                core.rescinded(event["rescind"]["offer_id"]["value"])
            case "INVERSE_OFFERS":
                core.inverse_offers(event["inverse_offers"].get("inverse_offers", []))
            case "RESCIND_INVERSE_OFFER":
                core.inverse_offer_rescinded(event["rescind_inverse_offer"]["inverse_offer_id"]["value"])
            case "UPDATE":
                core.update(event["update"]["status"], now)
            case "UPDATE_OPERATION_STATUS":
                core.operation(event["update_operation_status"]["status"], now)
            case "FAILURE":
                core.lost_agent()
            case kind:
                log.info("the master says %s, which nothing is done about", kind)

    async def _look(self) -> None:
        """What its groups and its registry say; and, not always, what is wrong with all of it."""
        began = _now()
        try:
            async with asyncio.timeout(LOOK_S):
                cluster = await self.cluster()
                members = cluster.members
                raft = {
                    group: {each.name: each.address for each in await members.list(group) if each.voter}
                    for group in await members.groups()
                }
                await self._heard(cluster, raft)
                if (is_under_way := self.core.rollout.is_under_way) or began >= self._judge_at:
                    self._judge_at = began + JUDGE_S
                    trouble = await what_is_wrong(cluster)
                    is_measured = is_under_way and self.core.spec.p99_budget
                    appends = await appends_of(cluster) if is_measured else None
                    self.core.looked(trouble, began, _now(), appends)
        except TimeoutError:
            blind = f"the cluster does not say in {LOOK_S:g} s how it is"
        except MoorageError as error:
            blind = f"the cluster does not say how it is: {error}"
        else:
            blind, self._saw_at = "", _now()
        if blind:
            self._judge_at = began  # as soon as it answers again
            self.core.looked({"": blind}, began, _now())
            if self._told != self.core.registry():  # it has moved while nobody could ask it where to
                await self._disconnect()
        self.core.blind = blind if _now() - self._saw_at > LOOK_S else ""  # at first it only starts
        await asyncio.sleep(TICK_S if self.core.rollout.is_under_way else LOOK_AGAIN_S)

    async def _heard(self, cluster: Cluster, raft: Mapping[str, Mapping[str, str]]) -> None:
        """What its groups said, and its registry says; and drain what planned maintenance asks for."""
        core, view = self.core, await cluster.status()
        drains = {host: row["drain"]["by"] for host, row in view["hosts"].items() if row["drain"]}
        begin, over = core.maintenance.wishes(view["hosts"], drains)
        # A host without a device is not in the registry: it has members only, which the core moves.
        leaving = {*drains, *(host for host in begin if host not in view["hosts"])}
        up = [row["address"] for row in view["devices"].values() if row["health"] == "up"]
        core.heard(raft, leaving, [*up, *(row["address"] for row in view["services"])])
        refused = {}
        for host in over:
            await cluster.places.undrain("host", host, by=BY)
        for host in (host for host in begin if host not in leaving):
            try:
                await cluster.places.drain("host", host, by=BY)
            except Invalid as error:
                refused[host] = str(error)
        held = {}
        for host in leaving.intersection(core.maintenance.due()):
            moves = await cluster.places.moves(
                [device for device, row in view["devices"].items() if row["host"] == host]
            )
            blocked = [each for each in moves.blocked if each["host"] == host]
            why = f"{blocked[0]['name']} group {blocked[0]['group']}: {blocked[0]['text']}" if blocked else ""
            held[host] = core.held(host, sum(moves.left.values()), why)
        core.maintenance.looked(held, refused)

    async def _replace(self) -> None:
        """Have the groups take in who is to take the place of another one. May be repeated."""
        for instance, address, former in self.core.replacements():
            group = instance.group or instance.service
            try:
                async with asyncio.timeout(LOOK_S):
                    cluster = await self.cluster()
                    await cluster.members.replace(group, former, instance.host, address, log.info)
            except (MoorageError, TimeoutError) as error:
                why = str(error) or f"it has not caught up in {LOOK_S:g} s"
                self.core.troubles[instance] = f"is to take the place of {former}: {why}"
                await asyncio.sleep(TICK_S)
            else:
                log.info("%s has taken the place of %s", instance, former)
                self.core.replaced(instance)

    async def _act(self, subscription: Subscription) -> None:
        if not self._knows_tasks:
            # Before any decision: what runs already must not look as if it did not.
            self.core.known_tasks(await self._master.query("GET_TASKS"), _now())
            self._knows_tasks = True
        if self.core.stale:
            before = set(self.core.agents)
            self.core.inventory(*await look_at_agents(self._master), _now())
            self.core.maintenance_planned(*await look_at_maintenance(self._master), time.time())
            # After a failover of the master tasks are known to it once their agents have come back.
            if not before >= set(self.core.agents):
                self.core.known_tasks(await self._master.query("GET_TASKS"), _now())
        for kind, body in self.core.decide(_now()):
            try:
                await subscription.call(kind, body)
            except MoorageError as error:
                log.warning("%s: %s", kind, error)
                self.core.failed(kind, body, _now())
        await self._keep_on()

    async def _keep_on(self) -> None:
        """What counts: it is another one since a release was taken back, or the master was not heard."""
        async with self._keeping:
            try:
                await self._keep(self.core.spec)
            except MoorageError as error:
                self.core.unkept = f"the spec is not kept by the master: {error}"
            else:
                self.core.unkept = ""


async def _read(subscription: Subscription, events: asyncio.Queue[Event]) -> None:
    async for event in subscription:
        await events.put(event)


def _now() -> float:
    return asyncio.get_running_loop().time()
