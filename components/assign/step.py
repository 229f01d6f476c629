"""assign: logits of one cell type in, one named well a row out. Reads and writes; the method is core.prior."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.assign.config import AssignConfig as AssignConfig
from components.assign.named_table import write_names
from components.core import progress
from components.core.config import PriorConfig, parse
from components.core.errors import InputError
from components.core.evaluation.calibration import fit_temperature
from components.core.files import atomic_directory
from components.core.prior.assignment import Competition, Temperatures, WellPredictions, competitions, predict_wells
from components.core.prior.balancing import balanced
from components.core.prior.plate_groups import (
    Arrangement,
    NoPlateDesignError,
    PlateGroups,
    infer_arrangements,
    labelled_treatments,
    learn_groups,
    renumbered,
)
from components.core.registry.reference import groups_of
from components.core.storage.logits import META_FILE, ROLES, WellLogits, read_logits
from components.core.storage.manifest import Manifest, ReferenceModel
from components.core.storage.run_outcome import tell_failures


@dataclass(frozen=True)
class RoleWells:
    """The wells of one role: where they are, their treatment logits, and what they are where a label is known."""

    ids_W: tuple[str, ...]
    experiments_W: tuple[str, ...]
    plates_W: tuple[int, ...]
    truth_W: NDArray[np.intp]
    """treatment class, -1 where hidden; calibration reads it, naming does not"""
    logits_WK: NDArray[np.float32]


def main(config: str, screen: str, holdout: str, logits: str, predictions: str) -> None:
    """The step as the pipeline calls it.

    Args:
        config: an AssignConfig as JSON.
        screen: path of screen.json.
        holdout: path of holdout.json.
        logits: directory that ensemble wrote.
        predictions: directory to create.
    """
    section = parse(AssignConfig, json.loads(config), source="assign")
    with progress.task("assign", cell_type=read_logits(Path(logits)).cell_type):
        run(section, Path(screen), Path(holdout), Path(logits), Path(predictions))


def run(config: AssignConfig, screen: Path, holdout: Path, logits: Path, out: Path) -> None:
    """Names all treatment wells of a cell type, before the prior, within the plate's group, and one to one.

    Plate groups are learned from the labelled plates of all cell types; for out-of-fold wells from those of the other
    folds only. Where new plates are predicted, groups and temperatures are those of the model. Each experiment's arrangement
    is inferred from its logits, for out-of-fold experiments too, so that their accuracy says what to expect of new ones.

    Args:
        config: the sections screen and prior.
        screen: manifest of the training and unlabelled experiments, or what stands for it where new plates are predicted.
        holdout: manifest of the held-out experiments, or of new plates, without treatment labels.
        logits: directory that ensemble wrote.
        out: directory to create, whole or not at all: oof.csv, unlabelled.csv, holdout.csv, assign.json, meta.json.

    Raises:
        InputError: files that do not fit together, a mistake in the plate design, or an unclear arrangement where
            `prior.on_low_margin` is `refuse`.
    """
    manifest, held_out, content = Manifest.read(screen), Manifest.read(holdout), read_logits(logits)
    tell_failures(manifest.store, manifest.run)
    vocabulary = manifest.vocabulary
    if content.classes != len(vocabulary.classes):
        raise InputError(
            f"{logits}: logits of {content.classes} classes, but {screen} has {len(vocabulary.classes)}; "
            "give the manifest the models were trained with"
        )
    wells = {
        role: _locate(
            content.wells[role],
            held_out if role == "holdout" else manifest,
            vocabulary.treatments,
            f"{logits}: {role}",
            holdout if role == "holdout" else screen,
        )
        for role in ROLES
    }
    warnings: list[str] = []
    oof = wells["oof"]
    model = manifest.model
    fitted = _temperatures_of(model, content.cell_type, warnings) if model else None
    raw = fitted.raw if fitted else _fit([oof.logits_WK], [oof.truth_W], "raw", warnings)
    groups = _learn(config.prior, manifest, None, warnings)
    arrangements: dict[str, dict[str, Arrangement]] = {role: {} for role in ROLES}
    parts: dict[str, list[Competition]] = {role: [] for role in ROLES}
    temperatures = Temperatures(raw, raw, 1.0)
    if groups is not None:
        for role, of_role in wells.items():
            for chosen_w, known in _knowledge(role, of_role, groups, manifest, config.prior, warnings):
                experiments_w = [of_role.experiments_W[w] for w in chosen_w]
                plates_w = [of_role.plates_W[w] for w in chosen_w]
                found = infer_arrangements(
                    of_role.logits_WK[chosen_w], experiments_w, plates_w, known, config.prior.permutations
                )
                for experiment, arrangement in found.items():
                    _accept_or_say(config.prior, role, experiment, arrangement, warnings)
                    arrangements[role][experiment] = renumbered(arrangement, known, groups)
                for part in competitions(experiments_w, plates_w, found, known, config.prior):
                    parts[role].append(replace(part, wells_w=chosen_w[part.wells_w]))
        temperatures = fitted or _fit_restricted(raw, parts["oof"], oof, config.prior, warnings)
    names = {role: predict_wells(wells[role].logits_WK, parts[role], temperatures, config.prior) for role in ROLES}
    for message in warnings:
        progress.warn(f"{content.cell_type}: {message}")
    summary = {
        "cell_type": content.cell_type,
        "prior_enabled": groups is not None,
        "temperature": {"raw": temperatures.raw, "group": temperatures.group, "balanced": temperatures.balanced},
        "experiments": [
            _experiment(role, experiment, arrangement, config.prior)
            for role in ROLES
            for experiment, arrangement in arrangements[role].items()
        ],
        "warnings": warnings,
    }
    with atomic_directory(out) as making:
        for role in ROLES:
            write_names(making / f"{role}.csv", wells[role].ids_W, names[role], vocabulary.treatments)
        (making / "assign.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        shutil.copyfile(logits / META_FILE, making / META_FILE)
    _say(content.cell_type, oof, names["oof"])


def _locate(logits: WellLogits, manifest: Manifest, treatments: tuple[str, ...], where: str, source: Path) -> RoleWells:
    """Finds the wells in a manifest and keeps the treatment columns of their logits."""
    index = {label: k for k, label in enumerate(treatments)}
    known = {
        well.id_code: (plate.experiment, plate.plate, well.sirna)
        for plate in manifest.plates
        for well in plate.wells
        if well.well_type == "treatment"
    }
    for id_code in logits.ids_W:
        if id_code not in known:
            raise InputError(f"{where} well {id_code} is no treatment well of {source}; give the manifest of this run")
    rows = [known[id_code] for id_code in logits.ids_W]
    return RoleWells(
        ids_W=logits.ids_W,
        experiments_W=tuple(row[0] for row in rows),
        plates_W=tuple(row[1] for row in rows),
        truth_W=np.array([-1 if row[2] is None else index[row[2]] for row in rows], dtype=np.intp),
        # Controls are never an answer: their classes come after the treatments.
        logits_WK=logits.logits_WK[:, : len(treatments)],
    )


def _knowledge(
    role: str, wells: RoleWells, groups: PlateGroups, manifest: Manifest, prior: PriorConfig, warnings: list[str]
) -> Iterator[tuple[NDArray[np.intp], PlateGroups]]:
    """Which wells may be named with which plate groups: out-of-fold wells with those that their own labels never showed."""
    if role != "oof":
        yield np.arange(len(wells.ids_W)), groups
        return
    fold_W = np.array([manifest.folds[experiment] for experiment in wells.experiments_W], dtype=np.intp)
    for fold in np.unique(fold_W):
        training = {experiment for experiment, own in manifest.folds.items() if own != fold}
        try:
            known = _learn(prior, manifest, training, warnings)
        except InputError as error:
            if prior.on_low_margin == "refuse":
                raise
            warnings.append(f"out-of-fold wells of fold {fold} are named without the prior: {error}")
            known = None
        if known is not None:
            yield np.flatnonzero(fold_W == fold), known


def _learn(
    prior: PriorConfig, manifest: Manifest, experiments: set[str] | None, warnings: list[str]
) -> PlateGroups | None:
    """Plate groups from the labelled plates of some experiments, None for all; None where they show no design."""
    if not prior.enabled:
        return None
    if manifest.model is not None:
        if manifest.model.design is not None:
            return groups_of(manifest.model.design, manifest.vocabulary.treatments)
        missing = "the model has no plate design"
        if prior.on_low_margin == "refuse":
            raise InputError(f"{missing}; set prior.enabled to false")
        warnings.append(f"named without the prior: {missing}")
        return None
    if manifest.split == "well":
        raise InputError(
            "the plate design would tell held-out wells by their neighbours' labels (folds.split well); set prior.enabled "
            "to false"
        )
    try:
        return learn_groups(labelled_treatments(manifest.plates, experiments), manifest.vocabulary.treatments)
    except NoPlateDesignError as error:
        if prior.on_low_margin == "refuse":
            raise
        warnings.append(f"named without the prior: {error}")
        return None


def _temperatures_of(model: ReferenceModel, cell_type: str, warnings: list[str]) -> Temperatures:
    """The temperatures that the training run fitted; new plates have no labels to fit any on."""
    known = model.temperatures.get(cell_type)
    if known is None:
        warnings.append(
            f"confidences are not calibrated: the model has no temperatures of cell type {cell_type}, so that they only tell "
            "which names are surer than others"
        )
        return Temperatures(1.0, 1.0, 1.0)
    return Temperatures(known["raw"], known["group"], known["balanced"])


def _accept_or_say(
    prior: PriorConfig, role: str, experiment: str, arrangement: Arrangement, warnings: list[str]
) -> None:
    if arrangement.accepted(prior):
        return
    if arrangement.problem:
        if prior.on_low_margin == "refuse":
            raise InputError(arrangement.problem)
        warnings.append(f"{arrangement.problem}; its wells are named among all treatments")
        return
    lead = (
        f"experiment {experiment} ({role}): the arrangement of plate groups leads by {arrangement.margin:.1f} nats and "
        f"{arrangement.separation:.2f} standard errors, below {prior.min_margin:g} or {prior.min_separation:g}"
    )
    if prior.on_low_margin == "refuse":
        raise InputError(f"{lead}; train longer, or set prior.on_low_margin to all_classes")
    warnings.append(f"{lead}; its wells are named among all treatments")


def _fit_restricted(
    raw: float, parts: list[Competition], oof: RoleWells, prior: PriorConfig, warnings: list[str]
) -> Temperatures:
    """Temperatures of group and balanced probabilities; wells of a wrong or unclear arrangement do not count."""
    truth = [_columns(part, oof.truth_W) for part in parts]
    restricted = [n for n, part in enumerate(parts) if part.plate is not None]
    group = _fit(
        [parts[n].log_prob(oof.logits_WK) for n in restricted], [truth[n] for n in restricted], "group", warnings
    )
    spread = [balanced(part.log_prob(oof.logits_WK), prior) for part in parts]
    return Temperatures(raw, group, _fit(spread, truth, "balanced", warnings))


def _columns(part: Competition, truth_W: NDArray[np.intp]) -> NDArray[np.intp]:
    """The column of each well's true class among the part's classes, -1 where it is not there."""
    column_of = {int(k): column for column, k in enumerate(part.classes_k)}
    return np.array([column_of.get(int(truth), -1) for truth in truth_W[part.wells_w]], dtype=np.intp)


def _fit(logits: list[NDArray[Any]], truth: list[NDArray[np.intp]], name: str, warnings: list[str]) -> float:
    if not any((truth_W >= 0).any() for truth_W in truth):
        warnings.append(f"{name} confidences are not calibrated: no out-of-fold wells to fit a temperature on")
        return 1.0
    return fit_temperature(logits, truth)


def _experiment(role: str, experiment: str, arrangement: Arrangement, prior: PriorConfig) -> Mapping[str, Any]:
    accepted = arrangement.accepted(prior)
    return {
        "experiment": experiment,
        "role": role,
        "groups": [arrangement.groups[plate] for plate in sorted(arrangement.groups)] if accepted else None,
        # A sole arrangement has no second to lead; JSON has no infinity.
        "margin": arrangement.margin if math.isfinite(arrangement.margin) else None,
        "separation": arrangement.separation if math.isfinite(arrangement.separation) else None,
        "accepted": accepted,
        "problem": arrangement.problem or None,
    }


def _say(cell_type: str, oof: RoleWells, names: WellPredictions) -> None:
    if len(oof.ids_W):
        raw, group, assigned = (
            float((named == oof.truth_W).mean()) for named in (names.raw_W, names.group_W, names.sirna_W)
        )
        progress.note(
            f"{cell_type}: out-of-fold top-1 {raw:.3f} raw, {group:.3f} in its group, {assigned:.3f} assigned"
        )
