"""The measurements of packing measure what they say: on a few small images, since the figures themselves are the bench's."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from components.core.config import PackConfig
from components.core.storage.object_store import ObjectStore
from tests.bench import codecs, packing
from tests.bench.sites import write_screen


@pytest.fixture
def small_sites(monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[bytes, ...], ...]:
    """Two sites of 512 pixels that take no time to render."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (2, 6, 512, 512), dtype=np.uint8)
    sites = tuple(tuple(cv2.imencode(".png", image)[1].tobytes() for image in site) for site in images)
    for module in ("tests.bench.codecs", "tests.bench.packing", "tests.bench.sites"):
        monkeypatch.setattr(f"{module}.png_sites", lambda: sites)
    return sites


def test_a_child_packs_the_whole_screen_and_tells_its_cost(small_sites: object, tmp_path: Path):
    source = write_screen(tmp_path / "screen", plates=2, wells=3)
    seconds, megabytes = packing.measured_child(str(source), tmp_path / "out")
    assert 0 < seconds < 60
    assert 20 < megabytes < 1000
    keys = ObjectStore(tmp_path / "out" / "store").list("plates/")
    assert sum(key.endswith("/c.0.0.0") for key in keys) == 6
    assert sum(key.endswith("/plate.json") for key in keys) == 2


def test_the_shipped_codec_is_in_the_table_once(small_sites: tuple[tuple[bytes, ...], ...]):
    rows = codecs.rows()
    (shipped,) = (row for row in rows if row.note.endswith("; shipped"))
    assert shipped.name == f"codec {PackConfig().codec} {PackConfig().level} {PackConfig().shuffle}"
    assert len({row.name for row in rows}) == len(rows) == 12
    assert all(row.value > 0 and row.ratio == pytest.approx(1 / row.value) for row in rows)
