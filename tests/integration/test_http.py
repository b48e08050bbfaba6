"""The HTTP side of a service: open probes, and nothing else without the token."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from moorage.service import http
from moorage.service.embed import Route
from moorage.service.http import BODY_MAX, CONNECTIONS_MAX, HttpServer, create_token, load_token
from moorage.wire import errors

TOKEN = "a-token-of-some-length"
Streams = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


class Service:
    """A server with two calls and what they did."""

    def __init__(self, token: str | None = TOKEN) -> None:
        self.reasons: list[str] = []
        self.done: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.asked, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.server = HttpServer(token=token, metrics=CollectorRegistry(), not_ready=lambda: self.reasons)
        self.server.add_routes([Route("POST", "do", self.do), Route("GET", "look", self.look)])
        self.url = ""

    async def do(self, params: dict[str, Any]) -> Any:
        if self.error is not None:
            raise self.error
        self.done.append(params)
        return {"did": params, "raw": b"\xff"}

    async def look(self, params: dict[str, Any]) -> Any:
        self.asked.set()
        await self.gate.wait()
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


def password(token: str, user: str = "me") -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{token}'.encode()).decode()}"}


async def test_a_page_takes_the_token_as_a_password_and_calls_do_not(client: aiohttp.ClientSession) -> None:
    """A browser sends a password along with what other sites have it ask for."""
    server = HttpServer(
        token=TOKEN, metrics=CollectorRegistry(), not_ready=lambda: [], page=lambda: "<p>all is well</p>"
    )
    done = []

    async def do(params: dict[str, Any]) -> Any:
        done.append(params)
        return {}

    server.add_routes([Route("POST", "do", do), Route("GET", "look", do)])
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    for headers in (bearer(), password(TOKEN), password(TOKEN, "")):
        async with client.get(f"{url}/", headers=headers) as answer:
            assert answer.status == 200 and await answer.text() == "<p>all is well</p>"
            assert answer.content_type == "text/html" and answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for headers in ({}, password("wrong"), password(""), {"Authorization": "Basic %"}, bearer("wrong")):
        async with client.get(f"{url}/", headers=headers) as answer:
            assert answer.status == 401 and answer.headers["WWW-Authenticate"].startswith("Basic ")
            assert "well" not in await answer.text()
    for method, path in (("POST", "/v1/do"), ("GET", "/v1/look"), ("POST", "/"), ("GET", "/other")):
        async with client.request(method, url + path, headers=password(TOKEN), json={}) as answer:
            assert answer.status == 401 and "WWW-Authenticate" not in answer.headers
    assert done == []
    await server.stop()


async def test_a_call_gets_the_body_and_the_query(service: Service, client: aiohttp.ClientSession) -> None:
    async with client.post(f"{service.url}/v1/do?b=2", headers=bearer(), json={"a": 1}) as answer:
        assert answer.status == 200
        assert await answer.json() == {"did": {"a": 1, "b": "2"}, "raw": "ff"}
    async with client.get(f"{service.url}/v1/look", headers=bearer()) as answer:
        assert await answer.json() == {}


@pytest.mark.parametrize("body", [b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'"x"'])
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


# -- connections that ask for nothing ------------------------------------------------------------------


@pytest.fixture
async def strangers(service: Service) -> AsyncIterator[Callable[[int, bytes], Awaitable[Streams]]]:
    """Connections that send some bytes and wait; they are made one after the other."""
    made: Streams = []

    async def connect(count: int, sent: bytes) -> Streams:
        port = int(service.url.rpartition(":")[2])
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
        for _, writer in pairs:
            writer.write(sent)
        made.extend(pairs)
        return pairs

    yield connect
    for _, writer in made:
        writer.close()


def alive(pairs: Streams) -> int:
    return sum(not (reader.at_eof() or reader.exception()) for reader, _ in pairs)


async def until_alive(pairs: Streams, count: int) -> None:
    async with asyncio.timeout(5):
        while alive(pairs) != count:
            await asyncio.sleep(0.01)


async def test_connections_are_bounded_and_the_oldest_makes_room(
    service: Service, client: aiohttp.ClientSession, strangers: Any
) -> None:
    pairs = await strangers(CONNECTIONS_MAX + 50, b"GET /v1/look HTTP/1.1\r\n")
    await until_alive(pairs, CONNECTIONS_MAX)
    assert alive(pairs[:50]) == 0
    async with client.get(f"{service.url}/healthz") as answer:
        assert answer.status == 200
    await until_alive(pairs, CONNECTIONS_MAX - 1)


async def test_connections_that_come_all_at_once_are_bounded_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 8)
    port = int(service.url.rpartition(":")[2])
    pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(64)))
    await until_alive(pairs, 8)
    for _, writer in pairs:
        writer.close()


async def test_a_request_being_answered_makes_no_room(
    service: Service, client: aiohttp.ClientSession, strangers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 1)
    service.gate.clear()

    async def ask() -> int:
        async with client.get(f"{service.url}/v1/look", headers=bearer()) as answer:
            return answer.status

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(5):
        await service.asked.wait()
    await until_alive(await strangers(3, b""), 0)
    service.gate.set()
    assert await asking == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/look HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"]
)
async def test_a_connection_without_a_request_ends(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http, "HEADERS_S", 0.2)
    service = Service()
    reader, writer = await asyncio.open_connection("127.0.0.1", await service.server.start("127.0.0.1", 0))
    writer.write(sent)
    async with asyncio.timeout(3):
        answer = await reader.read()
    assert (b"alive" in answer) == (b"healthz" in sent)
    writer.close()
    await service.server.stop()


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
