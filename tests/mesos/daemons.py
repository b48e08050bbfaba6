"""How the daemons of one cluster are started: from what was asked for to argv and environment of each."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cgroups

RESOURCES = "cpus:4;mem:2048;disk:10240;ports:[31000-31999]"
SET_PER_DAEMON = ("LIBPROCESS_IP", "LIBPROCESS_PORT", "MESOS_WORK_DIR", "MESOS_PORT", "MESOS_IP")


@dataclass(frozen=True)
class Options:
    """Values of agents may begin with ``N:`` to concern one agent only: the last that fits wins.

    ``{i}``, ``{ip}`` and ``{dir}`` in them stand for the agent's number, address and directory.
    """

    agents: int = 1
    ip: str = "127.0.0.1"
    port: int = 5050
    agent_ip: str = "127.0.0.11"  # of agent1; the next agents follow it
    agent_port: int = 5051
    resources: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    isolation: tuple[str, ...] = ()
    mount_disks: tuple[str, ...] = ()
    launcher: str = ""
    registry: str = ""
    agent_timeout: float = 0  # until the master calls a silent agent unreachable; 0: Mesos's 75 s
    master_flags: tuple[str, ...] = ()
    agent_flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Daemon:
    argv: list[str]
    env: dict[str, str]
    address: str
    home: str = ""  # of an agent: its directory
    cgroup: str = ""  # with the linux launcher: the name of its cgroups
    disks: list[str] = field(default_factory=list)  # MOUNT disks: SIZE or tmpfs:SIZE, in MiB


def describe(options: Options, directory: Path, programs: Path) -> dict[str, Daemon]:
    env = {"GLOG_v": "0", **os.environ, **options.env}
    env = {key: value for key, value in env.items() if key not in SET_PER_DAEMON}
    daemons = {"master": _master(options, directory, programs, env)}
    for number in range(1, options.agents + 1):
        daemons[f"agent{number}"] = _agent(options, number, directory, programs, env)
    return daemons


def _master(options: Options, directory: Path, programs: Path, env: dict[str, str]) -> Daemon:
    flags = [f"work_dir={directory}", f"ip={options.ip}", f"port={options.port}", f"hostname={options.ip}"]
    if options.registry:
        flags.append(f"registry={options.registry}")
    if options.agent_timeout:
        pings = max(1, min(5, int(options.agent_timeout)))  # Mesos wants at least 1 s between them
        flags.append(f"agent_ping_timeout={max(1.0, options.agent_timeout / pings):g}secs")
        flags.append(f"max_agent_ping_timeouts={pings}")
    argv = [str(programs / "bin" / "mesos-master"), *last_of_each([*flags, *options.master_flags])]
    return Daemon(argv, env, f"{options.ip}:{options.port}")


def _agent(options: Options, number: int, directory: Path, programs: Path, env: dict[str, str]) -> Daemon:
    home = directory / "agents" / str(number)
    ip = str(ipaddress.ip_address(options.agent_ip) + number - 1)

    def chosen(values: Iterable[str], default: str = "") -> str:
        return (for_agent(values, number, ip, home) or [default])[-1]

    isolation = chosen(options.isolation)
    needs_linux = re.search("/linux|cgroups/|namespaces/", isolation)
    disks = [disk for disk in chosen(options.mount_disks).split(",") if disk]
    resources = chosen(options.resources, RESOURCES)
    launcher = options.launcher or ("linux" if needs_linux else "posix")
    cgroup = cgroups.PREFIX + ip.replace(".", "-") if launcher == "linux" else ""
    flags = [
        f"master={options.ip}:{options.port}",
        *(f"ip={ip}", f"port={options.agent_port}", f"hostname={ip}"),
        *(f"work_dir={home}/work", f"runtime_dir={home}/run", f"fetcher_cache_dir={home}/fetch"),
        f"docker_volume_checkpoint_dir={home}/run/docker_volume",
        *(f"docker_store_dir={home}/store/docker", f"appc_store_dir={home}/store/appc"),
        *(f"launcher_dir={programs}/libexec", "http_command_executor", "no-systemd_enable_support"),
        *(f"launcher={launcher}", "registration_backoff_factor=100ms"),
        f"resources={with_disks(resources, home, disks) if disks else resources}",
    ]
    if cgroup:
        flags.append(f"cgroups_root={cgroup}")
    if os.geteuid():
        flags.append("no-switch_user")
    for name, value in (("attributes", chosen(options.attributes)), ("isolation", isolation)):
        if value:
            flags.append(f"{name}={value}")
    flags += for_agent(options.agent_flags, number, ip, home)
    argv = [str(programs / "bin" / "mesos-agent"), *last_of_each(flags)]
    # Mesos makes the directories of CSI sockets in TMPDIR, and leaves them there.
    return Daemon(
        argv, {**env, "TMPDIR": f"{home}/tmp"}, f"{ip}:{options.agent_port}", str(home), cgroup, disks
    )


def for_agent(values: Iterable[str], number: int, ip: str, home: Path) -> list[str]:
    found = []
    for value in values:
        match = re.match(r"(\d+):(.*)$", value, re.DOTALL)
        if match and int(match[1]) != number:
            continue
        text = match[2] if match else value
        found.append(text.replace("{i}", str(number)).replace("{dir}", str(home)).replace("{ip}", ip))
    return found


def last_of_each(flags: Iterable[str]) -> list[str]:
    """A flag given twice is an error to Mesos: the last one wins here."""
    kept: dict[str, str] = {}
    for flag in flags:
        name = re.sub(r"^no-", "", flag.lstrip("-").split("=")[0])
        kept.pop(name, None)
        kept[name] = "--" + flag.lstrip("-")
    return list(kept.values())


def disk_root(home: str | Path, number: int) -> Path:
    return Path(home, "disks", f"d{number}")


def with_disks(resources: str, home: Path, disks: Iterable[str]) -> str:
    """Resources in JSON, with a MOUNT disk for each of ``SIZE`` or ``tmpfs:SIZE``."""
    rows = json.loads(resources) if resources.lstrip().startswith("[") else parsed(resources)
    for number, disk in enumerate(disks, 1):
        row = _scalar("disk", float(disk.rpartition(":")[2]))
        root = str(disk_root(home, number))
        rows.append({**row, "disk": {"source": {"type": "MOUNT", "mount": {"root": root}}}})
    return json.dumps(rows)


def parsed(resources: str) -> list[dict[str, Any]]:
    """``cpus:4;ports:[31000-31999]`` as JSON rows."""
    rows: list[dict[str, Any]] = []
    for part in filter(None, resources.split(";")):
        name, value = part.split(":", 1)
        if value.startswith("["):
            pairs = (pair.split("-") for pair in value.strip("[]").split(","))
            ranges = [{"begin": int(begin), "end": int(end)} for begin, end in pairs]
            rows.append({"name": name, "type": "RANGES", "ranges": {"range": ranges}})
        else:
            rows.append(_scalar(name, float(value)))
    return rows


def _scalar(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "type": "SCALAR", "scalar": {"value": value}}
