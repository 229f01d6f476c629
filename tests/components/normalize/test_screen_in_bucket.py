"""A screen in a bucket: the same manifest and pixels as from a disk, packed plates reused, bad screens rejected."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core.errors import InputError
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


def chunks(manifest: Manifest, store: ObjectStore) -> list[bytes]:
    return store.get_many(
        [f"{plate.prefix}/{site.key}" for plate in manifest.plates for well in plate.wells for site in well.sites]
    )


@pytest.mark.parametrize("layout", ["kaggle", "rxrx"])
def test_the_same_screen_makes_the_same_manifest_from_a_disk_and_from_a_bucket(
    tiny: TinyScreen, store: ObjectStore, tmp_path: Path, layout: str
):
    root = to_rxrx(tiny) if layout == "rxrx" else tiny.root
    address = upload(root, store)
    summary, in_bucket = normalize(open_screen(address), open_store(store.uri("packed")), tmp_path / "a")
    _, on_disk = normalize(ScreenDirectory(root), ObjectStore(tmp_path / "folder"), tmp_path / "b")
    assert (summary.packed, summary.reused) == (8, 0)
    assert in_bucket.digest() == on_disk.digest()
    assert in_bucket.store == store.uri("packed") != on_disk.store == (tmp_path / "folder").as_uri()
    found = chunks(in_bucket, open_store(in_bucket.store))
    assert found == chunks(on_disk, open_store(on_disk.store))
    assert len(set(found)) == 80


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
    tiny: TinyScreen, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outputs = [str(tmp_path / "out" / name) for name in "abc"]
    section = CONFIG.model_copy(update={"store": CONFIG.store.model_copy(update={"bucket": tmp_path.as_uri()})})
    with pytest.raises(InputError) as caught:
        main(section.model_dump_json(), "s3://no-such-bucket/screen", *outputs)
    assert (
        str(caught.value)
        == f"s3://no-such-bucket: {os.environ['AWS_ENDPOINT_URL']} has no such bucket; correct the address of the screen"
    )
    address = upload(tiny.root, store)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(
        InputError, match=r"refused the credentials .*correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        main(section.model_dump_json(), address, *outputs)
    with pytest.raises(InputError, match=r"^gs://bucket/screen: a screen is a directory or at s3://BUCKET/PREFIX$"):
        main(section.model_dump_json(), "gs://bucket/screen", *outputs)
