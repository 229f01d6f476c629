"""A screen of four plates an experiment, without pixels, and a stand-in for the networks' logits. For tests."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.core.config import PackConfig, PriorConfig
from components.core.learning.inference import adaptive_logits
from components.core.learning.mean_teacher import Pair
from components.core.learning.step_settings import MeanTeacherSettings
from components.core.learning.team import Team
from components.core.screen.site_table import TREATMENT, SiteTable
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord
from tests.components.core.learning.tiny_networks import MEAN_TEACHER

SIZE = 4
TREATMENTS = tuple(f"sirna_{n}" for n in range(4 * SIZE))
# The group on each plate. The labelled ones are rotations, the unlabelled one is none.
HELD = {
    "HUVEC-01": (0, 1, 2, 3), "HUVEC-02": (1, 2, 3, 0), "HUVEC-03": (2, 3, 0, 1), "HUVEC-04": (1, 0, 3, 2),
    "RPE-01": (0, 1, 2, 3),
}  # fmt: skip
FOLDS = {"HUVEC-01": 0, "HUVEC-02": 1, "HUVEC-03": 1, "RPE-01": 0}
TRUTH = {
    f"{experiment}_{plate}_{slot}": group * SIZE + slot
    for experiment, held in HELD.items()
    for plate, group in enumerate(held, start=1)
    for slot in range(SIZE)
}
"""Treatment class by id_code, also of the unlabelled experiment."""


def _plate(experiment: str, plate: int) -> PlateRecord:
    def well(name: str, kind: Any, sirna: str | None) -> WellRecord:
        return WellRecord(id_code=f"{experiment}_{plate}_{name}", well=name, well_type=kind, sirna=sirna, sites=())

    labelled = experiment in FOLDS
    ids = [f"{experiment}_{plate}_{slot}" for slot in range(SIZE)]
    treated = [well(str(slot), "treatment", TREATMENTS[TRUTH[ids[slot]]] if labelled else None) for slot in range(SIZE)]
    controls = [well("positive", "positive_control", "pos"), well("negative", "negative_control", "UNTREATED")]
    return PlateRecord(
        experiment=experiment, plate=plate, cell_type=experiment.split("-")[0], labelled=labelled, prefix="p",
        histograms=(), wells=(*treated, *controls),
    )  # fmt: skip


SCREEN = Manifest(
    store="s3://x", channels=6, image_size=8, codec=PackConfig(), folds=FOLDS,
    vocabulary=Vocabulary(treatments=TREATMENTS, positives=("pos",), negatives=("UNTREATED",)),
    plates=tuple(_plate(experiment, plate) for experiment in HELD for plate in (1, 2, 3, 4)),
)  # fmt: skip
TABLE = SiteTable.of(SCREEN)
CLASSES = len(SCREEN.vocabulary.classes)
IMAGES: Any = SimpleNamespace(table=TABLE, device=torch.device("cpu"), team=Team())
PAIRS: Any = [Pair(name, f"{name}.student", f"{name}.teacher") for name in ("a", "b")]  # type: ignore[arg-type]
"""Two backbones whose networks are their names: only the stand-in below looks at them."""


def wells_of(*experiments: str) -> NDArray[np.intp]:
    """Treatment wells, rows of the well table."""
    chosen = [TABLE.experiments.index(experiment) for experiment in experiments]
    return np.flatnonzero(np.isin(TABLE.experiment_W, chosen) & (TABLE.well_type_W == TREATMENT))


def controls_of(*experiments: str) -> NDArray[np.intp]:
    """Control wells, rows of the well table."""
    chosen = [TABLE.experiments.index(experiment) for experiment in experiments]
    return np.flatnonzero(np.isin(TABLE.experiment_W, chosen) & (TABLE.well_type_W != TREATMENT))


def logits(seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    """Random logits of every well, the true treatment's higher by `shift`; controls win every row."""
    found = np.random.default_rng(seed).standard_normal((TABLE.wells, CLASSES)).astype(np.float32)
    for well, id_code in enumerate(TABLE.id_code_W):
        if str(id_code) in TRUTH:
            found[well, TRUTH[str(id_code)]] += shift
    found[:, len(TREATMENTS) :] += 20.0
    return found


def settings(prior: PriorConfig | None = None, **mean_teacher: Any) -> MeanTeacherSettings:
    """Settings with some of the mean teacher's changed."""
    changed = MEAN_TEACHER.mean_teacher.model_copy(update=mean_teacher)
    return MEAN_TEACHER.model_copy(update={"mean_teacher": changed, "prior": prior or PriorConfig()})


class Judge:
    """Stands for `adaptive_logits`: answers from prepared logits and remembers who was asked.

    Attributes:
        logits: of every well by network, one array (W, K) a refresh.
        calls: the network and the passes of each call.
        draws: a number of each call's generator of sites and of its generator of views.
    """

    def __init__(self, **logits: list[NDArray[np.float32]]) -> None:
        self.logits = {name.replace("_", "."): of_refreshes for name, of_refreshes in logits.items()}
        self.calls: list[tuple[str, int]] = []
        self.draws: list[tuple[int, int]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> NDArray[np.float32]:
        given = inspect.signature(adaptive_logits).bind(*args, **kwargs).arguments
        network = given["network"]
        asked = sum(name == network for name, _ in self.calls)
        self.calls.append((network, given["passes"]))
        views = int(torch.randint(2**31, (1,), generator=given["generator"]))
        self.draws.append((int(given["rng"].integers(2**31)), views))
        return self.logits[network][asked][given["wells"]]
