"""What may be formatted, and what is said of the rest; the kernel's table of mounts."""

from __future__ import annotations

import pytest

from moorage.gateway.mount import system
from moorage.gateway.mount.filesystem import Found, plan
from moorage.wire.errors import Invalid

BLANK = Found("db", True, "")
EXT4 = Found("db", False, "ext4", "ready", "ext4")
DATA = Found("db", False, "")


@pytest.mark.parametrize(
    ("found", "wanted", "flags", "chosen"),
    [
        (BLANK, "", {}, ("ext4", True)),
        (BLANK, "xfs", {}, ("xfs", True)),
        (Found("db", True, "", "new", "xfs"), "", {}, ("xfs", True)),
        (Found("db", True, "", "new", "xfs"), "ext4", {}, ("ext4", True)),
        (EXT4, "", {}, ("ext4", False)),
        (EXT4, "ext4", {}, ("ext4", False)),
        (EXT4, "", {"read_only": True}, ("ext4", False)),
        (EXT4, "xfs", {"overwrite": True}, ("xfs", True)),
        (Found("db", False, "xfs"), "", {}, ("xfs", False)),  # made by hand
        (
            Found("db", False, "ext4", "new", "xfs"),
            "",
            {},
            ("ext4", False),
        ),  # made by hand, though xfs was meant
        (DATA, "", {"overwrite": True}, ("ext4", True)),
        (Found("db", False, "", "formatting", "ext4"), "", {}, ("ext4", True)),
        (Found("db", False, "ext4", "formatting", "xfs"), "", {}, ("xfs", True)),
    ],
)
def test_what_is_mounted_and_what_is_formatted(
    found: Found, wanted: str, flags: dict[str, bool], chosen: tuple[str, bool]
) -> None:
    assert plan(found, wanted, **{"overwrite": False, "read_only": False, **flags}) == chosen


@pytest.mark.parametrize(
    ("found", "wanted", "flags", "message"),
    [
        (BLANK, "ntfs", {}, "use ext4 or xfs"),
        (BLANK, "", {"read_only": True}, "once without --read-only"),
        (DATA, "", {}, "holds data, but no file system"),
        (DATA, "ext4", {}, "holds data, but no file system"),
        (Found("db", False, "", "ready", "ext4"), "", {}, "holds data, but no file system"),
        (EXT4, "xfs", {}, "holds ext4, not xfs"),
        (Found("db", False, "a partition table"), "", {}, "holds a partition table"),
        (Found("db", False, "btrfs"), "", {}, "holds btrfs"),
    ],
)
def test_what_holds_anything_is_refused_with_the_way_out(
    found: Found, wanted: str, flags: dict[str, bool], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        plan(found, wanted, **{"overwrite": False, "read_only": False, **flags})


def test_the_last_mount_at_a_target_is_what_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "40 22 7:0 / /data/with\\040space rw shared:5 master:1 - ext4 /dev/loop0 rw,errors=remount-ro\n"
        "41 22 0:50 / /data/with\\040space rw - fuse.moorage moorage:a\\134b rw,user_id=0\n"
    )
    table = system.mount_table(text)
    assert [(entry.source, entry.type, entry.device) for entry in table] == [
        ("/dev/vda", "ext4", (254, 0)),
        ("/dev/loop0", "ext4", (7, 0)),
        ("moorage:a\\b", "fuse.moorage", (0, 50)),
    ]
    monkeypatch.setattr(system, "mount_table", lambda: table)
    at = system.mounted_at("/data/with space")
    assert at is not None and at.type == "fuse.moorage"
    assert system.mounted_at("/data") is None
    assert [entry.target for entry in system.mounts_of("/dev/loop0")] == ["/data/with space"]
