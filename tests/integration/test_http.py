"""The HTTP side of a service: open probes, and nothing else without the token."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from moorage.service.embed import Route
from moorage.service.http import BODY_MAX, HttpServer, create_token, load_token
from moorage.wire import errors

TOKEN = "a-token-of-some-length"


class Service:
    """A server with two calls and what they did."""

    def __init__(self, token: str | None = TOKEN) -> None:
        self.reasons: list[str] = []
        self.done: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.server = HttpServer(token=token, metrics=CollectorRegistry(), not_ready=lambda: self.reasons)
        self.server.add_routes([Route("POST", "do", self.do), Route("GET", "look", self.look)])
        self.url = ""

    async def do(self, params: dict[str, Any]) -> Any:
        if self.error is not None:
            raise self.error
        self.done.append(params)
        return {"did": params, "raw": b"\xff"}

    async def look(self, params: dict[str, Any]) -> Any:
        return params


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    service.url = f"http://127.0.0.1:{await service.server.start('127.0.0.1', 0)}"
    yield service
    await service.server.stop()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_probes_need_no_token(service: Service, client: aiohttp.ClientSession) -> None:
    async with client.get(f"{service.url}/healthz") as answer:
        assert answer.status == 200 and (await answer.json())["status"] == "alive"
    async with client.get(f"{service.url}/readyz") as answer:
        assert answer.status == 200 and await answer.json() == {"ready": True, "reasons": []}
    async with client.get(f"{service.url}/metrics") as answer:
        assert answer.status == 200 and "moorage_loop_lag_seconds" in await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")


async def test_readiness_has_reasons(service: Service, client: aiohttp.ClientSession) -> None:
    service.reasons = ["registry: no leader"]
    async with client.get(f"{service.url}/readyz") as answer:
        assert answer.status == 503
        assert await answer.json() == {"ready": False, "reasons": ["registry: no leader"]}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("wrong"),
        bearer(TOKEN + "x"),
        bearer(TOKEN[:-1]),
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
async def test_without_the_token_nothing_changes_and_nothing_is_learnt(
    service: Service, client: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    for method, path in (
        ("POST", "/v1/do"),
        ("GET", "/v1/look"),
        ("GET", "/v1/none"),
        ("POST", "/healthz"),
        ("GET", "/"),
    ):
        async with client.request(method, service.url + path, headers=headers, json={}) as answer:
            assert answer.status == 401
            assert TOKEN not in await answer.text()
    assert service.done == []


async def test_without_a_token_file_no_token_is_right(client: aiohttp.ClientSession) -> None:
    service = Service(token=None)
    url = f"http://127.0.0.1:{await service.server.start('127.0.0.1', 0)}"
    for token in ("", "None", TOKEN):
        async with client.post(f"{url}/v1/do", headers=bearer(token), json={}) as answer:
            assert answer.status == 401
    assert service.done == []
    await service.server.stop()


async def test_a_call_gets_the_body_and_the_query(service: Service, client: aiohttp.ClientSession) -> None:
    async with client.post(f"{service.url}/v1/do?b=2", headers=bearer(), json={"a": 1}) as answer:
        assert answer.status == 200
        assert await answer.json() == {"did": {"a": 1, "b": "2"}, "raw": "ff"}
    async with client.get(f"{service.url}/v1/look", headers=bearer()) as answer:
        assert await answer.json() == {}


@pytest.mark.parametrize("body", [b"{", b"[]", b"7", b"\xff\xfe", b'"x"'])
async def test_a_body_that_is_no_object(service: Service, client: aiohttp.ClientSession, body: bytes) -> None:
    async with client.post(f"{service.url}/v1/do", headers=bearer(), data=body) as answer:
        assert answer.status == 400
        assert "send" in (await answer.json())["error"]["message"]
    assert service.done == []


async def test_a_body_that_is_too_large(service: Service, client: aiohttp.ClientSession) -> None:
    async with client.post(
        f"{service.url}/v1/do", headers=bearer(), data=io.BytesIO(b" " * (BODY_MAX + 1))
    ) as answer:
        assert answer.status == 413
    assert service.done == []


async def test_calls_that_do_not_exist_name_those_that_do(
    service: Service, client: aiohttp.ClientSession
) -> None:
    for method, path in (("GET", "/v1/do"), ("DELETE", "/v1/do"), ("GET", "/v1/none")):
        async with client.request(method, service.url + path, headers=bearer()) as answer:
            assert answer.status == 404
            assert "GET /v1/look, POST /v1/do" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Invalid("size: use a multiple"), 400),
        (errors.NotFound("no volume 'x'"), 404),
        (errors.NameTaken("taken"), 409),
        (errors.Busy("held by h1"), 409),
        (errors.LimitExceeded("too many"), 400),
        (errors.Denied("no"), 403),
        (errors.NotLeader("ask h2", leader={"name": "h2"}), 503),
        (errors.Fenced("by another"), 409),
        (errors.DeadlineExceeded("late"), 504),
        (errors.NoQuorum("1 of 3"), 503),
        (errors.Overloaded("full"), 503),
        (errors.NoSpace("full"), 507),
        (errors.Corrupt("bad"), 500),
    ],
)
async def test_errors_have_one_status_each(
    service: Service, client: aiohttp.ClientSession, error: errors.MoorageError, status: int
) -> None:
    service.error = error
    async with client.post(f"{service.url}/v1/do", headers=bearer()) as answer:
        assert answer.status == status
        said = (await answer.json())["error"]
        assert said == {"kind": type(error).__name__, "message": error.message, "details": error.details}


async def test_a_mistake_of_ours_shows_no_traceback(service: Service, client: aiohttp.ClientSession) -> None:
    service.error = RuntimeError("boom")
    async with client.post(f"{service.url}/v1/do", headers=bearer()) as answer:
        assert answer.status == 500
        assert "boom" not in await answer.text() and "Traceback" not in await answer.text()


async def test_a_port_in_use(service: Service) -> None:
    other = Service()
    port = int(service.url.rpartition(":")[2])
    with pytest.raises(errors.CannotBind, match=f"port {port}"):
        await other.server.start("127.0.0.1", port)


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "token"
    create_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(load_token(path)) == 64
    with pytest.raises(errors.Invalid, match="exists"):
        create_token(path)
    path.chmod(0o640)
    with pytest.raises(errors.Invalid, match="chmod 600"):
        load_token(path)
    path.chmod(0o600)
    for bad in ("", "short", "two words of some length", "ümlaut" * 10):
        path.write_text(bad)
        with pytest.raises(errors.Invalid, match="16 ASCII"):
            load_token(path)
    with pytest.raises(errors.Invalid, match="cannot read"):
        load_token(tmp_path / "none")
