"""The way to a Mesos master: who leads, and calls in JSON.

Owns the HTTP session. A call goes to the leader known last, else to the masters given, in turn; one that does
not lead answers 307, and is followed. Must never: repeat a call that may have had an effect, send credentials
from https to http, or wait without an end. The facts it relies on are in docs/mesos-api.md.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import aiohttp

from moorage.framework.messages import Json, call_of, parse, refusal
from moorage.wire import errors

OPERATOR_PATH = "/api/v1"
HOPS_MAX = 4  # masters asked in a row, each named by the one before: two may name each other
ANSWER_SIZE_MAX = 64 << 20  # GET_STATE of some ten thousand tasks


@dataclass(frozen=True)
class Timings:
    """All in seconds."""

    connect_s: float = 5.0  # to one master, its name looked up
    answer_s: float = 30.0  # for the head of an answer, for its body, and for SUBSCRIBED after a SUBSCRIBE
    heartbeat_s: float = 15.0  # between two heartbeats, where the master does not say
    backoff_first_s: float = 0.5  # before the second attempt to subscribe; it doubles each time
    backoff_max_s: float = 30.0
    steady_s: float = 5.0  # a subscription that lasted so long was a good one: the backoff starts afresh


DEFAULT = Timings()


@dataclass(frozen=True)
class Credentials:
    """For HTTP basic authentication. ``principal`` must be that of the FrameworkInfo. Raises Invalid."""

    principal: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.principal or ":" in self.principal:
            raise errors.Invalid(f"bad principal {self.principal!r}: it must have a character, and no colon")

    @property
    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.principal}:{self.secret}".encode()).decode()


class Master:
    """The masters of one cluster, as one. Make it inside of a running loop, and ``await close()`` it.

    ``addresses``: ``HOST:PORT``, or ``http://`` or ``https://`` URLs; some of the masters are enough, since
    they name the leader. ``leader``: its URL (``http://HOST:PORT``), when it is known. Raises Invalid.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: Credentials | None = None,
        timings: Timings = DEFAULT,
    ) -> None:
        self.leader: str | None = None
        self.timings = timings
        self._bases = list(dict.fromkeys(base_of(each) for each in addresses))
        if not self._bases:
            raise errors.Invalid("no Mesos master given: say HOST:PORT of each")
        headers = {"Accept": "application/json"}
        if credentials is not None:
            headers["Authorization"] = credentials.header
        self._session = aiohttp.ClientSession(
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=timings.connect_s),
        )

    async def __aenter__(self) -> Master:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    async def query(self, kind: str, body: Json | None = None) -> Json:
        """A call of the operator API, ``query("GET_AGENTS")`` or ``query("RESERVE_RESOURCES", {...})``: the
        master's answer, ``{}`` where it has no words.

        Raises Invalid (400, with the master's text), Busy (409: the agent has no such resources free),
        AuthenticationFailed (401, 403), Unavailable (nobody can be reached, or nobody leads; nothing was
        done), ConnectionLost or DeadlineExceeded (it may have been done: look before repeating it; calls
        that only GET have been repeated), ProtocolError (what answers is no Mesos master).
        """
        changes_nothing = kind.startswith("GET_")
        base, response = await self.open(OPERATOR_PATH, call_of(kind, body), repeatable=changes_nothing)
        raw = await self.read(base, response)
        if response.status not in (200, 202):
            raise refusal(base, kind, response.status, raw)
        return parse(base, raw) if raw.strip() else {}

    # -- below the two APIs ----------------------------------------------------------------------------

    async def open(self, path: str, call: Json, *, repeatable: bool) -> tuple[str, aiohttp.ClientResponse]:
        """POST to the leader, whoever it is: its URL, and its answer as far as the headers. Any status below
        500 is an answer. The caller reads it, or closes it.

        ``repeatable``: it does no harm to try elsewhere what may have arrived already. Raises Unavailable
        with the causes of all masters asked, ConnectionLost or DeadlineExceeded.
        """
        causes: dict[str, str] = {}
        for base in self._order():
            try:
                return await self._follow(base, path, call)
            except errors.Unavailable as error:
                self.leader = None
                causes[base] = error.message
                if error.outcome == "unknown" and not repeatable:
                    raise
        raise errors.Unavailable(
            f"no leading Mesos master for {call['type']} (check that these are the masters, that a majority "
            f"of them is up, and that one was elected): {'; '.join(causes.values())}",
            causes=causes,
        )

    async def post(
        self, base: str, path: str, call: Json, *, stream_id: str | None = None
    ) -> aiohttp.ClientResponse:
        """POST to one master: its answer as far as the headers, whatever its status is. The caller reads it,
        or closes it. Raises CannotConnect (nothing was sent), ConnectionLost or DeadlineExceeded."""
        headers = {} if stream_id is None else {"Mesos-Stream-Id": stream_id}
        with reaching(base):
            async with asyncio.timeout(self.timings.answer_s):
                # Redirects are ours to follow: the leader is to be remembered, and needs the credentials too.
                return await self._session.post(
                    base + path, json=call, headers=headers, allow_redirects=False
                )

    async def read(self, base: str, response: aiohttp.ClientResponse) -> bytes:
        """The body of an answer that ends. Raises ConnectionLost, DeadlineExceeded or ProtocolError (longer
        than ANSWER_SIZE_MAX)."""
        body = bytearray()
        with reaching(base):
            async with asyncio.timeout(self.timings.answer_s), response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > ANSWER_SIZE_MAX:
                        raise errors.ProtocolError(
                            f"the Mesos master {base} answers with more than {ANSWER_SIZE_MAX} bytes"
                        )
        return bytes(body)

    def _order(self) -> list[str]:
        others = [base for base in self._bases if base != self.leader]
        return others if self.leader is None else [self.leader, *others]

    async def _follow(self, base: str, path: str, call: Json) -> tuple[str, aiohttp.ClientResponse]:
        """Ask ``base``, and whom it names as the leader. Raises Unavailable and those below it."""
        for _ in range(HOPS_MAX):
            response = await self.post(base, path, call)
            if response.status == 307:
                response.release()
                base = leader_named(base, response.headers.get("Location", ""))
            elif response.status >= 500:
                raise refusal(base, call["type"], response.status, await self.read(base, response))
            else:
                self.leader = base
                return base, response
        raise errors.Unavailable(f"{HOPS_MAX} masters in a row name another one as the leader, {base} last")


