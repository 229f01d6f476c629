"""assign: logits of one cell type in, a table of predictions out. Reads and writes; the method is core.prior."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.core import progress
from components.core.config import PriorConfig, RunConfig, parse
from components.core.errors import InputError, shortened
from components.core.evaluation.calibration import fit_temperature
from components.core.files import atomic_directory
from components.core.prior.assignment import (
    FEW,
    Competition,
    Temperatures,
    WellPredictions,
    competitions,
    predict_wells,
)
from components.core.prior.plate_groups import (
    WITHOUT_DESIGN,
    Arrangement,
    NoPlateDesignError,
    PlateGroups,
    infer_arrangements,
    labelled_treatments,
    learn_groups,
    renumbered,
)
from components.core.registry.new_plates import groups_of
from components.core.screen.wells import natural_key
from components.core.storage.arrays import META_FILE, USES, WellLogits, read_logits
from components.core.storage.manifest import Manifest, ReferenceModel
from components.core.storage.task_status import report_status
from components.core.tables import write_table

TABLE = (
    "id_code", "perturbation", "confidence", "margin", "raw_perturbation", "raw_confidence",
    "group_perturbation", "group_confidence", "top5", "raw_confidence_uncalibrated",
)  # fmt: skip
"""Columns of the tables of predictions, which the report reads."""
CALIBRATING = 1000
"""Out-of-fold wells that a temperature of plates with few wells is fitted on, spread over plates: the share that is right has a
standard error of 0.016 at most."""
USE_NAMES = {"oof": "out of fold", "unlabelled": "unlabelled", "holdout": "holdout"}
"""Uses of wells in messages."""


@dataclass(frozen=True)
class UseWells:
    """The wells of one use: their plates, treatment logits, and classes if labelled."""

    ids_W: tuple[str, ...]
    experiments_W: tuple[str, ...]
    plates_W: tuple[str, ...]
    truth_W: NDArray[np.intp]  # treatment class, -1 if hidden; calibration reads it, prediction does not
    logits_WK: NDArray[np.float32]


def main(screen: str, holdout: str, logits: str, predictions: str, config: str = "") -> None:
    """Runs the step on paths; `config` is RunConfig as JSON, instead of the manifest's."""
    try:
        cell_type = read_logits(Path(logits)).cell_type
    except InputError:  # `run` raises it, inside the task
        cell_type = None
    with progress.task("assign", cell_type=cell_type):
        own = parse(RunConfig, json.loads(config), source="config").prior if config else None
        run(Path(screen), Path(holdout), Path(logits), Path(predictions), own)


