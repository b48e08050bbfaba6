"""The records that tests publish are those of Mesos-DNS: its rules, one by one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mesos.mesos_dns import label, records, short_hash

TAIL = "storage.mesos"


def state(**task: Any) -> dict[str, Any]:
    agent = {"id": "d10b1a0d-S7", "pid": "slave(1)@10.0.0.7:5051"}
    row = {"id": "t.1", "name": "Export_A.v1", "slave_id": agent["id"], "state": "TASK_RUNNING", **task}
    return {"slaves": [agent], "frameworks": [{"name": "storage", "tasks": [row]}]}


@pytest.mark.parametrize(
    ("text", "size_max", "found"),
    [
        ("Export_A.v1", 63, "export-a-v1"),
        ("--a b/ü--", 63, "ab"),
        ("a" * 70, 63, "a" * 63),
        ("ab--cd", 3, "abc"),
    ],
)
def test_labels(text: str, size_max: int, found: str) -> None:
    assert label(text, size_max) == found


def test_the_hash_of_a_task_is_that_of_mesos_dns() -> None:
    assert short_hash("test") == "iffe9"
    assert short_hash("liquor-store.b8db9f73-562f-11e4-a088-c20493233aa5") == "4dfjd"


def test_a_task_without_discovery_is_its_ports_at_its_agent() -> None:
    found = records(state(resources={"ports": "[31000-31001, 31005-31005]"}))
    host = f"export-a-v1-{short_hash('t.1')}-s7.storage"
    assert found.a == {
        f"export-a-v1.{TAIL}": {"10.0.0.7"},
        f"{host}.mesos": {"10.0.0.7"},
        "export-a-v1.storage.slave.mesos": {"10.0.0.7"},
        f"{host}.slave.mesos": {"10.0.0.7"},
    }
    ports = {(f"{host}.slave.mesos", port) for port in (31000, 31001, 31005)}
    assert found.srv == {
        f"_export-a-v1._{protocol}.{below}": ports
        for protocol in ("tcp", "udp")
        for below in ("storage.mesos", "storage.slave.mesos")
    }


def test_a_task_with_discovery_is_the_ports_that_it_names() -> None:
    ports = [
        {"number": 31000, "name": "rpc", "protocol": "tcp"},
        {"number": 31001, "name": "http", "protocol": "tcp"},
        {"number": 31002},
    ]
    found = records(
        state(
            discovery={"name": "registry", "ports": {"ports": ports}},
            resources={"ports": "[31000-31000]"},
            statuses=[
                {
                    "state": "TASK_RUNNING",
                    "container_status": {"network_infos": [{"ip_addresses": [{"ip_address": "172.17.0.2"}]}]},
                }
            ],
        )
    )
    host = f"registry-{short_hash('t.1')}-s7.storage"
    assert found.a[f"{host}.mesos"] == found.a[f"registry.{TAIL}"] == {"172.17.0.2"}
    assert found.a[f"{host}.slave.mesos"] == {"10.0.0.7"}
    assert found.srv == {
        f"_rpc._registry._tcp.{TAIL}": {(f"{host}.mesos", 31000)},
        f"_http._registry._tcp.{TAIL}": {(f"{host}.mesos", 31001)},
        f"_registry._tcp.{TAIL}": {(f"{host}.mesos", port) for port in (31000, 31001, 31002)},
        f"_registry._udp.{TAIL}": {(f"{host}.mesos", 31002)},
        "_registry._tcp.storage.slave.mesos": {(f"{host}.slave.mesos", 31000)},
        "_registry._udp.storage.slave.mesos": {(f"{host}.slave.mesos", 31000)},
    }


def test_who_does_not_run_or_has_lost_its_agent_has_no_record() -> None:
    for task in ({"state": "TASK_STAGING"}, {"slave_id": "d10b1a0d-S8"}):
        assert not records(state(**task)).a


def test_a_dot_in_the_name_of_a_framework_separates_labels() -> None:
    shown = state()
    shown["frameworks"][0]["name"] = "storage.Prod"
    assert "export-a-v1.storage.prod.mesos" in records(shown).a


def test_a_name_of_discovery_is_published_as_it_is_too() -> None:
    ports = [{"number": 1, "protocol": "tcp"}]
    found = records(state(discovery={"name": "Export_A", "ports": {"ports": ports}}))
    assert f"_Export_A._tcp.{TAIL}" in found.srv and f"_export-a._tcp.{TAIL}" in found.srv
