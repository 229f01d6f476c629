"""A step in several processes: the weights of one process that accumulates the same parts; errors; a kill of all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.core.errors import InputError
from components.core.progress import EVENTS_VARIABLE
from components.core.storage.object_store import ObjectStore
from tests.components.pretrain.training_run import TrainingRun, epochs_trained
from tests.tiny_screen import TinyScreen


@pytest.fixture
def trained(store: ObjectStore, tmp_path: Path):
    """Creates runs with their own `compute` on the same screen and store."""
    TinyScreen(tmp_path / "screen")

    def make(name: str, **compute: Any) -> TrainingRun:
        # Each has its own prefix in the store: with a shared one, equal settings would reuse finished outputs.
        run = TrainingRun(tmp_path / name, store.uri(name))
        batches = {"labelled_batch": 16, "unlabelled_batch": 16}  # a quarter of a batch is four images
        run.change(compute=compute, pretrain={"batch_size": 16}, mean_teacher=batches)
        run.normalize(tmp_path / "screen")
        return run

    return make


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights below a folder, without BatchNorm's counts of batches."""
    return {
        f"{file.name} {name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
        if tensor.is_floating_point()
    }


def difference(one: Path, other: Path) -> float:
    """Largest difference of two folders' weights."""
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates_two_parts(trained, tmp_path, monkeypatch):
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    together, alone = trained("together", processes=2, accumulate=2), trained("alone", processes=1, accumulate=4)
    for run in (together, alone):
        run.pretrain("small")
        run.pretrain("slim")
    assert epochs_trained(events) == 2 * 2 * 2  # only the leader reports its epochs
    # Adam turns rounding errors of tiny gradients into whole steps, so weights drift apart; an undivided batch, whose BatchNorm
    # sees all images, drifts much further.
    undivided = trained("undivided", processes=1)
    undivided.pretrain("slim")
    apart = difference(undivided.base("slim"), alone.base("slim"))
    for backbone in ("small", "slim"):
        assert difference(together.base(backbone), alone.base(backbone)) < 0.05 * apart
    losses = [
        [record["loss"] for record in json.loads((run.base("slim") / "history.json").read_text())]
        for run in (together, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # From the same pretrained weights, the mean teacher's pairs, running statistics included.
    for backbone in ("small", "slim"):
        alone.base(backbone).rename(tmp_path / f"kept-{backbone}")
        together.base(backbone).rename(alone.base(backbone))
        together.base(backbone).symlink_to(alone.base(backbone))
    together.finetune()
    alone.finetune()
    assert difference(together.finetuned, alone.finetuned) < 2e-5
    # In prediction each process has a share of the wells, and the leader all logits.
    together.pseudo_label()
    assert (together.logits / "logits.npz").exists()
    assert len(list(together.embeddings.rglob("*.parquet"))) == 2


@pytest.mark.slow
def test_bad_input_in_a_team_is_one_line(trained, store):
    run = trained("run", processes=2)
    # Only one process reads the bad site; the other one waits for it.
    key = next(key for key in store.list("run/plates/") if "/c" in key)
    store.put(key, store.get(key)[:-1])
    run.change(pretrain={"epochs": 30})
    with pytest.raises(InputError, match=r"plate \d, well \w\d\d, site \d: its chunk .* has \d+ bytes"):
        run.pretrain("slim")


def test_rejects_more_processes_than_gpus(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"compute.processes is 3, but there are 2 GPUs"):
        trained("run", processes=3).pretrain("slim")


@pytest.mark.slow
def test_a_killed_team_resumes_from_its_checkpoint(trained, store, tmp_path):
    run, whole = (trained(name, processes=2, checkpoint_seconds=s) for name, s in (("run", 0), ("whole", 1e9)))
    for each in (run, whole):  # long enough to be killed during training
        each.change(pretrain={"epochs": 16})
    program = "import sys, json; from components.pretrain.step import main; main(**json.loads(sys.argv[1]))"
    arguments = {
        "config": run.pretrain_json, "screen": str(run.screen), "fold": 0, "backbone": "slim", "weights": str(run.base("slim")),
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", program, json.dumps(arguments)], start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(key.endswith("latest.pt") for key in store.list("run/checkpoints/")):
        assert process.poll() is None, "it ended before the kill"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # torchrun too; its processes end when it is gone
    process.wait(timeout=60)
    time.sleep(1)
    assert not run.base("slim").exists()
    resumed = subprocess.run(
        [sys.executable, "-c", program, json.dumps(arguments)], check=True, capture_output=True, text=True, timeout=600
    )
    assert "resuming from the last checkpoint" in resumed.stdout
    whole.pretrain("slim")
    assert difference(run.base("slim"), whole.base("slim")) == 0
    assert store.list("run/checkpoints/") == []
