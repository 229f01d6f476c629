"""A screen in a bucket: the same manifest and pixels as from a disk, packed plates reused, bad screens rejected."""

from __future__ import annotations

import os
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
from components.core.storage.opening import open_screen, open_store
from components.normalize.step import Summary, main, run
from tests.rxrx_screen import to_rxrx
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "screen")


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
    tiny: TinyScreen, store: ObjectStore, tmp_path: Path, layout: str
):
    root = to_rxrx(tiny) if layout == "rxrx" else tiny.root
    address, in_folder = upload(root, store), ObjectStore(tmp_path / "folder")
    summary, in_bucket = normalize(open_screen(address), open_store(store.uri("packed")), tmp_path / "a")
    _, on_disk = normalize(ScreenDirectory(root), in_folder, tmp_path / "b")
    assert (summary.packed, summary.reused) == (8, 0)
    assert in_bucket.digest() == on_disk.digest()
    assert in_bucket.store == store.uri("packed") != on_disk.store == (tmp_path / "folder").as_uri()
    reader = SiteReader(open_store(in_bucket.store), in_bucket, verify=True)
    found, table = reader.read(range(80)), reader.table
    assert np.array_equal(found, SiteReader(in_folder, on_disk, verify=True).read(range(80)))
    for site, well in enumerate(table.well_S):
        plate = in_bucket.plates[table.plate_W[well]]
        expected = tiny.pixels(plate.experiment, plate.plate, str(table.well_W[well]), int(table.site_S[site]))
        assert np.array_equal(found[site], expected)


def test_unchanged_plates_are_recognised_by_their_listing_and_copies_by_their_content(
    tiny: TinyScreen, store: ObjectStore, tmp_path: Path
):
    source = open_screen(upload(tiny.root, store))
    read: list[str] = []
    read_many = source.read_many
    source.read_many = lambda paths: (read.extend(paths), read_many(paths))[1]  # type: ignore[method-assign]
    packed = MemoryStore()
    normalize(source, packed, tmp_path / "out")
    assert len([path for path in read if path.endswith(".png")]) == 80 * 6
    read.clear()
    summary, first = normalize(source, packed, tmp_path / "out")
    assert (summary.packed, summary.reused) == (0, 8)
    assert sorted(read) == ["test.csv", "test_controls.csv", "train.csv", "train_controls.csv"]
    # The disk's files have times, not ETags, but the same bytes.
    packed.puts.clear()
    summary, second = normalize(ScreenDirectory(tiny.root), packed, tmp_path / "out")
    assert (summary.packed, summary.reused) == (0, 8)
    assert second == first
    assert {key.split("/")[0] for key in packed.puts} == {"fingerprints"}


def halve(store: ObjectStore, key: str) -> None:
    data = store.get(key)
    store.put(key, data[: len(data) // 2])


PLATE = "screen/train/HUVEC-02/Plate1"
DAMAGE: dict[str, tuple[Callable[[ObjectStore], object], str]] = {
    "truncated image": (lambda store: halve(store, f"{PLATE}/B04_s2_w3.png"),
                        f"{PLATE}/B04_s2_w3.png: channel w3 (actin) of well B04, site 2: the file is truncated; copy it again"),
    "missing plate": (lambda store: store.delete_prefix(PLATE),
                      f"{PLATE}: cannot list the images of HUVEC-02 plate 1 (there is no object); put them there"),
    "missing table": (lambda store: store.delete("screen/train.csv"), "screen/train.csv: cannot be read (no such object)"),
    "nothing": (lambda store: store.delete_prefix("screen/"), "screen: holds no file; give the address of the folder that"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_rejects_a_bad_screen_by_its_address(tiny: TinyScreen, store: ObjectStore, tmp_path: Path, case: str):
    source = open_screen(upload(tiny.root, store))
    damage, message = DAMAGE[case]
    damage(store)
    packed = MemoryStore()
    with pytest.raises(InputError, match=f"^{re.escape(store.uri(''))}/{re.escape(message)}") as caught:
        normalize(source, packed, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    # Only earlier plates may have been packed.
    assert all(key.startswith(("plates/HUVEC-01_", "copies/")) for key in packed.objects)


def test_rejects_a_missing_bucket_and_wrong_credentials(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outputs = [str(tmp_path / "out" / name) for name in "abc"]
    section = CONFIG.model_copy(update={"store": CONFIG.store.model_copy(update={"bucket": tmp_path.as_uri()})})
    missing = "^s3://no-such-bucket: .* has no such bucket; correct the address of the screen$"
    for address, secret, message in (
        ("s3://no-such-bucket/screen", os.environ["AWS_SECRET_ACCESS_KEY"], missing),
        ("gs://bucket/screen", "", "^gs://bucket/screen: a screen is a directory or at s3://BUCKET/PREFIX$"),
        (store.uri("screen"), "wrong", r"refused to list \(.*correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with pytest.raises(InputError, match=message):
            main(section.model_dump_json(), address, *outputs)
