"""The cluster secret: one line ``CLUSTER_ID:HEXSECRET`` in a file of mode 0600.

Owns reading, checking and creating that file, and the rule for every file with a secret: it is read only when
nobody but its owner may do so. The key never appears in repr, str, logs or argv.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from moorage.wire.errors import Invalid

_LINE = re.compile(r"([0-9a-f]{16}):([0-9a-f]{64})\n?")
SIZE_MAX = 4096  # of a file with a secret: what is longer is another file


def read_private(path: Path | str, what: str) -> bytes:
    """The first SIZE_MAX bytes of a file with a secret. Raises :class:`Invalid`, with ``what`` it is and the
    next step, when it cannot be read or is open to others. Never shows the content."""
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise Invalid(f"{what} {path} has mode {mode:04o}: run chmod 600 {path}")
            return file.read(SIZE_MAX)
    except OSError as exc:
        raise Invalid(f"cannot read the {what} {path}: {exc.strerror}") from None


class ClusterSecret:
    """Identity of a cluster and the key that its members share."""

    __slots__ = ("_key", "cluster")

    def __init__(self, cluster: str, key: bytes) -> None:
        if re.fullmatch("[0-9a-f]{16}", cluster) is None or len(key) != 32:
            raise Invalid("a cluster secret is a cluster id of 16 hex digits and a key of 32 bytes")
        self.cluster = cluster
        self._key = key

    def __repr__(self) -> str:
        return f"ClusterSecret({self.cluster})"

    def __reduce__(self) -> str:
        raise TypeError("a cluster secret is not pickled: its key would leak")

    def mac(self, label: str, message: bytes) -> bytes:
        """HMAC-SHA256 of ``message``, in the key's domain ``label``: a mac of one use is none of another."""
        return hmac.new(self._key, label.encode() + b"\0" + message, hashlib.sha256).digest()

    def access_secret(self, key: str) -> str:
        """The secret of an access key, 40 characters: who holds the cluster's secret needs no other."""
        return base64.urlsafe_b64encode(self.mac("access key", key.encode())).decode()[:40]

    @classmethod
    def load(cls, path: Path | str) -> ClusterSecret:
        """Read the secret file; raises :class:`Invalid` with the next step when it is missing, open to
        others or malformed. Never shows the content."""
        match = _LINE.fullmatch(read_private(path, "cluster secret file").decode("latin-1"))
        if match is None:
            raise Invalid(
                f"cluster secret file {path} is not one line CLUSTER_ID:HEXSECRET (16 and 64 digits)"
            )
        return cls(match[1], bytes.fromhex(match[2]))

    @classmethod
    def create(cls, path: Path | str) -> ClusterSecret:
        """Make a new cluster's secret and write it, durably, to a file that must not exist yet."""
        cluster, key = secrets.token_hex(8), secrets.token_bytes(32)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Invalid(f"cannot create the cluster secret file {path}: {exc.strerror}") from None
        with open(fd, "wb") as file:
            file.write(f"{cluster}:{key.hex()}\n".encode())
            file.flush()
            os.fsync(fd)
        return cls(cluster, key)
