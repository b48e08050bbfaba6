"""The v1 executor API of the agent that started this executor."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import sys
import time
import uuid

UNITS = {
    **{"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "secs": 1, "mins": 60, "hrs": 3600},
    **{"days": 86400, "weeks": 604800},
}


def duration(text, default):
    """Seconds of what Mesos writes as ``1.5secs``."""
    match = re.match(r"([\d.]+)(\w+)$", text or "")
    return float(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else default


def log(*words):
    print(time.strftime("%H:%M:%S"), "executor:", *words, file=sys.stderr, flush=True)


def new_uuid():
    return base64.b64encode(uuid.uuid4().bytes).decode()


class Agent:
    def __init__(self):
        actor, address = os.environ["MESOS_SLAVE_PID"].split("@")
        self._address = address
        self._url = f"/{actor}/api/v1/executor"
        self.executor = {"value": os.environ["MESOS_EXECUTOR_ID"]}
        self._names = {
            "framework_id": {"value": os.environ["MESOS_FRAMEWORK_ID"]},
            "executor_id": self.executor,
        }
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := os.environ.get("MESOS_EXECUTOR_AUTHENTICATION_TOKEN"):
            self._headers["Authorization"] = "Bearer " + token

    def post(self, call):
        connection, response = self._request(call)
        try:
            text = response.read()
            if response.status >= 300:
                log(call["type"], "refused:", response.status, text.decode(errors="replace"))
        finally:
            connection.close()

    def events(self, subscription):
        """Subscribe, and yield events until the agent goes away. Nothing comes if it refuses."""
        connection, response = self._request({"type": "SUBSCRIBE", "subscribe": subscription})
        try:
            if response.status != 200:
                log("subscription refused:", response.status, response.read().decode(errors="replace"))
                return
            if connection.sock:
                connection.sock.settimeout(None)
            response.fp.raw._sock.settimeout(None)  # the stream is silent for as long as nothing happens
            while (size := self._record_size(response)) is not None:
                yield json.loads(response.read(size))
        finally:
            connection.close()

    def _request(self, call):
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            connection.request("POST", self._url, json.dumps({**call, **self._names}), self._headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    @staticmethod
    def _record_size(response):
        digits = b""
        while not digits.endswith(b"\n"):
            byte = response.read(1)
            if not byte:
                return None
            digits += byte
        return int(digits)
