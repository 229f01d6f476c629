"""Inputs and outputs of a step started by hand: by path, file:// or s3://, on a real object store; complete or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.errors import InputError, StepError
from components.core.storage.artifacts import local_copy, step_files
from components.core.storage.object_store import ObjectStore


def write(folder: str, **files: bytes) -> None:
    for name, content in files.items():
        file = Path(folder) / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def step(*outputs: str, leaves_out: str = "", fails: Exception | None = None) -> None:
    """A step that writes a folder to each address but one, or a file where the key ends in .json, and may then fail."""
    with step_files() as files:
        for path, uri in [(files.output(uri), uri) for uri in outputs]:
            if uri.endswith(".json"):
                Path(path).write_bytes(b"{}")
            elif uri != leaves_out:
                write(path, a=b"1")
        if fails:
            raise fails


def test_folders_and_files_are_read_and_written_by_address(store: ObjectStore, tmp_path: Path):
    with step_files() as files:
        write(files.output(store.uri("out/weights")), a=b"1", deep__b=b"2")
        Path(files.output(store.uri("out/screen.json"))).write_bytes(b"{}")
        Path(files.output((tmp_path / "with space").as_uri())).write_bytes(b"3")
        assert store.list("out/") == [], "nothing before the step has ended"
    assert {key: store.get(key) for key in store.list("out/")} == {
        "out/screen.json": b"{}", "out/weights/a": b"1", "out/weights/deep/b": b"2",
    }  # fmt: skip
    assert (tmp_path / "with space").read_bytes() == b"3"
    with step_files() as files:
        folder = Path(files.input(store.uri("out/weights")))
        assert (folder / "deep" / "b").read_bytes() == b"2"
        assert files.input(str(tmp_path / "with space")) == str(tmp_path / "with space")
    assert not folder.exists(), "copies go with the block"


def test_an_earlier_output_is_replaced(store: ObjectStore):
    for content in ({"old": b"1", "same": b"1"}, {"same": b"22", "new": b"4444"}):
        with step_files() as files:
            write(files.output(store.uri("folder")), **content)
    assert {key: store.get(key) for key in store.list("folder/")} == {"folder/new": b"4444", "folder/same": b"22"}


def test_a_failing_step_leaves_no_output(store: ObjectStore):
    with pytest.raises(StepError, match="broke"):
        step(store.uri("folder"), fails=StepError("broke"))
    with pytest.raises(StepError, match=r"s3://.*/other: the step has not written it"):
        step(store.uri("folder"), store.uri("other"), leaves_out=store.uri("other"))
    assert store.list("") == []


def test_if_an_upload_fails_every_output_folder_is_refused_until_it_is_written_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    upload = ObjectStore.upload_file

    def broken(self: ObjectStore, path: Path, key: str) -> None:
        if key.endswith("/second/a"):
            raise StepError("the store went away")
        upload(self, path, key)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "upload_file", broken)
        with pytest.raises(StepError, match="went away"):
            step(store.uri("first"), store.uri("second"))
    for name in ("first", "second"):
        with pytest.raises(InputError, match=f"/{name}: is unfinished; wait for the step that writes it"):
            local_copy(store.uri(name), tmp_path)
    with step_files() as files:
        write(files.output(store.uri("first")), b=b"complete")
    assert [path.name for path in local_copy(store.uri("first"), tmp_path).iterdir()] == ["b"]


def test_messages_name_the_addresses_of_the_user(store: ObjectStore):
    store.put("screen.json", b"{}")
    with pytest.raises(InputError) as refused, step_files() as files:
        raise InputError(f"{files.input(store.uri('screen.json'))}: not a screen manifest")
    assert str(refused.value) == f"{store.uri('screen.json')}: not a screen manifest"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/key", "gs://bucket/key: an output goes to a path, file:// or s3://BUCKET/KEY"),
        ("s3://cellsignal", "s3://cellsignal: names a whole bucket"),
        ("s3://no-such-bucket/key", "has no such bucket; create it, or correct the output's address"),
    ],
)
def test_rejects_an_output_that_cannot_be_written_before_the_work(store: ObjectStore, address: str, message: str):
    with step_files() as files, pytest.raises(InputError, match=message):
        files.output(address)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("scheme", ["s3", "minio"])
def test_stored_objects_and_folders_are_copied(store: ObjectStore, tmp_path: Path, scheme: str):
    store.put("run/RPE/named/oof.csv", b"id_code\n")
    store.put("run/RPE/named/deep/meta.json", b"{}")
    store.put("run/RPE/named-too/other", b"not of the folder")
    base = f"{scheme}://{store.bucket}/{store.prefix}/run/RPE"
    folder = local_copy(f"{base}/named", tmp_path)
    assert (folder.name, files_of(folder)) == ("named", {"oof.csv": b"id_code\n", "deep/meta.json": b"{}"})
    file = local_copy(f"{base}/named/oof.csv", tmp_path)
    assert (file.name, file.read_bytes()) == ("oof.csv", b"id_code\n")


def test_a_second_copy_replaces_the_first_but_not_another_of_its_name(store: ObjectStore, tmp_path: Path):
    for cell_type in ("HUVEC", "RPE"):
        store.put(f"{cell_type}/named/oof.csv", cell_type.encode())
    uris = [store.uri(f"{cell_type}/named") for cell_type in ("HUVEC", "RPE")]
    assert [files_of(local_copy(uri, tmp_path)) for uri in uris] == [{"oof.csv": b"HUVEC"}, {"oof.csv": b"RPE"}]
    store.put("RPE/named/new.csv", b"2")
    store.delete("RPE/named/oof.csv")
    assert files_of(local_copy(uris[1], tmp_path)) == {"new.csv": b"2"}


def test_rejects_a_missing_artifact(store: ObjectStore, tmp_path: Path):
    with pytest.raises(InputError, match=f"{store.prefix}/gone: there is neither an object nor a folder"):
        local_copy(store.uri("gone"), tmp_path)
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        local_copy(str(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(InputError, match="gs://bucket/key: not an object store address"):
        local_copy("gs://bucket/key", tmp_path)