def base_of(address: str) -> str:
    """``HOST:PORT`` or a URL as ``http://HOST:PORT``. Raises Invalid."""
    if address.startswith("zk://"):
        raise errors.Invalid(f"{address}: ZooKeeper is not asked: give HOST:PORT of the masters themselves")
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad_address(address) from None
    if "@" in parts.netloc:  # not shown: who reads the log should not learn them
        raise errors.Invalid(f"credentials in the address of {parts.hostname}: give them by themselves")
    more = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or more:
        raise _bad_address(address)
    if port is None and "://" not in address:
        raise _bad_address(address)
    return _origin(parts.scheme, parts.hostname, port)


def _bad_address(address: str) -> errors.Invalid:
    return errors.Invalid(
        f"bad address of a Mesos master {address!r}: give HOST:PORT, http://HOST:PORT or https://HOST:PORT"
    )


def _origin(scheme: str, host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port if port is not None else 443 if scheme == 'https' else 80}"


def leader_named(base: str, location: str) -> str:
    """Whom a master that does not lead names: ``//HOST:PORT/...`` as Mesos has it, or a URL. Raises
    Unavailable for what leads nowhere."""
    try:
        parts = urlsplit(urljoin(base, location))
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or not location:
        raise errors.Unavailable(f"{base} does not lead, and names no leader but {location!r}")
    if base.startswith("https:") and parts.scheme == "http":
        raise errors.Unavailable(f"{base} names a leader without TLS, {location}: give all masters as https")
    return _origin(parts.scheme, parts.hostname, port)


@contextmanager
def reaching(base: str) -> Iterator[None]:
    """What can go wrong on the way, as errors of ours."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise _cannot_connect(base, str(error.os_error)) from None
    except (aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
        raise _cannot_connect(base, str(error)) from None
    except TimeoutError:
        raise errors.DeadlineExceeded(
            f"the Mesos master {base} does not answer in time: is it overloaded, or frozen?"
        ) from None
    except (aiohttp.ClientError, OSError) as error:
        raise errors.ConnectionLost(
            f"the connection to the Mesos master {base} broke: {str(error) or type(error).__name__}"
        ) from None


def _cannot_connect(base: str, why: str) -> errors.CannotConnect:
    return errors.CannotConnect(
        f"cannot connect to the Mesos master {base}: {why}: is it up, and is this its address?"
    )
