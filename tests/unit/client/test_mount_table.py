"""Lines of the mount table: what they come to, and what is said of a bad one."""

from __future__ import annotations

import pytest

from moorage.client import mount_table
from moorage.client.mount_table import Line
from moorage.wire.errors import Invalid


def one(text: str) -> Line:
    (line,) = mount_table.check(text)
    return line


def test_a_volume() -> None:
    line = one("moorage:///db /data ext4 owner=1000:1000,size=1G,replicas=3,noatime,ro")
    assert line == Line(
        number=1,
        name="db",
        source="moorage:///db?replicas=3&size=1G&fs=ext4&mode=ro",
        target="/data",
        kind="ext4",
        options=("noatime",),
        owner=(1000, 1000),
    )
    assert line.address is not None and line.address.options["size"] == "1G"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("moorage:///db /d auto", "moorage:///db"),
        ("moorage:/db /d auto", "moorage:///db"),
        ("moorage://prod/db /d xfs", "moorage://prod/db?fs=xfs"),
        ("moorage:///db?size=1G&fs=xfs /d xfs size=1G", "moorage:///db?size=1G&fs=xfs"),
        ("moorage:///db /d auto fs=xfs,io_timeout=0", "moorage:///db?fs=xfs&io_timeout=0"),
        ("moorage:///db?mode=ro /d auto ro", "moorage:///db?mode=ro"),
    ],
)
def test_options_of_a_line_are_those_of_the_uri(text: str, source: str) -> None:
    assert one(text).source == source
    assert one(text).options == ()


def test_foreign_storage() -> None:
    text = "nas:/export /storage/a\\040b nfs4 vers=4.2,hosts=agent*:db1,name=nas,noauto,ro,nofail"
    assert one(text) == Line(
        number=1,
        name="nas",
        source="nas:/export",
        target="/storage/a b",
        kind="nfs4",
        options=("vers=4.2", "ro"),
        hosts=("agent*", "db1"),
        automatic=False,
    )


def test_comments_and_blank_lines_keep_their_numbers() -> None:
    text = "# all of it\n\n  moorage:///db /data ext4 # here\n\ts3://media /media s3\t\n"
    assert [(line.number, line.name) for line in mount_table.check(text)] == [(3, "db"), (4, "media")]


def test_which_hosts() -> None:
    line = one("a:/b /c nfs hosts=db-[12]:agent*")
    assert [line.is_for(host) for host in ("db-1", "db-3", "agent7", "xagent")] == [True, False, True, False]
    assert one("a:/b /c nfs").is_for("any")


def test_what_it_is_called() -> None:
    line = one("moorage:///db?size=1G /data ext4")
    assert all(line.is_called(name) for name in ("db", "/data", "moorage:///db", line.source))
    assert not line.is_called("data")


BAD = {
    "moorage:///db /data": "2 fields: write SOURCE TARGET KIND",
    "moorage:///db /data ext4 a b": "5 fields",
    "moorage:///DB /data ext4": "not a volume name",
    "moorage:///db/x /data ext4": "names a file in a volume",
    "moorage:///db /data zfs": "'zfs' is not for a volume",
    "moorage:///db /data nfs4": "'nfs4' is not for a volume",
    "moorage:///db data ext4": "'data' is not a mount point",
    "moorage:///db /data/ ext4": "'/data/' is not a mount point",
    "moorage:///db / ext4": "'/' is not a mount point",
    "moorage:///db //data ext4": "'//data' is not a mount point",
    "moorage:///db /a/../b ext4": "without '..'",
    "moorage:///db /data ext4 owner=me": "'me' is not UID:GID",
    "moorage:///db /data ext4 size=big": "'big' is not a size",
    "moorage:///db /data ext4 replicas=x": "replicas='x'",
    "moorage:///db /data ext4 mode=wo": "mode='wo'",
    "moorage:///db /data ext4 io_timeout=-1": "io_timeout='-1'",
    "moorage:///db /data ext4 durability=none": "durability='none': write sync or writeback",
    "moorage:///db /data auto iops=many": "iops='many': write a whole number",
    "moorage:///db /data auto bw=fast": "'fast' is not a size",
    "moorage:///db /data auto fs=zfs": "fs='zfs': write ext4 or xfs",
    "moorage:///db /data ext4 fs=xfs": "fs=xfs contradicts the kind ext4",
    "moorage:///db?fs=xfs /data ext4": "contradicts fs=xfs of the URI",
    "moorage:///db?size=1G /data ext4 size=2G": "size=2G contradicts size=1G",
    "moorage:///db?mode=rw /data ext4 ro": "mode=ro contradicts mode=rw",
    "moorage:///db?colour=red /data ext4": "unknown option 'colour'",
    "moorage:///db /data ext4 size=1G,size=1G": "'size' is given twice",
    "db /data ext4": "'db' is no volume",
    "s3:media /m s3": "'s3:media' is not a bucket",
    "nn:8020 /m hdfs": "is not a file system of HDFS",
    "nas:/x /m NFS": "'NFS' is not a kind",
    "-ouid=0 /m nfs": "is an option, not a source",
    "//nas/x /m cifs username=a,password=b": "password=... would be shown to everybody",
    "nas:/x /m nfs hosts=": "hosts=: write names or patterns",
    "# \udcff": "it is not UTF-8",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_line_is_named(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        mount_table.check(f"# first\n{text}\n")
    assert str(caught.value).startswith("line 2: ")
    assert BAD[text] in str(caught.value)


def test_all_bad_lines_are_named() -> None:
    text = "a\nmoorage:///db /data ext4\nb\nmoorage:///other /data xfs\n"
    with pytest.raises(Invalid) as caught:
        mount_table.check(text)
    assert [problem.partition(":")[0] for problem in caught.value.details["problems"]] == [
        "line 1",
        "line 3",
        "line 4",
    ]
    assert "/data is the target of line 2 already" in str(caught.value)
    lines, problems = mount_table.parse(text)
    assert [line.number for line in lines] == [2] and len(problems) == 3


def test_one_target_for_hosts_of_their_own() -> None:
    text = "a:/x /m nfs hosts=h1\nb:/x /m nfs hosts=h2\n"
    assert [line.source for line in mount_table.check(text) if line.is_for("h2")] == ["b:/x"]
    with pytest.raises(Invalid, match="line 2"):
        mount_table.check("a:/x /m nfs hosts=h1\nb:/x /m nfs\n")
