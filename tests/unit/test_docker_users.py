"""Who may still use a mount: processes that live, engines, and everybody of whom that cannot be told."""

from __future__ import annotations

import os
import subprocess
import sys

from moorage.gateway.docker import users


def test_a_process_lives_until_it_ends_and_its_number_is_not_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    user = users.of_process(process.pid)
    assert users.lives(user) and users.lives(users.of_process(os.getpid()))
    assert not users.lives(f"process:{process.pid}:1")  # another one had that number
    process.communicate(b"")
    assert not users.lives(user)


def test_of_others_it_cannot_be_told() -> None:
    assert users.lives("") and users.lives("0123abcd")


def test_only_an_engine_lives_as_long_as_those_it_asks_for() -> None:
    assert users.of_engine(os.getpid()) == ""


def test_nothing_is_used_where_nothing_is_mounted() -> None:
    assert not users.is_used("/nowhere")
