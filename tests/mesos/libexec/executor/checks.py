"""One run of a check or health check of kind COMMAND, HTTP or TCP."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess


def probe(check, env):
    """(details for the status, whether it is well, words); raises when it could not be made."""
    timeout = check.get("timeout_seconds", 20.0) or None
    kinds = {"COMMAND": _command, "HTTP": _http, "TCP": _tcp}
    if check["type"] not in kinds:
        raise ValueError("unsupported check " + check["type"])
    return kinds[check["type"]](check, env, timeout)


def _host():
    """The real executor connects to 127.0.0.1; here every agent has a loopback address of its own.

    A task is reached if it binds to that or to 0.0.0.0.
    """
    return os.environ.get("LIBPROCESS_IP", "127.0.0.1")


def _command(check, env, timeout):
    command = check["command"].get("command", check["command"])
    variables = command.get("environment", {}).get("variables", [])
    env = {**env, **{each["name"]: each.get("value", "") for each in variables}}
    if command.get("shell", True):
        argv, program = ["/bin/sh", "-c", command["value"]], None
    else:
        argv, program = command.get("arguments") or [command["value"]], command["value"]
    options = {"env": env, "timeout": timeout, "stdin": subprocess.DEVNULL, "executable": program}
    code = subprocess.run(argv, check=False, **options).returncode
    return {"command": {"exit_code": code}}, code == 0, f"exit code {code}"


def _http(check, env, timeout):
    spec = check["http"]
    secure = spec.get("scheme") == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(_host(), spec["port"], timeout=timeout)
    try:
        connection.request("GET", spec.get("path", "/"))
        code = connection.getresponse().status
    finally:
        connection.close()
    return {"http": {"status_code": code}}, 200 <= code < 400, f"HTTP status {code}"


def _tcp(check, env, timeout):
    try:
        socket.create_connection((_host(), check["tcp"]["port"]), timeout).close()
    except OSError as error:
        return {"tcp": {"succeeded": False}}, False, str(error)
    return {"tcp": {"succeeded": True}}, True, ""
