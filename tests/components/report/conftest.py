"""A synthetic finished run, without training: manifests, packed sites, outputs of assign, histories, truth."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.assign.step import TABLE
from components.core.config import PackConfig, RunConfig
from components.core.errors import MissingObjectError
from components.core.screen.ome_zarr import encode_chunk
from components.core.storage.manifest import Manifest, PlateRecord, SiteRecord, Vocabulary, WellRecord

SKILL = {"HUVEC": 0.95, "RPE": 0.85, "HEPG2": 0.8, "U2OS": 0.6}
"""Mean raw confidence by cell type; predictions drawn with it are calibrated by construction."""


class Chunks:
    """Packed sites in memory, as an ObjectStore."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.root = None

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise MissingObjectError(key)
        return self.objects[key]

    def view(self, key: str) -> memoryview:
        return memoryview(self.get(key))

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return [self.get(key) for key in keys]


@dataclass
class SyntheticRun:
    """Everything that `report` reads, on disk."""

    config: RunConfig
    screen: Path
    holdout: Path
    holdout_labels: Path
    truth: Path
    uris: list[str]
    lineage: dict[str, Any]
    chunks: Chunks
    labels: dict[str, str] = field(default_factory=dict)

    def arguments(self, out: Path, *, truth: bool = True) -> dict[str, Any]:
        return {
            "config": self.config,
            "screen": self.screen,
            "holdout": self.holdout,
            "holdout_labels": self.holdout_labels,
            "truth": self.truth if truth else None,
            "uris": self.uris,
            "out": out,
            "lineage": self.lineage,
            "store": self.chunks,
        }


