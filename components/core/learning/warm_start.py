"""Whether a run may start from an earlier run's pretrained weights: same networks, and no label learned that will score it. Pure.

A network classifies wells whose labels it has learned too well. So the wells that a fold of the new run validates on must not
have been trained on by the same fold of the earlier run, nor by a run that the earlier one started from; and wells that are held
out or unlabelled must have had no label there. Pretraining learns labels of treatments in labelled experiments, and of controls,
which no score counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import NamedTuple

from components.core.config import BackboneConfig, HeadConfig
from components.core.errors import InputError, shortened
from components.core.screen.wells import Plate, Screen
from components.core.storage.manifest import Manifest, PlateRecord
from components.core.storage.run_records import OPTION, Learned, SourceRun

_NO_ARCHITECTURE = {"name", "weights", "depthwise_init"}
AT_RANDOM = f"leave {OPTION} out to start from random weights"


@dataclass(frozen=True)
class Scored:
    """Wells of an experiment that score a run."""

    experiment: str
    how: str  # `validation`, `unlabelled` or `held out`; of a leak also `partly unlabelled`
    folds: tuple[frozenset[int], ...] = ()  # those that hold out each well, for validation
    wells: tuple[str, ...] = ()  # id_codes; empty stands for all wells of a held-out experiment


def check_networks(
    source: SourceRun,
    backbones: Sequence[BackboneConfig],
    head: HeadConfig,
    folds: Iterable[int],
    cell_types: Iterable[str],
) -> None:
    """Raises InputError for an earlier run that has other networks than the new one or lacks the weights of a fold.

    All but `source` are the new run's.
    """
    run = f"run {source.key}"
    for backbone in backbones:
        theirs = source.backbones.get(backbone.name)
        if theirs is None:
            raise InputError(f"{OPTION}: {run} has no backbone {backbone.name}; it has {', '.join(source.backbones)}")
        ours, other = (each.model_dump(exclude=_NO_ARCHITECTURE) for each in (backbone, theirs))
        for name, value in ours.items():
            if value != other[name]:
                raise InputError(
                    f"{OPTION}: backbone {backbone.name} has {name} {_shown(value)}, but {_shown(other[name])} in {run}; "
                    f"make the architectures the same, or {AT_RANDOM}"
                )
    for field in ("kind", "batch_norm", "cell_types", "linear_weight"):
        ours, theirs = getattr(head, field), getattr(source.head, field)
        # Any share of the linear classifier has the same weights.
        if ours != theirs and not (field == "linear_weight" and ours and theirs):
            raise InputError(
                f"{OPTION}: head.{field} is {ours}, but {theirs} in {run}; make them the same, or {AT_RANDOM}"
            )
    if head.cell_types and sorted(cell_types) != sorted(source.cell_types):
        raise InputError(
            f"{OPTION}: the cell types, which the networks take as input (head.cell_types), are "
            f"{', '.join(sorted(cell_types))}, but {', '.join(sorted(source.cell_types))} in {run}; {AT_RANDOM}"
        )
    there = ", ".join(f"{backbone} of fold {fold}" for fold, backbone in sorted(source.weights)) or "none"
    for fold in folds:
        for backbone in backbones:
            if (fold, backbone.name) not in source.weights:
                raise InputError(
                    f"{OPTION}: {run} has no pretrained weights of fold {fold} and {backbone.name} (it has {there}); "
                    "finish that run, or train only the folds that it has (folds.train)"
                )


def scored_by(screen: Manifest, held_out: Iterable[str]) -> list[Scored]:
    """The wells that score a run, from its packed screen; `held_out` names the experiments that the manifest lacks."""
    dealt = [plate for plate in screen.plates if plate.well_folds]
    well_folds = {w.id_code: fold for p in dealt for w, fold in zip(p.wells, p.well_folds, strict=True)}
    folds = {experiment: screen.validating(experiment) for experiment in screen.folds}
    return _scored(screen.plates, held_out, folds, well_folds)


def scored_by_tables(screen: Screen, folds: Mapping[str, Iterable[int]], well_folds: Mapping[str, int]) -> list[Scored]:
    """The wells that score a run, from its tables.

    Args:
        screen: the tables' content.
        folds: folds by experiment; empty if folds hold out wells.
        well_folds: fold by id_code; empty if folds hold out experiments.
    """
    held_out = dict.fromkeys(plate.experiment for plate in screen.plates if plate.holdout)
    return _scored([plate for plate in screen.plates if not plate.holdout], held_out, folds, well_folds)


def _scored(
    plates: Iterable[Plate | PlateRecord],
    held_out: Iterable[str],
    folds: Mapping[str, Iterable[int]],
    well_folds: Mapping[str, int],
) -> list[Scored]:
    found = [Scored(experiment, "held out") for experiment in held_out]
    for plate in plates:
        treatments = [well for well in plate.wells if well.role == "treatment"]
        hidden = tuple(well.id_code for well in treatments if not plate.labelled or well.perturbation is None)
        if hidden or not plate.labelled:
            found.append(Scored(plate.experiment, "unlabelled", wells=hidden))
        if plate.labelled:
            wells = tuple(well.id_code for well in treatments if well.perturbation is not None)
            of_plate = frozenset(folds.get(plate.experiment, ()))
            # A well that no fold got, -1, is learned by none.
            own = tuple(frozenset({well_folds[well]} - {-1}) if well in well_folds else of_plate for well in wells)
            found.append(Scored(plate.experiment, "validation", own, wells))
    return found


def learned_by(screen: Manifest, fold: int) -> Learned:
    """The experiments or wells whose treatment labels pretraining of a fold learns: those that other folds validate on."""
    validating = [each for each in scored_by(screen, ()) if each.how == "validation"]
    wells = [
        (each.experiment, well)
        for each in validating
        for well, of in zip(each.wells, each.folds, strict=True)
        if of and fold not in of
    ]
    experiments = sorted({experiment for experiment, _ in wells})
    if screen.split == "well":
        return Learned(wells={name: tuple(sorted(well for own, well in wells if own == name)) for name in experiments})
    return Learned(experiments=tuple(experiments))


def check_labels(
    source: SourceRun, screen: Manifest, scored: Sequence[Scored], folds: Iterable[int], backbones: Iterable[str]
) -> list[str]:
    """Refuses weights of an earlier run, on its `screen`, that have learned labels of wells that score the new run.

    Returns:
        Warnings about what is allowed but doubtful.

    Raises:
        InputError: with an experiment, how it scores, and what to do.
    """
    names = list(backbones)
    earlier = _LabelsOf(
        frozenset(plate.experiment for plate in screen.plates),
        frozenset(
            well.id_code for p in screen.plates if p.labelled for well in p.wells if well.perturbation is not None
        ),
    )
    # These experiments selected the earlier run's weights, so they cannot be held out now.
    validated = {e.experiment for e in scored_by(screen, ()) if e.how == "validation" and any(e.folds)}
    for fold in folds:
        for name in names:
            leaks = _leaks(source.weights[fold, name].learned, validated, earlier, scored, fold)
            if leaks:
                more = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
                raise InputError(
                    f"{OPTION}: {leaks[0].experiment}{more} {_explained(source.key, screen, leaks[0], fold)}"
                )
    unlabelled = {plate.experiment for plate in screen.plates if not plate.labelled}
    own = {name: source.backbones[name].weights for name in names if name in source.backbones}
    return [
        f"{name} of run {source.key} started from {file}; what these weights had learned is unknown"
        for name, file in own.items()
        if file
    ] + [
        f"{each.experiment} is held out now, but was unlabelled in run {source.key}: its controls may have been trained on"
        for each in scored
        if each.how == "held out" and each.experiment in unlabelled
    ]


class _LabelsOf(NamedTuple):
    """The labels of an earlier run's screen."""

    experiments: AbstractSet[str]  # with and without labels
    wells: AbstractSet[str]  # with a label


