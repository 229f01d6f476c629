"""Raw top-1 of held-out wells: arg-max over the treatments, no plate design. NumPy; reads logits directories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from components.core.errors import StepError
from components.core.evaluation.metrics import top1_by_cell_type
from components.core.storage.logits import read_logits
from components.core.storage.manifest import Manifest
from pipelines.studies.protocols.splits import held_out_wells


def held_out_accuracy(manifest: Manifest, fold: int, logits: Mapping[str, Path]) -> dict[str, float]:
    """Well top-1 of the fold's wells, over all of them (`overall`) and by cell type.

    Args:
        manifest: says which wells the fold holds out, and their siRNAs.
        fold: the held-out one.
        logits: output folder of infer by cell type.

    Raises:
        StepError: the logits are not those of exactly the held-out wells.
    """
    treatments = manifest.vocabulary.treatments
    predicted: dict[str, int] = {}
    for folder in logits.values():
        oof = read_logits(folder).wells["oof"]
        best_W = oof.logits_WK[:, : len(treatments)].argmax(axis=1)
        predicted.update(zip(oof.ids_W, best_W.tolist(), strict=True))
    wells = held_out_wells(manifest, fold)
    if predicted.keys() != {id_code for _, id_code, _ in wells}:
        raise StepError(f"infer predicted {len(predicted)} wells, but fold {fold} holds out {len(wells)} others")
    index = manifest.vocabulary.index()
    predicted_W = np.array([predicted[id_code] for _, id_code, _ in wells], dtype=np.intp)
    truth_W = np.array([index[sirna] for _, _, sirna in wells], dtype=np.intp)
    return top1_by_cell_type(predicted_W, truth_W, [cell_type for cell_type, _, _ in wells])
