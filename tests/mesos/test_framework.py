"""`moorage framework` on real agents: from nothing to a volume that is written, and what happens then."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from moorage.service.http import load_token

from .. import processes
from .conftest import MakeMesos, MakeScheduler
from .daemons import disk_root
from .deployment import PROGRAM, RESOURCES, TASKS, Json, MakeFramework, all_up, settled, volume_of
from .scheduler import reserve

pytestmark = pytest.mark.timeout(300)


async def test_from_empty_agents_to_a_volume_and_back(mesos: MakeMesos, framework: MakeFramework) -> None:
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    ours.spec_file.write_text(yaml.safe_dump(ours.spec))
    planned = await ours.command("plan")
    assert len(planned["steps"]) == TASKS and planned["problems"] == []
    assert {step["step"] for step in planned["steps"]} == {"reserve, create volume, launch"}
    await ours.start()
    await ours.until_all_run()
    data = os.urandom(1 << 20)
    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected))
        await settled(lambda: connected.create_volume("db", "64M", replicas=3))
        async with await connected.attach("db") as volume:
            await volume.write(0, data)
        # Each service of one host dies, and comes back on its own volume.
        host = ours.agents()[0].host
        for instance in (f"registry.{host}", f"metadata.m1.{host}", f"node.{host}.root"):
            (pid,) = ours.pids(instance)
            os.kill(pid, signal.SIGKILL)
            await ours.until(lambda line, gone=instance: gone not in line["running"])
            await ours.until_all_run()
        # Another scheduler takes over; the tasks do not notice.
        before = {pid for each in ours.agents() for name in each.bindings for pid in ours.pids(str(name))}
        await ours.kill()
        await ours.start()
        await ours.until_all_run()
        after = {pid for each in ours.agents() for name in each.bindings for pid in ours.pids(str(name))}
        assert before == after and len(before) == TASKS
        # The framework is torn down: what it had is taken over by the next one.
        await ours.kill()
        frameworks = json.loads(cluster.api("GET_FRAMEWORKS")[1])["get_frameworks"]["frameworks"]
        (former,) = [each["framework_info"]["id"] for each in frameworks]
        assert cluster.api("TEARDOWN", {"framework_id": former})[0] == 200
        await ours.start()
        await ours.until_all_run()
        await settled(lambda: all_up(connected))
        async with await connected.attach("db") as volume:
            assert bytes(await volume.read(0, len(data))) == data
    assert {step["step"] for step in (await ours.command("plan"))["steps"]} == {"keep"}
    await ours.kill()
    done = await ours.command("release", "--yes")
    assert done == {"volumes": TASKS, "reservations": TASKS, "unreachable": 0}
    assert [each.bindings for each in ours.agents()] == [{}, {}, {}]
    assert [path for path in cluster.directory.glob("agents/*/*/volumes/roles/moorage/*")] == []


async def test_a_spec_that_is_applied_outlives_the_scheduler(
    mesos: MakeMesos, framework: MakeFramework
) -> None:
    """Whoever takes over is told nothing but where the master is."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    await ours.start(*ours.serve())
    await ours.until_all_run()
    given = dict(ours.spec)
    ours.spec["user"] = "nobody"
    refused = await ours.apply(code=3)
    assert "user cannot be changed from 'root' to 'nobody': " in refused["error"]["message"]
    ours.spec = {**given, "metadata": {**given["metadata"], "groups": 2}}

    async def clear() -> Any:  # once the registry has said which groups there are
        answer = await ours.apply("--dry-run")
        return answer if not answer["problems"] else None

    planned = await settled(clear)
    new = [each["instance"] for each in planned["steps"] if each["step"] != "keep"]
    assert len(new) == 3 and all(name.startswith("metadata.m2.") for name in new)
    assert await ours.apply() == planned
    await ours.until_all_run(TASKS + 3)
    await ours.kill()
    await ours.start(with_spec=False)
    line = await ours.until_all_run(TASKS + 3)
    assert line["problems"] == [] and line["rollout"] == ""


