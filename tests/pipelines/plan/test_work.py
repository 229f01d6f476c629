"""Site passes of a plan against real steps whose networks count every image, and the wells of a fold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.core.learning.xception import Xception
from components.core.storage.manifest import Manifest
from components.finetune.step import run as finetune
from components.infer.step import run as infer
from components.normalize.step import run as normalize
from components.pretrain.step import run as pretrain
from pipelines.dag import DagTask
from pipelines.plan.work import screen_wells, task_work
from tests.components.core.learning.tiny_networks import RUN, SLIM, SMALL
from tests.tiny_screen import MemoryStore, TinyScreen

WIDTH = {SMALL.name: SMALL.exit[-1], SLIM.name: SLIM.exit[-1]}
EXPERIMENTS = ("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04", "RPE-01", "RPE-02")
WITHIN = 0.2
"""The plan does not count the incomplete and filled-up batches of the tiny screen."""


@dataclass
class Counts:
    """Images that passed through the networks, by width of the embedding: with and without gradients."""

    student: Counter[int] = field(default_factory=Counter)
    forward: Counter[int] = field(default_factory=Counter)


def counted(patch: pytest.MonkeyPatch) -> Counts:
    counts, forward = Counts(), Xception.forward

    def counting(network: Xception, images: torch.Tensor) -> torch.Tensor:
        (counts.student if torch.is_grad_enabled() else counts.forward)[network.embedding_size] += len(images)
        return forward(network, images)

    patch.setattr(Xception, "forward", counting)
    return counts


class CountedScreen:
    """A packed screen, and steps on fold 0 of it that are compared with their plan."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config, self.store = folder, config, MemoryStore()
        TinyScreen(folder / "screen", more=("HUVEC-04", "RPE-02"), imaged=EXPERIMENTS)
        paths = [folder / name for name in ("screen.json", "holdout.json", "labels.csv")]
        normalize(config, folder / "screen", self.store, *paths)
        self.screen, self.holdout = Manifest.read(paths[0]), Manifest.read(paths[1])
        self.wells = screen_wells(config, folder / "screen")

    def run(self, step: str, bases: list[Path], cell_type: str | None = None, backbone: str | None = None) -> Path:
        """Runs a step; returns the folder of its weights."""
        out = self.folder / f"{step}-{backbone}"
        with pytest.MonkeyPatch.context() as patch:
            counts = counted(patch)
            if step == "pretrain":
                out.mkdir()
                pretrain(self.config.section(PretrainSettings), self.store, self.screen, 0, backbone, out)
            elif step == "finetune":
                settings = self.config.section(MeanTeacherSettings)
                finetune(settings, self.store, self.screen, bases, 0, cell_type, out)
            else:
                outputs = [out / name for name in ("logits", "embeddings")]
                settings = self.config.section(InferSettings)
                infer(settings, self.store, self.screen, self.holdout, bases, 0, cell_type, *outputs)
        task = DagTask(0, step, 0, cell_type, backbone)
        for name, planned in task_work(self.wells, task).items():
            assert planned.training == pytest.approx(counts.student[WIDTH[name]], rel=WITHIN), (task.name, name)
            assert planned.forward == pytest.approx(counts.forward[WIDTH[name]], rel=WITHIN), (task.name, name)
        return out


def test_steps_take_about_the_planned_passes(tmp_path: Path):
    data = RUN.model_dump()
    changes = {
        "mean_teacher": {"pseudo_labels": "none"},
        "screen": {"holdout_experiments": ("HUVEC-04",)},
        "embeddings": {"views": 2},
    }
    config = RunConfig.model_validate(data | {name: data[name] | fields for name, fields in changes.items()})
    screen = CountedScreen(tmp_path, config)
    bases = [screen.run("pretrain", [], backbone=backbone) for backbone in WIDTH]
    tuned = screen.run("finetune", bases, "HUVEC")
    screen.run("infer", [tuned], "HUVEC")


