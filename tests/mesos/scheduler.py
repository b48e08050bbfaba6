"""A small v1 HTTP scheduler, for tests: what a framework says to a master, and what it hears.

Everything that comes is kept until a test waits for it, so the order in which a test waits does not matter.
Updates are acknowledged as they arrive; those that come again nevertheless (the agent died before it took the
acknowledgement) are not shown again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import aiohttp

Json = dict[str, Any]
CAPABILITIES = ("MULTI_ROLE", "RESERVATION_REFINEMENT", "PARTITION_AWARE", "TASK_KILLING_STATE")
PATH = "/api/v1/scheduler"
HEADERS = {"Accept": "application/json"}
ENDS = ("ERROR", "CLOSED")
Fits = Callable[[Json], object]
HOUR = {"refuse_seconds": 3600}
AGAIN = {"refuse_seconds": 0}


def anything(_: Json) -> bool:
    return True


class Refused(Exception):
    """By the master: a status and a text, or the event that ended the stream."""


class Scheduler:
    """``offers`` are those that nobody has used or rescinded; ``events`` what nobody has waited for."""

    def __init__(self, master: str, role: str = "storage", principal: str = "moorage") -> None:
        self.role = role
        self.principal = principal
        self.id: Json = {}
        self.info: Json = {}
        self.offers: dict[str, Json] = {}
        self.events: list[Json] = []
        self.acknowledging = True
        self._acknowledged: set[str] = set()
        self._arrived = asyncio.Condition()
        self._url = f"http://{master}{PATH}"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10))
        self._headers = dict(HEADERS)
        self._reader: asyncio.Task[None] | None = None

    async def subscribe(
        self,
        name: str = "test",
        framework_id: Json | None = None,
        failover_timeout: float = 60,
        capabilities: tuple[str, ...] = CAPABILITIES,
    ) -> Scheduler:
        self.info = {
            **{"user": "root", "name": name, "principal": self.principal, "roles": [self.role]},
            **{"failover_timeout": failover_timeout, "checkpoint": True},
            "capabilities": [{"type": each} for each in capabilities],
        }
        call: Json = {"type": "SUBSCRIBE"}
        if framework_id:
            self.info["id"] = call["framework_id"] = framework_id
        call["subscribe"] = {"framework_info": self.info}
        response = await self._session.post(self._url, json=call, headers=self._headers)
        if response.status != 200:
            raise Refused(response.status, await response.text())
        self._headers["Mesos-Stream-Id"] = response.headers["Mesos-Stream-Id"]
        self._reader = asyncio.create_task(self._read(response), name=f"scheduler {name}")
        self.id = (await self.wait("SUBSCRIBED"))["subscribed"]["framework_id"]
        return self

    async def close(self) -> None:
        """As a scheduler that dies: its tasks run on."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        await self._session.close()

    async def call(self, kind: str, body: Json | None = None) -> None:
        call: Json = {"type": kind, "framework_id": self.id}
        if body is not None:
            call[kind.lower()] = body
        async with self._session.post(self._url, json=call, headers=self._headers) as response:
            if response.status not in (200, 202):
                raise Refused(response.status, await response.text())

    # ---- what comes ----

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        try:
            while size := await response.content.readline():
                await self._take(json.loads(await response.content.readexactly(int(size))))
            reason = "end of stream"
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError, Refused) as error:
            reason = repr(error)
        finally:
            response.close()
        await self._take({"type": "CLOSED", "reason": reason})

    async def _take(self, event: Json) -> None:
        again = event["type"] == "UPDATE" and event["update"]["status"].get("uuid") in self._acknowledged
        match event["type"]:
            case "OFFERS":
                self.offers.update({each["id"]["value"]: each for each in event["offers"]["offers"]})
            case "RESCIND":
                self.offers.pop(event["rescind"]["offer_id"]["value"], None)
            case "UPDATE" if self.acknowledging:
                await self.acknowledge(event["update"]["status"])
            case "UPDATE_OPERATION_STATUS":
                await self._acknowledge_operation(event["update_operation_status"]["status"])
        async with self._arrived:
            if event["type"] not in ("OFFERS", "HEARTBEAT") and not again:
                self.events.append(event)
            self._arrived.notify_all()

    async def acknowledge(self, status: Json) -> None:
        if "uuid" in status:  # else it is the master's own word
            names = ("agent_id", "task_id", "uuid")
            self._acknowledged.add(status["uuid"])
            await self.call("ACKNOWLEDGE", {name: status[name] for name in names})

    async def _acknowledge_operation(self, status: Json) -> None:
        if {"uuid", "agent_id", "operation_id"} <= status.keys():
            names = {name: status[name] for name in ("agent_id", "operation_id")}
            if "resource_provider_id" in status:
                names["resource_provider_id"] = status["resource_provider_id"]
            await self.call("ACKNOWLEDGE_OPERATION_STATUS", {**names, "uuid": status["uuid"]["value"]})

    async def _found(self, find: Callable[[], Json | None], timeout: float, what: str) -> Json:
        try:
            async with asyncio.timeout(timeout), self._arrived:
                while (found := find()) is None:
                    if ended := [event for event in self.events if event["type"] in ENDS]:
                        raise Refused(ended[0])
                    await self._arrived.wait()
                return found
        except TimeoutError:
            raise TimeoutError(f"no {what} in {timeout:g} s; there are {self.events}") from None

    async def wait(self, *kinds: str, match: Fits = anything, timeout: float = 30) -> Json:
        """The earliest event of these kinds that nobody has waited for."""

        def find() -> Json | None:
            for event in self.events:
                if event["type"] in kinds and match(event):
                    self.events.remove(event)
                    return event
            return None

        return await self._found(find, timeout, "/".join(kinds))

    async def offer(self, match: Fits = anything, timeout: float = 30) -> Json:
        def find() -> Json | None:
            key = next((key for key, offer in self.offers.items() if match(offer)), None)
            return None if key is None else self.offers.pop(key)

        return await self._found(find, timeout, "fitting offer")

    async def update(self, task: str, *states: str, timeout: float = 30) -> Json:
        """The next update of a task; or the next in one of ``states``, and those before it are forgotten."""

        def status_of(event: Json) -> Json:
            status: Json = event["update"]["status"] if event["type"] == "UPDATE" else {}
            return status if status and status["task_id"]["value"] == task else {}

        def fits(event: Json) -> bool:
            return bool(status := status_of(event)) and (not states or status["state"] in states)

        def find() -> Json | None:
            at = next((at for at, event in enumerate(self.events) if fits(event)), None)
            if at is None:
                return None
            found = status_of(self.events[at])
            self.events[: at + 1] = [event for event in self.events[:at] if not status_of(event)]
            return found

        return await self._found(find, timeout, f"{'/'.join(states) or 'update'} of {task}")

    async def operation(self, timeout: float = 30) -> Json:
        """The next outcome of an operation that had an id."""
        event = await self.wait("UPDATE_OPERATION_STATUS", timeout=timeout)
        status: Json = event["update_operation_status"]["status"]
        return status

    # ---- what is done with offers ----

    async def accept(self, offer: Json, *operations: Json, filters: Json = AGAIN) -> None:
        body = {"offer_ids": [offer["id"]], "operations": list(operations), "filters": filters}
        await self.call("ACCEPT", body)

    async def outcomes(self, offer: Json, *operations: Json) -> list[tuple[str, str]]:
        """Accept with operations, and (state, message) of each."""
        for number, operation in enumerate(operations):
            operation["id"] = {"value": f"{offer['id']['value']}-{number}"}
        await self.accept(offer, *operations)
        statuses = [await self.operation() for _ in operations]
        found = {each["operation_id"]["value"]: (each["state"], each.get("message", "")) for each in statuses}
        return [found[operation["id"]["value"]] for operation in operations]

    async def decline(self, *offers: Json, filters: Json = AGAIN) -> None:
        if offers:
            ids = [offer["id"] for offer in offers]
            await self.call("DECLINE", {"offer_ids": ids, "filters": filters})

    async def whole_offer(self, match: Fits, timeout: float = 30) -> Json:
        """An offer that fits, when what is wanted may be spread over several.

        Resources that become free while an offer is out come as another one: all go back until one fits.
        """
        end = asyncio.get_running_loop().time() + timeout
        while True:
            with contextlib.suppress(TimeoutError):
                return await self.offer(match, timeout=0.5)
            if asyncio.get_running_loop().time() > end:
                raise TimeoutError(f"no fitting offer in {timeout:g} s")
            held = list(self.offers.values())
            self.offers.clear()
            await self.decline(*held)

    async def kill(self, task: str, **more: Any) -> None:
        await self.call("KILL", {"task_id": {"value": task}, **more})

    # ---- resources and operations ----

    def scalar(self, name: str, value: float) -> Json:
        allocation = {"allocation_info": {"role": self.role}}
        return {"name": name, "type": "SCALAR", "scalar": {"value": float(value)}, **allocation}

    def reserved(self, resource: Json) -> Json:
        reservation = {"type": "DYNAMIC", "role": self.role, "principal": self.principal}
        return {**resource, "reservations": [reservation]}

    def volume(self, resource: Json, id_: str, path: str = "data") -> Json:
        persistence = {"id": id_, "principal": self.principal}
        place = {"mode": "RW", "container_path": path}
        return {**resource, "disk": {**resource.get("disk", {}), "persistence": persistence, "volume": place}}

    def task(self, offer: Json, name: str, command: str | Json, *resources: Json, **more: Any) -> Json:
        return {
            "name": name,
            "task_id": {"value": name},
            "agent_id": offer["agent_id"],
            "command": {"value": command} if isinstance(command, str) else command,
            "resources": [self.scalar("cpus", 0.1), self.scalar("mem", 32), *resources],
            **more,
        }

    async def run(self, offer: Json, name: str, command: str | Json, *resources: Json, **more: Any) -> Json:
        """A task that is to end by itself: its last update."""
        await self.accept(offer, launch(self.task(offer, name, command, *resources, **more)))
        return await self.update(name, "TASK_FINISHED", "TASK_FAILED", "TASK_ERROR", "TASK_DROPPED")


