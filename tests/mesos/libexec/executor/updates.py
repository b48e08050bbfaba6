"""Status updates: sent, and kept until the agent acknowledges them; one that restarted gets them again."""

from __future__ import annotations

import threading
import time

from agent import log, new_uuid

REPEATED = ("healthy", "check_status")  # what a further update in one state says again


class Updates:
    def __init__(self, agent):
        self._agent = agent
        self._lock = threading.RLock()
        self._pending = {}
        self._last = {}
        self.connected = threading.Event()

    def send(self, task, state, **fields):
        status = {"task_id": task["task_id"], "state": state, "source": "SOURCE_EXECUTOR"}
        status.update(executor_id=self._agent.executor, timestamp=time.time(), uuid=new_uuid(), **fields)
        call = {"type": "UPDATE", "update": {"status": status}}
        with self._lock:
            self._last = status
            self._pending[status["uuid"]] = call
        if self.connected.is_set():
            try:
                self._agent.post(call)
            except OSError as error:
                log("update not sent:", error)  # sent again with the next subscription

    def send_further(self, task, **fields):
        """In the state that was sent last, with its details."""
        with self._lock:
            last = self._last
        if last:
            kept = {key: last[key] for key in REPEATED if key in last}
            self.send(task, last["state"], **{**kept, **fields})

    def acknowledged(self, uuid):
        """The state that is now known to the agent, if it was waiting for that."""
        with self._lock:
            call = self._pending.pop(uuid, None)
        return call and call["update"]["status"]["state"]

    def unacknowledged(self):
        with self._lock:
            return [call["update"] for call in self._pending.values()]
