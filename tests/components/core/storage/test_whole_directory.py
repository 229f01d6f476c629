import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.storage.whole_directory import whole_directory


def test_appears_whole_and_replaces_an_earlier_one(tmp_path):
    out = tmp_path / "a" / "out"
    for name in ("first", "second"):
        with whole_directory(out) as making:
            (making / name).write_text(name)
            assert not (out / name).exists()
    assert [path.name for path in out.iterdir()] == ["second"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_the_earlier_one_and_no_trace(tmp_path):
    out = tmp_path / "out"
    with whole_directory(out) as making:
        (making / "kept").touch()

    def fail():
        with whole_directory(out) as half:
            (half / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept"]


def killed(tmp_path: Path, program: str) -> None:
    """Runs it in a process of its own, which ends as by kill -9."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom components.core.storage import whole_directory as module\n"
        + program
    )
    status = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False).returncode
    assert status == 9


def test_what_a_killed_process_left_goes_when_the_directory_is_next_made(tmp_path):
    killed(tmp_path, "with module.whole_directory(Path(sys.argv[1])) as half: (half / 'half').touch(); os._exit(9)")
    assert len(list(tmp_path.iterdir())) == 1
    stranger = tmp_path / ".out.notes"
    stranger.mkdir()
    with whole_directory(tmp_path / "out") as making:
        (making / "whole").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".out.notes", "out", "whole"]


def test_an_earlier_one_that_a_killed_process_had_moved_aside_is_put_back(tmp_path):
    with whole_directory(tmp_path / "out") as making:
        (making / "kept").touch()
    replacing = """
replace = Path.replace
def replaced(path, target):
    replace(path, target)
    os._exit(9)
Path.replace = replaced
with module.whole_directory(Path(sys.argv[1])): pass
"""
    killed(tmp_path, replacing)
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyboardInterrupt), whole_directory(tmp_path / "out"):
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "out"]


def test_what_another_process_is_making_stays(tmp_path):
    with whole_directory(tmp_path / "out") as first:
        (first / "first").touch()
        with whole_directory(tmp_path / "out") as second:
            assert (first / "first").exists()
            assert second != first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_system_without_locks_keeps_leavings_and_works(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = tmp_path / ".out.abcdefgh"
    left.mkdir()
    with whole_directory(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.abcdefgh", "out"]
