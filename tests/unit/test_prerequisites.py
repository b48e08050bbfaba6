"""What this machine lacks skips a test here, and fails it on a build machine."""

from __future__ import annotations

import pytest

from ..prerequisites import no_mounts, no_programs, require


def test_a_build_machine_has_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        require("no such thing")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such thing"):
        require("no such thing")
    require("")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert no_programs("sh") == "" and "no-such-program not installed" in no_programs("sh", "no-such-program")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert no_mounts(("/dev/null", "/dev/nothing")) == "/dev/nothing not there"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in no_mounts()
