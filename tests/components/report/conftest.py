"""A synthetic finished run, without training: manifests, packed sites, outputs of assign, histories, truth; and its report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from components.assign.step import TABLE
from components.core.config import CHANNELS, PackConfig, RunConfig
from components.core.screen.histograms import histogram
from components.core.screen.ome_zarr import encode_chunk
from components.core.storage.manifest import PlateRecord, SiteRecord, Vocabulary, WellRecord
from components.report.step import run as write_report
from tests.components.core.manifests import manifest, plate_record
from tests.tiny_screen import MemoryStore

SKILL = {"HUVEC": 0.95, "RPE": 0.85, "U2OS": 0.6}
"""Mean raw confidence by cell type; predictions drawn with it are calibrated by construction."""
ROLES = {
    "HUVEC": ("oof", "oof", "unlabelled", "holdout"),
    "RPE": ("oof", "oof", "unlabelled"),
    "U2OS": ("oof", "unlabelled"),
}
"""The experiments of each cell type, numbered from 1."""
GROUP, SIDE, FOLDS, EPOCHS = 12, 24, 2, 4
VOCABULARY = Vocabulary(
    treatments=tuple(f"sirna_{n}" for n in range(4 * GROUP)),
    positives=tuple(f"sirna_{n}" for n in range(4 * GROUP, 4 * GROUP + 4)),
    negatives=("EMPTY",),
)
CONTROLS = [
    *((perturbation, "positive_control") for perturbation in VOCABULARY.positives),
    ("EMPTY", "negative_control"),
]
POSITIONS = [f"{row}{column:02d}" for row in "BCD" for column in range(2, 9)]
CONFIG = RunConfig.model_validate({
    "name": "synthetic", "folds": {"count": FOLDS}, "screen": {"image_size": SIDE, "sites": 2},
    "mean_teacher": {"cycle_epochs": 8}, "pretrain": {"epochs": EPOCHS, "milestones": [2, 3]},
})  # fmt: skip
TEMPERATURE = {"raw": 1.31, "group": 1.12, "balanced": 0.94}
LINEAGE = {
    "code_version": "0.1.0+g3f2a91c",
    "seeds": {"run": 0},
    "started": "2026-11-22T20:10:04Z",
    "steps": [
        {"step": step, "labels": {}, "seconds": 21.4} for step in ("normalize", "pretrain", "pretrain", "assign")
    ],
    "image_digests": {"gpu": "sha256:" + "ab12" * 16},
}


@dataclass
class SyntheticRun:
    """Everything that `report` reads: files in a folder, packed sites in memory."""

    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    labels: dict[str, str] = field(default_factory=dict)
    """the true perturbation of every treatment well"""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def arguments(self, out: Path) -> dict[str, Any]:
        """Arguments of `report.step.run`."""
        files = ("screen.json", "holdout.json", "holdout_labels.csv", "truth.csv")
        uris = [str(self.folder / f"assign-{cell_type}") for cell_type in SKILL]
        return {
            **{name.split(".")[0]: self.folder / name for name in files},
            "config": CONFIG, "uris": uris, "out": out, "lineage": LINEAGE, "store": self.store,
        }  # fmt: skip


def make_run(folder: Path, channels: Sequence[str] = CHANNELS, controls: bool = True) -> SyntheticRun:
    """Writes a run of three cell types, with some of six channels, and controls or none."""
    run = SyntheticRun(folder)
    rng, picture = run.rng, _picture(run.rng)[: len(channels)]
    plates: dict[str, list[PlateRecord]] = {"oof": [], "unlabelled": [], "holdout": []}
    folds = {}
    for cell_type, roles in ROLES.items():
        for number, role in enumerate(roles):
            experiment, turn = f"{cell_type}-{number + 1:02d}", int(rng.integers(4))
            if role == "oof":
                folds[experiment] = number % FOLDS
            light_C = np.exp(rng.normal(0, 0.25, len(channels)))
            for plate in range(1, 5):
                pictures = picture * (light_C * np.exp(rng.normal(0, 0.07, len(channels))))[:, None, None]
                group = (plate - 1 + turn) % 4
                plates[role].append(_plate(run, experiment, plate, group, role == "oof", pictures, controls))
    warnings = (
        "HUVEC-01 plate 2, well C05, site 1, channel 6: every pixel is 0",
        "RPE-02 plate 3: no negative control",
    )
    vocabulary = VOCABULARY if controls else Vocabulary(treatments=VOCABULARY.treatments, positives=(), negatives=())
    same: dict[str, Any] = {"image_shape": (SIDE, SIDE), "vocabulary": vocabulary, "channels": tuple(channels)}
    screen = manifest([*plates["oof"], *plates["unlabelled"]], folds=folds, warnings=warnings, **same)
    (folder / "screen.json").write_text(screen.model_dump_json())
    (folder / "holdout.json").write_text(manifest(plates["holdout"], **same).model_dump_json())
    for name, role in (("truth", "unlabelled"), ("holdout_labels", "holdout")):
        ids = [id_code for plate in plates[role] for id_code in treated(plate)]
        table = pd.DataFrame({"id_code": ids, "sirna": [run.labels[id_code] for id_code in ids]})
        table.to_csv(folder / f"{name}.csv", index=False)
    for cell_type in SKILL:
        _write_assigned(run, cell_type, plates, folds)
    return run


def treated(plate: PlateRecord) -> list[str]:
    """The id_codes of a plate's treatment wells."""
    return [well.id_code for well in plate.wells if well.role == "treatment"]


