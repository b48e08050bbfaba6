"""Bodies and their coding: Amazon's examples, botocore's, every cut of them, and each way to be wrong."""

from __future__ import annotations

import hashlib
import io
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.gateway.s3 import checksums, signature
from moorage.gateway.s3.body import Body, Digests
from moorage.gateway.s3.checksums import Algorithm
from moorage.gateway.s3.chunked import LINE_MAX, ChunkedDecoder, content_encoding
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import ChunkSigner, Payload, Proof, Scope

from .support import body_of, changed, proved, request_of, sent

# -- Amazon's examples of chunked uploads, and more signed the same way ----------------------------------

EXAMPLE_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SCOPE = Scope("20130524", "us-east-1")
SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
TRAILER_SEED = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
DATA = b"a" * 66560
EXAMPLE = (
    b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
    + DATA[:65536]
    + b"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n"
    + DATA[:1024]
    + b"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
)
TRAILER_EXAMPLE = (
    b"10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n"
    + DATA[:65536]
    + b"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n"
    + DATA[:1024]
    + b"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
    + b"x-amz-checksum-crc32c:sOO8/Q==\n\r\n"
    + b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
)
UNSIGNED = b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:hYfYZQ==\r\n\r\n"
CRC32 = "x-amz-checksum-crc32"


def signer(seed: str = SEED) -> ChunkSigner:
    return ChunkSigner(signature.signing_key(EXAMPLE_SECRET, SCOPE), "20130524T000000Z", SCOPE, seed)


def decoder(kind: Payload, length: int) -> ChunkedDecoder:
    match kind:
        case Payload.CHUNKS:
            return ChunkedDecoder(length, signer(), None)
        case Payload.CHUNKS_TRAILER:
            return ChunkedDecoder(length, signer(TRAILER_SEED), ["x-amz-checksum-crc32c"])
        case _:
            return ChunkedDecoder(length, None, [CRC32])


def decoded(made: ChunkedDecoder, data: bytes, *cuts: int) -> bytes:
    found, begin = b"", 0
    for end in (*cuts, len(data)):
        found += b"".join(made.feed(data[begin:end]))
        begin = max(begin, end)
    made.finish()
    return found


WHOLE: dict[Payload, tuple[bytes, bytes]] = {
    Payload.CHUNKS: (EXAMPLE, DATA),
    Payload.CHUNKS_TRAILER: (TRAILER_EXAMPLE, DATA),
    Payload.UNSIGNED_CHUNKS_TRAILER: (UNSIGNED, b"abcde"),
}


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 67_200), max_size=6))
def test_whole_and_cut_anywhere(kind: Payload, cuts: list[int]) -> None:
    coded, plain = WHOLE[kind]
    assert (
        decoded(decoder(kind, len(plain)), coded, *sorted(cut for cut in cuts if cut < len(coded))) == plain
    )


