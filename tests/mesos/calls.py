"""HTTP calls to a daemon, in JSON."""

from __future__ import annotations

import http.client
import json
from typing import Any


def get(address: str, path: str, timeout: float = 5) -> Any:
    status, text = _request(address, "GET", path, None, timeout)
    if status != 200:
        raise OSError(f"GET {path} of {address}: {status} {text}")
    return json.loads(text)


def operator(address: str, call: dict[str, Any]) -> tuple[int, str]:
    """One call of the operator API: (status, text). Actions answer with no text."""
    return _request(address, "POST", "/api/v1", json.dumps(call), 30)


def _request(address: str, method: str, path: str, body: str | None, timeout: float) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=timeout)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()
