"""A screen of six experiments, logits of its HUVEC wells, and assign run on them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.assign.step import run
from components.core.config import PriorConfig
from components.core.storage.arrays import USES, LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary
from tests.components.core.manifests import manifest as manifest_of
from tests.components.core.manifests import plate_record

SIZE = 16
TREATMENTS = tuple(f"sirna_{7 * n % 101}" for n in range(4 * SIZE))
VOCABULARY = Vocabulary(treatments=TREATMENTS, positives=("pos_1", "pos_2"), negatives=("UNTREATED",))
FOLDS = {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 2, "RPE-02": 0}
ROLE = {"HUVEC-01": "oof", "HUVEC-02": "oof", "HUVEC-03": "unlabelled", "HUVEC-04": "holdout"}
HELD = {
    "HUVEC-01": (0, 1, 2, 3), "HUVEC-02": (1, 2, 3, 0), "RPE-01": (2, 3, 0, 1), "RPE-02": (0, 1, 2, 3),
    "HUVEC-03": (3, 0, 1, 2), "HUVEC-04": (1, 2, 3, 0),
}  # fmt: skip
"""The group on each plate: rotations of one another, of which the labelled experiments show three."""
MISSING = {"HUVEC-03": {TREATMENTS[5]}}
"""One plate lacks a well."""


class Case:
    """The inputs of assign in a folder.

    Attributes:
        truth: the true perturbation of every treatment well.
        manifests: screen and holdout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.screen, self.holdout, self.logits = (folder / name for name in ("screen.json", "holdout.json", "logits"))
        self.truth: dict[str, str] = {}

    def write(
        self,
        held: Mapping[str, tuple[int, ...]] = HELD,
        claimed: Mapping[str, tuple[int, ...]] = {},
        absent: Mapping[str, Collection[str]] = MISSING,
        roles: Collection[str] = USES,
        shift: float = 3.0,
        scattered: bool = False,
    ) -> Case:
        """Writes manifests and logits.

        Args:
            held: the group on each plate of each experiment.
            claimed: the same according to the labels, if they are wrong.
            absent: perturbations that an experiment lacks.
            roles: roles of wells that have logits.
            shift: of the true class's logit.
            scattered: whether perturbations are shuffled over the plates of each experiment.
        """
        plates: dict[str, list[PlateRecord]] = {"screen": [], "holdout": []}
        wells: dict[str, dict[str, np.ndarray]] = {role: {} for role in USES}
        bias = 0.8 * np.random.default_rng(11).standard_normal(len(VOCABULARY.classes))
        for experiment, groups in held.items():
            rng, role = np.random.default_rng(zlib.crc32(experiment.encode())), ROLE.get(experiment)
            slots = rng.permutation(4 * SIZE) if scattered else np.arange(4 * SIZE)
            for plate in range(4):
                own: dict[str, tuple[str, str | None]] = {}
                for n in range(SIZE):
                    true, label = (
                        TREATMENTS[slots[of[plate] * SIZE + n]] for of in (groups, claimed.get(experiment, groups))
                    )
                    x = rng.standard_normal(len(VOCABULARY.classes)) + bias
                    if true in absent.get(experiment, ()):
                        continue
                    position = f"{'BCDE'[n // 4]}{n % 4 + 2:02d}"
                    id_code = f"{experiment}_{plate + 1}_{position}"
                    x[VOCABULARY.index()[true]] += shift
                    x[-3:] += 10  # controls win every row, and must never be an answer
                    self.truth[id_code] = true
                    if role in roles:
                        wells[str(role)][id_code] = (2 * x).astype(np.float32)
                    own[position] = "treatment", label if experiment in FOLDS else None
                own["O23"] = "positive_control", "pos_1"
                record = plate_record(experiment, plate + 1, own, labelled=experiment in FOLDS)
                plates["holdout" if role == "holdout" else "screen"].append(record)
        self.write_manifests(manifest(plates["screen"], folds=FOLDS), manifest(plates["holdout"]))
        self.write_logits(wells)
        return self

    def write_manifests(self, screen: Manifest, holdout: Manifest) -> None:
        self.screen.write_text(screen.model_dump_json())
        self.holdout.write_text(holdout.model_dump_json())

    def write_logits(self, wells: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        found = {
            role: WellLogits(tuple(known), np.array([*known.values()], np.float32).reshape(-1, len(VOCABULARY.classes)))
            for role, known in wells.items()
        }
        self.logits.mkdir(exist_ok=True)
        write_logits(self.logits, LogitsDirectory(found, {"cell_type": "HUVEC", "folds": [], "history": []}))

    def run(self, **prior: Any) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """The tables by role, and assign.json."""
        out = self.folder / "out"
        run(self.screen, self.holdout, self.logits, out, PriorConfig(**prior))
        tables = {role: pd.read_csv(out / f"{role}.csv") for role in USES}
        return tables, json.loads((out / "assign.json").read_text())

    def accuracy(self, table: pd.DataFrame, column: str = "perturbation") -> float:
        return float((table[column] == table["id_code"].map(self.truth)).mean())


def manifest(plates: list[PlateRecord], **more: Any) -> Manifest:
    return manifest_of(plates, vocabulary=VOCABULARY, **more)


def of_experiment(tables: dict[str, pd.DataFrame], experiment: str) -> pd.DataFrame:
    """An experiment's rows."""
    table = tables[ROLE[experiment]]
    return table[table["id_code"].str.startswith(experiment)]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)
