"""All files of a screen's folder by few requests: the same in a bucket as in a directory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.screen.place import ScreenDirectory
from components.core.storage.listing import PARTS, prefixes
from components.core.storage.object_store import ObjectStore
from components.core.storage.screen_bucket import ScreenBucket

NAMES = st.lists(st.text(st.sampled_from("AB-01"), min_size=1, max_size=6), max_size=30, unique=True)


@given(names=NAMES, most=st.integers(1, 20))
def test_every_name_has_exactly_one_prefix(names: list[str], most: int) -> None:
    folders = [f"train/{name}/" for name in names]
    found = prefixes(folders, most)
    assert len(found) <= most
    for name in folders:
        assert sum(name.startswith(prefix) for prefix in found) == 1
    assert all(any(name.startswith(prefix) for name in folders) for prefix in found)
    assert all(prefix.startswith("train/") for prefix in found)


def test_experiments_are_split_by_cell_type_and_further_where_there_is_room() -> None:
    names = [f"{cell}-{n:02d}/" for cell, count in (("HUVEC", 16), ("RPE", 7)) for n in range(1, count + 1)]
    assert prefixes(names, 2) == ["HUVEC-", "RPE-0"]
    assert len(prefixes(names, 12)) > 2
    assert prefixes(names, 100) == sorted(name.rstrip("/") for name in names)
    assert prefixes(["test/HUVEC-03/"], 12) == ["test/HUVEC-03/"]


@pytest.mark.parametrize("prefix", ["", "screens/week-48"])
def test_a_bucket_tells_what_the_directory_tells_in_few_requests(
    store: ObjectStore, tmp_path: Path, prefix: str
) -> None:
    bucket = store.below(prefix) if prefix else store
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
    wanted = [("notes.txt", 1), *((path.removeprefix("train/"), len(data)) for path, data in files.items())]
    place = ScreenBucket(bucket)
    before = bucket.requests["lists"]
    found = place.list_tree("train")
    assert bucket.requests["lists"] - before <= math.ceil(len(files) / 1000) + PARTS + 1
    assert sorted(facts[:2] for facts in found) == sorted(wanted)
    assert sorted(facts[:2] for facts in ScreenDirectory(tmp_path).list_tree("train")) == sorted(wanted)
    assert place.list_tree("nowhere") == ScreenDirectory(tmp_path).list_tree("nowhere") == []
    versions = {facts.name: facts.version for facts in found}
    bucket.put("train/U2OS/Plate1/B01_s1_w1.png", b"SOTU")  # of the same size
    again = {facts.name: facts.version for facts in place.list_tree("train")}
    assert {name for name in again if again[name] != versions[name]} == {"U2OS/Plate1/B01_s1_w1.png"}


def test_a_link_to_nowhere_hides_no_other_file(tmp_path: Path) -> None:
    plate = tmp_path / "train" / "HUVEC-01" / "Plate1"
    plate.mkdir(parents=True)
    names = [f"B{well:02d}_s1_w1.png" for well in range(1, 60)]
    for name in names:
        (plate / name).touch()
    (plate / "B99_s1_w1.png").symlink_to(tmp_path / "nowhere")
    found = ScreenDirectory(tmp_path).list_tree("train")
    assert sorted(facts.name for facts in found) == [f"HUVEC-01/Plate1/{name}" for name in names]
