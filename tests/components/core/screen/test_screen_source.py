"""A screen's files have the same listing in a bucket and in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.screen.screen_source import ScreenBucket, ScreenDirectory
from components.core.storage.object_store import ObjectStore


@pytest.mark.parametrize("prefix", ["", "screens/week-48"])
def test_a_bucket_and_a_directory_list_the_same_files(store: ObjectStore, tmp_path: Path, prefix: str) -> None:
    bucket = ObjectStore(store.uri(prefix))
    files = {
        f"train/{experiment}/Plate{plate}/B{well:02d}_s1_w{channel}.png": experiment.encode() * well
        for experiment in ("HUVEC-01", "HUVEC-02", "HUVEC-02b", "RPE-01", "U2OS")
        for plate in (1, 2)
        for well in range(1, 4)
        for channel in range(1, 7)
    }
    others = {"train/notes.txt": b"1", "train-old/HUVEC-01/x.png": b"22", "train.csv": b"333", "test/A/y.png": b"4444"}
    for path, data in {**files, **others}.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    bucket.put_many({**files, **others}.items())
    wanted = [("train/notes.txt", 1), *((path, len(data)) for path, data in files.items())]
    source = ScreenBucket(bucket)
    found = source.list_trees(["train", "nowhere"])
    assert sorted(facts[:2] for facts in found) == sorted(wanted)
    assert sorted(facts[:2] for facts in ScreenDirectory(tmp_path).list_trees(["train"])) == sorted(wanted)
    assert source.list_trees(["nowhere"]) == ScreenDirectory(tmp_path).list_trees(["nowhere"]) == []
    versions = {facts.name: facts.version for facts in found}
    bucket.put("train/U2OS/Plate1/B01_s1_w1.png", b"SOTU")  # of the same size
    again = {facts.name: facts.version for facts in source.list_trees(["train"])}
    assert again.keys() == versions.keys()
    assert {name for name in again if again[name] != versions[name]} == {"train/U2OS/Plate1/B01_s1_w1.png"}


def test_a_dangling_link_hides_no_other_file(tmp_path: Path) -> None:
    plate = tmp_path / "train" / "HUVEC-01" / "Plate1"
    plate.mkdir(parents=True)
    names = [f"B{well:02d}_s1_w1.png" for well in range(1, 60)]
    for name in names:
        (plate / name).touch()
    (plate / "B99_s1_w1.png").symlink_to(tmp_path / "nowhere")
    found = ScreenDirectory(tmp_path).list_trees(["train"])
    assert sorted(facts.name for facts in found) == [f"train/HUVEC-01/Plate1/{name}" for name in names]