def run(screen: Path, holdout: Path, logits: Path, out: Path, prior: PriorConfig | None = None) -> None:
    """Predicts all treatment wells of a cell type: before the prior, within the plate's group, and one to one.

    Plate groups are learned from the labelled plates of all cell types; for out-of-fold wells only from the other
    folds. For new plates, groups and temperatures come from the model. Every experiment's arrangement is inferred from
    its logits, so that out-of-fold accuracy is representative of new experiments.

    Args:
        screen: manifest of the training and unlabelled experiments, or the reference of new plates.
        holdout: manifest of the held-out experiments, or of new plates, without treatment labels.
        logits: directory that ensemble wrote.
        out: directory, written atomically: oof.csv, unlabelled.csv, holdout.csv, assign.json, meta.json.
        prior: the settings; None for those of the manifest's configuration.

    Raises:
        InputError: files that do not fit together, a mistake in the plate design, or an unclear arrangement if
            `prior.on_low_margin` is `refuse`.
    """
    manifest = Manifest.read(screen)
    report_status(manifest.store, manifest.run)
    held_out, content = Manifest.read(holdout), read_logits(logits)
    vocabulary, prior = manifest.vocabulary, prior or manifest.run_config().prior
    if content.classes != len(vocabulary.classes):
        raise InputError(
            f"{logits}: logits of {content.classes} classes, but {screen} has {len(vocabulary.classes)}; "
            "give the manifest the models were trained with"
        )
    sources = {use: (held_out, holdout) if use == "holdout" else (manifest, screen) for use in USES}
    wells = {use: _locate(content.wells[use], *sources[use], vocabulary.treatments, f"{logits}: {use}") for use in USES}
    warnings: list[str] = []
    unfitted: list[str] = []
    groups = _learn(prior, manifest, None, warnings)
    shown = "raw" if groups is None else "balanced"
    fitted = _temperatures_of(manifest.model, content.cell_type, shown, warnings) if manifest.model else None
    raw = fitted.raw if fitted else _fit([wells["oof"].logits_WK], [wells["oof"].truth_W], "raw", unfitted)
    temperatures = fitted or Temperatures(raw, raw, 1.0)
    experiments: list[dict[str, Any]] = []
    parts: dict[str, list[Competition]] = {use: [] for use in USES}
    if groups is not None:
        use_names = {**USE_NAMES, **({"holdout": "new plates"} if manifest.model else {})}
        for use in USES:
            for chosen_w, known in _wells_and_groups(use, wells[use], groups, manifest, prior, warnings):
                experiments_w = [wells[use].experiments_W[w] for w in chosen_w]
                plates_w = [wells[use].plates_W[w] for w in chosen_w]
                found = infer_arrangements(
                    wells[use].logits_WK[chosen_w], experiments_w, plates_w, known, prior.permutations,
                    # Experiments of other screens may have the name of a labelled one.
                    {} if use == "holdout" else known.arrangements,
                )  # fmt: skip
                for experiment, arrangement in found.items():
                    _check_arrangement(prior, use_names[use], experiment, arrangement, warnings)
                    experiments.append(_summary(use, experiment, renumbered(arrangement, known, groups), prior))
                for part in competitions(experiments_w, plates_w, found, known, prior):
                    parts[use].append(replace(part, wells_w=chosen_w[part.wells_w]))
        temperatures = fitted or _fit_restricted(raw, parts["oof"], wells["oof"], prior, unfitted)
    if unfitted:
        names = shortened(unfitted)
        which = "no out-of-fold wells" if "raw" in unfitted else "no out-of-fold well with a plate group"
        warnings.append(f"confidences ({names}) are not calibrated: {which} to fit a temperature on")
    predicted = {use: predict_wells(wells[use].logits_WK, parts[use], temperatures, prior) for use in USES}
    for message in warnings:
        progress.warn(f"{content.cell_type}: {message}")
    summary = {
        "cell_type": content.cell_type,
        "prior_enabled": groups is not None,
        "temperature": temperatures.named(),
        "experiments": experiments,
        "warnings": warnings,
    }
    with atomic_directory(out) as folder:
        for use in USES:
            table = predictions_table(wells[use].ids_W, predicted[use], vocabulary.treatments)
            write_table(folder / f"{use}.csv", table)
        (folder / "assign.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        shutil.copyfile(logits / META_FILE, folder / META_FILE)
    _note_accuracy(wells["oof"], predicted["oof"], groups is not None)


def predictions_table(ids_W: Sequence[str], found: WellPredictions, treatments: Sequence[str]) -> pd.DataFrame:
    """Predictions as a table with the columns TABLE and labels in the input's encoding, sorted by id_code."""
    label_K = np.array(treatments, dtype=object)
    table = pd.DataFrame({
        "id_code": ids_W,
        "perturbation": label_K[found.perturbation_W], "confidence": found.confidence_W, "margin": found.margin_W,
        "raw_perturbation": label_K[found.raw_W], "raw_confidence": found.raw_confidence_W,
        "group_perturbation": label_K[found.group_W], "group_confidence": found.group_confidence_W,
        "top5": [json.dumps(labels, ensure_ascii=False) for labels in label_K[found.top_W5].tolist()],
        "raw_confidence_uncalibrated": found.raw_uncalibrated_W,
    }, columns=list(TABLE))  # fmt: skip
    return table.sort_values("id_code")


def _locate(logits: WellLogits, manifest: Manifest, source: Path, treatments: Sequence[str], label: str) -> UseWells:
    """Finds the wells in a manifest and keeps the treatment columns of their logits."""
    index = {label: k for k, label in enumerate(treatments)}
    known = {
        well.id_code: (plate.experiment, plate.plate, well.perturbation)
        for plate in manifest.plates
        for well in plate.wells
        if well.role == "treatment"
    }
    for id_code in logits.ids_W:
        if id_code not in known:
            raise InputError(f"{label} well {id_code} is no treatment well of {source}; give the manifest of this run")
    rows = [known[id_code] for id_code in logits.ids_W]
    return UseWells(
        ids_W=logits.ids_W,
        experiments_W=tuple(row[0] for row in rows),
        plates_W=tuple(row[1] for row in rows),
        truth_W=np.array([-1 if row[2] is None else index[row[2]] for row in rows], dtype=np.intp),
        # Controls are never an answer: their classes come after the treatments.
        logits_WK=logits.logits_WK[:, : len(treatments)],
    )


def _wells_and_groups(
    use: str, wells: UseWells, groups: PlateGroups, manifest: Manifest, prior: PriorConfig, warnings: list[str]
) -> Iterator[tuple[NDArray[np.intp], PlateGroups]]:
    """Pairs of wells and the plate groups to use; out-of-fold wells get the groups learned without their own labels."""
    if use != "oof":
        yield np.arange(len(wells.ids_W)), groups
        return
    # Of overlapping folds, those that validate on an experiment.
    folds_W = [tuple(sorted(manifest.validating(experiment))) for experiment in wells.experiments_W]
    for folds in sorted(set(folds_W)):
        training = {name for name in manifest.folds if manifest.validating(name).isdisjoint(folds)}
        try:
            known = _learn(prior, manifest, training, warnings)
        except InputError as error:
            if prior.on_low_margin == "refuse":
                raise
            warnings.append(
                f"out-of-fold wells of fold {' and '.join(map(str, folds))} are predicted without the prior: {error}"
            )
            known = None
        if known is not None:
            yield np.array([k for k, own in enumerate(folds_W) if own == folds], dtype=np.intp), known


def _learn(
    prior: PriorConfig, manifest: Manifest, experiments: set[str] | None, warnings: list[str]
) -> PlateGroups | None:
    """Plate groups from the labelled plates of some experiments (None for all) or of the model; None if there are none."""
    if not prior.enabled or manifest.has_no_design:
        return None
    if manifest.model is not None and manifest.model.design is not None:
        return groups_of(manifest.model.design, manifest.vocabulary.treatments)
    try:
        if manifest.model is not None:
            if prior.on_low_margin == "refuse":
                raise NoPlateDesignError("the model has no plate design")
            return None
        return learn_groups(labelled_treatments(manifest.plates, experiments), manifest.vocabulary.treatments)
    except NoPlateDesignError as error:
        if prior.on_low_margin == "refuse":
            raise
        warnings.append(f"{WITHOUT_DESIGN}: {error.reason}")
        return None


def _temperatures_of(model: ReferenceModel, cell_type: str, shown: str, warnings: list[str]) -> Temperatures:
    """The temperatures that the training run fitted; new plates have no labels to fit any on.

    Warns if there is none for the `shown` confidences, those with the prior (`balanced`) or without (`raw`).
    """
    known = model.temperatures.get(cell_type)
    if known is None:
        warnings.append(
            f"confidences are not calibrated: the model has no temperatures of cell type {cell_type}, so they only rank "
            "predictions"
        )
        return Temperatures(1.0, 1.0, 1.0)
    if known[shown] == 1:  # what a run writes that had no out-of-fold wells
        warnings.append(
            f"confidences are not calibrated: the model's run fitted no temperature ({shown}) of cell type {cell_type}, so they "
            "only rank predictions"
        )
    return Temperatures.of_names(known)


def _check_arrangement(
    prior: PriorConfig, use: str, experiment: str, arrangement: Arrangement, warnings: list[str]
) -> None:
    """Warns of an arrangement that is not accepted, or raises if the configuration refuses it."""
    if arrangement.accepted(prior):
        return
    problem = arrangement.problem
    if not problem:
        problem = (
            f"experiment {experiment} ({use}): the arrangement of plate groups leads by {arrangement.margin:.1f} nats and "
            f"{arrangement.separation:.2f} standard errors, below {prior.min_margin:g} or {prior.min_separation:g}"
        )
    if prior.on_low_margin == "refuse":
        advice = "" if arrangement.problem else "train longer, or "
        raise InputError(f"{problem}; {advice}set prior.on_low_margin to all_classes")
    warnings.append(f"{problem}; its wells are predicted among all treatments")


def _fit_restricted(
    raw: float, parts: list[Competition], oof: UseWells, prior: PriorConfig, unfitted: list[str]
) -> Temperatures:
    """Temperatures of group and balanced probabilities; wells of a wrong or unclear arrangement do not count.

    Adds the names of those that no well is there to fit on to `unfitted`.
    """

    def truth(part: Competition) -> NDArray[np.intp]:
        """The column of each well's true class among the part's classes; -1 if it is not one of them."""
        return pd.Index(part.classes_k).get_indexer(pd.Index(oof.truth_W[part.wells_w]))

    def fit_assigned(parts: list[Competition]) -> float:
        assigned = [part.assigned(oof.logits_WK, prior) for part in parts]
        columns, spread = [columns_w for columns_w, _ in assigned], [balanced_wk for _, balanced_wk in assigned]
        return _fit(spread, [truth(part) for part in parts], "balanced", unfitted, columns)

    plates = [part for part in parts if part.plate is not None]
    group = _fit([part.log_prob(oof.logits_WK) for part in plates], [truth(part) for part in plates], "group", unfitted)
    few = {}
    for wells in FEW:
        most = -(-CALIBRATING // (wells * max(1, len(plates))))
        thinned = [
            few_wells
            for part in plates
            if wells < len(part.classes_k)
            for few_wells in part.thinned(oof.ids_W, wells, most)
        ]
        if any((truth(part) >= 0).any() for part in thinned):
            few[wells] = fit_assigned(thinned)
    return Temperatures(raw, group, fit_assigned(parts), few)


def _fit(
    logits: list[NDArray[Any]],
    truth: list[NDArray[np.intp]],
    name: str,
    unfitted: list[str],
    predicted: list[NDArray[np.intp]] | None = None,
) -> float:
    if not any((truth_W >= 0).any() for truth_W in truth):
        unfitted.append(name)
        return 1.0
    return fit_temperature(logits, truth, predicted)


def _summary(use: str, experiment: str, arrangement: Arrangement, prior: PriorConfig) -> dict[str, Any]:
    """An experiment's entry in assign.json."""
    accepted = arrangement.accepted(prior)
    return {
        "experiment": experiment,
        "role": use,
        "groups": [arrangement.groups[plate] for plate in sorted(arrangement.groups, key=natural_key)]
        if accepted
        else None,
        # A sole arrangement has no second to lead; JSON has no infinity.
        "margin": arrangement.margin if math.isfinite(arrangement.margin) else None,
        "separation": arrangement.separation if math.isfinite(arrangement.separation) else None,
        "accepted": accepted,
        "problem": arrangement.problem or None,
    }


def _note_accuracy(oof: UseWells, found: WellPredictions, prior_used: bool) -> None:
    if len(oof.ids_W) and not prior_used:
        progress.note(f"out-of-fold top-1 {(found.raw_W == oof.truth_W).mean():.3f}")
    elif len(oof.ids_W):
        raw, group, assigned = (
            (each == oof.truth_W).mean() for each in (found.raw_W, found.group_W, found.perturbation_W)
        )
        progress.note(f"out-of-fold top-1 {raw:.3f} raw, {group:.3f} in its group, {assigned:.3f} assigned")
