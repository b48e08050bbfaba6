"""Names, options and the environment of a task: what is taken, and the words for what is not."""

from __future__ import annotations

import pytest

from moorage.client.uri import Address
from moorage.gateway.docker.dvdi import SUFFIXES, TaskVolume, volumes_of
from moorage.gateway.docker.wish import parse_pairs, to_mount, wish
from moorage.wire.errors import Invalid


def test_a_name_with_options_is_the_uri_with_them() -> None:
    assert wish("db", {"iops": "100", "bw": "50M"}) == wish("moorage:///db?iops=100&bw=50M")
    assert wish("db", {"size": "1G", "fs": "xfs"}) == wish("moorage:///db?size=1G", {"fs": "xfs"})
    assert wish("moorage://prod/db") == Address("prod", "db")
    assert to_mount(wish("db", {"size": "1G", "mode": "ro", "io_timeout": "0"})) == {
        "mode": "ro",
        "io_timeout": "0",
    }


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("DB", {}, "not a volume name"),
        ("a/b", {}, "not a volume name"),
        ("moorage:///db/file", {}, "names a file"),
        ("moorage:///db?size=1G", {"size": "2G"}, "'1G' in"),
        ("db", {"iops": "many"}, "iops='many': write a whole number"),
        ("moorage:///db?bw=fast", {}, "'fast' is not a size"),
        ("db", {"principal": "Team A"}, "'Team A' is not the name of a principal"),
        ("db", {"volumetype": "io1"}, "unknown option 'volumetype'"),
        ("db", {"size": "big"}, "not a size"),
        ("db", {"replicas": "-1"}, "replicas"),
        ("db", {"groups": "x"}, "groups"),
        ("db", {"durability": "maybe"}, "sync or writeback"),
        ("db", {"fs": "btrfs"}, "ext4 or xfs"),
        ("db", {"mode": "rx"}, "rw or ro"),
        ("db", {"io_timeout": "soon"}, "seconds"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        wish(name, options)


@pytest.mark.parametrize("pair", ["size", "=1G", ""])
def test_what_is_no_pair(pair: str) -> None:
    with pytest.raises(Invalid, match="KEY=VALUE"):
        parse_pairs([pair])


def test_pairs() -> None:
    assert parse_pairs(["size=1G", "fs=xfs", "size=1G"]) == {"size": "1G", "fs": "xfs"}
    with pytest.raises(Invalid, match="twice"):
        parse_pairs(["size=1G", "size=2G"])


def test_the_volumes_of_a_task() -> None:
    first, second = volumes_of(
        {
            "DVDI_VOLUME_NAME": "db",
            "DVDI_VOLUME_DRIVER": "moorage",
            "DVDI_VOLUME_OPTS": "size=1G, fs=xfs",
            "DVDI_VOLUME_CONTAINERPATH": "data",
            "DVDI_VOLUME_NAME9": "moorage:///logs",
            "DVDI_VOLUME_OPTS9": "",
            "DVDI_VOLUME_NAME10": "none-of-ours",
        }
    )
    assert first.address == wish("db", {"size": "1G", "fs": "xfs"})
    assert (first.container_path, first.variable) == ("data", "DVDI_VOLUME_PATH")
    assert (second.address.name, second.container_path) == ("logs", "")
    assert second.variable == "DVDI_VOLUME_PATH9"
    assert volumes_of({"DVDI_VOLUME_DRIVER": "rexray", "DVDI_VOLUME_NAME": ""}) == []


def test_all_volumes_that_a_task_may_have() -> None:
    """Without a digit, and 1 to 9: in this order, whatever the order of the variables."""
    environment = {}
    for suffix in reversed(SUFFIXES):
        environment |= {
            f"DVDI_VOLUME_OPTS{suffix}": f"size=1G,iops=1{suffix}",
            f"DVDI_VOLUME_CONTAINERPATH{suffix}": f"data{suffix}",
            f"DVDI_VOLUME_DRIVER{suffix}": "moorage",
            f"DVDI_VOLUME_NAME{suffix}": f"db{suffix}",
        }
    assert volumes_of(environment) == [
        TaskVolume(
            wish(f"db{suffix}", {"size": "1G", "iops": f"1{suffix}"}),
            f"data{suffix}",
            f"DVDI_VOLUME_PATH{suffix}",
        )
        for suffix in ("", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    ]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DVDI_VOLUME_NAME1": "db", "DVDI_VOLUME_DRIVER1": "rexray"}, "DVDI_VOLUME_DRIVER1 is 'rexray'"),
        (
            {"DVDI_VOLUME_NAME": "db", "DVDI_VOLUME_OPTS": "size=1G,x=1"},
            "DVDI_VOLUME_OPTS: unknown option 'x'",
        ),
        ({"DVDI_VOLUME_NAME": "db", "DVDI_VOLUME_NAME2": "moorage:///db"}, "named twice"),
    ],
)
def test_what_a_task_may_not_ask_for(environment: dict[str, str], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        volumes_of(environment)
