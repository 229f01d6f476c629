"""A screen in a bucket: the same manifest and pixels as from a disk, packed plates reused, bad screens rejected."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.core.errors import InputError
from components.core.screen.packed import SiteReader
from components.core.screen.screen_source import ScreenDirectory, ScreenSource
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_screen
from components.normalize.step import Summary, main, run
from tests.rxrx_screen import write_rxrx
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


@pytest.fixture
def small(tmp_path: Path) -> TinyScreen:
    """Three experiments, since uploads take time."""
    screen = TinyScreen(tmp_path / "screen", imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03"))
    for table in ("train.csv", "train_controls.csv"):
        screen.drop_wells(table, "RPE")
    return screen


def upload(root: Path, store: ObjectStore) -> str:
    """Copies a screen into the store; returns its address."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    store.put_many((f"screen/{path.relative_to(root).as_posix()}", path.read_bytes()) for path in paths)
    return store.uri("screen")


def normalize(source: ScreenSource, store: ObjectStore, out: Path) -> tuple[Summary, Manifest]:
    summary = run(CONFIG, source, store, out / "screen.json", out / "holdout.json", out / "labels.csv")
    return summary, Manifest.read(out / "screen.json")


@pytest.mark.parametrize("layout", ["kaggle", "rxrx"])
def test_the_same_screen_has_the_same_manifest_and_pixels_from_a_disk_and_from_a_bucket(
    small: TinyScreen, store: ObjectStore, tmp_path: Path, layout: str
):
    experiments = ("HUVEC-01", "HUVEC-02", "HUVEC-03")
    root = write_rxrx(tmp_path / "rxrx", experiments, experiments[:2]) if layout == "rxrx" else small.root
    address, in_folder = upload(root, store), ObjectStore(tmp_path / "folder")
    summary, in_bucket = normalize(open_screen(address), ObjectStore(store.uri("packed")), tmp_path / "a")
    _, on_disk = normalize(ScreenDirectory(root), in_folder, tmp_path / "b")
    assert (summary.packed, summary.reused) == (6, 0)
    assert in_bucket.digest() == on_disk.digest()
    assert in_bucket.store == store.uri("packed") != on_disk.store == (tmp_path / "folder").as_uri()
    found = SiteReader(ObjectStore(in_bucket.store), in_bucket, verify=True).read(range(60))
    assert np.array_equal(found, SiteReader(in_folder, on_disk, verify=True).read(range(60)))


def test_unchanged_plates_are_recognised_by_their_listing_and_copies_by_their_content(
    small: TinyScreen, store: ObjectStore, tmp_path: Path
):
    source = open_screen(upload(small.root, store))
    read: list[str] = []
    read_many = source.read_many
    source.read_many = lambda paths: (read.extend(paths), read_many(paths))[1]  # type: ignore[method-assign]
    packed = MemoryStore()
    normalize(source, packed, tmp_path / "out")
    assert len([path for path in read if path.endswith(".png")]) == 1 + 60 * 6, "the first image is read for its form"
    read.clear()
    summary, first = normalize(source, packed, tmp_path / "out")
    assert (summary.packed, summary.reused) == (0, 6)
    first_image = "train/HUVEC-01/Plate1/B02_s1_w1.png"  # whose header gives the form of all
    assert sorted(read) == ["test.csv", "test_controls.csv", "train.csv", first_image, "train_controls.csv"]
    # The disk's files have times, not ETags, but the same bytes.
    packed.puts.clear()
    summary, second = normalize(ScreenDirectory(small.root), packed, tmp_path / "out")
    assert (summary.packed, summary.reused) == (0, 6)
    assert second == first
    assert {key.split("/")[0] for key in packed.puts} == {"fingerprints"}


def halve(store: ObjectStore, key: str) -> None:
    data = store.get(key)
    store.put(key, data[: len(data) // 2])


PLATE = "screen/train/HUVEC-02/Plate1"
DAMAGES: list[tuple[Callable[[ObjectStore], object], str]] = [
    (lambda store: halve(store, f"{PLATE}/B04_s2_w3.png"),
     f"{PLATE}/B04_s2_w3.png: channel 3 (actin) of well B04, site 2: the file is truncated; copy it again"),
    (lambda store: store.delete_prefix(PLATE),
     "screen: 5 wells of 30 without images (looked for WELL_sSITE_wCHANNEL.png, .tif or .jpg in {train,test}/"),
    (lambda store: store.delete("screen/train.csv"), "screen/train.csv: cannot be read (no such object)"),
    (lambda store: store.delete_prefix("screen/"), "screen: no screen in a known layout: looked for "),
]  # fmt: skip


def test_rejects_a_bad_screen_by_its_address(small: TinyScreen, store: ObjectStore, tmp_path: Path):
    """One upload serves all: each damage is found before the earlier ones."""
    address = upload(small.root, store)
    for damage, message in DAMAGES:
        damage(store)
        packed = MemoryStore()
        with pytest.raises(InputError, match=f"^{re.escape(store.uri(''))}/{re.escape(message)}") as caught:
            normalize(open_screen(address), packed, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        # Only earlier plates may have been packed.
        assert all(key.startswith(("plates/HUVEC-01_", "copies/")) for key in packed.objects)


def test_rejects_a_missing_bucket(store: ObjectStore, tmp_path: Path):
    outputs = [str(tmp_path / "out" / name) for name in "abc"]
    config = CONFIG.model_copy(update={"store": CONFIG.store.model_copy(update={"bucket": tmp_path.as_uri()})})
    missing = r"^s3://no-such-bucket: .* has no such bucket; create it, or correct its name$"
    with pytest.raises(InputError, match=missing):
        main(config.model_dump_json(), "s3://no-such-bucket/screen", *outputs)