def test_byte_by_byte() -> None:
    assert decoded(decoder(Payload.UNSIGNED_CHUNKS_TRAILER, 5), UNSIGNED, *range(len(UNSIGNED))) == b"abcde"
    tail = TRAILER_EXAMPLE[65536 + 1024 :]
    made = decoder(Payload.CHUNKS_TRAILER, len(DATA))
    made.feed(TRAILER_EXAMPLE[: -len(tail)])
    for at in range(len(tail)):
        made.feed(tail[at : at + 1])
    made.finish()
    assert made.trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_end_is_incomplete(kind: Payload) -> None:
    coded, plain = WHOLE[kind]
    for end in {0, 1, 5, len(coded) // 2, *range(len(coded) - 40, len(coded))} - {-1}:
        made = decoder(kind, len(plain))
        made.feed(coded[: max(0, end)])
        with pytest.raises(S3Error, match="IncompleteBody"):
            made.finish()


@pytest.mark.parametrize("kind", [Payload.CHUNKS, Payload.CHUNKS_TRAILER])
def test_a_flipped_bit_of_signed_chunks_is_noticed(kind: Payload) -> None:
    coded, plain = WHOLE[kind]
    for at in (0, 30, 85, 88, 200, 60_000, 65_650, 66_000, len(coded) - 200, len(coded) - 60, len(coded) - 5):
        wrong = bytearray(coded)
        wrong[at] ^= 1
        with pytest.raises(S3Error) as caught:
            decoded(decoder(kind, len(plain)), bytes(wrong))
        known = {"SignatureDoesNotMatch", "InvalidRequest", "MalformedTrailerError", "IncompleteBody"}
        assert caught.value.code in known


def test_pieces_are_views_and_nothing_is_kept() -> None:
    made = decoder(Payload.CHUNKS, len(DATA))
    data = EXAMPLE[:40_000]
    (piece,) = made.feed(data)
    assert piece.obj is data
    assert len(made._line) == 0


@pytest.mark.parametrize(
    ("coded", "code"),
    [
        (b"x\r\n", "InvalidRequest"),
        (b"\r\n", "InvalidRequest"),
        (b"-1\r\n", "InvalidRequest"),
        (b"3;a=b\r\n", "InvalidRequest"),
        (b"3;chunk-signature=" + b"0" * 64 + b"\r\n", "InvalidRequest"),
        (b"00000000000000003\r\n", "InvalidRequest"),
        (b"3\r\nabcd\r\n", "InvalidRequest"),
        (b"6\r\n", "InvalidRequest"),
        (b"ffffffffffffffff\r\n", "InvalidRequest"),
        (b"1" * (LINE_MAX + 2), "InvalidRequest"),
        (b"5\r\nabcde\r\n0\r\n\r\n", "MalformedTrailerError"),
        (b"5\r\nabcde\r\n0\r\nno colon\r\n\r\n", "MalformedTrailerError"),
        (b"5\r\nabcde\r\n0\r\nother:1\r\n\r\n", "MalformedTrailerError"),
        (b"5\r\nabcde\r\n0\r\n" + b"x-amz-checksum-crc32:a\r\n" * 2, "MalformedTrailerError"),
        (b"5\r\nabcde\r\n0\r\n" + b"x-amz-trailer-signature:a\r\n", "MalformedTrailerError"),
        (b"4\r\nabcd\r\n0\r\nx-amz-checksum-crc32:a\r\n\r\n", "IncompleteBody"),
        (UNSIGNED + b"x", "InvalidRequest"),
    ],
)
def test_malformed(coded: bytes, code: str) -> None:
    for cuts in ((), tuple(range(len(coded)))):
        with pytest.raises(S3Error) as caught:
            decoded(decoder(Payload.UNSIGNED_CHUNKS_TRAILER, 5), coded, *cuts)
        assert caught.value.code == code


def coded_by_us(*chunks: bytes, trailer: bytes | None = None) -> bytes:
    """Signed as the decoder expects it: a chain of its own."""
    chain, found = signer(), b""
    for chunk in (*chunks, b""):
        digest = hashlib.sha256(chunk).hexdigest()
        text = f"{signature.ALGORITHM}-PAYLOAD\n{chain._at}\n{chain._scope}\n{chain._previous}\n"
        made = signature._sign(chain._key, f"{text}{signature.EMPTY_SHA256}\n{digest}")
        chain.check_chunk(made, digest)
        found += b"%x;chunk-signature=%b\r\n" % (len(chunk), made.encode()) + chunk + b"\r\n" * bool(chunk)
    return found + (b"\r\n" if trailer is None else trailer)


def test_small_chunks_that_are_signed() -> None:
    small, large = b"a" * 8191, b"b" * 8192
    right = coded_by_us(large, large, small)
    assert decoded(decoder(Payload.CHUNKS, 24_575), right) == large + large + small
    with pytest.raises(S3Error, match="InvalidChunkSizeError"):
        decoded(decoder(Payload.CHUNKS, 24_575), coded_by_us(small, large, large))


def test_a_signed_trailer_needs_its_signature() -> None:
    coded = coded_by_us(b"abc", trailer=b"x-amz-checksum-crc32c:sOO8/Q==\r\n\r\n")
    with pytest.raises(S3Error, match="MalformedTrailerError"):
        decoded(ChunkedDecoder(3, signer(), ["x-amz-checksum-crc32c"]), coded)
    with pytest.raises(S3Error, match="not announced"):
        decoded(ChunkedDecoder(3, signer(), None), coded)
    wrong = coded_by_us(b"abc", trailer=b"x-amz-trailer-signature:" + b"0" * 64 + b"\r\n\r\n")
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        decoded(ChunkedDecoder(3, signer(), []), wrong)


def test_chunks_in_another_order_are_noticed() -> None:
    first, second = b"a" * 8192, b"b" * 8192
    coded = coded_by_us(first, second)
    half = (len(coded) - 86) // 2
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        decoded(decoder(Payload.CHUNKS, 16_384), coded[half : 2 * half] + coded[:half] + coded[2 * half :])


# -- bodies ----------------------------------------------------------------------------------------------


def taken(request: Request, proof: Proof, data: bytes, usual: Algorithm | None = None) -> Digests:
    body = Body(request, proof, usual)
    body.feed(data[:3])
    body.feed(data[3:])
    return body.finish()


def headers(**given: str) -> Request:
    return Request("PUT", "/b/k", "", [(name.replace("_", "-"), value) for name, value in given.items()])


PLAIN = Proof("", Payload.UNSIGNED)
HELLO = b"hello world"
MD5, SHA256 = hashlib.md5(HELLO), hashlib.sha256(HELLO)
HELLO_CRC = checksums.encode(zlib.crc32(HELLO).to_bytes(4, "big"))


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_botocore_sends(algorithm: Algorithm, scheme: str) -> None:
    for body in (HELLO, io.BytesIO(HELLO)):
        if scheme == "http" and not isinstance(body, bytes):
            continue  # signed whole, then
        prepared = sent(
            "put_object", scheme, Bucket="b", Key="k", Body=body, ChecksumAlgorithm=algorithm.value
        )
        request, data = request_of(prepared), body_of(prepared)
        found = taken(request, proved(request), data)
        made = checksums.hasher(algorithm)
        made.update(HELLO)
        assert found == Digests(len(HELLO), MD5.digest(), algorithm, made.digest())
        assert content_encoding(request) is None
        if b"x-amz-checksum" in data:
            with pytest.raises(S3Error, match="BadDigest"):
                taken(request, proved(request), data.replace(b"world", b"World"))


def test_lengths() -> None:
    assert taken(headers(content_length="11"), PLAIN, HELLO).length == 11
    with pytest.raises(S3Error, match="IncompleteBody"):
        taken(headers(content_length="12"), PLAIN, HELLO)
    with pytest.raises(S3Error, match="InvalidRequest"):
        taken(headers(content_length="10"), PLAIN, HELLO)
    with pytest.raises(S3Error, match="MissingContentLength"):
        Body(headers(), PLAIN)
    with pytest.raises(S3Error, match="MissingContentLength"):
        Body(headers(content_length="1"), Proof("", Payload.UNSIGNED_CHUNKS_TRAILER))
    for wrong in ("", "-1", "1.0", "１", "1" * 19):
        with pytest.raises(S3Error, match="InvalidArgument"):
            Body(headers(content_length=wrong), PLAIN)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"content_md5": checksums.encode(MD5.digest())}, ""),
        ({"content_md5": checksums.encode(bytes(16))}, "BadDigest"),
        ({"content_md5": "x"}, "InvalidDigest"),
        ({"content_md5": checksums.encode(bytes(15))}, "InvalidDigest"),
        ({"x_amz_checksum_crc32": HELLO_CRC}, ""),
        ({"x_amz_checksum_crc32": "AAAAAA=="}, "BadDigest"),
        ({"x_amz_checksum_crc32": "AAAA"}, "InvalidRequest"),
        ({"x_amz_checksum_crc32": "é"}, "InvalidRequest"),
        ({"x_amz_checksum_sha256": checksums.encode(SHA256.digest())}, ""),
        ({"x_amz_checksum_sha256": checksums.encode(bytes(32))}, "BadDigest"),
        ({"x_amz_checksum_crc32": HELLO_CRC, "x_amz_checksum_sha1": "x"}, "InvalidRequest"),
        ({"x_amz_sdk_checksum_algorithm": "crc32c"}, ""),
        ({"x_amz_sdk_checksum_algorithm": "MD4"}, "InvalidRequest"),
        ({"x_amz_checksum_crc32": HELLO_CRC, "x_amz_sdk_checksum_algorithm": "SHA1"}, "InvalidRequest"),
        ({"x_amz_trailer": "x-amz-checksum-crc32"}, "InvalidRequest"),
        ({"x_amz_trailer": "x-amz-meta-a"}, "InvalidRequest"),
    ],
)
def test_digests_that_were_sent(given: dict[str, str], code: str) -> None:
    request = headers(content_length="11", **given)
    if not code:
        taken(request, PLAIN, HELLO)
        return
    with pytest.raises(S3Error) as caught:
        taken(request, PLAIN, HELLO)
    assert (caught.value.code, caught.value.status) == (code, 400)