@pytest.mark.slow
async def test_a_spec_outlives_a_loss_of_all_power(mesos: MakeMesos, framework: MakeFramework) -> None:
    """Master, agents, tasks and scheduler at once; and what was taken back is not tried again."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    await ours.start(*ours.serve())
    await ours.until_all_run()
    good = ours.spec["command"]
    ours.spec |= {"command": release(ours.spec_file.parent, "bad", "exit 1"), "options": {"drain_s": 7}}
    assert {each["step"] for each in (await ours.apply())["steps"]} == {"new release, in its turn"}
    await ours.until(
        lambda line: line["rollout"].startswith("taken back: ") and len(line["running"]) == TASKS, 120
    )
    await ours.kill()
    cluster.kill("master")
    for name in cluster.agents:
        await asyncio.to_thread(cluster.kill_host, name)
    cluster.start("master")
    for name in cluster.agents:
        await asyncio.to_thread(cluster.start, name, rebooted=True)
    await ours.start(with_spec=False)
    line = await ours.until_all_run()
    assert line["rollout"] == "" and line["problems"] == []
    (pid,) = ours.pids(f"registry.{ours.agents()[0].host}")
    assert tuple(good) == PROGRAM and b"bad" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected))
    # What is said on the command line is another one, and counts.
    await ours.kill()
    ours.spec |= {"command": good, "options": {"drain_s": 8}}
    await ours.start()
    await ours.until(lambda line: line["rollout"])
    said = "differs from the one that the master keeps in options, and takes its place"
    assert said in await ours.kill()


@pytest.mark.slow
async def test_a_scheduler_that_is_killed_in_the_middle_is_followed_by_another(
    mesos: MakeMesos, framework: MakeFramework
) -> None:
    """After its first, second, ... line: each time another step of the deployment has just been taken."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    for lines in range(1, 6):
        await ours.start()
        for _ in range(lines):
            line = await ours.until(lambda _: True)
            if len(line["running"]) == TASKS:
                break
        await ours.kill()
    await ours.start()
    await ours.until_all_run()
    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected))
    volumes = [path.name for path in cluster.directory.glob("agents/*/*/volumes/roles/moorage/*")]
    assert len(volumes) == TASKS
    bindings = [name for each in ours.agents() for name in each.bindings]
    assert len(set(bindings)) == len(bindings) == TASKS, "nothing is reserved twice"
    assert len(processes.naming(str(ours.secret_file))) == 0, "no secret on a command line"


@pytest.mark.slow
async def test_hosts_that_die_and_come_back(mesos: MakeMesos, framework: MakeFramework) -> None:
    """With the same agent id after a reboot, and with another one."""
    cluster = await mesos(agents=3, resources=RESOURCES, agent_timeout=3)
    ours = framework(cluster)
    await ours.start()
    await ours.until_all_run()
    async with volume_of(ours) as (connected, volume, data):
        for name, how in (("agent2", {"rebooted": True}), ("agent3", {"new_id": True})):
            await volume.write(0, data)
            await asyncio.to_thread(cluster.kill_host, name)
            await ours.until(lambda line: len(line["running"]) == TASKS - 3)
            await volume.write(1 << 20, data)
            await asyncio.to_thread(cluster.start, name, **how)
            await ours.until_all_run()
            await settled(lambda: all_up(connected))
        assert bytes(await volume.read(0, len(data))) == bytes(await volume.read(1 << 20, len(data))) == data
    bindings = [name for each in ours.agents() for name in each.bindings]
    assert len(set(bindings)) == len(bindings) == TASKS


@pytest.mark.slow
async def test_mounted_disks_become_devices_and_none_that_holds_anything(
    mesos: MakeMesos, framework: MakeFramework, privileged: None
) -> None:
    cluster = await mesos(agents=3, resources=RESOURCES, mount_disks=("512,512",))
    ours = framework(cluster)
    ours.spec["devices"] = [{"source": "MOUNT", "size": "256M", "cpus": 0.1, "mem": "64M"}]
    foreign = Path(disk_root(cluster.agent("agent2").home, 1)) / "letters.txt"
    foreign.write_text("not ours")
    await ours.start()
    line = await ours.until(lambda line: (len(line["running"]), len(line["waits"])) == (11, 1))
    ((instance, why),) = line["waits"].items()
    assert instance.startswith("node.") and "exited with status 3" in why
    assert foreign.read_text() == "not ours"
    assert {each.name for each in foreign.parent.iterdir()} == {"letters.txt", "lock"}
    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected, 5))


