"""When checkpoints are saved, that they are a picture of the moment, and that failures to save end nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from components.core.errors import StepError
from components.core.learning import checkpoints as module
from components.core.learning.checkpoints import Checkpoints
from components.core.storage.object_store import ObjectStore

KEY = "newest.pt"


def test_saves_when_the_interval_has_passed_unless_the_last_is_still_being_written(tmp_path, monkeypatch):
    now, may_write = 100.0, threading.Event()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)

    class Slow(ObjectStore):
        def upload_file(self, path: Path, key: str) -> None:
            may_write.wait(10)

    checkpoints, saved = Checkpoints(Slow(tmp_path), KEY, 300), []
    for now in (100.0, 399.0, 400.0, 401.0, 699.0, 700.5):
        checkpoints.save_if_due(lambda now=now: saved.append(now) or {})
    assert saved == [400.0]
    may_write.set()
    checkpoints._wait()
    checkpoints.save_if_due(lambda: saved.append(now) or {})
    assert saved == [400.0, 700.5]
    checkpoints.close()


def test_a_checkpoint_is_a_snapshot_of_the_moment_it_is_saved(tmp_path, monkeypatch):
    """While a state is being written, training changes its tensors in place."""
    may_write, write = threading.Event(), torch.save

    def slow(*arguments: object) -> None:
        may_write.wait(10)
        write(*arguments)

    monkeypatch.setattr(module.torch, "save", slow)
    weights = torch.arange(4.0)
    state = {"weights": weights, "nested": [{"x": weights}], "step": 3, "none": None, "pair": (0.9, 0.999)}
    checkpoints = Checkpoints(ObjectStore(tmp_path), KEY, 0)
    checkpoints.save(state)
    weights += 100
    may_write.set()
    checkpoints.close()
    found = Checkpoints(ObjectStore(tmp_path), KEY).resume()
    assert found is not None
    assert found["weights"].tolist() == found["nested"][0]["x"].tolist() == [0, 1, 2, 3]
    assert (found["step"], found["none"], found["pair"]) == (3, None, (0.9, 0.999))


@pytest.mark.parametrize(
    ("owner", "function", "error"),
    [
        (torch, "save", RuntimeError("file write failed: no space left")),  # so torch reports a full disk
        (ObjectStore, "upload_file", StepError("upload failed")),
    ],
)
def test_a_failure_to_save_is_a_warning_and_keeps_the_previous_checkpoint(
    tmp_path, capsys, monkeypatch, owner, function, error
):
    checkpoints = Checkpoints(ObjectStore(tmp_path), KEY, 0)
    checkpoints.save({"step": 1})
    checkpoints.close()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(owner, function, fail)
        checkpoints.save({"step": 2})
        checkpoints.close()
    assert "could not be saved" in capsys.readouterr().out
    assert Checkpoints(ObjectStore(tmp_path), KEY).resume() == {"step": 1}


def test_a_damaged_checkpoint_is_a_warning_and_training_starts_over(tmp_path, capsys):
    torch.save({"weights": torch.arange(1000.0)}, tmp_path / KEY)
    whole = (tmp_path / KEY).read_bytes()
    damaged = [b"something else", whole[: len(whole) // 2]]
    directory, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x06\x06")
    # The data; an entry's version, encryption and length of its name in the directory; the directory's position.
    for at, bit in ((len(whole) // 2, 0), (directory + 6, 6), (directory + 8, 0), (directory + 28, 5), (end + 48, 0)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        damaged.append(bytes(flipped))
    for content in damaged:
        (tmp_path / KEY).write_bytes(content)
        assert Checkpoints(ObjectStore(tmp_path), KEY).resume() is None
        assert f"{KEY}: damaged; starting from the beginning" in capsys.readouterr().out


def test_reading_a_checkpoint_runs_no_code(tmp_path, capsys):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"step": Trap()}, tmp_path / KEY)
    assert Checkpoints(ObjectStore(tmp_path), KEY).resume() is None
    assert not (tmp_path / "sprung").exists()
    assert "starting from the beginning" in capsys.readouterr().out
