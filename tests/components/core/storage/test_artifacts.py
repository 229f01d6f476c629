"""Artifacts by address arrive as local files and folders, whole and apart from each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.storage.artifacts import local_copy
from components.core.storage.object_store import ObjectStore


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_local_addresses_are_returned_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "with space"
    file.write_bytes(b"1")
    assert local_copy(str(file), tmp_path / "into") == file
    assert local_copy(file.as_uri(), tmp_path / "into") == file
    assert local_copy(str(tmp_path), tmp_path / "into") == tmp_path
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("scheme", ["s3", "minio"])
def test_stored_objects_and_folders_are_copied(store: ObjectStore, tmp_path: Path, scheme: str) -> None:
    store.put("run/RPE/named/oof.csv", b"id_code\n")
    store.put("run/RPE/named/deep/meta.json", b"{}")
    store.put("run/RPE/named-too/other", b"not of the folder")
    base = f"{scheme}://{store.bucket}/{store.prefix}/run/RPE"
    folder = local_copy(f"{base}/named", tmp_path)
    assert folder.name == "named"
    assert _files(folder) == {"oof.csv": b"id_code\n", "deep/meta.json": b"{}"}
    file = local_copy(f"{base}/named/oof.csv", tmp_path)
    assert (file.name, file.read_bytes()) == ("oof.csv", b"id_code\n")


def test_artifacts_of_one_name_stay_apart_and_a_second_copy_replaces_the_first(
    store: ObjectStore, tmp_path: Path
) -> None:
    for cell_type in ("HUVEC", "RPE"):
        store.put(f"{cell_type}/named/oof.csv", cell_type.encode())
    uris = [store.uri(f"{cell_type}/named") for cell_type in ("HUVEC", "RPE")]
    copies = [local_copy(uri, tmp_path) for uri in uris]
    assert [_files(copy) for copy in copies] == [{"oof.csv": b"HUVEC"}, {"oof.csv": b"RPE"}]
    store.put("RPE/named/new.csv", b"2")
    store.delete("RPE/named/oof.csv")
    assert _files(local_copy(uris[1], tmp_path)) == {"new.csv": b"2"}


def test_what_is_not_there_is_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{store.prefix}/gone: there is neither an object nor a folder"):
        local_copy(store.uri("gone"), tmp_path)
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        local_copy(str(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(InputError, match="gs://bucket/key: not an object store address"):
        local_copy("gs://bucket/key", tmp_path)
    with pytest.raises(InputError, match="names a whole bucket"):
        local_copy(f"s3://{store.bucket}", tmp_path)
    assert list(tmp_path.rglob("*.partial")) == []
