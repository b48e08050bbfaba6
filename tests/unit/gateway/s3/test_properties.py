"""What is kept of an object goes into its attributes and comes back, beside what others note there."""

from __future__ import annotations

import pytest

from moorage.client.objects.bucket import Lock
from moorage.gateway.s3 import properties
from moorage.gateway.s3.acl import EVERYBODY, Acl, Grant, Permission
from moorage.gateway.s3.body import Digests
from moorage.gateway.s3.checksums import Algorithm, Kind
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.results import Checksum
from moorage.wire import frame

FULL = Properties(
    {"content-type": "a/b"},
    {"colour": "blue"},
    {"t": "v"},
    (Grant("team-a", Permission.FULL_CONTROL), Grant(EVERYBODY, Permission.READ)),
    Checksum(Algorithm.CRC32, "AAAAAA==", Kind.COMPOSITE),
    Algorithm.CRC32,
    Kind.COMPOSITE,
    "u1",
    Lock("GOVERNANCE", 5, True),
)


@pytest.mark.parametrize("found", [FULL, Properties(), Properties(grants=())])
def test_they_come_back(found: Properties) -> None:
    attributes = properties.to_attributes(found, {"mine": 1, "s3": {"metadata": {"former": "x"}}})
    assert attributes["mine"] == 1
    assert properties.of_attributes(frame.unpack(frame.pack(attributes))) == found


def test_an_object_of_another_way_has_none() -> None:
    for attributes in ({}, {"type": "image/jpeg"}, {"s3": "no map"}):
        assert properties.of_attributes(attributes) == Properties()
    assert Properties().told() == {"content-type": "binary/octet-stream"}


def test_who_has_an_object_of_which_nothing_was_said() -> None:
    everything = Grant("team-a", Permission.FULL_CONTROL)
    assert Properties().acl("team-a") == Acl("team-a", (everything,))
    assert Properties(grants=()).acl("team-a") == Acl("team-a", ())


def of(**headers: str) -> Properties:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return properties.of_request(Request("PUT", "/b/k", "", named))


def test_of_a_request() -> None:
    found = of(
        Content_Type="a/b",
        Content_Encoding="aws-chunked,gzip",
        Expires="never",
        x_amz_meta_a="1",
        x_amz_tagging="t=v",
        x_amz_storage_class="STANDARD",
    )
    assert found.headers == {"content-type": "a/b", "content-encoding": "gzip", "expires": "never"}
    assert (found.metadata, found.tags) == ({"a": "1"}, {"t": "v"})
    assert found.told()["x-amz-meta-a"] == "1" and found.told()["x-amz-tagging-count"] == "1"
    assert found.with_digests(Digests(0, b"", None, None)) == found


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("x-amz-server-side-encryption", "AES256", "NotImplemented"),
        ("x-amz-storage-class", "GLACIER", "InvalidStorageClass"),
        ("x-amz-meta-a", "\udcff", "InvalidArgument"),
    ],
)
def test_what_cannot_be_kept_is_refused(header: str, value: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        of(**{header: value})
    assert caught.value.code == code
