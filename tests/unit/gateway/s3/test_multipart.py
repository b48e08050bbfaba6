"""Bodies of forms, cut anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.form import FIELDS_BYTES_MAX
from moorage.gateway.s3.multipart import FormReader

TYPE = 'multipart/form-data; charset=utf-8; boundary="b b"'
DATA = b"\r\n--b \r\nsome bytes\r\n--b"


def field(name: str, value: bytes) -> bytes:
    return f'--b b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


FILE = b'--b b\r\nX: y\r\ncontent-disposition: form-data; filename="f g.txt"; name=file\r\n\r\n'
BODY = b"preamble\r\n" + field("key", "ü".encode()) + field("a", b"") + FILE + DATA + b"\r\n--b b--\r\nrest"


async def read(body: bytes, step: int, kind: str = TYPE) -> tuple[list[tuple[str, str]], str, bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), step):
            yield body[at : at + step]

    reader = FormReader(kind, pieces())
    pairs, filename = await reader.fields()
    return pairs, filename, b"".join([piece async for piece in reader.file()])


@pytest.mark.parametrize("step", [*range(1, 12), 1000])
async def test_fields_and_the_file(step: int) -> None:
    assert await read(BODY, step) == ([("key", "ü"), ("a", "")], "f g.txt", DATA)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "MalformedPOSTRequest"),
        (BODY[: BODY.index(b"--\r\nrest") - 3], "MalformedPOSTRequest"),
        (b"--b b\r\nX: y\r\n\r\n", "MalformedPOSTRequest"),
        (field("key", b"k") + b"--b b--\r\n", "InvalidArgument"),
        (field("key", b"\xff") + FILE + b"\r\n--b b--", "InvalidArgument"),
        (field("key", bytes(FIELDS_BYTES_MAX + 10)) + FILE, "MaxPostPreDataLengthExceeded"),
        (b"".join(field(f"f{n}", b"") for n in range(201)) + FILE, "MaxPostPreDataLengthExceeded"),
        (field("a", bytes(15_000)) + field("b", bytes(15_000)) + FILE, "MaxPostPreDataLengthExceeded"),
    ],
)
async def test_what_is_none(body: bytes, code: str) -> None:
    for step in (7, 100_000):
        with pytest.raises(S3Error) as caught:
            await read(body, step)
        assert caught.value.code == code


async def test_a_type_without_a_boundary() -> None:
    with pytest.raises(S3Error, match="no boundary"):
        await read(BODY, 100, "multipart/form-data")