def launch(*tasks: Json) -> Json:
    return {"type": "LAUNCH", "launch": {"task_infos": list(tasks)}}


def reserve(*resources: Json) -> Json:
    return {"type": "RESERVE", "reserve": {"resources": list(resources)}}


def unreserve(*resources: Json) -> Json:
    return {"type": "UNRESERVE", "unreserve": {"resources": list(resources)}}


def create(*volumes: Json) -> Json:
    return {"type": "CREATE", "create": {"volumes": list(volumes)}}


def destroy(*volumes: Json) -> Json:
    return {"type": "DESTROY", "destroy": {"volumes": list(volumes)}}


def disk(offer: Json, source: str | None = None) -> Json | None:
    """The free disk of a kind in an offer: of no source, MOUNT, PATH or RAW."""
    for resource in offer["resources"]:
        about = resource.get("disk", {})
        kind = about.get("source", {}).get("type")
        if resource["name"] == "disk" and kind == source and "persistence" not in about:
            found: Json = resource
            return found
    return None


def persistent(offer: Json) -> dict[str, Json]:
    """The volumes in an offer, by their persistence id."""
    disks = [resource for resource in offer["resources"] if "persistence" in resource.get("disk", {})]
    return {each["disk"]["persistence"]["id"]: each for each in disks}


def from_agent(agent_id: Json) -> Fits:
    return lambda offer: bool(offer["agent_id"] == agent_id)
