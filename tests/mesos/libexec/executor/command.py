"""What a task runs: its argv and environment, inside of a container image by `mesos-containerizer launch`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

TAKEN_OVER = ("mounts", "file_operations", "pre_exec_commands", "clone_namespaces")


def environment(task, command, flags):
    env = dict(os.environ)
    for source in (json.loads(flags.get("task_environment", "{}")), command.get("environment", {})):
        for variable in source.get("variables", []):
            if variable.get("type", "VALUE") != "SECRET":
                env[variable["name"]] = variable.get("value", "")
    resources = task.get("resources") or [{}]
    env["MESOS_ALLOCATION_ROLE"] = resources[0].get("allocation_info", {}).get("role", "*")
    return env


def launch(task, flags):
    """Start the task's command in a session of its own: (process, environment)."""
    command = json.loads(flags["task_command"]) if "task_command" in flags else task.get("command", {})
    env = environment(task, command, flags)
    if "rootfs" in flags or "task_launch_info" in flags:
        return _launch_contained(command, env, flags), env
    if command.get("shell", True):
        argv, program = ["sh", "-c", command["value"]], "/bin/sh"
    else:
        argv = command.get("arguments") or [command["value"]]
        program = shutil.which(command["value"], path=env.get("PATH")) or command["value"]
    return subprocess.Popen(argv, executable=program, env=env, start_new_session=True), env


def _launch_contained(command, env, flags):
    variables = [{"name": key, "type": "VALUE", "value": value} for key, value in env.items()]
    info = {"command": command, "environment": {"variables": variables}}
    given = json.loads(flags.get("task_launch_info", "{}"))
    info.update({key: given[key] for key in TAKEN_OVER if key in given})
    argv = ["mesos-containerizer", "launch"]
    if "rootfs" in flags:
        info["rootfs"] = flags["rootfs"]
        info["working_directory"] = flags.get("working_directory") or flags["sandbox_directory"]
        argv.append("--unshare_namespace_mnt=true")
        if flags.get("user"):
            shutil.chown(os.getcwd(), flags["user"])
    if flags.get("user"):
        info["user"] = flags["user"]
    for key in ("effective_capabilities", "bounding_capabilities"):
        if key in flags:
            info[key] = json.loads(flags[key])
    argv.append("--launch_info=" + json.dumps(info))
    directory = flags.get("launcher_dir", os.path.dirname(sys.argv[0]))
    program = os.path.join(directory, "mesos-containerizer")
    return subprocess.Popen(argv, executable=program, start_new_session=True)
