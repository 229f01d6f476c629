"""normalize killed while it packs, and run again: no incomplete plate is used, and no complete plate is packed twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

from components.core.screen.packed import SiteReader
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.normalize.step import Summary, run
from tests.tiny_screen import CONFIG, TinyScreen


class SlowStore(ObjectStore):
    """Writes chunks slowly, so that a test can kill its process among them."""

    def put(self, key: str, data: bytes) -> None:
        if "/c." in key:
            time.sleep(0.05)
        super().put(key, data)


def normalize(root: Path, store: ObjectStore, out: Path) -> Summary:
    return run(CONFIG, root, store, out / "screen.json", out / "holdout.json", out / "labels.csv")


def _normalize_slowly(root: Path, folder: Path, out: Path) -> None:
    normalize(root, SlowStore(folder), out)


def test_a_killed_run_resumes(tmp_path: Path):
    finished = 3
    tiny, store = TinyScreen(tmp_path / "screen"), ObjectStore(tmp_path / "store")
    process = multiprocessing.get_context("spawn").Process(
        target=_normalize_slowly, args=(tiny.root, store.root, tmp_path / "out")
    )
    process.start()

    def records() -> list[str]:
        return [key for key in store.list("plates/") if key.endswith("/plate.json")]

    deadline = time.monotonic() + 60
    while len(records()) < finished or not any("/c." in key for key in store.list("plates/")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(timeout=60)
    whole = records()
    assert finished <= len(whole) < 8, "killed among the plates"
    before = {key: ((store.root / key).stat().st_ino, store.get(key)) for key in whole}

    summary = normalize(tiny.root, store, tmp_path / "out")
    assert (summary.packed, summary.reused) == (8 - len(whole), len(whole))
    assert {key: ((store.root / key).stat().st_ino, store.get(key)) for key in whole} == before
    manifest = Manifest.read(tmp_path / "out" / "screen.json")
    reader = SiteReader(store, manifest, verify=True)
    assert len(reader.read(range(80))) == 80
    undisturbed = ObjectStore(tmp_path / "undisturbed")
    normalize(tiny.root, undisturbed, tmp_path / "other")
    assert Manifest.read(tmp_path / "other" / "screen.json").digest() == manifest.digest()
    assert store.list("plates/") == undisturbed.list("plates/"), "the same keys, and none besides"
