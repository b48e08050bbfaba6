"""By which command a line of foreign storage is mounted."""

from __future__ import annotations

import pytest

from moorage.client import mount_table
from moorage.gateway.table import rendering

RENDERED = {
    "nas:/export /mnt nfs4 vers=4.2,ro,hosts=a*,name=x,nofail": "mount.nfs4 nas:/export /mnt -o vers=4.2,ro",
    "nas:/export /mnt nfs": "mount.nfs nas:/export /mnt",
    "//nas/share /mnt cifs credentials=/etc/nas": "mount.cifs //nas/share /mnt -o credentials=/etc/nas",
    "mon1:/ /mnt ceph name=x,secretfile=/etc/ceph": "mount.ceph mon1:/ /mnt -o secretfile=/etc/ceph",
    "gfs1:/vol /mnt glusterfs": "mount.glusterfs gfs1:/vol /mnt",
    "hdfs://nn:8020 /mnt hdfs ro": "hadoop-fuse-dfs dfs://nn:8020 /mnt -o ro",
    "me@host:/x /mnt sshfs reconnect": "sshfs me@host:/x /mnt -o reconnect",
    "tmpfs /mnt tmpfs size=1M": "mount -t tmpfs -o size=1M tmpfs /mnt",
    "s3://media /mnt s3": "s3fs media /mnt",
    "s3://media/ /mnt s3 region=eu-1": "s3fs media /mnt -o endpoint=eu-1",
    "s3://media/a/b /mnt s3 endpoint=http://s3:9000,credentials=/etc/s3,ro": (
        "s3fs media:/a/b /mnt -o url=http://s3:9000,use_path_request_style,passwd_file=/etc/s3,ro"
    ),
}


@pytest.mark.parametrize("text", RENDERED)
def test_a_line_is_a_command(text: str) -> None:
    (line,) = mount_table.check(text)
    assert " ".join(rendering.command(line)) == RENDERED[text]


def test_a_blank_stays_in_its_argument() -> None:
    (line,) = mount_table.check("nas:/a\\040b /storage/c\\040d nfs")
    assert rendering.command(line) == ("mount.nfs", "nas:/a b", "/storage/c d")
