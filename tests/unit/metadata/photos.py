"""A bucket in a metadata group without Raft, and short ways to say things of it."""

from __future__ import annotations

from typing import Any

from moorage.metadata import records
from moorage.metadata.objects import layout, versions
from moorage.metadata.objects.layout import Extent
from moorage.metadata.objects.versions import Outcome

from .conftest import AppliedGroup

W1, W2 = 77, 78


class Photos:
    """A bucket, of two groups unless it is said otherwise."""

    def __init__(self, group: AppliedGroup, groups: int = 2) -> None:
        self.group = group
        placement = [[{"device": f"d{n}", "host": f"h{n}"} for n in (1, 2, 3)] for _ in range(groups)]
        fields = {"request": "r1", "name": "photos", "size": 0, "replicas": 3, "durability": "sync"}
        made = group.apply("create_bucket", **fields, placement=placement, created_ms=1000)
        self.id: int = made["id"]
        group.apply("ready", volume=self.id)
        self.count = 0

    @property
    def record(self) -> dict[str, Any]:
        return records.existing_volume(self.group.kv, self.id)

    def members(self, group: int = 0) -> list[int]:
        return [member["replica"] for member in self.record["groups"][group]["members"]]

    def open(self, group: int = 0, writer: int = W1) -> int:
        return int(self.do("open_region", group=group, writer=writer))

    def do(self, command: str, **fields: Any) -> Any:
        return self.group.apply(command, bucket=self.id, **fields)

    def written(self, *extents: list[int], **more: Any) -> dict[str, Any]:
        self.count += 1
        about = {"id": f"o{self.count}", "size": 10, "etag": f"e{self.count}", "attributes": {}}
        stored = [self.members(extent[0]) if extent[0] < 2 else [] for extent in extents]
        made = {"object": {**about, "at_ms": 1000 + self.count}, "writer": W1, "extents": list(extents)}
        return {**made, "stored": stored, **more}

    def put(self, key: str, *extents: list[int], **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.do("put_object", key=key, **self.written(*extents, **more))
        return found

    def delete(self, *keys: str, **more: Any) -> list[bool]:
        """Of each, whether it was there."""
        return [outcome != Outcome.ABSENT for outcome in self.outcomes(*keys, **more)["found"]]

    def outcomes(self, *keys: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.do("delete_objects", keys=list(keys), **{"at_ms": 5000, **more})
        return found

    def versions(self, key: str) -> list[str]:
        """Their names, the newest first; markers are ``-NAME``."""
        there = self.get(key)
        records = [*([there] if there else []), *versions.history(self.group.kv, self.id, key)]
        return ["-" * versions.is_marker(each) + versions.name_of(each) for each in records]

    def get(self, key: str) -> dict[str, Any] | None:
        return layout.find_object(self.group.kv, self.id, key)

    def frees(self) -> list[Extent]:
        return [extent for extent, _ in layout.frees(self.group.kv, self.id)]

    def lacks(self, replica: int, group: int = 0) -> list[Extent]:
        return list(layout.lacks(self.group.kv, self.id, group, replica))

    def region(self, group: int, chunk: int) -> Any:
        return self.group.kv.get(layout.region_key(self.id, group, chunk))

    def part(self, upload: str, number: int, *extents: list[int], **more: Any) -> Any:
        return self.do("put_part", upload=upload, number=number, **self.written(*extents, **more))

    def begin(self, upload: str, key: str) -> None:
        self.do("create_upload", upload=upload, key=key, attributes={"a": 1}, now_ms=900)

    def complete(self, upload: str, key: str, parts: list[list[Any]], **more: Any) -> Any:
        about = {"id": f"done-{upload}", "etag": "e-2", "at_ms": 2000, "attributes": {}}
        return self.do("complete_upload", upload=upload, key=key, parts=parts, **{"object": about, **more})

    def wish(self, group: int = 0, old: int | None = None, n: int = 4) -> int:
        of = self.record["groups"][group]
        old = of["members"][2]["replica"] if old is None else old
        fields = {"volume": self.id, "group": group, "version": of["version"], "old": old}
        return int(self.group.apply("plan_replacement", **fields, device=f"d{n}", host=f"h{n}")["replica"])

    def reconfigure(self, old: int, new: int, group: int = 0) -> None:
        of = self.record["groups"][group]
        fields = {"volume": self.id, "group": group, "epoch": 0, "version": of["version"]}
        self.group.apply("reconfigure", **fields, replace={"old": old, "new": new}, now_ms=3000)
