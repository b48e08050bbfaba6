"""Where a cluster is and how to authenticate to it: arguments, environment, or a named configuration.

Owns the look-up order and its error messages; it opens no connection and never reads the key itself.
A named cluster is ``~/.config/moorage/clusters/NAME.json`` (below ``$XDG_CONFIG_HOME`` when that is set):
``{"registry": "host:port,host:port", "secret_file": "/path", "principal": "team-a"}``; a relative
``secret_file`` is relative to that file, the principal may be left out. Explicit arguments win over the name,
the name over ``$MOORAGE_REGISTRY``, ``$MOORAGE_SECRET_FILE`` and ``$MOORAGE_PRINCIPAL``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage.client import uri
from moorage.wire.errors import Invalid

DEFAULT_CLUSTER = "default"
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class ClusterConfig:
    """``registry``: see :func:`moorage.wire.discovery.resolve`; ``secret_file`` is not opened here."""

    registry: str
    secret_file: Path
    name: str = ""  # as it was asked for; "" for the default
    principal: str = ""  # for whose quota its volumes count; "" where nobody said


def clusters_directory(environment: Mapping[str, str] = os.environ) -> Path:
    base = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", "~"), ".config")
    return Path(base).expanduser() / "moorage" / "clusters"


def load(
    cluster: str | None = None,
    *,
    registry: str | None = None,
    secret_file: str | Path | None = None,
    principal: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ClusterConfig:
    """Settle where the cluster is. ``cluster`` is a configured name, an SRV name or ``host:port``.

    Raises :class:`Invalid` that says which of the sources were looked at, and what to set.
    """
    named = _from_authority(cluster, environment) if registry is None else {}
    found = registry or named.get("registry") or environment.get("MOORAGE_REGISTRY")
    secret = secret_file or named.get("secret_file") or environment.get("MOORAGE_SECRET_FILE")
    who = principal or named.get("principal") or environment.get("MOORAGE_PRINCIPAL") or ""
    directory = clusters_directory(environment)
    if not found:
        raise Invalid(
            "no registry is given: pass registry= (--registry), set $MOORAGE_REGISTRY, "
            f"or write {directory / 'default.json'}"
        )
    if not secret:
        raise Invalid(
            f"no secret file is given for registry {found}: pass secret_file= (--secret-file), "
            "or set $MOORAGE_SECRET_FILE"
        )
    return ClusterConfig(
        found, Path(secret).expanduser(), cluster or "", uri.check_principal(who) if who else ""
    )


def _from_authority(cluster: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """A configured name first; what looks like an address or a domain name is taken as such."""
    if not cluster:
        configured = not environment.get("MOORAGE_REGISTRY")
        return _read_named(DEFAULT_CLUSTER, environment) or {} if configured else {}
    named = _read_named(cluster, environment) if _CLUSTER_NAME.fullmatch(cluster) else None
    if named is not None:
        return named
    if ":" in cluster:
        return {"registry": cluster}
    if "." in cluster:
        return {"registry": "srv:" + cluster}
    wanted = clusters_directory(environment) / f"{cluster}.json"
    raise Invalid(f"cluster {cluster!r} is not configured: {wanted} does not exist")


def _read_named(name: str, environment: Mapping[str, str]) -> dict[str, str] | None:
    path = clusters_directory(environment) / f"{name}.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(f"cannot read the cluster configuration {path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("registry"), str):
        raise Invalid(f'{path} has no "registry": write {{"registry": "host:port", "secret_file": "/path"}}')
    found = {"registry": content["registry"]}
    if isinstance(content.get("principal"), str):
        found["principal"] = content["principal"]
    if isinstance(content.get("secret_file"), str):
        found["secret_file"] = str(path.parent / content["secret_file"])
    return found
