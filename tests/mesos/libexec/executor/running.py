"""The one task of this executor, from its launch to its terminal update."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

from agent import log
from checks import probe
from command import launch
from processes import family, send


def seconds(spec, default=0.0):
    return spec["nanoseconds"] / 1e9 if spec and "nanoseconds" in spec else default


class Task:
    def __init__(self, info, framework, flags, updates):
        self.info = info
        self._flags = flags
        self._updates = updates
        capabilities = [each.get("type") for each in framework.get("capabilities", [])]
        self._says_killing = "TASK_KILLING_STATE" in capabilities
        self._lock = threading.RLock()
        self._process = None
        self._launched = threading.Event()  # or failed to: from then on it can be killed
        self._killed_at = self._deadline = None
        self._timed_out = self._unhealthy = False
        self.terminated = False

    def start(self):
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        self._updates.send(self.info, "TASK_STARTING")
        try:
            self._process, env = launch(self.info, self._flags)
        except (OSError, KeyError, ValueError) as error:
            self.terminated = True
            self._launched.set()
            text = f"Failed to launch the command: {error}"
            self._updates.send(self.info, "TASK_FAILED", message=text)
            return
        self._launched.set()
        log("forked command at", self._process.pid)
        self._updates.send(self.info, "TASK_RUNNING", **self._no_check_yet())
        for key, watch in (("check", self._check), ("health_check", self._watch_health)):
            if key in self.info:
                threading.Thread(target=watch, args=(self.info[key], env), daemon=True).start()
        self._wait()
        time.sleep(60)  # the acknowledgement of the terminal update ends the executor
        os._exit(0)

    def _no_check_yet(self):
        if "check" not in self.info:
            return {}
        kind = self.info["check"]["type"]
        return {"check_status": {"type": kind, kind.lower(): {}}}

    def _wait(self):
        if limit := seconds(self.info.get("max_completion_time")):
            try:
                self._process.wait(limit)
            except subprocess.TimeoutExpired:
                self._timed_out = True
                self.kill(0)
        status = self._process.wait()
        with self._lock:
            self.terminated = True
        ended = f"exited with status {status}"
        if status < 0:
            ended = f"terminated with signal {signal.strsignal(-status)}"
        fields = {"message": "Command " + ended}
        if self._timed_out:
            state, fields["reason"] = "TASK_FAILED", "REASON_MAX_COMPLETION_TIME_REACHED"
        elif self._killed_at is not None:
            state = "TASK_KILLED"
            if self._unhealthy:
                fields["healthy"] = False
        else:
            state = "TASK_FINISHED" if status == 0 else "TASK_FAILED"
        log(state, ended)
        self._updates.send(self.info, state, **fields)

    # ---- killing ----

    def grace(self, override=None):
        for policy in (override, self.info.get("kill_policy")):
            if policy and "grace_period" in policy:
                return seconds(policy["grace_period"])
        return 3.0

    def kill(self, grace):
        """SIGTERM to the whole process tree, SIGKILL after ``grace`` seconds; again: they may only shrink."""
        self._launched.wait()
        with self._lock:
            if self.terminated:
                return
            now = time.monotonic()
            if self._killed_at is not None:
                self._deadline = min(self._deadline, self._killed_at + grace)
                return
            if self._says_killing and not self._timed_out:
                self._updates.send(self.info, "TASK_KILLING")
            self._killed_at, self._deadline = now, now + grace
        log(f"SIGTERM, SIGKILL in {grace:g}s")
        send(family({self._process.pid}), signal.SIGTERM)
        threading.Thread(target=self._escalate, daemon=True).start()

    def _escalate(self):
        while not self.terminated and time.monotonic() < self._deadline:
            time.sleep(0.05)
        if not self.terminated:
            log("SIGKILL")
            send(family({self._process.pid}), signal.SIGKILL)

    # ---- checks ----

    def _say(self, **fields):
        with self._lock:
            if self._killed_at is None and not self.terminated:
                self._updates.send_further(self.info, **fields)

    def _check(self, spec, env):
        time.sleep(spec.get("delay_seconds", 15.0))
        previous = None
        while not self.terminated:
            try:
                details = probe(spec, env)[0]
            except Exception as error:
                log("check failed:", error)
                details = {spec["type"].lower(): {}}
            if details != previous:
                previous = details
                check_status = {**details, "type": spec["type"]}
                self._say(reason="REASON_TASK_CHECK_STATUS_UPDATED", check_status=check_status)
            time.sleep(spec.get("interval_seconds", 10.0))

    def _watch_health(self, spec, env):
        started, initializing, failures = time.monotonic(), True, 0
        time.sleep(spec.get("delay_seconds", 15.0))
        while not self.terminated:
            well, text = _health(spec, env)
            in_grace = time.monotonic() - started <= spec.get("grace_period_seconds", 10.0)
            if well:
                if initializing or failures:
                    self._say(reason="REASON_TASK_HEALTH_CHECK_STATUS_UPDATED", healthy=True)
                initializing, failures = False, 0
            elif initializing and in_grace:
                log("health check failed in its grace period:", text)
            else:
                initializing, failures = False, failures + 1
                log(f"health check failed {failures} times in a row:", text)
                self._say(reason="REASON_TASK_HEALTH_CHECK_STATUS_UPDATED", healthy=False)
                if failures >= spec.get("consecutive_failures", 3):
                    self._unhealthy = True
                    self.kill(self.grace())
                    return
            time.sleep(spec.get("interval_seconds", 10.0))


def _health(spec, env):
    try:
        return probe(spec, env)[1:]
    except Exception as error:
        return False, str(error)
