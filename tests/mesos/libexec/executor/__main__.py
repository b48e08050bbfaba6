"""Stand-in for the Mesos command executor, over the v1 HTTP executor API.

Does what the real one does for a single task: environment, shell and argument vectors, TASK_STARTING,
TASK_RUNNING and terminal updates, kill policy with escalation of the whole process tree, health checks
and checks (COMMAND, HTTP, TCP), max_completion_time, TASK_KILLING, acknowledgements, reconnection to an
agent that restarted, and launching inside of a container image.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import sys
import time

from agent import Agent, duration, log
from running import Task
from updates import Updates

TERMINAL = ("TASK_FINISHED", "TASK_FAILED", "TASK_KILLED")


class Executor:
    def __init__(self, flags):
        self._flags = flags
        self._agent = Agent()
        self._updates = Updates(self._agent)
        self._framework = {}
        self._task = None
        self._task_known = False  # the agent has acknowledged an update of it
        self.agent_seen = time.monotonic()

    def subscribe(self):
        """Handle events until the agent goes away."""
        unknown = [self._task.info] if self._task and not self._task_known else []
        subscription = {"unacknowledged_tasks": unknown}
        subscription["unacknowledged_updates"] = self._updates.unacknowledged()
        try:
            for event in self._agent.events(subscription):
                self._handle(event)
        finally:
            if self._updates.connected.is_set():
                self.agent_seen = time.monotonic()
            self._updates.connected.clear()

    def _handle(self, event):
        kind = event["type"]
        if kind == "SUBSCRIBED":
            self._framework = event["subscribed"]["framework_info"]
            self._updates.connected.set()
        elif kind == "LAUNCH":
            self._launch(event["launch"]["task"])
        elif kind == "ACKNOWLEDGED":
            self._task_known = True
            if self._updates.acknowledged(event["acknowledged"]["uuid"]) in TERMINAL:
                os._exit(0)
        elif kind == "KILL" and self._task:
            self._task.kill(self._task.grace(event["kill"].get("kill_policy")))
        elif kind in ("KILL", "SHUTDOWN"):
            self._shutdown()
        elif kind == "ERROR":
            log("agent:", event["error"].get("message"))

    def _launch(self, info):
        if self._task is not None:
            log("refusing a second task")
            return
        self._task = Task(info, self._framework, self._flags, self._updates)
        self._task.start()

    def _shutdown(self):
        if self._task is None:
            os._exit(0)
        grace = duration(os.environ.get("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD"), 5.0) - 1.5
        self._task.kill(max(grace, 0))

    def end(self):
        """Without an agent."""
        log("agent lost, shutting down")
        if self._task:
            self._task.kill(0)
            while not self._task.terminated:
                time.sleep(0.1)
        sys.exit(1)


def main():
    os.environ.pop("LC_CTYPE", None)  # set by the interpreter itself
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    flags = {}
    for argument in sys.argv[1:]:
        key, given, value = argument.lstrip("-").partition("=")
        flags[key] = value if given else "true"
    executor = Executor(flags)
    backoff = duration(os.environ.get("MESOS_SUBSCRIPTION_BACKOFF_MAX"), 2.0)
    recovery = duration(os.environ.get("MESOS_RECOVERY_TIMEOUT"), 900.0)
    while True:
        try:
            executor.subscribe()
        except (OSError, http.client.HTTPException) as error:
            log("agent connection:", error)
        if os.environ.get("MESOS_CHECKPOINT") != "1" or time.monotonic() - executor.agent_seen > recovery:
            executor.end()
        time.sleep(random.uniform(0.1, backoff))


main()
