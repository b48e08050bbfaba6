"""Calls of a running scheduler's JSON API, as the command line makes them.

Owns one HTTP session for each call. Must never show the token, or repeat a call by itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from moorage.framework.inventory import Json
from moorage.wire import errors

ANSWER_S = 60.0  # a master that is asked meanwhile has 30 s
KINDS = {each.__name__: each for each in errors.BY_CODE.values()}
KINDS["Unauthorized"] = errors.AuthenticationFailed


async def call(address: str, token: str, name: str, params: Json) -> Json:
    """``POST /v1/NAME`` at HOST:PORT. Raises what the scheduler says, CannotConnect, or DeadlineExceeded and
    ConnectionLost (it may have been done)."""
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with (
            asyncio.timeout(ANSWER_S),
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"http://{address}/v1/{name}", json=params, allow_redirects=False) as answer,
        ):
            found: Any = await answer.json()
    except TimeoutError:
        raise errors.DeadlineExceeded(f"the scheduler {address} does not answer in {ANSWER_S:g} s") from None
    except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
        raise errors.CannotConnect(f"cannot connect to the scheduler {address}: {error}") from None
    except (aiohttp.ContentTypeError, ValueError):
        raise errors.ProtocolError(f"{address} is no scheduler of Moorage: it answers without JSON") from None
    except (aiohttp.ClientError, OSError) as error:
        raise errors.ConnectionLost(f"the connection to the scheduler {address} broke: {error}") from None
    match found:
        case {"error": {"kind": str(kind), "message": str(message)}}:
            raise KINDS.get(kind, errors.RemoteError)(message)
        case dict():
            return found
    raise errors.ProtocolError(f"{address} is no scheduler of Moorage: it answers {type(found).__name__}")
