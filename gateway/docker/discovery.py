"""How an engine finds the plugin: a file that names its socket, or the socket in the engine's own directory.

Owns the file: written whole, and removed at the end when it still names this socket. An engine looks for
``/run/docker/plugins/NAME.sock`` first, then for ``NAME.spec`` or ``NAME.json`` in ``/etc/docker/plugins``
and ``/usr/lib/docker/plugins``; NAME is the driver's name.
"""

from __future__ import annotations

import json
from pathlib import Path

from moorage.wire.errors import Invalid

SOCKETS = Path("/run/docker/plugins")


class DiscoveryFile:
    def __init__(self, path: Path, socket: Path) -> None:
        if path.suffix not in (".spec", ".json"):
            raise Invalid(f"discovery file {path}: its name must end in .spec or .json")
        self._path = path
        address = f"unix://{socket}"
        plugin = {"Name": path.stem, "Addr": address}
        self._content = json.dumps(plugin) if path.suffix == ".json" else address

    def write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_name(f".{self._path.name}.new")
        scratch.write_text(self._content)
        scratch.replace(self._path)

    def remove(self) -> None:
        try:
            if self._path.read_text() == self._content:
                self._path.unlink()
        except FileNotFoundError:
            pass
