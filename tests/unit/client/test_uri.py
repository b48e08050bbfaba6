"""URIs, sizes, names, and where a cluster is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moorage.client import config
from moorage.client.cluster import Cluster
from moorage.client.uri import Address, parse, parse_size
from moorage.wire.errors import Invalid
from moorage.wire.secret import ClusterSecret


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("db", Address("", "db")),
        ("moorage:///db", Address("", "db")),
        ("moorage:/db", Address("", "db")),
        ("moorage://prod/db", Address("prod", "db")),
        ("moorage://host:5/photos/a/b%20c.jpg", Address("host:5", "photos", "a/b c.jpg")),
        ("moorage:/photos/a.jpg", Address("", "photos", "a.jpg")),
        ("moorage:///db?size=10G&mode=ro", Address("", "db", "", {"size": "10G", "mode": "ro"})),
    ],
)
def test_what_a_uri_says(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a volume name"),
        ("Db", "not a volume name"),
        ("-db", "not a volume name"),
        ("a" * 64, "not a volume name"),
        ("nbd://x/db", "not a moorage URI"),
        ("moorage:db", "write moorage:/NAME"),
        ("moorage://prod", "names no volume"),
        ("moorage:///", "not a volume name"),
        ("moorage:///db?colour=red", "unknown option 'colour'"),
        ("moorage:///db?size=1&size=2", "given twice"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        parse(text)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("4096", "1k", "10G", "10GiB", "1.5 TiB", 7)] == [
        4096,
        1024,
        10 << 30,
        10 << 30,
        3 << 39,
        7,
    ]
    assert parse_size("8191P") == 8191 << 50
    for text in ("", "G", "-1", "1X", "1e3", "8192P", "9" * 5000, "9" * 400 + ".5", "٣"):
        with pytest.raises(Invalid, match="not a size"):
            parse_size(text)


def configured(tmp_path: Path, name: str, **content: str) -> dict[str, str]:
    path = tmp_path / "moorage" / "clusters" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_arguments_then_the_name_then_the_environment(tmp_path: Path) -> None:
    environment = configured(tmp_path, "prod", registry="r:1", secret_file="prod.secret")
    found = config.load("prod", environment=environment)
    assert found == config.ClusterConfig("r:1", tmp_path / "moorage" / "clusters" / "prod.secret", "prod")
    environment |= {"MOORAGE_REGISTRY": "e:1", "MOORAGE_SECRET_FILE": "/e"}
    assert config.load("prod", environment=environment).registry == "r:1"
    assert config.load(environment=environment) == config.ClusterConfig("e:1", Path("/e"))
    assert config.load("h:9", environment=environment) == config.ClusterConfig("h:9", Path("/e"), "h:9")
    assert config.load("moorage.mesos", environment=environment).registry == "srv:moorage.mesos"
    assert config.load("prod", registry="a:1", secret_file="/a", environment=environment) == (
        config.ClusterConfig("a:1", Path("/a"), "prod")
    )


def test_the_default_cluster(tmp_path: Path) -> None:
    environment = configured(tmp_path, "default", registry="d:1", secret_file="/d")
    assert config.load(environment=environment) == config.ClusterConfig("d:1", Path("/d"))


def test_the_principal_is_the_one_said_nearest(tmp_path: Path) -> None:
    environment = configured(tmp_path, "prod", registry="r:1", secret_file="/s", principal="team-a")
    environment["MOORAGE_PRINCIPAL"] = "team-b"
    assert config.load("prod", environment=environment).principal == "team-a"
    assert config.load("prod", principal="team-c", environment=environment).principal == "team-c"
    assert config.load(registry="r:1", secret_file="/s", environment=environment).principal == "team-b"
    with pytest.raises(Invalid, match="'Team D' is not the name of a principal"):
        config.load("prod", principal="Team D", environment=environment)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    empty = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(Invalid, match=r"set \$MOORAGE_REGISTRY"):
        config.load(environment=empty)
    with pytest.raises(Invalid, match=r"set \$MOORAGE_SECRET_FILE"):
        config.load(registry="h:1", environment=empty)
    with pytest.raises(Invalid, match="'test' is not configured"):
        config.load("test", environment=empty)
    broken = configured(tmp_path, "broken", secret_file="/d")
    with pytest.raises(Invalid, match='has no "registry"'):
        config.load("broken", environment=broken)
    for text in ("{", "[" * 100_000):
        (tmp_path / "moorage" / "clusters" / "broken.json").write_text(text)
        with pytest.raises(Invalid, match="cannot read"):
            config.load("broken", environment=broken)


def test_the_name_of_the_cluster_that_one_is_connected_to_may_stand_in_a_uri() -> None:
    secret = ClusterSecret("0123456789abcdef", b"k" * 32)
    for given in (
        config.ClusterConfig("srv:_registry._tcp.m.mesos", Path("/s")),
        config.ClusterConfig("srv:_registry._tcp.m.mesos", Path("/s"), "_registry._tcp.m.mesos"),
    ):
        cluster = Cluster(given, secret)
        for named in ("", "_registry._tcp.m.mesos", "srv:_registry._tcp.m.mesos"):
            cluster.check_here(parse(f"moorage://{named}/db"))
        with pytest.raises(Invalid, match="is not in"):
            cluster.check_here(parse("moorage://_registry._tcp.other.mesos/db"))
