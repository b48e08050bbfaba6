"""Answers to work that takes long: the connection is kept alive by blanks until the document is there.

Owns the form of such an answer, which is that of Amazon's CopyObject: status 200 at once, blanks, then the
document, of the result or of an error. What ends soon is answered as everything else is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

from moorage.gateway.s3 import errors
from moorage.gateway.s3.answer import Answer, xml
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.markup import DECLARATION
from moorage.wire.errors import MoorageError

SOON_S: Final = 10.0  # clients wait a minute for the first byte, and proxies often half of it


async def patiently(
    call: Call, work: Coroutine[Any, Any, Answer], told: dict[str, str], every_s: float = SOON_S
) -> Answer:
    """``work`` gives an answer that is an XML document; ``told``: those of its headers that are known before.
    It is cancelled with whoever waits for the answer."""
    task = asyncio.create_task(work, name=f"s3 {call.operation}")
    try:
        done, _ = await asyncio.wait({task}, timeout=every_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if done:
        return task.result()
    answer = xml(b"", told)
    answer.stream = _blanks(call, task, every_s)
    return answer


async def _blanks(call: Call, task: asyncio.Task[Answer], every_s: float) -> AsyncIterator[memoryview]:
    declaration = DECLARATION.encode()
    try:
        yield memoryview(declaration)
        while not task.done():
            yield memoryview(b" ")
            await asyncio.wait({task}, timeout=every_s)
        yield memoryview(_outcome(call, task).removeprefix(declaration))
    finally:
        task.cancel()


def _outcome(call: Call, task: asyncio.Task[Answer]) -> bytes:
    try:
        return task.result().body
    except (S3Error, MoorageError) as error:
        return errors.render(errors.error_of(error), call.request.path, "")