def test_counts_the_wells_of_a_screen(config_file: Path, tables: TinyScreen):
    wells = screen_wells(RunConfig.load(str(config_file)), tables.root)
    assert len(wells.experiments) == 3
    assert wells.experiments.plates.sum() == 6
    assert (wells.count(), wells.sites, wells.pixel_bytes) == (30, 60, 60 * 6 * 16 * 16)
    assert wells.assumed == ""


@pytest.mark.parametrize(("bits", "dtype"), [(None, "uint16"), (8, "uint8")])
def test_sites_channels_size_and_depth_are_those_of_the_screens_images(tmp_path: Path, bits: int | None, dtype: str):
    well_rows = [("A01", "treatment", "x", 3), ("A02", "treatment", "y", 3), ("A03", "negative_control", "z", 2)]
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((20, 30), np.uint16))
    rows = [
        f"E{e},P,{well},{site},{role},{label},HUVEC,a.tif,b.tif"
        for e in range(2)
        for well, role, label, sites in well_rows
        for site in range(1, sites + 1)
    ]
    table = tmp_path / "samplesheet.csv"
    table.write_text("\n".join(["experiment,plate,well,site,role,perturbation,cell_type,path_a,path_b", *rows]))
    config = RunConfig.model_validate(
        {
            "screen": {"cell_types": ["HUVEC"]},
            "folds": {"count": 2},
            "pack": {"bits": bits},
            "mean_teacher": {"ratio": {}},
        }
    )
    wells = screen_wells(config, tmp_path)
    assert (wells.count(), wells.sites, wells.sites_per_well) == (6, 16, pytest.approx(8 / 3))
    assert (wells.config.screen.channels, wells.config.screen.image_shape, wells.dtype) == (("a", "b"), (20, 30), dtype)
    assert wells.pixel_bytes == 16 * 2 * 20 * 30 * (2 if dtype == "uint16" else 1)
    (tmp_path / "b.tif").unlink()
    without = screen_wells(config, tmp_path)
    assert without.sites == 12
    assert "2 sites a well of 6 channels, 512x512 pixels, 8 bit" in without.assumed


def test_every_labelled_well_validates_in_one_fold():
    config = RunConfig.load("rxrx1")
    wells = screen_wells(config, None)
    labelled = wells.experiments.query("labelled").treatments.sum()
    assert sum(wells.fold(fold).validation for fold in range(config.folds.count)) == labelled
    assert all(
        sum(wells.fold(fold, cell_type).training for cell_type in config.screen.cell_types) == wells.fold(fold).training
        for fold in range(config.folds.count)
    )


def test_overlapping_folds_train_on_what_they_do_not_list():
    lists = "[[HUVEC-01, U2OS-01], [HUVEC-02, U2OS-01]]"
    config = RunConfig.load("rxrx1", ["folds.count=2", f"folds.validation={lists}", "screen.holdout_experiments=[]"])
    wells = screen_wells(config, None)
    for fold in (0, 1):
        assert wells.fold(fold).validation == 2 * 1108
        assert wells.fold(fold, "U2OS").training == screen_wells(RunConfig.load("rxrx1"), None).fold(0, "U2OS").training
    everything = [f"folds.validation=[[HUVEC-01], {[f'U2OS-0{n}' for n in (1, 2, 3)]}]", "folds.count=2"]
    with pytest.raises(InputError, match="fold 1 validates on all labelled experiments of U2OS"):
        screen_wells(RunConfig.load("rxrx1", everything), None)


def test_controls_can_be_limited_to_training_experiments():
    everywhere = screen_wells(RunConfig.load("rxrx1"), None).fold(0)
    training = screen_wells(RunConfig.load("rxrx1", ["screen.controls=training"]), None).fold(0)
    assert training.training < everywhere.training
    assert training.validation == everywhere.validation


def test_a_fold_without_training_wells_is_refused():
    changes = [
        "simulate.labelled={HUVEC: 2, RPE: 1, HEPG2: 1, U2OS: 1}",
        "screen.holdout_experiments=[]",
        "folds.count=2",
    ]
    with pytest.raises(InputError, match=r"fold \d validates on all labelled experiments of RPE"):
        screen_wells(RunConfig.load("rxrx1", changes), None)
