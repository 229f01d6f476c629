"""A step in several processes: the weights of one process that accumulates the same parts; errors; a kill of all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.core.errors import InputError, StepError
from components.core.learning.step_settings import InferSettings
from components.core.progress import EVENTS_VARIABLE
from components.core.storage.arrays import read_logits
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.task_status import StatusReader
from components.infer.step import run as infer
from tests.bench.measure import children
from tests.components.core.learning.tiny_networks import RUN, changed
from tests.components.pretrain.training_run import BACKBONES, TrainingRun, epochs_trained
from tests.tiny_screen import TinyScreen

TEAM = {"processes": 2, "accumulate": 2}
Make = Callable[..., TrainingRun]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Creates runs of the same screen with their own `compute`, with many options or the default method."""
    folder = tmp_path_factory.mktemp("team")
    source = TinyScreen(folder / "screen").root

    def made(name: str, options: bool = True, **compute: Any) -> TrainingRun:
        # Each has its own store: in a shared one, equal settings would reuse finished outputs.
        batches = {"labelled_batch": 16, "unlabelled_batch": 16}  # a quarter of a batch is four images
        pretrain = {"batch_size": 16, "epochs": 8}  # enough to be killed among them
        config = changed(RUN, compute=compute, pretrain=pretrain, mean_teacher=batches)
        if options:
            # All parameters of the head must get gradients in every part.
            head = {"cell_types": True, "linear_weight": 0.8}
            config = changed(config, mean_teacher={"mix": "natural"}, head=head)
        run = TrainingRun(folder / name, (folder / f"{name} store").as_uri(), config)
        run.normalize(source, f"tiny-{name}")
        return run

    return made


@pytest.fixture(scope="module")
def together(make: Make) -> TrainingRun:
    """A run of two processes, which have pretrained one backbone."""
    run = make("together", **TEAM)
    run.pretrain("slim")
    return run


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights below a folder, without BatchNorm's counts of batches."""
    return {
        f"{file.name} {name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
        if tensor.is_floating_point()
    }


def last_failure(run: TrainingRun) -> tuple[str, str, str]:
    """Task, kind and message of the last report of a run's tasks."""
    store = ObjectStore(run.store)
    status = StatusReader(store, Manifest.read(run.screen).run).read()[-1].status
    assert status.state == "failed"
    return status.task, status.kind, status.message


