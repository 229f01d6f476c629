"""Files and folders appear complete or not at all, also after kill -9."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.files import atomic_directory, atomic_path, locked, write_atomically


def test_a_file_is_replaced_and_a_failed_write_keeps_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "plan.json"
    for content in (b"\x00\xff", "Zellzahl ≥ 3\n"):
        write_atomically(file, content)
        assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)

    def full_disk(path: Path, data: bytes) -> int:
        with path.open("wb") as half:
            half.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "later")
    assert file.read_text() == "Zellzahl ≥ 3\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_replaces_a_file_in_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, renamed, rename = tmp_path / "model", [], Path.replace
    out.write_text("earlier")
    monkeypatch.setattr(Path, "replace", lambda path, target: renamed.append((path, target)) or rename(path, target))
    with atomic_path(out) as new:
        new.write_text("later")
        assert out.read_text() == "earlier"
    assert renamed == [(new, out)]
    assert out.read_text() == "later"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path):
    out = tmp_path / "a" / "out [1]"
    for name in ("first", "second"):
        with atomic_directory(out) as new:
            (new / name).write_text(name)
            assert not (out / name).exists()

    def fail() -> None:
        with atomic_directory(out) as half:
            (half / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in out.iterdir()] == ["second"]
    assert list(out.parent.iterdir()) == [out]


KILLED_WHILE_WRITING = "with atomic_directory(out) as half: (half / 'half').touch(); os._exit(9)"
KILLED_BETWEEN_THE_RENAMES = """
replace = Path.replace
def replace_and_die(path, target):
    replace(path, target)
    os._exit(9)
Path.replace = replace_and_die
with atomic_directory(out): pass
"""


@pytest.mark.parametrize("program", [KILLED_WHILE_WRITING, KILLED_BETWEEN_THE_RENAMES])
def test_the_next_call_repairs_the_remains_of_a_killed_process(tmp_path: Path, program: str):
    out = tmp_path / "out"
    with atomic_directory(out) as new:
        (new / "kept").touch()
    stranger = tmp_path / ".out.notes.partial"
    stranger.mkdir()
    head = "import os, sys\nfrom pathlib import Path\nfrom components.core.files import atomic_directory\n"
    killed = [sys.executable, "-c", f"{head}out = Path(sys.argv[1])\n{program}", str(out)]
    assert subprocess.run(killed, check=False).returncode == 9
    assert len(list(tmp_path.glob(".out.*"))) == 2

    with pytest.raises(KeyboardInterrupt), atomic_directory(out):
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.rglob("*")} == {".out.notes.partial", "out", "kept"}


def test_two_processes_may_make_the_same_folder(tmp_path: Path):
    out = tmp_path / "out"
    with atomic_directory(out) as first:
        (first / "first").touch()
        with atomic_directory(out) as second:
            assert (first / "first").exists()
            assert second != first
    assert [path.name for path in out.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_lock_is_exclusive_until_it_is_released(tmp_path: Path):
    file = tmp_path / "lock"
    with locked(file), pytest.raises(BlockingIOError, match="locked by another process"), locked(file, wait=False):
        pass
    with locked(file, wait=False):
        pass


def test_a_lock_may_be_taken_by_all_who_may_write_to_its_folder(tmp_path: Path):
    umask = os.umask(0o077)
    try:
        for folder, file in ((0o770, 0o660), (0o755, 0o644), (0o700, 0o600)):
            tmp_path.chmod(folder)
            with locked(tmp_path / f"{folder:o}"):
                assert (tmp_path / f"{folder:o}").stat().st_mode & 0o777 == file
    finally:
        os.umask(umask)
