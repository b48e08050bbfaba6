"""Buckets as an fsspec file system: ``moorage://[CLUSTER]/BUCKET/KEY`` in pandas, pyarrow, dask, zarr and
others.

Owns the way from paths to keys. A file that is read stays the object that it was when it was opened; one that
is written appears whole when it is closed. The extra ``fsspec`` of the package brings what this needs."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, ClassVar

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

import moorage.sync
from moorage.client.objects.bucket import Condition, ObjectInfo
from moorage.client.objects.sync import Bucket
from moorage.wire.errors import Busy, NotFound, PreconditionFailed

PART_BYTES = 8 << 20


class MoorageFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """``cluster``, ``registry``, ``secret_file``: as for :func:`moorage.connect`. Errors are those of
    files."""

    protocol: ClassVar[str] = "moorage"
    root_marker = ""

    def __init__(
        self,
        cluster: str | None = None,
        registry: str | None = None,
        secret_file: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self._cluster = moorage.sync.connect(cluster, registry=registry, secret_file=secret_file)

    def close(self) -> None:
        """End the connections; the instance is not used any more."""
        self._cluster.close()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """``BUCKET/KEY``, or a list of them"""
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        if path.startswith("moorage://"):
            path = path[len("moorage://") :].partition("/")[2]
        elif path.startswith("moorage:"):
            path = path[len("moorage:") :]
        return path.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        cluster = path[len("moorage://") :].partition("/")[0] if path.startswith("moorage://") else ""
        return {"cluster": cluster} if cluster else {}

    def _at(self, path: str) -> tuple[Bucket, str]:
        name, _, key = self._strip_protocol(path).partition("/")
        try:
            return self._cluster.bucket(name), key
        except NotFound as error:
            raise FileNotFoundError(path) from error

    # -- looking -------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        rows = self._below(path) if path else [_folder(row["name"]) for row in self._cluster.buckets.list()]
        if not rows:
            rows = [self.info(path)]
            rows = [] if rows[0]["type"] == "directory" else rows
        return rows if detail else [row["name"] for row in rows]

    def _below(self, path: str) -> list[dict[str, Any]]:
        bucket, key = self._at(path)
        prefix = f"{key}/" if key else ""
        rows: list[dict[str, Any]] = []
        page = bucket.page(prefix, delimiter="/")
        while True:
            rows += [_file(bucket.name, each) for each in page.objects if each.key != prefix]
            rows += [_folder(f"{bucket.name}/{each.rstrip('/')}") for each in page.prefixes]
            if not page.next:
                return sorted(rows, key=lambda row: str(row["name"]))
            page = bucket.page(prefix, delimiter="/", start=page.next)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if not path:
            return _folder("")
        bucket, key = self._at(path)
        if not key:
            return _folder(bucket.name)
        try:
            return _file(bucket.name, bucket.head(key))
        except NotFound:
            page = bucket.page(f"{key}/", limit=1)
            if page.objects:
                return _folder(path)
            raise FileNotFoundError(path) from None

    def created(self, path: str) -> datetime:
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        found: datetime | None = self.info(path).get("mtime")
        if found is None:
            raise IsADirectoryError(path)
        return found

    # -- whole objects -------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        bucket, key = self._at(path)
        try:
            found = bucket.open(key)
        except NotFound as error:
            raise FileNotFoundError(path) from error
        first, stop, _step = slice(start, end).indices(found.info.size)
        return found.read(first, max(stop - first, 0))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        bucket, key = self._at(path)
        bucket.put(key, value, condition=Condition(absent=True) if mode == "create" else None)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        source, key = self._at(path1)
        into, new = self._at(path2)
        try:
            into.copy(key, new, bucket=source)
        except NotFound as error:
            raise FileNotFoundError(path1) from error

    def rm_file(self, path: str) -> None:
        bucket, key = self._at(path)
        if bucket.delete(key) != [True]:
            raise FileNotFoundError(path)

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        found = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        for each in reversed(found):
            if self.isdir(each):
                self.rmdir(each)
            elif self.exists(each) or not recursive:  # else a name that was gone with what was below
                self.rm_file(each)

    # -- folders: a bucket is one, what is inside of it are only names ------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        if "/" not in path and not self.exists(path):
            self._cluster.buckets.create(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        name = self._strip_protocol(path).partition("/")[0]
        if not self.exists(name):
            self._cluster.buckets.create(name)

    def rmdir(self, path: str) -> None:
        path = self._strip_protocol(path)
        if "/" in path:
            return  # it is gone with the last object in it
        try:
            self._cluster.buckets.delete(path)
        except NotFound as error:
            raise FileNotFoundError(path) from error
        except Busy as error:
            raise OSError(str(error)) from error

    # -- files ---------------------------------------------------------------------------------------------

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> ObjectFile:
        if mode not in ("rb", "wb", "xb"):
            raise NotImplementedError(f"mode {mode}: objects are read, or written whole")
        return ObjectFile(
            self,
            path,
            mode,
            block_size=max(block_size or PART_BYTES, PART_BYTES)
            if mode != "rb"
            else block_size or PART_BYTES,
            autocommit=autocommit,
            cache_options=cache_options,
            **more,
        )


class ObjectFile(AbstractBufferedFile):  # type: ignore[misc]
    """One object, open. What is written goes in parts, and is put when the file is closed."""

    def __init__(self, fs: MoorageFileSystem, path: str, mode: str, **more: Any) -> None:
        self._bucket, self._key = fs._at(path)
        self._found: Any = None
        self._upload = ""
        self._parts: list[tuple[int, str]] = []
        if mode == "rb":
            try:
                self._found = self._bucket.open(self._key)
            except NotFound as error:
                raise FileNotFoundError(path) from error
            more["size"] = self._found.info.size
        elif mode == "xb" and fs.exists(path):
            raise FileExistsError(path)
        super().__init__(fs, path, mode, **more)

    def _fetch_range(self, start: int, end: int) -> bytes:
        found: bytes = self._found.read(start, end - start)
        return found

    def _initiate_upload(self) -> None:
        pass  # a small one is put at once

    def _upload_chunk(self, final: bool = False) -> bool:
        if final and not self.autocommit:
            return False
        try:
            self._write_out(self.buffer.getvalue(), final)
        except PreconditionFailed as error:
            self.discard()
            raise FileExistsError(self.path) from error
        return True

    def _write_out(self, data: bytes, final: bool) -> None:
        if final and not self._upload:
            self._bucket.put(self._key, data, condition=self._condition())
            return
        if not self._upload:
            self._upload = self._bucket.create_upload(self._key)
        if data:
            number = len(self._parts) + 1
            self._parts.append((number, self._bucket.put_part(self._upload, number, data)["etag"]))
        if final:
            digests = b"".join(bytes.fromhex(etag) for _, etag in self._parts)
            etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._parts)}"
            self._bucket.complete_upload(
                self._upload, self._key, self._parts, etag=etag, condition=self._condition()
            )

    def _condition(self) -> Condition | None:
        return Condition(absent=True) if self.mode == "xb" else None

    def commit(self) -> None:
        """Of a transaction: now it appears."""
        self.autocommit = True
        self._upload_chunk(final=True)

    def discard(self) -> None:
        if self._upload:
            self._bucket.abort_upload(self._upload)
            self._upload = ""


def _file(bucket: str, info: ObjectInfo) -> dict[str, Any]:
    return {
        "name": f"{bucket}/{info.key}",
        "size": info.size,
        "type": "file",
        "etag": info.etag,
        "mtime": datetime.fromtimestamp(info.modified_ms / 1000, UTC),
    }


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}