def _picture(rng: np.random.Generator) -> NDArray[np.float64]:
    """Six channels of round cells, brightness of a few tens."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    image = np.full((6, SIDE, SIDE), 3.0)
    for cy, cx in rng.random((22, 2)):
        distance = np.hypot(y - cy, x - cx)
        for c, (radius, level) in enumerate(((0.05, 30), (0.1, 40), (0.12, 18), (0.03, 30), (0.09, 14), (0.06, 22))):
            image[c] += level * np.exp(-((distance / radius) ** 2)) * (1 + 0.2 * rng.standard_normal())
    return image


def _plate(
    run: SyntheticRun,
    experiment: str,
    number: int,
    group: int,
    labelled: bool,
    picture: NDArray[np.float64],
    controls: bool,
) -> PlateRecord:
    """Packs a plate whose wells all show the picture, with noise."""
    rng = run.rng
    treatments = rng.permutation(VOCABULARY.treatments[group * GROUP :][:GROUP]).tolist()
    labels = [*((perturbation, "treatment") for perturbation in treatments), *(CONTROLS if controls else ())]
    wells, counts_C256 = [], np.zeros((len(picture), 256), np.int64)
    for (perturbation, kind), well in zip(labels, rng.permutation(POSITIONS)[: len(labels)].tolist(), strict=True):
        sites = []
        for site in (1, 2):
            pixels = (picture + rng.normal(0, 1.5, picture.shape)).clip(0, 255).astype(np.uint8)
            counts_C256 += histogram(pixels)
            chunk, key = encode_chunk(pixels, PackConfig()), f"{well[0]}/{int(well[1:])}/{site}"
            run.store.put(f"{experiment}/{number}/{key}", chunk)
            sites.append(SiteRecord(site=site, key=key, size=len(chunk), sha256=hashlib.sha256(chunk).hexdigest()))
        id_code = f"{experiment}_{number}_{well}"
        if kind == "treatment":
            run.labels[id_code] = perturbation
        shown = perturbation if labelled or kind != "treatment" else None
        wells.append(WellRecord(id_code=id_code, well=well, role=kind, perturbation=shown, sites=tuple(sites)))
    histograms = counts_C256.tolist()
    return plate_record(experiment, number, wells, labelled, f"{experiment}/{number}", histograms=histograms)


def _write_assigned(
    run: SyntheticRun, cell_type: str, plates: dict[str, list[PlateRecord]], folds: dict[str, int]
) -> None:
    """Writes the output of assign for one cell type."""
    rng, output = run.rng, run.folder / f"assign-{cell_type}"
    output.mkdir()
    experiments, warnings = [], []
    for role, members in plates.items():
        own = [plate for plate in members if plate.cell_type == cell_type]
        rows = [row for plate in own for row in _predicted(run, treated(plate), SKILL[cell_type])]
        pd.DataFrame(rows, columns=list(TABLE)).to_csv(output / f"{role}.csv", index=False, float_format="%.5f")
        for experiment in dict.fromkeys(plate.experiment for plate in own):
            refused = experiment == "U2OS-02"
            margin = 2.3 if refused else None if role == "holdout" else float(rng.gamma(4, 600))
            entry = {"margin": margin, "separation": 12.0, "groups": None if refused else [1, 2, 3, 0]}
            experiments.append({"experiment": experiment, "role": role, "accepted": not refused, **entry})
            if refused:
                warnings.append(f"{experiment}: margin 2.3 is below 5.0; all treatments are used")
    found = {"cell_type": cell_type, "prior_enabled": True, "temperature": TEMPERATURE}
    (output / "assign.json").write_text(json.dumps({**found, "experiments": experiments, "warnings": warnings}))
    validating = {folds[experiment] for experiment in folds if experiment.startswith(cell_type)}
    meta = {
        "cell_type": cell_type,
        "folds": [{"fold": fold, "validated": fold in validating} for fold in range(FOLDS)],
        "history": [
            _epoch(step, fold, None if step == "pretrain" else cell_type, backbone, epoch, fold in validating)
            for step, epochs in (("pretrain", (1, 2, 3, 4)), ("finetune", (1, 2)), ("pseudo_label", (3, 4)))
            for fold in range(FOLDS)
            for backbone in ("xception", "xception_large")
            for epoch in epochs
        ],
    }
    (output / "meta.json").write_text(json.dumps(meta))


def _predicted(run: SyntheticRun, wells: Sequence[str], skill: float) -> list[tuple[object, ...]]:
    """The rows of a plate's wells; every 17th perturbation or so is hard everywhere, so that the confusion table has rows."""
    rng, truth = run.rng, run.labels
    group = sorted({truth[well] for well in wells})
    rows = []
    for well in wells:
        true = truth[well]
        hard = int(hashlib.sha256(true.encode()).hexdigest(), 16) % 17 == 0
        p_raw = rng.beta(8 * skill, 8 * (1 - skill)) * (0.55 if hard else 1)
        p_group, p = p_raw**0.6, p_raw**0.25
        luck, rival = rng.random(), group[(group.index(true) + 1) % len(group)]
        raw, grouped, assigned = (true if luck < q else rival for q in (p_raw, p_group, p))
        others = rng.choice(VOCABULARY.treatments, 5, replace=False).tolist()
        top5 = json.dumps(list(dict.fromkeys([raw, true, *others]))[:5])
        rows.append((well, assigned, p, p - (1 - p) / 2, raw, p_raw, grouped, p_group, top5, p_raw**0.55))
    return rows


def _epoch(step: str, fold: int, cell_type: str | None, backbone: str, epoch: int, validated: bool) -> dict[str, Any]:
    accuracy = 0.2 * epoch if validated else None
    where = {"step": step, "fold": fold, "cell_type": cell_type, "backbone": backbone, "epoch": epoch, "epochs": EPOCHS}
    return {**where, "loss": 2.0 / epoch, "accuracy": accuracy, "sites_per_s": 400.0 + 50 * fold, "seconds": 20.0}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    """A small run; tests that change its files copy them first."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def report(finished_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's report."""
    out = tmp_path_factory.mktemp("report") / "out"
    write_report(**finished_run.arguments(out))
    return out
