"""A screen's files have the same listing in a bucket and in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.screen.screen_source import ScreenBucket, ScreenDirectory
from components.core.storage.object_store import ObjectStore


@pytest.mark.parametrize("prefix", ["", "screens/week-48"])
def test_a_bucket_and_a_directory_list_the_same_files(store: ObjectStore, tmp_path: Path, prefix: str) -> None:
    bucket = ObjectStore(store.uri(prefix))
    changed, *more = (f"train/{folder}/B01_s1_w1.png" for folder in ("A/Plate1", "A/Plate2", "Ab/Plate1"))
    paths = [changed, *more, "train/notes.txt", "train-old/A/x.png", "train.csv", "test/A/y.png"]
    files = {path: b"x" * size for size, path in enumerate(paths, 1)}
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    bucket.put_many(files.items())
    wanted = [(path, len(data)) for path, data in files.items() if path.startswith("train/")]
    source = ScreenBucket(bucket)
    found = source.list_trees(["train", "nowhere"])
    assert sorted(facts[:2] for facts in found) == sorted(wanted)
    assert sorted(facts[:2] for facts in ScreenDirectory(tmp_path).list_trees(["train"])) == sorted(wanted)
    assert source.list_trees(["nowhere"]) == ScreenDirectory(tmp_path).list_trees(["nowhere"]) == []
    versions = {facts.name: facts.version for facts in found}
    bucket.put(changed, b"y")  # of the same size
    again = {facts.name: facts.version for facts in source.list_trees(["train"])}
    assert again.keys() == versions.keys()
    assert {name for name in again if again[name] != versions[name]} == {changed}


def test_a_dangling_link_hides_no_other_file(tmp_path: Path) -> None:
    plate = tmp_path / "train" / "HUVEC-01" / "Plate1"
    plate.mkdir(parents=True)
    names = [f"B{well:02d}_s1_w1.png" for well in range(1, 60)]
    for name in names:
        (plate / name).touch()
    (plate / "B99_s1_w1.png").symlink_to(tmp_path / "nowhere")
    found = ScreenDirectory(tmp_path).list_trees(["train"])
    assert sorted(facts.name for facts in found) == [f"train/HUVEC-01/Plate1/{name}" for name in names]
