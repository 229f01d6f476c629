"""The card of a published model, Markdown: its data, method, scores and limits. Pure; the text is model_card.md.j2.

Source: Mitchell et al. 2019 (arXiv:1810.03993), for the contents of a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.core.registry.model_manifest import ModelManifest
from components.core.storage.manifest import Manifest

_SCORES = {
    "out_of_fold": "Out of fold: labelled wells, by networks that never saw their labels; checkpoints were selected on them",
    "unlabelled": "Unlabelled (transductive): wells whose images were trained on and whose labels were never seen",
    "holdout": "Holdout (inductive): experiments that no training step read",
}
_STAGES = {
    "raw": "without the prior",
    "group": "in the plate's group",
    "assigned": "one well per siRNA and plate",
}


def model_card(model: ModelManifest, metrics: Mapping[str, Any], screen: Manifest) -> str:
    """The whole card, from the model, the run's metrics.json and the training screen's manifest."""
    from components.core.evaluation.page import environment  # imports Matplotlib, which only publishing needs

    cell_types = []
    for cell_type in model.cell_types:
        plates = [plate for plate in screen.plates if plate.cell_type == cell_type]
        labelled = {plate.experiment for plate in plates if plate.labelled}
        others = {plate.experiment for plate in plates} - labelled
        cell_types.append((cell_type, len(labelled), len(others), len(plates)))
    return (
        environment("components.core.registry")
        .get_template("model_card.md.j2")
        .render(
            model=model,
            config=model.run_config(),
            vocabulary=model.vocabulary,
            cell_types=cell_types,
            scores=[(title, *_table(model, score, metrics)) for score, title in _SCORES.items()],
        )
    )


def _table(model: ModelManifest, score: str, metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a kind of score; empty if the run does not have it."""
    stages = model.scores.get(score)
    if not stages:
        return [], []
    parts = list(next(iter(stages.values())))
    rows = [
        [f"{stage} ({meaning})", *(f"{100 * stages[stage][part]:.1f} %" for part in parts)]
        for stage, meaning in _STAGES.items()
        if stage in stages
    ]
    wells = metrics.get("wells", {}).get(score)
    if wells is not None:
        rows.append(["wells", *(f"{wells.get(part, 0):,}" for part in parts)])
    return parts, rows
