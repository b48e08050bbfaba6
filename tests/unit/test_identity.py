"""Identity files: nothing that was not written as it stands is ever believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moorage.service import identity
from moorage.wire.errors import Corrupt, IdentityConflict, Invalid, MoorageError

BODY = {"cluster": "0123456789abcdef", "name": "h1", "service": "node"}


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    assert identity.load(path, "service") is None
    identity.store(path, "service", BODY)
    assert identity.load(path, "service") == BODY
    assert [each.name for each in tmp_path.iterdir()] == ["identity.json"]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    raw = identity.encode("service", BODY)
    for place in range(len(raw) * 8):
        bad = bytearray(raw)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        with pytest.raises(Corrupt, match=r"identity\.json.*empty one"):
            identity.load(path, "service")


def test_every_shorter_or_longer_file_is_noticed(tmp_path: Path) -> None:
    raw = identity.encode("service", BODY)
    for size in range(len(raw)):
        with pytest.raises(Corrupt):
            identity.decode("service", raw[:size], tmp_path / "x")
    for more in (b"\n", b" ", b"\0", raw):
        with pytest.raises(Corrupt):
            identity.decode("service", raw + more, tmp_path / "x")


def test_another_kind_and_another_format_are_told_apart_from_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IdentityConflict, match="identity of a device, not of a service"):
        identity.decode("service", identity.encode("device", BODY), tmp_path / "x")
    monkeypatch.setattr(identity, "FORMAT", 2)
    raw = identity.encode("service", BODY)
    monkeypatch.undo()
    with pytest.raises(Corrupt, match="use the version that wrote it"):
        identity.decode("service", raw, tmp_path / "x")


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_failed_store_leaves_the_former_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "identity.json"
    identity.store(path, "service", BODY)

    def fail(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError):
        identity.store(path, "service", {**BODY, "name": "h2"})
    monkeypatch.undo()
    assert identity.load(path, "service") == BODY


def test_file_and_directory_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    identity.store(tmp_path / "identity.json", "service", BODY)
    assert steps == ["sync identity.json.new", "rename", f"sync {tmp_path.name}"]


def claim(directory: Path, **changes: str) -> identity.DirectoryLock:
    wanted = {"cluster": "0123456789abcdef", "name": "h1", "kind": "node", **changes}
    return identity.claim_directory(directory, **wanted)


def test_a_directory_has_one_process(tmp_path: Path) -> None:
    lock = claim(tmp_path / "d")
    with pytest.raises(IdentityConflict, match="in use by another process"):
        claim(tmp_path / "d")
    lock.release()
    claim(tmp_path / "d").release()


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"cluster": "f" * 16}, "--secret-file"),
        ({"name": "h2"}, "--name"),
        ({"kind": "registry"}, "--data-dir"),
    ],
)
def test_a_directory_is_of_one_cluster_name_and_service(
    tmp_path: Path, changes: dict[str, str], option: str
) -> None:
    claim(tmp_path / "d").release()
    with pytest.raises(IdentityConflict, match=f"correct {option}"):
        claim(tmp_path / "d", **changes)
    claim(tmp_path / "d").release()  # the refusal has let go of the lock


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    """A new file system's own directory, and what a start that was cut short left, are nothing."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "identity.json.new").write_bytes(b"{")
    letters = tmp_path / "letters.txt"
    letters.write_text("not ours")
    for _ in range(2):
        with pytest.raises(Invalid, match=r"is not empty \(letters\.txt\)"):
            identity.claim_directory(tmp_path, cluster="c", name="h1", kind="node")
    letters.unlink()
    (tmp_path / "superblock").write_bytes(b"a device's")
    identity.claim_directory(tmp_path, cluster="c", name="h1", kind="node").release()


def test_a_directory_that_cannot_be_is_a_matter_of_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="--data-dir"):
        claim(tmp_path / "file" / "d")
    with pytest.raises(MoorageError, match="--data-dir"):
        claim(tmp_path / "file")


def test_a_new_directory_has_a_durable_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(identity, "fsync_directory", lambda path: synced.append(path.name))
    identity.make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert synced[:3] == [tmp_path.name, "a", "b"]
    synced.clear()
    identity.make_directory(tmp_path / "a" / "b" / "c")  # made by a process that was killed before the sync
    assert synced == ["b"]


def test_json_that_is_nested_without_end_is_damage(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="not JSON"):
        identity.decode("service", b"[" * 100_000, tmp_path / "x")