@pytest.mark.slow
async def test_beside_a_framework_that_takes_what_it_is_offered(
    mesos: MakeMesos, framework: MakeFramework, scheduler: MakeScheduler
) -> None:
    """It holds every offer for a while, and reserves a part of one agent in another role."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    other = await scheduler(cluster.master, role="others", name="others")
    offers = [await other.offer() for _ in range(3)]
    ours = framework(cluster)
    await ours.start()
    line = await ours.until(lambda line: len(line["waits"]) == TASKS)
    assert set(line["waits"].values()) == {"no offer of its agent"}
    await other.accept(offers[0], reserve(other.reserved(other.scalar("mem", 1000))))
    await other.decline(*offers[1:])
    await other.call("SUPPRESS", {"roles": ["others"]})
    await other.decline(*other.offers.values())
    await ours.until_all_run()
    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected))


@pytest.mark.slow
@pytest.mark.parametrize("unreachable", [False, True])
async def test_a_host_that_is_gone_is_replaced(
    mesos: MakeMesos, framework: MakeFramework, unreachable: bool
) -> None:
    """An operator marks its agent gone, before or after the master has lost sight of it: its members are
    placed anew, and what its device held is copied."""
    cluster = await mesos(agents=4, resources=RESOURCES, agent_timeout=3)
    ours = framework(cluster)
    ours.spec |= {"replace_after_s": 1, "options": {"repair_after_s": 5}}
    ours.spec["metadata"]["groups"] = 2
    count = 3 * 3 + 4
    await ours.start()
    await ours.until_all_run(count)
    async with volume_of(ours, 4) as (connected, volume, data):
        gone = next(
            each for each in ours.agents() if {name.service for name in each.bindings} >= {"registry"}
        )
        name = cluster.agent_at(gone.hostname)
        await asyncio.to_thread(cluster.kill_host, name)
        if unreachable:
            await ours.until(lambda line: len(line["running"]) == count - len(gone.bindings))
        status, text = cluster.api("MARK_AGENT_GONE", {"agent_id": {"value": gone.id}})
        assert status == 200, text
        members = [name for name in gone.bindings if name.service != "node"]
        await ours.until_all_run(count - 1)
        for group in {each.group or each.service for each in members}:

            async def taken_in(group: str = group) -> bool:
                found = await connected.members.list(group)
                return len(found) == 3 and all(each.voter and not each.trouble for each in found)

            await settled(taken_in, 60)
            assert gone.host not in {each.name for each in await connected.members.list(group)}
        if ours.last["problems"]:
            await ours.until(lambda line: not line["problems"])

        async def whole() -> bool:
            members = (await connected.show("db")).groups[0]["members"]
            return gone.host not in {each["host"] for each in members}

        await settled(whole, 60)
        await volume.write(1 << 20, data)
        assert bytes(await volume.read(0, 2 << 20)) == data + data


def release(directory: Path, name: str, line: str) -> list[str]:
    """A program that is a release of its own: ``line``, then ours."""
    program = directory / name
    program.write_text(f'#!/bin/sh\n{line}\nexec {" ".join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    return [str(program)]


@pytest.mark.slow
async def test_a_release_goes_round_under_load_and_a_bad_one_goes_back(
    mesos: MakeMesos, framework: MakeFramework, tmp_path: Path
) -> None:
    """No I/O fails, no two hosts are without their tasks, and nobody has to look."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    ours.spec["command"] = release(tmp_path, "v1", ":")
    await ours.start()
    await ours.until_all_run()
    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected))
        await settled(lambda: connected.create_volume("db", "64M", replicas=3))
        async with await connected.attach("db") as volume:
            written, stop = 0, asyncio.Event()

            async def load() -> None:
                nonlocal written
                while not stop.is_set():
                    block = written.to_bytes(8, "little") * 512
                    await volume.write(written % 1000 * 4096, block)
                    assert bytes(await volume.read(written % 1000 * 4096, 4096)) == block
                    written += 1

            loading = asyncio.create_task(load())
            before = {str(name): ours.pids(str(name)) for each in ours.agents() for name in each.bindings}
            await ours.kill()
            ours.spec["command"] = release(tmp_path, "v2", ":")
            await ours.start(*ours.serve())
            await ours.until(lambda line: line["rollout"])
            await ours.until(lambda line: not line["rollout"] and len(line["running"]) == TASKS, 120)
            after = {str(name): ours.pids(str(name)) for each in ours.agents() for name in each.bindings}
            assert all(before[name] != after[name] for name in before)
            refused = await ours.tell("rollout", "pause", code=3)
            assert refused["error"]["message"] == "no new release goes round now"
            (third,) = release(tmp_path, "v3", "sleep 0.2; exit 1")
            plan = await ours.tell("upgrade", "--command", third)
            assert {each["step"] for each in plan["steps"]} == {"new release, in its turn"}
            taken_back = await ours.until(
                lambda line: line["rollout"].startswith("taken back: ") and len(line["running"]) == TASKS, 120
            )
            assert "tasks failed 3 times" in taken_back["rollout"]
            found = {str(name): ours.pids(str(name)) for each in ours.agents() for name in each.bindings}
            assert sum(found[name] != after[name] for name in after) == 3, "one host's tasks, and back again"
            stop.set()
            await loading
            assert written > 100


