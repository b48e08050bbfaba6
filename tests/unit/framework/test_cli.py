"""`moorage framework` up to where a master is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from moorage.cli.framework import framework


def test_a_secret_of_mesos_that_others_may_read_is_refused(tmp_path: Path) -> None:
    spec, secret = tmp_path / "spec.yaml", tmp_path / "secret"
    spec.write_text("secret_file: /etc/moorage/secret\ndevices: [{}]\n")
    secret.write_text("open sesame\n")
    secret.chmod(0o644)
    arguments = ["plan", str(spec), "--master", "127.0.0.1:1", "--mesos-secret-file", str(secret)]
    result = CliRunner().invoke(framework, arguments)
    assert result.exit_code != 0 and "has mode 0644: run chmod 600" in result.stderr
    assert "sesame" not in result.output


@pytest.mark.parametrize("command", ["plan", "run", "drain agent", "release"])
@pytest.mark.parametrize("arguments", [[], ["spec.yaml", "--name", "moorage"], ["--principal", "me"]])
def test_a_cluster_is_named_once(command: str, arguments: list[str]) -> None:
    """Never taken for granted: `release` destroys it."""
    result = CliRunner().invoke(framework, [*command.split(), *arguments, "--master", "127.0.0.1:1"])
    assert result.exit_code == 2 and "SPEC" in result.stderr