def _leaks(
    learned: Learned, validated: AbstractSet[str], earlier: _LabelsOf, scored: Sequence[Scored], fold: int
) -> list[Scored]:
    """Wells that score a fold although the earlier weights have learned their labels, one entry per experiment."""
    experiments, wells = frozenset(learned.experiments), frozenset().union(*learned.wells.values())
    known = experiments | validated | learned.wells.keys()
    partly = {each.experiment for each in scored if each.how == "validation"}
    leaks: dict[str, Scored] = {}
    for each in scored:
        if each.how == "validation":
            own = [well for well, of in zip(each.wells, each.folds, strict=True) if fold in of]
            if own and (each.experiment in experiments or not wells.isdisjoint(own)):
                leaks.setdefault(each.experiment, each)
        elif each.experiment in known and each.experiment not in partly:
            leaks.setdefault(each.experiment, each)
        elif each.experiment in known:
            # An experiment with other labels may be the same as before; its wells had no label to learn there. If a run
            # before the earlier one learned it, which of its wells had labels is unknown.
            unknown = each.experiment not in earlier.experiments
            had = tuple(well for well in each.wells if unknown or well in earlier.wells or well in wells)
            if had:
                leaks.setdefault(each.experiment, replace(each, how="partly unlabelled", wells=had))
    return list(leaks.values())


def _explained(run: str, screen: Manifest, leak: Scored, fold: int) -> str:
    if leak.how != "validation":
        state, instead = {
            "held out": (
                "is held out now",
                "hold out an experiment that was not in that run (screen.holdout_experiments)",
            ),
            "unlabelled": ("has no labels now", "take it out of the screen"),
            "partly unlabelled": (
                f"has no label of well{'s' * (len(leak.wells) > 1)} {shortened(leak.wells)} now",
                "give the labels again, or take the wells out of the screen",
            ),
        }[leak.how]
        return f"{state}, but run {run} learned its labels; {instead}, or {AT_RANDOM}"
    leak_text = f"validates in fold {fold} now, but fold {fold} of run {run} has learned its labels"
    there = screen.validating(leak.experiment) if leak.experiment in screen.folds else frozenset()
    if there and fold not in there:
        if screen.config.get("folds", {}).get("count") in there:
            return (
                f"{leak_text}, because no fold holds it out there; let only experiments validate that the same fold holds out "
                f"there (folds.validation), or {AT_RANDOM}"
            )
        if screen.more_folds:  # also if only others have several: then known does not tell the folds of all
            held_out = f"fold{'s' * (len(there) > 1)} {', '.join(map(str, sorted(there)))}"
            instead = "let the same folds hold out an experiment as there (folds.validation)"
            return f"{leak_text}, because it is in {held_out} there; {instead}, or {AT_RANDOM}"
        (own,) = there
        return (
            f"{leak_text}, because it is in fold {own} there; let every experiment keep its fold (folds.known.{leak.experiment}="
            f"{own}, and so on), or {AT_RANDOM}"
        )
    if not there and screen.split == "well":
        return f"{leak_text}; assign wells to folds as that run did (folds.count, folds.seed, the same wells), or {AT_RANDOM}"
    return f"{leak_text}, or a run that it started from has; put it into another fold (folds.known), or {AT_RANDOM}"


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