def make_run(
    folder: Path,
    seed: int = 0,
    labelled: int = 3,
    unlabelled: int = 1,
    holdout: int = 1,
    group_size: int = 26,
    folds: int = 2,
    epochs: int = 12,
    side: int = 48,
    images: bool = True,
) -> SyntheticRun:
    """Writes a run of four cell types.

    Args:
        folder: to write to.
        seed: of all random numbers.
        labelled: labelled experiments of each cell type; U2OS has one fewer.
        unlabelled: unlabelled experiments of each cell type.
        holdout: held-out experiments of the first cell type.
        group_size: siRNAs of a plate group; 277 makes plates of the real size.
        folds: number of folds.
        epochs: of pretraining.
        side: of the images, pixels.
        images: whether to pack pixels.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = RunConfig.model_validate(
        {
            "name": "synthetic",
            "folds": {"count": folds},
            "screen": {"image_size": side, "sites": 2},
            "mean_teacher": {"cycle_epochs": 8},
            "pretrain": {"epochs": epochs, "milestones": [7, 10]},
        }
    )
    vocabulary = Vocabulary(
        treatments=tuple(f"sirna_{i}" for i in range(4 * group_size)),
        positives=tuple(f"sirna_{i}" for i in range(4 * group_size, 4 * group_size + 4)),
        negatives=("EMPTY",),
    )
    columns = 22 if group_size > 60 else 7
    rows = -(-(group_size + 5) // columns)
    positions = [f"{chr(ord('B') + r)}{c + 2:02d}" for r in range(rows) for c in range(columns)]
    chunks, truth, plates, fold_of = Chunks(), {}, {"screen": [], "holdout": []}, {}
    sites_by_type: dict[str, np.ndarray] = {}
    for cell_type in SKILL:
        roles = ["labelled"] * (labelled - (cell_type == "U2OS")) + ["unlabelled"] * unlabelled
        roles += ["holdout"] * holdout if cell_type == "HUVEC" else []
        gain_C = np.exp(rng.normal(0, 0.25, (len(roles), 6)))
        for number, role in enumerate(roles):
            experiment = f"{cell_type}-{number + 1:02d}"
            if role == "labelled":
                fold_of[experiment] = number % folds
            turn = int(rng.integers(4))
            for plate in range(1, 5):
                group = (plate - 1 + turn) % 4
                treated = [
                    vocabulary.treatments[i] for i in rng.permutation(np.arange(group_size) + group * group_size)
                ]
                labels = [
                    *((s, "treatment") for s in treated),
                    *((s, "positive_control") for s in vocabulary.positives),
                    ("EMPTY", "negative_control"),
                ]
                brightness_C = gain_C[number] * np.exp(rng.normal(0, 0.07, 6))
                prefix = f"{experiment}/{plate}"
                wells, counts_CV = [], np.zeros((6, 256), np.int64)
                places = rng.permutation(positions)[: len(labels)]
                for (sirna, kind), well in zip(labels, places, strict=True):
                    id_code = f"{experiment}_{plate}_{well}"
                    sites = []
                    for site in (1, 2):
                        if cell_type not in sites_by_type:
                            sites_by_type[cell_type] = _picture(rng, side)
                        pixels = np.clip(
                            sites_by_type[cell_type] * brightness_C[:, None, None]
                            + rng.normal(0, 1.5, (6, side, side)),
                            0,
                            255,
                        ).astype(np.uint8)
                        if not counts_CV.any() or (site == 1 and group_size < 60):
                            for c in range(6):
                                counts_CV[c] += np.bincount(pixels[c].ravel(), minlength=256)
                        chunk = encode_chunk(pixels, PackConfig()) if images else b"-"
                        key = f"{well[0]}/{int(well[1:])}/{site}"
                        chunks.objects[f"{prefix}/{key}"] = chunk
                        sites.append(
                            SiteRecord(site=site, key=key, size=len(chunk), sha256=hashlib.sha256(chunk).hexdigest())
                        )
                    hidden = kind == "treatment" and role != "labelled"
                    if kind == "treatment":
                        truth[id_code] = sirna
                    wells.append(
                        WellRecord(
                            id_code=id_code,
                            well=str(well),
                            well_type=kind,
                            sirna=None if hidden else sirna,
                            sites=tuple(sites),
                        )
                    )
                plates["holdout" if role == "holdout" else "screen"].append(
                    PlateRecord(
                        experiment=experiment,
                        plate=plate,
                        cell_type=cell_type,
                        labelled=role == "labelled",
                        prefix=prefix,
                        histograms=tuple(tuple(map(int, row)) for row in counts_CV),
                        wells=tuple(wells),
                    )
                )
    paths = {}
    for name, members in plates.items():
        warnings = (
            ("HUVEC-01 plate 2, well C05, site 1, channel 6: every pixel is 0", "RPE-02 plate 3: no negative control")
            if name == "screen"
            else ()
        )
        manifest = Manifest(
            store="s3://cellsignal/plates",
            channels=6,
            image_size=side,
            codec=PackConfig(),
            vocabulary=vocabulary,
            folds=fold_of if name == "screen" else {},
            plates=tuple(members),
            warnings=warnings,
        )
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(manifest.model_dump_json())
    by_role = {
        "oof": [p for p in plates["screen"] if p.labelled],
        "unlabelled": [p for p in plates["screen"] if not p.labelled],
        "holdout": plates["holdout"],
    }
    pretrain = [
        _epoch("pretrain", fold, None, backbone, e, epochs, rng, 0.75)
        for fold in range(folds)
        for backbone in ("xception", "xception_large")
        for e in range(1, epochs + 1)
    ]
    uris = []
    for cell_type, skill in SKILL.items():
        output = folder / f"assign-{cell_type}"
        output.mkdir()
        experiments = []
        for role, members in by_role.items():
            with (output / f"{role}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(TABLE)
                for plate in members:
                    if plate.cell_type != cell_type:
                        continue
                    wells = [w.id_code for w in plate.wells if w.well_type == "treatment"]
                    writer.writerows(_assigned(wells, truth, vocabulary.treatments, skill, rng))
                    if plate.plate == 1:
                        margin = float(rng.gamma(4, 900 * skill**3)) if cell_type != "U2OS" or role == "oof" else 2.3
                        experiments.append(
                            {
                                "experiment": plate.experiment,
                                "role": role,
                                "margin": margin,
                                "separation": margin / 90,
                                "groups": [1, 2, 3, 0] if margin > 5 else None,
                                "accepted": margin > 5,
                            }
                        )
        if cell_type == "HUVEC" and experiments[-1]["role"] == "holdout":
            experiments[-1]["margin"] = None  # the only possible arrangement
        refused = [e for e in experiments if not e["accepted"]]
        cycles = 5 if cell_type == "HUVEC" else 10
        history = pretrain + [
            _epoch(
                "finetune" if e <= cycles else "pseudo_label",
                fold,
                cell_type,
                backbone,
                e,
                4 * cycles,
                rng,
                0.9,
                validated=e % 4 == 0 and not (cell_type == "U2OS" and fold == folds - 1 and folds > 2),
            )
            for fold in range(folds)
            for backbone in ("xception", "xception_large")
            for e in range(1, 4 * cycles + 1)
        ]
        meta = {
            "cell_type": cell_type,
            "history": history,
            "folds": [
                {"fold": f, "validated": any(fold_of[e] == f for e in fold_of if e.startswith(cell_type))}
                for f in range(folds)
            ],
        }
        (output / "meta.json").write_text(json.dumps(meta))
        (output / "assign.json").write_text(
            json.dumps(
                {
                    "cell_type": cell_type,
                    "prior_enabled": True,
                    "temperature": {"raw": 1.31, "group": 1.12, "balanced": 0.94},
                    "experiments": experiments,
                    "warnings": [
                        f"{e['experiment']}: margin {e['margin']} is below 5.0; all treatments are used"
                        for e in refused
                    ],
                }
            )
        )
        uris.append(str(output))
    truth_csv, holdout_csv = folder / "truth.csv", folder / "holdout_labels.csv"
    for path, role in ((truth_csv, "unlabelled"), (holdout_csv, "holdout")):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("id_code", "sirna"))
            writer.writerows(
                (w.id_code, truth[w.id_code]) for p in by_role[role] for w in p.wells if w.well_type == "treatment"
            )
    lineage = {
        "code_version": "0.1.0+g3f2a91c",
        "seeds": {"run": 0},
        "started": "2026-11-22T20:10:04Z",
        "steps": [
            {"step": step, "labels": {}, "seconds": seconds}
            for step, seconds in (
                ("normalize", 21.4),
                *[("pretrain", 260.0 + 9 * i) for i in range(2 * folds)],
                *[("finetune", 60.0 + 7 * i) for i in range(4 * folds)],
                *[("pseudo_label", 190.0 + 11 * i) for i in range(4 * folds)],
                *[("ensemble", 3.0)] * 4,
                *[("assign", 6.2)] * 4,
            )
        ],
        "image_digests": {"gpu": "sha256:" + "ab12" * 16},
    }
    return SyntheticRun(config, paths["screen"], paths["holdout"], holdout_csv, truth_csv, uris, lineage, chunks, truth)


def _picture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Six channels of round cells, float, brightness of a few tens."""
    y, x = np.mgrid[:side, :side] / side
    image = np.full((6, side, side), 3.0)
    for cy, cx in rng.random((22, 2)):
        distance = np.hypot(y - cy, x - cx)
        for c, (radius, level) in enumerate(((0.05, 30), (0.1, 40), (0.12, 18), (0.03, 30), (0.09, 14), (0.06, 22))):
            image[c] += level * np.exp(-((distance / radius) ** 2)) * (1 + 0.2 * rng.standard_normal())
    return image