def difference(one: Path, other: Path) -> float:
    """Largest difference of two folders' weights."""
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates_two_parts(
    make: Make, together: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alone, undivided = make("alone", processes=1, accumulate=4), make("undivided", processes=1)
    for run in (alone, undivided):
        run.pretrain("slim")
    # Adam turns rounding errors of tiny gradients into whole steps, so weights drift apart; an undivided batch, whose BatchNorm
    # sees all images, drifts much further.
    apart = difference(undivided.base("slim"), alone.base("slim"))
    assert difference(together.base("slim"), alone.base("slim")) < 0.05 * apart
    losses = [
        [record["loss"] for record in json.loads((run.base("slim") / "history.json").read_text())]
        for run in (together, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # From the same pretrained weights, the mean teacher's pairs, running statistics included.
    alone.pretrain("small")
    together.base("small").symlink_to(alone.base("small"))
    shutil.rmtree(alone.base("slim"))
    alone.base("slim").symlink_to(together.base("slim"))
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    together.finetune()
    alone.finetune()
    assert difference(together.finetuned, alone.finetuned) < 2e-5
    assert epochs_trained(events) == 2 * 2, "of each backbone one, which only the leader reports"
    # In prediction each process has a share of the wells, and the leader all logits.
    together.pseudo_label()
    store, manifests = (
        ObjectStore(together.store),
        (Manifest.read(path) for path in (together.screen, together.holdout)),
    )
    outputs = tmp_path / "logits", tmp_path / "embeddings"
    infer(alone.config.section(InferSettings), store, *manifests, [together.weights], 0, "HUVEC", *outputs)
    for role in ("oof", "unlabelled"):
        of_team, of_one = (read_logits(folder).wells[role] for folder in (together.logits, outputs[0]))
        assert of_team.ids_W == of_one.ids_W != ()
        assert of_team.logits_WK == pytest.approx(of_one.logits_WK, abs=1e-4)
    assert len(list(together.embeddings.rglob("*.parquet"))) == 2


@pytest.mark.slow
def test_two_processes_equal_one_in_the_default_method(make: Make):
    """The mean teacher with a fixed mix and ArcFace, from the same pretrained weights."""
    alone, team = make("default-alone", False, processes=1, accumulate=4), make("default-team", False, **TEAM)
    alone.config = changed(alone.config, pretrain={"epochs": 1})
    for backbone in BACKBONES:
        alone.pretrain(backbone)
        team.base(backbone).symlink_to(alone.base(backbone))
    for run in (alone, team):
        run.finetune()
    assert difference(team.finetuned, alone.finetuned) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("domains", "options"), [(3, True), (4, False)])
def test_two_processes_equal_one_if_a_step_has_several_domains(make: Make, domains: int, options: bool):
    """Each has two of four plates, or a share of three."""
    runs = [
        make(f"{domains}-domains-{processes}", options, processes=processes, accumulate=2 // processes)
        for processes in (2, 1)
    ]
    losses = []
    for run in runs:
        run.config = changed(run.config, batch_norm={"domain": "plate", "domains_per_step": domains})
        run.pretrain("slim")
        losses.append([e["loss"] for e in json.loads((run.base("slim") / "history.json").read_text())])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_team_that_diverges_ends_together(make: Make):
    run = make("diverging", **TEAM)
    run.config = changed(run.config, pretrain={"learning_rates": (1e30, 1e-3)})
    with pytest.raises(
        InputError, match=r"epoch 2 of 8: the loss of step 1 of 1 is not finite; lower pretrain.learning_rates"
    ) as error:
        run.pretrain("slim")
    assert last_failure(run) == ("pretrain fold 0 slim", "input", str(error.value))
    assert not list(ObjectStore(run.store).list("checkpoints/"))


@pytest.mark.slow
def test_bad_input_in_a_team_is_one_line(make: Make):
    run = make("bad", processes=2)
    # Only one process reads the bad site; the other one waits for it.
    store = ObjectStore(run.store)
    key = next(key for key in store.list("plates/") if "/c" in key)
    store.put(key, store.get(key)[:-1])
    with pytest.raises(InputError, match=r"plate \d, well \w\d\d, site \d: its chunk .* has \d+ bytes") as error:
        run.pretrain("slim")
    assert last_failure(run) == ("pretrain fold 0 slim", "input", str(error.value))


def test_rejects_more_processes_than_gpus(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"compute.processes is 3, but there are 2 GPUs"):
        (run := make("many", processes=3)).pretrain("slim")
    assert last_failure(run)[:2] == ("pretrain fold 0 slim", "input")


def torchrun() -> int:
    """The process id of torchrun, a child of this process."""
    (found,) = (
        pid for pid in children(os.getpid()) if b"torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


@pytest.mark.slow
def test_a_killed_team_resumes_from_its_checkpoint(
    make: Make, together: TrainingRun, capfd: pytest.CaptureFixture[str]
):
    run = make("killed", **TEAM, checkpoint_seconds=0)
    store = ObjectStore(run.store)
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(run.pretrain, "slim")
        deadline = time.monotonic() + 120
        while not any(key.endswith("latest.pt") for key in store.list("checkpoints/")):
            assert not training.done(), "it ended before the kill"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(torchrun(), signal.SIGKILL)  # its processes end when it is gone
        with pytest.raises(StepError, match=r"pretrain: a process was killed .*; run again to resume"):
            training.result(60)
    task, kind, message = last_failure(run)
    assert (task, kind, "a process was killed" in message) == ("pretrain fold 0 slim", "step", True)
    time.sleep(1)
    assert not run.base("slim").exists()
    capfd.readouterr()
    run.pretrain("slim")
    assert "resuming from the last checkpoint" in capfd.readouterr().out
    assert difference(run.base("slim"), together.base("slim")) == 0
    assert store.list("checkpoints/") == []