def test_sha256_of_the_signature() -> None:
    request = headers(content_length="11")
    right = Proof("a", Payload.SINGLE, SHA256.hexdigest())
    assert taken(request, right, HELLO).checksum is None
    assert taken(request, right, HELLO, Algorithm.SHA256).checksum == SHA256.digest()
    with pytest.raises(S3Error, match="XAmzContentSHA256Mismatch"):
        taken(request, right, HELLO.upper())


def test_trailers_that_are_no_checksum() -> None:
    request = headers(x_amz_decoded_content_length="5", x_amz_trailer=CRC32)
    proof = Proof("", Payload.UNSIGNED_CHUNKS_TRAILER)
    assert taken(request, proof, UNSIGNED).checksum == checksums.decode("hYfYZQ==", 4)
    with pytest.raises(S3Error, match="MalformedTrailerError"):
        taken(request, proof, UNSIGNED.replace(b"hYfY", b"----"))
    with pytest.raises(S3Error, match="BadDigest"):
        taken(request, proof, UNSIGNED.replace(b"hYfY", b"AAAA"))
    assert taken(headers(x_amz_decoded_content_length="1"), proof, b"1\r\na\r\n0\r\n\r\n").checksum is None


@pytest.mark.parametrize(
    ("stated", "kept"),
    [("aws-chunked", None), ("gzip, AWS-Chunked", "gzip"), ("aws-chunked,gzip", "gzip"), ("gzip", "gzip")],
)
def test_content_encoding(stated: str, kept: str | None) -> None:
    assert content_encoding(headers(content_encoding=stated)) == kept


