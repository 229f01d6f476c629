"""Whether a challenger becomes the champion: both models' predictions of held-out wells, compared. Promotes nothing.

Only experiments that neither model saw count, neither by labels nor by images, and neither under another name; and only those of
cell types that both models know.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError, MissingObjectError
from components.core.evaluation.comparison.decision import (
    Decision,
    compare,
    compared,
    first_model,
    same_model,
    without_holdout,
)
from components.core.evaluation.comparison.wells import paired_wells
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.published_models import trained_plates
from components.core.screen.wells import Plate
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import HOLDOUT, HOLDOUT_LABELS, RESULTS, RUNS
from components.core.storage.runs import fetch_run
from pipelines.retrain.runs import Runs

PREDICTIONS = "predictions_holdout.csv"


@dataclass(frozen=True)
class Comparable:
    """The held-out experiments that models can be compared on.

    Attributes:
        experiments: in the order of the configuration.
        remarks: why others are left out, a sentence each.
    """

    experiments: tuple[str, ...]
    remarks: tuple[str, ...]


def comparable(
    holdout: Iterable[tuple[str, str]], champion: ModelManifest, challenger: ModelManifest | None = None
) -> Comparable:
    """The held-out experiments that neither model saw, of cell types that both know.

    Args:
        holdout: held-out experiments, with their cell types.
        champion: the champion.
        challenger: None before it is trained.
    """
    models = [("the champion", champion)] + ([("the challenger", challenger)] if challenger is not None else [])
    seen = [(label, model, model.learned_from | {*model.unlabelled}) for label, model in models]
    kept, remarks = [], []
    for experiment, cell_type in holdout:
        for label, model, experiments in seen:
            if experiment in experiments or cell_type not in model.folds:
                why = "was trained with it" if experiment in experiments else f"does not know {cell_type}"
                remarks.append(f"{experiment} is left out: {label} {model.short} {why}")
                break
        else:
            kept.append(experiment)
    return Comparable(tuple(kept), tuple(remarks))


def check_plates(plates: Collection[Plate], champion: ModelManifest) -> None:
    """Rejects held-out plates by which every challenger would be refused, before one is trained.

    Args:
        plates: of the experiments that are compared on; at least one.
        champion: the champion.

    Raises:
        InputError: a cell type has a single plate, or the champion knows none of the siRNAs.
    """
    single = [name for name, count in Counter(plate.cell_type for plate in plates).items() if count == 1]
    if single:
        raise InputError(
            f"screen.holdout_experiments: {' and '.join(single)} would have a single held-out plate, which does not show how "
            "plates differ; hold out two or more, or none"
        )
    labels = {well.sirna for plate in plates for well in plate.wells if well.well_type == "treatment"} - {None}
    if labels.isdisjoint(champion.vocabulary.treatments):
        raise InputError(
            f"screen.holdout_experiments: champion {champion.short} knows none of their siRNAs (it knows, for example, "
            f"{champion.vocabulary.treatments[0]}); give labels in the encoding of its screen, or a screen of another library its "
            "own store.prefix"
        )


@dataclass(frozen=True)
class Judge:
    """Compares one challenger with a champion; again if the champion changes.

    Attributes:
        config: of the challenger's run.
        store: of both models and of the run.
        runs: predicts held-out plates with a model.
        run: key of the challenger's run.
        challenger: the published challenger.
        holdout: held-out experiments, with their cell types.
        allowed: whether it may be promoted without a comparison.
    """

    config: RunConfig
    store: ObjectStore
    runs: Runs
    run: str
    challenger: ModelManifest
    holdout: Sequence[tuple[str, str]]
    allowed: bool

    def decide(self, champion: ModelManifest | None) -> tuple[Decision, Comparable]:
        """The decision against a champion, and the experiments that were compared.

        Raises:
            InputError: predictions of either model are missing or damaged, or the champion cannot classify the plates.
            StepError: a step of the champion's prediction failed, or the store did.
            ContactError: contact with the cluster was lost.
        """
        challenger = self.challenger
        if champion is None:
            return first_model(challenger.short), Comparable((), ())
        if champion.fingerprint == challenger.fingerprint:
            return same_model(champion.short), Comparable((), ())
        found = comparable(self.holdout, champion, challenger)
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
            work = Path(folder)
            if found.experiments:
                fetch_run(self.store, self.run, work, "run")
                plates = Manifest.read(work / HOLDOUT)
                found = self.without_twins(plates, champion, found)
            if not found.experiments:
                why = "; ".join(found.remarks) or "no experiment is held out"
                return without_holdout(why, self.allowed, challenger.short, champion.short), found
            wells = paired_wells(
                plates,
                work / HOLDOUT_LABELS,
                self.runs.predict(self.store, champion, comparable(self.holdout, champion).experiments),
                self.challengers_predictions(work, found.experiments),
                found.experiments,
                champion_knows=champion.vocabulary.treatments,
            )
        comparison = compare(wells, self.config.promotion, self.config.seed, self.config.screen.cell_types)
        return compared(comparison, challenger.short, champion.short), found

    def without_twins(self, plates: Manifest, champion: ModelManifest, found: Comparable) -> Comparable:
        """Leaves out experiments that a model was trained on under another name: plates with exactly the same pixel counts."""
        trained = {
            plate.histograms: f"{label} {model.short} was trained on the same images as {plate.experiment}"
            for label, model in (("the challenger", self.challenger), ("the champion", champion))
            for plate in trained_plates(self.store, model)
        }
        twins = {plate.experiment: trained[plate.histograms] for plate in plates.plates if plate.histograms in trained}
        kept = tuple(name for name in found.experiments if name not in twins)
        more = tuple(f"{name} is left out: {twins[name]}" for name in found.experiments if name in twins)
        return Comparable(kept, (*found.remarks, *more))

    def challengers_predictions(self, folder: Path, experiments: Sequence[str]) -> Path:
        """The published networks' predictions: from their run, or made now if another run of the same content trained them."""
        if self.challenger.run != self.run:
            return self.runs.predict(self.store, self.challenger, experiments)
        path, key = folder / PREDICTIONS, f"{RUNS}/{self.run}/{RESULTS}/{PREDICTIONS}"
        try:
            self.store.download_file(key, path)
        except MissingObjectError:
            raise InputError(f"{self.store.uri(key)}: is missing; run {self.run} again to its end") from None
        return path
