"""A file that is written is there whole, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.storage.whole_file import write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path: Path):
    file = tmp_path / "plan.json"
    for content in ("Zellzahl ≥ 3\n", b"\x00\xff"):
        write_whole(file, content)
        assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_earlier_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "plan.json"
    file.write_text("earlier")

    def full_disk(path: Path, data: bytes) -> int:
        with path.open("wb") as half:
            half.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "later")
    assert file.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [file]
