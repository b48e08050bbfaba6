"""A real Mesos on this machine: ``python -m tests.mesos VERB ...`` (tests/mesos/README.md)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import programs
from .cluster import Cluster
from .daemons import Options
from .errors import MesosError


def say(text: str) -> None:
    print(f"mesos: {text}", file=sys.stderr, flush=True)


def install(arguments: argparse.Namespace) -> None:
    print(programs.install(arguments.cache))


def up(arguments: argparse.Namespace) -> None:
    installed = programs.install(arguments.cache)
    cluster = Cluster(arguments.work_dir)
    if arguments.clean and not any(map(cluster.pid, cluster.daemons)):
        cluster.clean()
    cluster.directory.mkdir(parents=True, exist_ok=True)
    if not all(programs.public(each) for each in (installed, programs.interpreter(), cluster.directory)):
        user = "root" if os.geteuid() == 0 else "this user"
        say(f"tasks can only run as {user}: others cannot reach the cache, the work directory or Python")
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: stop.append(number))
    began = time.monotonic()
    cluster.up(options_of(arguments), installed, arguments.timeout)
    agents = {name: f"http://{cluster.agent(name).address}/slave(1)" for name in cluster.agents}
    ready = {
        "ready": True,
        "seconds": round(time.monotonic() - began, 2),
        "master": f"http://{cluster.master}",
    }
    print(json.dumps({**ready, "agents": agents, "work_dir": str(cluster.directory)}), flush=True)
    if arguments.detach:
        return
    try:
        while not stop:
            cluster.reap()
            time.sleep(0.2)
    finally:
        cluster.down()


def options_of(arguments: argparse.Namespace) -> Options:
    """MESOS_* after ``--`` become flags of all daemons through their environment; so do those set already."""
    if wrong := [pair for pair in arguments.env if "=" not in pair]:
        raise MesosError(f"expected NAME=VALUE after --, not {wrong[0]}")
    env = dict(pair.split("=", 1) for pair in arguments.env)
    names = {field.name for field in dataclasses.fields(Options)} - {"env"}
    chosen: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    return Options(**chosen, env=env)


def down(arguments: argparse.Namespace) -> None:
    Cluster(arguments.work_dir).down()


def status(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.work_dir)
    for name, daemon in cluster.daemons.items():
        pid = cluster.pid(name)
        print(f"{name:8} {daemon.address:18} pid {pid or '-':<8} {resident(pid) if pid else ''}".rstrip())


def resident(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("VmRSS")), "")


def start(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.work_dir)
    for name in arguments.daemon:
        cluster.start(name, rebooted=arguments.rebooted, new_id=arguments.new_id)


def kill(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.work_dir)
    for name in arguments.daemon:
        cluster.signal(name, signal.Signals["SIG" + arguments.signal.upper().removeprefix("SIG")])


def kill_host(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.work_dir)
    for name in arguments.daemon:
        cluster.kill_host(name)


def agent_id(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.work_dir)
    for name in arguments.daemon:
        print(cluster.agent_id(name))


def api(arguments: argparse.Namespace) -> None:
    cluster = Cluster(arguments.work_dir)
    call = json.loads(arguments.call)
    code, text = cluster.api(call["type"], call.get(call["type"].lower()), arguments.target)
    print(text or code)
    sys.exit(0 if code < 300 else 1)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mesos", description=__doc__)
    text = "where what is fetched and built is kept (default %(default)s)"
    parser.add_argument("--cache", type=Path, default=programs.default_cache(), help=text)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, function: Callable[[argparse.Namespace], None], text: str, *, daemons: bool = False
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        if name != "install":
            added.add_argument("--work-dir", type=Path, required=True)
        if daemons:
            added.add_argument("daemon", nargs="+", help="master, agent1, agent2, ...")
        return added

    verb("install", install, "fetch and build what is missing; prints where it is")
    add_options(verb("up", up, "run a master and agents until interrupted"))
    verb("down", down, "kill the daemons and everything they started")
    verb("status", status, "list the daemons")
    starting = verb("start", start, "start daemons that were killed", daemons=True)
    starting.add_argument("--rebooted", action="store_true", help="the agent's host has a new boot id")
    text = "register as a new agent, keeping reservations and volumes (after MARK_AGENT_GONE)"
    starting.add_argument("--new-id", action="store_true", help=text)
    killing = verb("kill", kill, "signal daemons alone; tasks of an agent keep running", daemons=True)
    killing.add_argument("--signal", default="KILL")
    verb("kill-host", kill_host, "kill -9 agents with all their containers", daemons=True)
    verb("agent-id", agent_id, "print the agent ID the master knows an agent by", daemons=True)
    calling = verb("api", api, "make an operator API call")
    calling.add_argument("call", help="JSON")
    calling.add_argument("--target", default="master")
    return parser


def add_options(up: argparse.ArgumentParser) -> None:
    default = Options()
    up.add_argument("--agents", type=int, default=default.agents)
    up.add_argument("--ip", default=default.ip, help="of the master")
    up.add_argument("--port", type=int, default=default.port, help="of the master")
    up.add_argument("--agent-ip", default=default.agent_ip, help="of agent1; the next agents follow it")
    up.add_argument("--agent-port", type=int, default=default.agent_port, help="of every agent")
    many: dict[str, Any] = {"action": "append", "default": []}
    up.add_argument("--resources", metavar="[N:]RESOURCES", **many)
    up.add_argument("--attributes", metavar="[N:]ATTRIBUTES", **many)
    up.add_argument("--isolation", metavar="[N:]LIST", **many)
    text = "MOUNT disks of SIZE MiB per agent (SIZE, or tmpfs:SIZE)"
    up.add_argument("--mount-disks", metavar="[N:]SIZE,...", help=text, **many)
    text = "(default: linux where the isolation needs it)"
    up.add_argument("--launcher", choices=("posix", "linux"), default=default.launcher, help=text)
    up.add_argument("--registry", choices=("replicated_log", "in_memory"), default=default.registry)
    text = "after which the master declares an agent unreachable (Mesos: 75)"
    up.add_argument(
        "--agent-timeout", type=float, metavar="SECONDS", default=default.agent_timeout, help=text
    )
    up.add_argument("--master-flag", dest="master_flags", metavar="NAME=VALUE", **many)
    up.add_argument("--agent-flag", dest="agent_flags", metavar="[N:]NAME=VALUE", **many)
    up.add_argument("--clean", action="store_true", help="start from an empty work directory")
    up.add_argument("--detach", action="store_true", help="return once ready (end it with `down`)")
    up.add_argument("--timeout", type=float, default=60.0, help="for becoming ready")


def main(argv: list[str]) -> None:
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    arguments = parser().parse_args(own)
    arguments.env = extra
    if extra and arguments.function is not up:
        raise MesosError("nothing may follow -- here")
    arguments.function(arguments)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MesosError as error:
        say(str(error))
        sys.exit(1)
