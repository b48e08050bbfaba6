"""A version is a tag of the image that there is."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.framework.api import with_tag
from moorage.wire.errors import Invalid


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("moorage", "moorage:1.2"),
        ("moorage:1.1", "moorage:1.2"),
        ("host:5000/team/moorage", "host:5000/team/moorage:1.2"),
        ("host:5000/team/moorage:1.1", "host:5000/team/moorage:1.2"),
        ("moorage@sha256:abc", "moorage:1.2"),
    ],
)
def test_the_same_image_of_another_version(image: str, found: str) -> None:
    assert with_tag(image, "1.2") == found


@pytest.mark.parametrize(("image", "version"), [("", "1.2"), (3, "1.2"), ("moorage", "a/b"), ("moorage", 3)])
def test_what_is_no_version_of_an_image(image: Any, version: Any) -> None:
    with pytest.raises(Invalid, match=r"no image|no tag"):
        with_tag(image, version)
