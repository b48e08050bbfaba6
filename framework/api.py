"""The scheduler's JSON API: how far it is, what it is to run from now on, and where data lives.

For operators, and for schedulers of others that want to launch a task beside its data. On the HTTP side of
all services (`moorage.service.http`): every call needs the bearer token, and one that changes something names
it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from moorage.client import uri
from moorage.client.cluster import Cluster
from moorage.client.redundancy import Redundancy
from moorage.framework.core import Core
from moorage.framework.page import render
from moorage.framework.scheduler import Scheduler
from moorage.framework.spec import document_of, parse
from moorage.framework.view import plan_of, waits_for
from moorage.service.embed import Route
from moorage.wire.errors import Invalid

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Api:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    @property
    def _core(self) -> Core:
        return self._scheduler.core

    def routes(self) -> list[Route]:
        return [
            Route("GET", "framework.status", self.status),
            Route("POST", "framework.apply", self.apply),
            Route("POST", "framework.upgrade", self.upgrade),
            Route("POST", "framework.rollout", self.rollout),
            Route("GET", "locality", self.locality),
        ]

    def not_ready(self) -> list[str]:
        return waits_for(self._core, self._scheduler.is_subscribed)

    def page(self) -> str:
        return render(self._scheduler.status())

    async def status(self, _params: dict[str, Any]) -> dict[str, Any]:
        return self._scheduler.status()

    async def apply(self, params: dict[str, Any]) -> dict[str, Any]:
        """``spec``: the whole document, which counts from now on; ``dry_run``: true for the plan alone."""
        _check_fields(params, "spec", "dry_run")
        if "spec" not in params:
            raise Invalid("spec is missing: give the whole document, as an object")
        return await self._apply(params["spec"], params)

    async def upgrade(self, params: dict[str, Any]) -> dict[str, Any]:
        """``command``, ``image``: of the new release, one of them or both; or ``version``, the tag of the
        image that the spec has. All else of the spec stays. ``dry_run`` as for ``apply``."""
        _check_fields(params, "command", "image", "version", "dry_run")
        release = {name: params[name] for name in ("command", "image") if name in params}
        if "version" in params:
            release["image"] = with_tag(release.get("image", self._core.spec.image), params["version"])
        if not release:
            raise Invalid("command, image and version are missing: give one of them")
        return await self._apply({**document_of(self._core.spec), **release}, params)

    async def _apply(self, document: Any, params: dict[str, Any]) -> dict[str, Any]:
        dry_run = params.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise Invalid(f"dry_run: {dry_run!r}: use true or false")
        spec = parse(document)
        return plan_of(self._core, spec, await self._scheduler.apply(spec, dry_run))

    async def rollout(self, params: dict[str, Any]) -> dict[str, Any]:
        """``action``: pause (no other host's turn comes), resume, abort (all goes back to the former
        release), or force (the next hosts do not wait until all is well)."""
        _check_fields(params, "action")
        action, rollout = params.get("action"), self._core.rollout
        if action not in ("pause", "resume", "abort", "force"):
            raise Invalid(f"action: {action!r}: use pause, resume, abort or force")
        if not rollout.is_under_way:
            raise Invalid("no new release goes round now")
        if action == "abort":
            self._scheduler.abort_rollout("an operator took it back")
        elif action == "force":
            rollout.forced = True
        else:
            rollout.paused = action == "pause"
        return {}

    async def locality(self, params: dict[str, Any]) -> dict[str, Any]:
        """Where a volume's, or a bucket's, data are: of each agent that has some, ``bytes`` of it, and
        ``score``, the part that can be read there without a network, 0 to 1; the best first. ``volume``: a
        name or a URI; with ``path`` (or the URI's) an object of a bucket. Copies that do not count
        (docs/healing.md) are left out."""
        address = uri.parse(str(params.get("volume", "")))
        name, path = address.name, str(params.get("path", "")) or address.path
        cluster = await self._scheduler.cluster()
        if path:
            held = await (await cluster.bucket(name)).where(path)
            return {"volume": name, "path": path, "agents": self._agents(held, max(held.values(), default=0))}
        found = await _redundancy(cluster, name)
        size: Counter[int] = Counter()  # by group, of the greatest copy
        here: Counter[str] = Counter()
        for copy in found.good():
            size[copy.group] = max(size[copy.group], copy.bytes)
            here[copy.host] += copy.bytes
        hosts = {copy.host: here[copy.host] for copy in found.good()}
        return {"volume": name, "agents": self._agents(hosts, size.total())}

    def _agents(self, held: dict[str, int], total: int) -> list[dict[str, Any]]:
        """Those that have some of ``total`` bytes, the best first."""
        agents = [
            {
                "agent_id": agent.id,
                "hostname": agent.hostname,
                "host": agent.host,
                "bytes": held[agent.host],
                "score": round(held[agent.host] / total, 4) if total else 1.0,
            }
            for agent in self._core.agents.values()
            if agent.host in held
        ]
        return sorted(agents, key=lambda each: (-each["bytes"], each["host"]))


async def _redundancy(cluster: Cluster, name: str) -> Redundancy:
    volume = await cluster.volume_or_bucket(name)
    return (
        (await cluster.bucket_copies(name)).redundancy if volume is None else await cluster.redundancy(volume)
    )


def with_tag(image: Any, version: Any) -> str:
    """An image of the same name. Raises Invalid."""
    if not isinstance(image, str) or not image:
        raise Invalid("the spec has no image of which this could be a version: give a command, or an image")
    if not isinstance(version, str) or not TAG.fullmatch(version):
        raise Invalid(f"version: {version!r} is no tag of an image")
    folder, slash, name = image.partition("@")[0].rpartition("/")
    return f"{folder}{slash}{name.partition(':')[0]}:{version}"


def _check_fields(params: dict[str, Any], *known: str) -> None:
    if unknown := params.keys() - set(known):
        raise Invalid(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
