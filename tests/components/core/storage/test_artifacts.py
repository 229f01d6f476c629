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
    with step_files() as files:  # again, in place of the earlier output
        write(files.output(store.uri("out/weights")), a=b"22", new=b"4444")
    assert {key: store.get(key) for key in store.list("out/weights/")} == {
        "out/weights/a": b"22", "out/weights/new": b"4444",
    }  # fmt: skip


def test_a_failing_step_leaves_no_output(store: ObjectStore):
    with pytest.raises(StepError, match="broke"):
        step(store.uri("folder"), fails=StepError("broke"))
    with pytest.raises(StepError, match=r"s3://.*/other: the step has not written it"):
        step(store.uri("folder"), store.uri("other"), leaves_out=store.uri("other"))
    assert store.list("") == []


def test_if_an_upload_fails_no_folder_is_complete_and_no_earlier_file_stays(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    upload = ObjectStore.upload_file
    for name in ("holdout.json", "second/a"):
        store.put(name, b"earlier")

    def broken(self: ObjectStore, path: Path, key: str) -> None:
        if key.endswith(("/second/a", "/holdout.json")):
            raise StepError("the store went away")
        upload(self, path, key)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "upload_file", broken)
        with pytest.raises(StepError, match="went away"):
            step(store.uri("first"), store.uri("second"), store.uri("screen.json"), store.uri("holdout.json"))
    assert not store.exists("holdout.json"), "beside a new screen.json"
    for name in ("first", "second"):
        with pytest.raises(InputError, match=f"/{name}: is unfinished; wait for the step that writes it"):
            local_copy(store.uri(name), tmp_path)
    with step_files() as files:
        write(files.output(store.uri("first")), b=b"complete")
    assert [path.name for path in local_copy(store.uri("first"), tmp_path).iterdir()] == ["b"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("scheme", ["s3", "minio"])
def test_stored_objects_and_folders_are_copied_as_they_are_now(store: ObjectStore, tmp_path: Path, scheme: str):
    for cell_type in ("HUVEC", "RPE"):
        store.put_many([(f"{cell_type}/named/oof.csv", cell_type.encode()), (f"{cell_type}/named-too/other", b"")])
    store.put("RPE/named/deep/meta.json", b"{}")
    base = f"{scheme}://{store.bucket}/{store.prefix}"
    huvec, rpe = (local_copy(f"{base}/{cell_type}/named", tmp_path) for cell_type in ("HUVEC", "RPE"))
    assert (rpe.name, files_of(huvec)) == ("named", {"oof.csv": b"HUVEC"})
    assert files_of(rpe) == {"oof.csv": b"RPE", "deep/meta.json": b"{}"}
    assert local_copy(f"{base}/RPE/named/oof.csv", tmp_path).read_bytes() == b"RPE"
    store.put("RPE/named/new.csv", b"2")
    store.delete("RPE/named/oof.csv")
    again = local_copy(f"{base}/RPE/named", tmp_path / "again")
    assert files_of(again) == {"new.csv": b"2", "deep/meta.json": b"{}"}


def test_rejects_missing_inputs_and_outputs_that_cannot_be_written_before_the_work(store: ObjectStore, tmp_path: Path):
    for address, message in (
        (store.uri("gone"), f"{store.prefix}/gone: there is neither an object nor a folder"),
        (str(tmp_path / "nowhere"), "nowhere: no such file or folder"),
        ("gs://bucket/key", "gs://bucket/key: not an object store address"),
    ):
        with pytest.raises(InputError, match=message):
            local_copy(address, tmp_path)
    for address, message in (
        ("gs://bucket/key", "gs://bucket/key: not an object store address"),
        ("s3://cellsignal", "s3://cellsignal: names a whole bucket"),
        ("s3://no-such-bucket/key", "has no such bucket; create it, or correct its name"),
    ):
        with step_files() as files, pytest.raises(InputError, match=message):
            files.output(address)
