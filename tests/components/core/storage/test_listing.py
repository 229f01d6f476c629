"""All files of a screen's folder by few requests: the same in a bucket as in a directory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.screen.screen_source import ScreenDirectory
from components.core.storage import listing
from components.core.storage.listing import SPARE, parts
from components.core.storage.object_store import ObjectStore
from components.core.storage.screen_bucket import ScreenBucket

SIZES = st.dictionaries(st.sampled_from(["train", "test", "images"]), st.integers(0, 40), min_size=1)


@given(sizes=SIZES, most=st.integers(3, 60))
def test_every_folder_is_listed_once_in_no_more_parts_than_allowed(sizes: dict[str, int], most: int) -> None:
    inside = {folder: [f"E{n}" for n in range(count)] for folder, count in sizes.items()}
    found = parts(inside, most)
    assert found.keys() == inside.keys()
    assert sum(map(len, found.values())) <= max(most, len(inside))
    for folder, names in inside.items():
        assert found[folder] in ([folder], [f"{folder}/{name}" for name in names])


def test_the_folder_that_holds_most_is_split_first() -> None:
    inside = {"test": [f"E{n}" for n in range(18)], "train": [f"E{n}" for n in range(33)]}
    found = parts(inside, SPARE)
    assert (len(found["train"]), found["test"]) == (33, ["test"])


@pytest.mark.parametrize("prefix", ["", "screens/week-48"])
def test_a_bucket_tells_what_the_directory_tells_in_few_requests(
    store: ObjectStore, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
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
    wanted = [("train/notes.txt", 1), *((path, len(data)) for path, data in files.items())]
    place = ScreenBucket(bucket)
    before = bucket.requests["lists"]
    found = place.list_trees(["train", "nowhere"])
    assert bucket.requests["lists"] - before <= math.ceil(len(files) / 1000) + SPARE + 2
    assert sorted(facts[:2] for facts in found) == sorted(wanted)
    assert sorted(facts[:2] for facts in ScreenDirectory(tmp_path).list_trees(["train"])) == sorted(wanted)
    assert place.list_trees(["nowhere"]) == ScreenDirectory(tmp_path).list_trees(["nowhere"]) == []
    versions = {facts.name: facts.version for facts in found}
    bucket.put("train/U2OS/Plate1/B01_s1_w1.png", b"SOTU")  # of the same size
    monkeypatch.setattr(listing, "SPARE", 1)  # the folder as a whole
    again = {facts.name: facts.version for facts in place.list_trees(["train"])}
    assert again.keys() == versions.keys()
    assert {name for name in again if again[name] != versions[name]} == {"train/U2OS/Plate1/B01_s1_w1.png"}


def test_a_link_to_nowhere_hides_no_other_file(tmp_path: Path) -> None:
    plate = tmp_path / "train" / "HUVEC-01" / "Plate1"
    plate.mkdir(parents=True)
    names = [f"B{well:02d}_s1_w1.png" for well in range(1, 60)]
    for name in names:
        (plate / name).touch()
    (plate / "B99_s1_w1.png").symlink_to(tmp_path / "nowhere")
    found = ScreenDirectory(tmp_path).list_trees(["train"])
    assert sorted(facts.name for facts in found) == [f"train/HUVEC-01/Plate1/{name}" for name in names]
