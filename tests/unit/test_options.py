"""The table of options, and the way from flags and environment to settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from moorage.service.launch import Settings, load_settings, unknown_variables
from moorage.service.options import OPTIONS, SERVICES, options_of, parse_size
from moorage.wire.errors import Invalid

BASE = {"MOORAGE_DATA_DIR": "/d", "MOORAGE_SECRET_FILE": "/s", "MOORAGE_NAME": "h1"}


def load(service: str = "host", flags: dict[str, str | None] | None = None, **environ: str) -> Settings:
    if service in ("node", "metadata"):
        environ.setdefault("MOORAGE_REGISTRY", "10.0.0.1:7000")
    return load_settings(service, flags or {}, {**BASE, **environ})


def test_every_option_is_a_field_of_the_settings_and_the_other_way_round() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)} - {"service"}
    assert fields == {option.name for option in OPTIONS}
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_every_option_has_a_service_a_type_and_help() -> None:
    for option in OPTIONS:
        assert option.services <= set(SERVICES) and option.services
        assert option.type and option.help.endswith(".")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_from_environment_variables_alone(service: str) -> None:
    settings = load(service)
    assert (settings.name, settings.data_dir, settings.bind) == ("h1", Path("/d"), "127.0.0.1")
    assert settings.service == service


@pytest.mark.parametrize("service", SERVICES)
def test_every_required_option_is_asked_for_by_flag_and_variable(service: str) -> None:
    for option in options_of(service):
        if option.required:
            environ = {**BASE, "MOORAGE_REGISTRY": "10.0.0.1:7000"}
            del environ[option.variable]
            with pytest.raises(Invalid, match=option.variable):
                load_settings(service, {}, environ)


def test_flags_win_over_variables_and_variables_over_mesos() -> None:
    assert load(PORT0="31000", PORTS="31000,31001").port == 31000
    assert load(PORTS="31000,31001").http_port == 31001
    assert load(PORT1="31005", PORTS="31000,31001").http_port == 31005
    assert load(PORT0="31000", MOORAGE_PORT="7").port == 7
    assert load(flags={"port": "8"}, PORT0="31000", MOORAGE_PORT="7").port == 8
    assert load().port == 0


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert load(MOORAGE_PORT="", PORT0="31000").port == 31000
    assert load(MOORAGE_LOG_LEVEL="").log_level == "INFO"


def test_the_mesos_address_is_bound_and_advertised() -> None:
    settings = load(LIBPROCESS_IP="10.1.2.3")
    assert (settings.bind, settings.advertise) == ("10.1.2.3", "10.1.2.3")
    settings = load(LIBPROCESS_IP="10.1.2.3", MOORAGE_BIND="0.0.0.0")
    assert (settings.bind, settings.advertise) == ("0.0.0.0", "10.1.2.3")
    settings = load(MOORAGE_BIND="10.9.9.9", MOORAGE_ADVERTISE="storage-1.example")
    assert (settings.bind, settings.advertise) == ("10.9.9.9", "storage-1.example")


def test_the_default_name_is_the_machines() -> None:
    environ = {key: value for key, value in BASE.items() if key != "MOORAGE_NAME"}
    name = load_settings("registry", {}, environ).name
    assert name == name.lower() and 0 < len(name) < 64


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MOORAGE_PORT": "99999"}, "--port|MOORAGE_PORT '99999': use a port"),
        ({"MOORAGE_PORT": "-1"}, "MOORAGE_PORT '-1'"),
        ({"MOORAGE_PORT": "٣"}, "MOORAGE_PORT"),
        ({"PORT0": "x"}, "PORT0 'x'"),
        ({"PORTS": "1,y"}, "PORTS 'y'"),
        ({"LIBPROCESS_IP": "localhost"}, "LIBPROCESS_IP 'localhost': use an IP address"),
        ({"MOORAGE_BIND": "nowhere"}, "use an IP address"),
        ({"MOORAGE_NAME": "Bad!"}, "a-z"),
        ({"MOORAGE_NAME": "x" * 64}, "1 to 63"),
        ({"MOORAGE_CAPACITY": "lots"}, "such as 200G"),
        ({"MOORAGE_CAPACITY": "9" * 5000}, r"MOORAGE_CAPACITY '9{80}'\.\.\.: use a number of bytes"),
        ({"MOORAGE_CAPACITY": "9" * 5000 + ".5G"}, "such as 200G"),
        ({"MOORAGE_CAPACITY": "8192P"}, "such as 200G"),
        ({"MOORAGE_CAPACITY": "٣G"}, "such as 200G"),
        ({"MOORAGE_PORT": "9" * 5000}, "use a port"),
        ({"MOORAGE_DRAIN_S": "9" * 5000}, "above 0"),
        ({"MOORAGE_LABELS": "rack"}, "KEY=VALUE"),
        ({"MOORAGE_LABELS": "rack=a,rack=b"}, "twice"),
        ({"MOORAGE_PEERS": "h1"}, "KEY=VALUE"),
        ({"MOORAGE_PEERS": "h1=10.0.0.1"}, "HOST:PORT"),
        ({"MOORAGE_PEERS": "h1=10.0.0.1:²"}, "HOST:PORT"),
        ({"MOORAGE_PEERS": "h1=10.0.0.1:0"}, "HOST:PORT"),
        ({"MOORAGE_PEERS": "h1=10.0.0.1:" + "9" * 5000}, "HOST:PORT"),
        ({"MOORAGE_PEERS": "h2=10.0.0.1:7"}, "does not name this member: add h1="),
        ({"MOORAGE_PEERS": "h1=a:7,h2=b:7"}, "1, 3 or 5"),
        ({"MOORAGE_JOIN": "maybe"}, "yes or no"),
        ({"MOORAGE_JOIN": "yes"}, "--join needs --peers"),
        ({"MOORAGE_JOIN": "yes", "MOORAGE_PEERS": "h1=a:7"}, "--join needs --peers"),
        ({"MOORAGE_REGISTRY": "nonsense"}, "MOORAGE_REGISTRY 'nonsense': bad address"),
        ({"MOORAGE_REGISTRY": "srv:"}, "srv:NAME"),
        ({"MOORAGE_REGISTRY": "h1:²"}, "bad address"),
        ({"MOORAGE_REGISTRY": "h1:" + "9" * 5000}, "bad address"),
        ({"MOORAGE_LOG_LEVEL": "loud"}, "DEBUG, INFO"),
        ({"MOORAGE_DRAIN_S": "0"}, "above 0"),
        ({"MOORAGE_PORT": "7", "MOORAGE_HTTP_PORT": "7"}, "both 7"),
        ({"MOORAGE_BIND": "0.0.0.0"}, "--advertise"),
        ({"MOORAGE_SECRET": "hush"}, "MOORAGE_SECRET_FILE"),
        ({"MOORAGE_TOKEN": "hush"}, "MOORAGE_TOKEN_FILE"),
        ({"MOORAGE_SUSPECT_MS": "2000"}, "--suspect-ms 2000 must be more than 2 times --heartbeat-ms 1000"),
        ({"MOORAGE_DOWN_MS": "3000"}, "--down-ms 3000 must be more than --suspect-ms 3000"),
        ({"MOORAGE_READ_LEASE_MS": "2000"}, "--lease-ms 4000 must be more than 2 times --read-lease-ms"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(environ: dict[str, str], words: str) -> None:
    with pytest.raises(Invalid, match=words) as found:
        load("node" if "MOORAGE_REGISTRY" in environ else "host", **environ)
    assert "hush" not in str(found.value)
    assert len(str(found.value).splitlines()) == 1


def test_timings_just_inside_of_their_relations_are_accepted() -> None:
    assert load(MOORAGE_SUSPECT_MS="2001").suspect_ms == 2001
    assert load(MOORAGE_DOWN_MS="3001").down_ms == 3001
    assert load(MOORAGE_READ_LEASE_MS="1999").read_lease_ms == 1999


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1K", 1024),
        ("1.5G", 3 << 29),
        ("200GiB", 200 << 30),
        ("2tb", 2 << 40),
        ("7 M", 7 << 20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1Q", "G", "1e9", "0x10", "1..5G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(Invalid, match="number of bytes"):
        parse_size(text)


def test_a_member_that_joins_names_the_others() -> None:
    assert load(MOORAGE_JOIN="yes", MOORAGE_PEERS="h2=a:7,h3=b:7").join
    assert not load(MOORAGE_JOIN="no", MOORAGE_PEERS="h1=a:7").join


def test_misspelt_variables_are_told() -> None:
    assert unknown_variables({"MOORAGE_CAPCITY": "1", "MOORAGE_PORT": "1", "HOME": "/"}) == [
        "MOORAGE_CAPCITY"
    ]