@pytest.mark.slow
async def test_a_release_that_is_slow_goes_back(
    mesos: MakeMesos, framework: MakeFramework, tmp_path: Path
) -> None:
    """Nothing fails, and all is well but for how long writing takes on the host that has it."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    ours.spec["command"] = release(tmp_path, "v1", ":")
    ours.spec["p99_budget"] = 5
    await ours.start()
    await ours.until_all_run()
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import os, time\nsync = os.fdatasync\nos.fdatasync = lambda fd: (time.sleep(0.3), sync(fd))\n"
    )
    async with volume_of(ours) as (_, volume, data):
        await ours.kill()
        ours.spec["command"] = release(tmp_path, "v2", f"export PYTHONPATH={tmp_path / 'slow'}")
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                await volume.write(2 << 20, data[:4096])

        loading = asyncio.create_task(load())
        await ours.start()
        line = await ours.until(
            lambda line: line["rollout"].startswith("taken back: ") and len(line["running"]) == TASKS, 180
        )
        assert "too slow: 99 % of its appends" in line["rollout"]
        stop.set()
        await loading
        assert bytes(await volume.read(0, len(data))) == data


@pytest.mark.slow
async def test_tasks_in_an_image_are_accepted_and_why_one_cannot_be_had_is_said(
    mesos: MakeMesos, framework: MakeFramework, privileged: None
) -> None:
    """The master takes them as they are; no image can be had here, and each agent says why."""
    cluster = await mesos(
        agents=3,
        resources=RESOURCES,
        isolation=("filesystem/linux,docker/runtime",),
        agent_flags=("image_providers=docker", "docker_registry={dir}/images"),
    )
    ours = framework(cluster)
    ours.spec["image"] = "moorage/moorage:1.0"
    await ours.start()
    line = await ours.until(lambda line: sum("failed 3 times" in each for each in line["problems"]) == TASKS)
    assert all("Failed to find archive for image" in each for each in line["problems"] if "failed" in each)
    tasks = json.loads(cluster.api("GET_TASKS")[1])["get_tasks"]["completed_tasks"]
    assert {each["state"] for each in tasks} == {"TASK_FAILED"}
    for container in (each["container"] for each in tasks):
        assert container["mesos"]["image"]["docker"] == {"name": "moorage/moorage:1.0"}
        (volume,) = container["volumes"]
        assert volume["container_path"] == volume["host_path"] == str(ours.secret_file)


async def test_others_ask_where_data_lives(mesos: MakeMesos, framework: MakeFramework) -> None:
    """With the token; and nobody changes anything without saying what."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    await ours.start(*ours.serve())
    token = {"Authorization": f"Bearer {load_token(ours.token_file)}"}
    await ours.until_all_run()
    async with (
        aiohttp.ClientSession(f"http://{ours.last['http']}") as session,
        await settled(ours.connect) as connected,
    ):

        async def get(path: str, status: int = 200) -> Json:
            async with session.get(path, headers=token) as answer:
                found: Json = await answer.json()
                assert answer.status == status, found
                return found

        await settled(lambda: all_up(connected))
        await settled(lambda: connected.create_volume("one", "64M", replicas=1, groups=1))
        await settled(lambda: connected.create_volume("three", "64M", replicas=3))
        async with await connected.attach("one") as volume:
            await volume.write(0, os.urandom(1 << 20))
        (place,) = (await get("/v1/locality?volume=one"))["agents"]
        (member,) = (await connected.show("one")).groups[0]["members"]
        assert (place["host"], place["score"]) == (member["host"], 1.0) and place["bytes"] >= 1 << 20
        assert place["agent_id"] == cluster.agent_id(cluster.agent_at(place["hostname"]))
        assert len((await get("/v1/locality?volume=moorage:///three"))["agents"]) == 3
        assert "nosuch" in (await get("/v1/locality?volume=nosuch", 404))["error"]["message"]
        await (await connected.buckets.create("photos")).put("a/b", bytes(100_000))
        found = (await get("/v1/locality?volume=photos&path=a/b"))["agents"]
        assert [(row["bytes"], row["score"]) for row in found] == [(100_000, 1.0)] * 3
        assert (await get("/v1/locality?volume=moorage:///photos/a/b"))["agents"] == found

        async def all_have_the_bucket() -> bool:
            whole = (await get("/v1/locality?volume=photos"))["agents"]
            return [each["score"] for each in whole] == [1.0] * 3 and whole[0]["bytes"] >= 100_000

        await settled(all_have_the_bucket)
        shown = await get("/v1/framework.status")
        assert {each["state"] for each in shown["instances"]} == {"TASK_RUNNING"} and shown["problems"] == []
        assert len(shown["instances"]) == TASKS and not shown["rollout"]["under_way"]

        async def ready() -> bool:
            async with session.get("/readyz") as answer:
                return bool((await answer.json())["ready"])

        await settled(ready)  # as of its last look at the cluster
        for call in ("rollout", "apply", "upgrade"):
            for headers, status in (({}, 401), (token, 400)):
                async with session.post(f"/v1/framework.{call}", headers=headers) as answer:
                    assert answer.status == status

        async def well() -> bool:
            async with session.get("/", headers=token) as answer:
                assert answer.status == 200
                return (
                    f"{TASKS} of {TASKS} tasks run" in (text := await answer.text()) and "All is well" in text
                )

        await settled(well)


