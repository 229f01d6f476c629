"""A training that is killed between any two steps and resumes ends as an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.nn import functional

from components.core.config import AugmentConfig, ComputeConfig, StandardiseConfig
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.network import Classifier
from components.core.learning.step_settings import MeanTeacherSettings, PretrainSettings
from components.core.storage.object_store import ObjectStore
from components.finetune.step import run as finetune
from components.pretrain.step import run as pretrain
from components.pseudo_label.step import run as pseudo_label
from tests.components.core.learning.tiny_networks import MEAN_TEACHER, PRETRAIN
from tests.components.pretrain.training_run import BACKBONES, files

# Everything that draws random numbers is on.
RANDOM: dict[str, Any] = {
    "augment": AugmentConfig(cutmix=1.0, zoom=(0.7, 1.0)),
    "standardise": StandardiseConfig(channel_noise=0.1),
}
PRETRAINING: PretrainSettings = PRETRAIN.model_copy(update=RANDOM)
TEACHING: MeanTeacherSettings = MEAN_TEACHER.model_copy(
    update={
        **RANDOM,
        "mean_teacher": MEAN_TEACHER.mean_teacher.model_copy(
            update={
                "pseudo_labels": "soft",
                "labelled_batch": 12,
                "mix": "natural",
                "confident_fractions": (0.4, 1.0),
                "confident_by": "epoch",
            }
        ),
    }
)


class KilledError(Exception):
    """Simulates the end of the process."""


class KilledAt(Checkpoints):
    """Saves at every opportunity, and raises KilledError after a number of saves; None never does.

    Attributes:
        saves: number of saves so far.
    """

    def __init__(self, folder: Path, saves: int | None = None) -> None:
        super().__init__(ObjectStore(folder), "newest.pt", 0.0)
        self._last = saves
        self.saves = 0

    def save(self, state: Any) -> None:
        super().save(state)
        self.saves += 1
        if self.saves == self._last:
            self.close()
            raise KilledError


@pytest.fixture(autouse=True)
def dropping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes networks draw random numbers from torch's own stream."""
    embed = Classifier.embed

    def dropped(network: Classifier, x_BCHW: Tensor, type_BT: Tensor | None = None) -> Tensor:
        return functional.dropout(embed(network, x_BCHW, type_BT), 0.1, network.training)

    monkeypatch.setattr(Classifier, "embed", dropped)


def results(folder: Path) -> dict[str, Any]:
    """The files of a folder, without timings."""
    found: dict[str, Any] = {}
    for name, content in files(folder).items():
        if name.endswith(".json"):
            record = json.loads(content)
            epochs = record if isinstance(record, list) else record.get("history", [])
            for epoch in epochs:
                for timed in ("seconds", "sites_per_s", "data_wait", "peak_memory_gib"):
                    del epoch[timed]
            found[name] = record
        elif not name.endswith(".parquet"):  # its metadata holds no more than the arrays of the logits do
            found[name] = content
    return found


def run_to_the_end(work: Any, folder: Path, killed: list[int]) -> dict[str, Any]:
    """Runs it, killed after so many saves each time, then without; returns its results."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    for saves in killed:
        with pytest.raises(KilledError):
            work(folder / "killed", KilledAt(checkpoints, saves))
    work(folder / "out", KilledAt(checkpoints))
    return results(folder / "out")


def uninterrupted(work: Any, folder: Path) -> tuple[dict[str, Any], int]:
    """The results without a kill, and how often it saved."""
    (folder / "none").mkdir(parents=True)
    counting = KilledAt(folder / "none")
    work(folder / "whole", None)
    work(folder / "counted", counting)
    assert results(folder / "whole") == results(folder / "counted")
    return results(folder / "whole"), counting.saves


def test_pretrain(screen, tmp_path):
    store, manifest = screen

    def work(out: Path, checkpoints: Any) -> None:
        pretrain(PRETRAINING, store, manifest, 0, "slim", out / "weights", checkpoints=checkpoints)

    whole, saves = uninterrupted(work, tmp_path / "whole")
    assert saves >= 6
    for n in (2, saves - 1):
        assert run_to_the_end(work, tmp_path / f"once-{n}", [n]) == whole
    assert run_to_the_end(work, tmp_path / "often", [1] * (saves - 1)) == whole


def test_pretrain_in_parts(screen, tmp_path):
    """Every part of a batch has random numbers of its own."""
    store, manifest = screen
    settings = PRETRAINING.model_copy(update={"compute": ComputeConfig(accumulate=2)})

    def work(out: Path, checkpoints: Any) -> None:
        pretrain(settings, store, manifest, 0, "slim", out / "weights", checkpoints=checkpoints)

    whole, saves = uninterrupted(work, tmp_path / "whole")
    assert run_to_the_end(work, tmp_path / "twice", [1, saves // 2]) == whole


def test_finetune_and_pseudo_label(screen, pretrained, tmp_path):
    store, manifest = screen
    bases = [pretrained.base(name) for name in BACKBONES]
    holdout = manifest.model_copy(update={"plates": ()})

    def tune(out: Path, checkpoints: Any) -> None:
        finetune(TEACHING, store, manifest, bases, 0, "HUVEC", out / "weights", checkpoints)

    whole, saves = uninterrupted(tune, tmp_path / "finetune")
    assert saves >= 3
    assert run_to_the_end(tune, tmp_path / "finetune-often", [1] * (saves - 1)) == whole

    def label(out: Path, checkpoints: Any) -> None:
        base = tmp_path / "finetune" / "whole" / "weights"
        folders = [out / name for name in ("weights", "logits", "embeddings")]
        pseudo_label(TEACHING, store, manifest, holdout, base, 0, "HUVEC", *folders, checkpoints=checkpoints)

    whole, saves = uninterrupted(label, tmp_path / "label")
    assert any(name.startswith("logits") for name in whole)
    assert saves >= 10  # steps of two backbones and epochs, then pieces of the prediction
    assert run_to_the_end(label, tmp_path / "label-often", [2] * (saves // 2 - 1)) == whole
