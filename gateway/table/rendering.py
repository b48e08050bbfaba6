"""By which command foreign storage is mounted: a pure function of a line.

Owns the table of kinds. What is not in it is left to mount(8), which calls ``mount.KIND`` where there is one.
No secret is ever on such a command line: it names the file that has it.
"""

from __future__ import annotations

from collections.abc import Callable

from moorage.client.mount_table import Line

Command = tuple[str, ...]
# Helpers of their packages, called as mount(8) would, but found on PATH.
HELPERS = ("ceph", "cifs", "glusterfs", "lustre", "nfs", "nfs4")
PACKAGES = {"s3fs": "s3fs", "mount.nfs": "nfs-common", "mount.nfs4": "nfs-common", "mount.cifs": "cifs-utils"}


def command(line: Line) -> Command:
    """The program and its arguments."""
    return _RENDERED.get(line.kind, _by_mount)(line)


def _by_mount(line: Line) -> Command:
    return ("mount", "-t", line.kind, *_with(line.options), line.source, line.target)


def _by_helper(line: Line) -> Command:
    return (f"mount.{line.kind}", line.source, line.target, *_with(line.options))


def _by_sshfs(line: Line) -> Command:
    return ("sshfs", line.source, line.target, *_with(line.options))


def _by_hadoop(line: Line) -> Command:
    return ("hadoop-fuse-dfs", "dfs" + line.source.removeprefix("hdfs"), line.target, *_with(line.options))


def _by_s3fs(line: Line) -> Command:
    """``endpoint``: URL of another server than Amazon's, which then has the bucket in the path of its URLs;
    ``credentials``: a file with ACCESS_KEY:SECRET_KEY; ``region``. The rest are s3fs's own."""
    bucket, slash, prefix = line.source.removeprefix("s3://").partition("/")
    options = []
    for option in line.options:
        key, _, value = option.partition("=")
        if key == "endpoint":
            options += [f"url={value}", "use_path_request_style"]
        elif key == "credentials":
            options.append(f"passwd_file={value}")
        elif key == "region":
            options.append(f"endpoint={value}")
        else:
            options.append(option)
    return ("s3fs", f"{bucket}:/{prefix}" if slash and prefix else bucket, line.target, *_with(options))


def _with(options: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return ("-o", ",".join(options)) if options else ()


_RENDERED: dict[str, Callable[[Line], Command]] = {
    "hdfs": _by_hadoop,
    "s3": _by_s3fs,
    "sshfs": _by_sshfs,
    **dict.fromkeys(HELPERS, _by_helper),
}
