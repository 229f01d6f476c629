"""The card of a published model, Markdown: what it was trained on and how, how well it names, where it fails. Pure text.

Source: Mitchell et al. 2019 (arXiv:1810.03993), for what a card should tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.core.config import RunConfig
from components.core.registry.model_manifest import ModelManifest
from components.core.storage.manifest import Manifest

NOT_STATED = (
    "not stated (`card.data_licence` in the configuration). What the licence of the images and labels asks of works made "
    "from them holds of these weights too: look it up before you share them."
)
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


def card_of(model: ModelManifest, metrics: Mapping[str, Any], screen: Manifest) -> str:
    """The whole card.

    Args:
        model: what is known of it; `files` may still be empty.
        metrics: content of the run's metrics.json.
        screen: the training screen's manifest.
    """
    config = model.run_config()
    parts = [
        f"# Model {model.short}",
        f"Names the siRNA of each treatment well from {model.channels}-channel images of {model.image_size} x "
        f"{model.image_size} pixels of {_listed(model.cell_types)} cells.",
        _facts(model),
        "## Data",
        _data(model, screen),
        "## Method",
        _method(model, config),
        "## Scores",
        _scores(model, metrics),
        "## Limits",
        _limits(model),
        "## Licence of the data",
        config.card.data_licence or NOT_STATED,
    ]
    return "\n\n".join(parts) + "\n"


def _facts(model: ModelManifest) -> str:
    folds = "; ".join(f"{name} {', '.join(map(str, numbers))}" for name, numbers in model.folds.items())
    rows = [
        ("fingerprint", model.fingerprint),
        ("run", f"{model.run} in {model.store}"),
        ("code", model.code_version or "not known"),
        ("published", f"{model.created:%Y-%m-%d %H:%M} UTC"),
        ("folds", f"{folds}{' (others of the run are missing)' if model.partial else ''}"),
        ("networks", f"{len(model.networks)}: {', '.join(model.backbones)}, {model.predicted_by}"),
    ]
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _data(model: ModelManifest, screen: Manifest) -> str:
    counts = []
    for cell_type in model.cell_types:
        plates = [plate for plate in screen.plates if plate.cell_type == cell_type]
        labelled = {plate.experiment for plate in plates if plate.labelled}
        others = {plate.experiment for plate in plates} - labelled
        counts.append(
            f"- {cell_type}: {_count(len(labelled), 'labelled experiment')}, {len(others)} without labels, "
            f"{_count(len(plates), 'plate')}"
        )
    vocabulary = model.vocabulary
    design = (
        f"{_count(len(model.design.groups), 'plate group')}, learned from the labelled plates"
        if model.design
        else "none found, or switched off"
    )
    return "\n".join(
        [
            f"Screen: {model.lineage.get('screen') or 'not known'} (manifest {model.screen[:16]}).",
            "",
            *counts,
            f"- classes: {_count(len(vocabulary.treatments), 'treatment')}, "
            f"{_count(len(vocabulary.positives), 'positive control')}, {_count(len(vocabulary.negatives), 'negative control')}",
            f"- plate design: {design}",
            f"- labels learned from: {_listed(model.taught.experiments) or 'no whole experiment'}"
            + (f", and {_count(len(model.taught.wells), 'single well')}" if model.taught.wells else ""),
            f"- images without labels: {_listed(model.unlabelled) or 'none'}",
            f"- held out: {_listed(model.held_out) or 'none'}",
        ]
    )


def _method(model: ModelManifest, config: RunConfig) -> str:
    steps = [f"Pretraining of each backbone on all cell types ({config.head.kind} head)"]
    if config.mean_teacher.enabled:
        steps.append("mean-teacher training by cell type (Tarvainen & Valpola 2017)")
    if config.has_pseudo_labels:
        by = " by the plate design" if config.prior.enabled else ""
        steps.append(f"{config.mean_teacher.pseudo_labels} pseudo-labels of the unlabelled wells{by}")
    domain = (
        "not standardised" if config.standardise.domain == "none" else f"standardised by {config.standardise.domain}"
    )
    adapted = "" if config.batch_norm.domain == "none" else f"; BatchNorm by {config.batch_norm.domain}"
    start = f" Pretraining started from run {config.init_from}." if config.init_from else ""
    views = _count(config.predict.views, "view")
    return (
        f"{'; '.join(steps)}. Pixels are {domain}{adapted}. Logits are averaged over sites, {views}, folds "
        f"and backbones.{start} The whole configuration is config.yaml."
    )


def _scores(model: ModelManifest, metrics: Mapping[str, Any]) -> str:
    """A table for each kind of score that the run has."""
    tables = []
    wells = metrics.get("wells", {})
    for score, said in _SCORES.items():
        stages = model.scores.get(score)
        if not stages:
            tables.append(f"{said}: not scored.")
            continue
        parts = list(next(iter(stages.values())))
        rows = [["well top-1", *parts], ["---"] * (len(parts) + 1)]
        rows += [
            [f"{stage} ({meaning})", *(f"{100 * stages[stage][part]:.1f} %" for part in parts)]
            for stage, meaning in _STAGES.items()
            if stage in stages
        ]
        if score in wells:
            rows.append(["wells", *(f"{wells[score].get(part, 0):,}" for part in parts)])
        tables.append(f"{said}.\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(tables)


def _limits(model: ModelManifest) -> str:
    lines = [
        "New experiments differ from those trained on by batch effects (staining, density, microscope); how much is lost "
        + (
            "is what the holdout score tells, for batches like those held out."
            if model.scores.get("holdout")
            else "was not measured: no labelled experiment was held out."
        ),
        "Group and assigned scores lean on the plate design: groups of siRNAs that share a plate, one well per siRNA. They do "
        "not transfer to plates of another design; there the raw score counts.",
        "Unlabelled scores are transductive: those images were part of training. Plates that come later are predicted "
        "inductively, and are better compared with the holdout score.",
        "Out-of-fold scores are optimistic, since checkpoints were selected on the same wells.",
        f"It knows {len(model.vocabulary.treatments):,} siRNAs; any other is named as one of these, and confidences do not tell.",
        "Cell types other than those above, other stains, another magnification or image size are refused or out of its depth.",
    ]
    if model.partial:
        lines.append("Folds of its run are missing, so fewer networks than planned are averaged.")
    return "\n".join(f"- {line}" for line in lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
