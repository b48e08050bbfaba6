"""The body of an upload on its way into an object.

Owns that nothing is put whose body did not pass all checks: what :meth:`Payload.source` gives ends with the
error in place of its end, so that the put fails. Small bodies are taken whole first: a put of bytes can be
tried again when its replica group changes meanwhile, one of a stream cannot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from moorage.gateway.s3 import names
from moorage.gateway.s3.body import Body, Digests
from moorage.gateway.s3.call import Call
from moorage.gateway.s3.checksums import Algorithm

WHOLE_MAX: Final = 1 << 20


class Payload:
    """Raises S3Error for announcements that cannot be, before a byte is read."""

    def __init__(self, call: Call, usual: Algorithm | None = None) -> None:
        self._incoming = call.incoming
        self._body = Body(call.request, call.proof, usual)
        self._digests: Digests | None = None
        names.check_put_size(self._body.length)

    @property
    def digests(self) -> Digests:
        """Once all has been read."""
        assert self._digests is not None
        return self._digests

    def etag(self) -> str:
        """Likewise."""
        return self.digests.md5.hex()

    async def source(self) -> bytes | AsyncIterator[memoryview]:
        if self._body.length > WHOLE_MAX:
            return self._pieces()
        return b"".join([bytes(piece) async for piece in self._pieces()])

    async def _pieces(self) -> AsyncIterator[memoryview]:
        async for data in self._incoming:
            for piece in self._body.feed(data):
                yield piece
        self._digests = self._body.finish()