def _assigned(
    wells: list[str], truth: dict[str, str], treatments: Sequence[str], skill: float, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    group = sorted({truth[w] for w in wells})
    rows = []
    for well in wells:
        # Some siRNAs are hard everywhere, so that the confusion table has rows.
        hard = int(hashlib.sha256(truth[well].encode()).hexdigest(), 16) % 17 == 0
        p_raw = rng.beta(8 * skill, 8 * (1 - skill)) * (0.55 if hard else 1)
        p_group, p = p_raw**0.6, p_raw**0.25
        luck = rng.random()
        rival = group[(group.index(truth[well]) + 1) % len(group)] if hard else str(rng.choice(group))
        raw, grouped, assigned = (truth[well] if luck < q else rival for q in (p_raw, p_group, p))
        top5 = list(dict.fromkeys([raw, truth[well], *map(str, rng.choice(treatments, 5, replace=False))]))[:5]
        numbers = [f"{value:.5f}" for value in (p, p - (1 - p) / 2, p_raw, p_group, p_raw**0.55)]
        rows.append((well, assigned, *numbers[:2], raw, numbers[2], grouped, numbers[3], " ".join(top5), numbers[4]))
    return rows


def _epoch(
    step: str,
    fold: int,
    cell_type: str | None,
    backbone: str,
    epoch: int,
    epochs: int,
    rng: np.random.Generator,
    best: float,
    *,
    validated: bool = True,
) -> dict[str, Any]:
    t = epoch / epochs
    start = 7.0 if step == "pretrain" else 2.0
    return {
        "step": step,
        "fold": fold,
        "cell_type": cell_type,
        "backbone": backbone,
        "epoch": epoch,
        "epochs": epochs,
        "loss": float(start * np.exp(-3 * t) + 0.1 * rng.random() + 0.1 * fold),
        "accuracy": float(best * (1 - np.exp(-4 * t)) + 0.02 * rng.standard_normal()) if validated else None,
        "sites_per_s": 400.0 + 50 * fold,
        "seconds": 20.0,
    }


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    """A small run; tests that change its files copy them first."""
    return make_run(tmp_path_factory.mktemp("run"), labelled=2, group_size=12, epochs=4, side=24)