@pytest.mark.slow
async def test_a_host_is_emptied_and_an_agent_drained(mesos: MakeMesos, framework: MakeFramework) -> None:
    """By an operator's word to the registry, everything moves off first. DRAIN_AGENT gives no warning: its
    tasks end, and start again when it is back."""
    cluster = await mesos(agents=4, resources=RESOURCES)
    ours = framework(cluster)
    await ours.start()
    await ours.until_all_run(TASKS + 1)
    async with volume_of(ours, 4) as (connected, volume, data):
        host = next(
            each.host
            for each in ours.agents()
            if {name.service for name in each.bindings} >= {"registry", "metadata"}
        )
        agent_id = next(each.id for each in ours.agents() if each.host == host)
        assert (await ours.command("drain", agent_id))["host"] == host
        await ours.until(
            lambda line: (
                len([name for name in line["running"] if host in name]) == 1
                and len(line["running"]) == line["wanted"] == TASKS + 1
            )
        )

        async def empty() -> bool:
            groups = (await connected.show("db")).groups
            return host not in {member["host"] for group in groups for member in group["members"]}

        await settled(empty, 60)
        for group in ("registry", "m1"):

            async def moved(group: str = group) -> bool:
                found = await connected.members.list(group)
                return len(found) == 3 and host not in {each.name for each in found}

            await settled(moved)

        async def ended() -> bool:
            return not [*ours.pids(f"registry.{host}"), *ours.pids(f"metadata.m1.{host}")]

        await settled(ended)
        await connected.places.undrain("host", host)
        agent = next(each for each in ours.agents() if each.host != host)
        body = {"agent_id": {"value": agent.id}, "max_grace_period": {"seconds": 10}}
        assert cluster.api("DRAIN_AGENT", body)[0] == 200
        await ours.until(lambda line: not [name for name in line["running"] if agent.host in name])
        await volume.write(1 << 20, data)

        async def reactivated() -> bool:  # refused until it is drained
            return cluster.api("REACTIVATE_AGENT", {"agent_id": {"value": agent.id}})[0] == 200

        await settled(reactivated)
        await ours.until_all_run(TASKS + 1)
        assert bytes(await volume.read(0, 2 << 20)) == data + data