# -- checksums -------------------------------------------------------------------------------------------

CHECK: dict[Algorithm, str] = {  # of "123456789", as catalogues of CRCs give them
    Algorithm.CRC32: "cbf43926",
    Algorithm.CRC32C: "e3069283",
    Algorithm.CRC64NVME: "ae8b14860a799888",
    Algorithm.SHA1: "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    Algorithm.SHA256: "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}


@pytest.mark.parametrize("algorithm", Algorithm)
def test_algorithms(algorithm: Algorithm) -> None:
    made = checksums.hasher(algorithm)
    for piece in (b"123", bytearray(b"45"), memoryview(b"x6789")[1:]):
        made.update(piece)
    assert made.digest().hex() == CHECK[algorithm] and len(made.digest()) == algorithm.size
    assert algorithm.header == f"x-amz-checksum-{algorithm.lower()}"


CRCS = [Algorithm.CRC32, Algorithm.CRC32C, Algorithm.CRC64NVME]


@given(algorithm=st.sampled_from(CRCS), parts=st.lists(st.binary(max_size=50), max_size=5))
def test_checksums_of_parts_become_that_of_the_whole(algorithm: Algorithm, parts: list[bytes]) -> None:
    def digest(data: bytes) -> bytes:
        made = checksums.hasher(algorithm)
        made.update(data)
        return made.digest()

    whole = checksums.full_object(algorithm, [(digest(part), len(part)) for part in parts])
    assert whole == digest(b"".join(parts))
    assert checksums.composite(algorithm, [digest(part) for part in parts]) == (
        f"{checksums.encode(digest(b''.join(map(digest, parts))))}-{len(parts)}"
    )


def test_etag_of_parts() -> None:
    parts = [hashlib.md5(b"a").digest(), hashlib.md5(b"b").digest()]
    assert checksums.multipart_etag(parts) == hashlib.md5(b"".join(parts)).hexdigest() + "-2"


@pytest.mark.parametrize(
    ("text", "algorithm", "kind"),
    [
        (None, "CRC32", "COMPOSITE"),
        (None, "CRC64NVME", "FULL_OBJECT"),
        ("FULL_OBJECT", "CRC32C", "FULL_OBJECT"),
        ("COMPOSITE", "SHA256", "COMPOSITE"),
        ("FULL_OBJECT", "SHA1", None),
        ("COMPOSITE", "CRC64NVME", None),
        ("other", "CRC32", None),
    ],
)
def test_kinds(text: str | None, algorithm: str, kind: str | None) -> None:
    def ask() -> Any:
        return checksums.kind_of(text, checksums.algorithm_of(algorithm))

    if kind is not None:
        assert ask() == kind
        return
    with pytest.raises(S3Error, match="InvalidRequest"):
        ask()


def test_signed_single_bodies_of_botocore_are_checked() -> None:
    prepared = sent("put_object", Bucket="b", Key="k", Body=HELLO)
    request = request_of(prepared)
    with pytest.raises(S3Error, match="XAmzContentSHA256Mismatch"):
        taken(request, proved(request), HELLO.upper())
    assert changed(request, content_length="3").header("content-length") == "3"
