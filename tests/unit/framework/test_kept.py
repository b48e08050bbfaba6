"""The spec as the master keeps it: the same comes back, and nobody else's is taken for it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from moorage.framework.kept import LABEL, framework_info, kept_in
from moorage.framework.spec import check_change, differences, document_of, parse
from moorage.wire.errors import Invalid

from .test_spec import LEAST

WHOLE: dict[str, Any] = {
    "name": "prod",
    "role": "storage/prod",
    "principal": "me",
    "user": "store",
    "command": ["/opt/moorage", "-v"],
    "image": "moorage:1",
    "secret_file": "/etc/secret",
    "token_file": "/etc/token",
    "failure_domain": "rack",
    "failover_timeout_s": 3600,
    "replace_after_s": 0,
    "p99_budget": 5,
    "registry": {"members": 5, "cpus": 0.25, "mem": "64M", "disk": "65M"},
    "metadata": {"groups": 3, "members": 1, "cpus": 1, "mem": "1G", "disk": "3G"},
    "devices": [{"source": "PATH", "size": "7G", "agents": {"ssd": "yes"}}, {"cpus": 0.001}],
    "options": {"repair_after_s": 60},
}


@pytest.mark.parametrize("document", [LEAST, WHOLE])
def test_what_is_kept_is_what_was_given(document: dict[str, Any]) -> None:
    spec = parse(document)
    assert parse(document_of(spec)) == spec
    assert kept_in(json.loads(json.dumps(framework_info(spec)))) == spec


def test_every_field_is_kept_even_with_other_defaults() -> None:
    assert set(document_of(parse(LEAST))) == set(WHOLE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "other"}, "it is of a framework prod"),
        ({"roles": ["other"]}, "role storage/prod"),
        ({"principal": "mallory"}, "principal me"),
        ({"text": "{"}, "it is no JSON"),
        ({"text": "[" * 100_000}, "it is no JSON"),
        ({"text": '{"since": 2}'}, "secret_file is missing"),
        ({"text": json.dumps({**WHOLE, "later": 1})}, "unknown: later"),
    ],
)
def test_what_is_not_ours_or_not_readable_is_not_used(change: dict[str, Any], says: str) -> None:
    info = framework_info(parse(WHOLE))
    info["labels"] = {
        "labels": [{"key": LABEL, "value": change.pop("text", info["labels"]["labels"][0]["value"])}]
    }
    with pytest.raises(Invalid, match=says):
        kept_in({**info, **change})


def test_a_former_release_kept_none() -> None:
    info = copy.deepcopy(framework_info(parse(WHOLE)))
    del info["labels"]
    assert kept_in(info) is None


def test_what_cannot_change_while_it_runs_is_refused_with_the_reason() -> None:
    old = parse(WHOLE)
    for name in ("name", "role", "principal", "user", "secret_file"):
        with pytest.raises(Invalid, match=f"{name} cannot be changed from .* to 'other': "):
            check_change(old, parse({**WHOLE, name: "other"}))
    new = parse({**WHOLE, "image": "moorage:2", "replace_after_s": 9, "devices": [{}]})
    check_change(old, new)
    assert differences(old, new) == ["image", "replace_after_s", "devices"] and differences(old, old) == []
