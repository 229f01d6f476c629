"""What a fold's networks say about the wells they never saw labels of: out-of-fold, unlabelled and held-out. torch only.

W wells, K class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.core import progress
from components.core.learning.fold_data import FoldWells, open_images
from components.core.learning.inference import Images, well_logits
from components.core.learning.mean_teacher import Pair
from components.core.learning.network import Classifier
from components.core.learning.step_settings import LearningSettings
from components.core.screen.site_table import TREATMENT
from components.core.storage.interface import ObjectReader
from components.core.storage.logits import WellLogits
from components.core.storage.manifest import Manifest


def predicting(pairs: Sequence[Pair], settings: LearningSettings) -> list[Classifier]:
    """The network of each pair that predicts: student or teacher, as configured."""
    return [pair.student if settings.predict.weights == "student" else pair.teacher for pair in pairs]


def held_out_images(
    holdout: Manifest,
    screen: Manifest,
    cell_type: str,
    store: ObjectReader,
    settings: LearningSettings,
    device: torch.device,
) -> Images | None:
    """Images of the held-out experiments, standardised as the training screen's; None without any of the cell type."""
    if all(plate.cell_type != cell_type for plate in holdout.plates):
        return None
    return open_images(
        holdout, store, settings.standardise, settings.augment, settings.loader, device, screen, settings.batch_norm
    )


def predict_fold(
    networks: Sequence[Classifier],
    images: Images,
    wells: FoldWells,
    held_out: Images | None,
    cell_type: str,
    settings: LearningSettings,
    classes: int,
) -> dict[str, WellLogits]:
    """Mean logits over sites, views and backbones of a fold's wells, by role.

    Args:
        networks: one of each backbone, on the images' device.
        images: the training screen's.
        wells: of the fold and cell type.
        held_out: the held-out experiments' images; read here for the first time in a run.
        cell_type: whose wells.
        settings: views and batch size.
        classes: K.
    """
    outputs = {"oof": (images, wells.validation), "unlabelled": (images, wells.unlabelled)}
    if held_out is None:
        outputs["holdout"] = (images, np.empty(0, dtype=np.intp))
    else:
        table = held_out.table
        of_type_W = table.cell_type_W == table.cell_types.index(cell_type)
        outputs["holdout"] = (held_out, np.flatnonzero(of_type_W & (table.well_type_W == TREATMENT)))
    predicted = {}
    for role, (source, chosen) in outputs.items():
        progress.note(f"predicting {len(chosen)} {role} wells")
        if source is not images:
            images.cache.release()  # two screens in memory at once would take twice loader.cache_gib
        ids = tuple(str(id_code) for id_code in source.table.id_code_W[chosen])
        predicted[role] = WellLogits(ids, _mean_logits(networks, source, chosen, settings, classes))
    return predicted


def fold_meta(
    cell_type: str, fold: int, validated: bool, history: list[dict[str, Any]]
) -> dict[str, str | int | list[dict[str, Any]]]:
    """The content of a fold's meta.json beside its logits."""
    return {
        "cell_type": cell_type,
        "fold": fold,
        "folds": [{"fold": fold, "validated": validated}],
        "history": history,
    }


def _mean_logits(
    networks: Sequence[Classifier], images: Images, wells: NDArray[np.intp], settings: LearningSettings, classes: int
) -> NDArray[np.float32]:
    if len(wells) == 0:
        return np.empty((0, classes), dtype=np.float32)
    predict = settings.predict
    total_WK = np.zeros((len(wells), classes), dtype=np.float64)
    for network in networks:
        total_WK += well_logits(network, images, wells, predict.views, predict.batch_size, classes)
    return (total_WK / len(networks)).astype(np.float32)
