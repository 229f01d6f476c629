"""Whether a challenger becomes the champion: both models' names of held-out wells, compared. Reads records; promotes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError
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
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.manifest import Manifest
from components.core.storage.run_outcome import RESULTS
from components.core.storage.runs import HOLDOUT, HOLDOUT_LABELS, RUNS, fetch_run
from pipelines.retraining.holdout import Comparable, comparable
from pipelines.retraining.runs import Runs

NAMES = "predictions_holdout.csv"


@dataclass(frozen=True)
class Judge:
    """Judges one challenger, as often as the champion changes meanwhile.

    Attributes:
        config: of the challenger's run.
        store: of both models and of the run.
        runs: has the champion name plates.
        run: key of the challenger's run.
        challenger: as it is published.
        holdout: held-out experiments, with their cell types.
        allowed: whether it may be promoted without a comparison.
    """

    config: RunConfig
    store: ObjectStorage
    runs: Runs
    run: str
    challenger: ModelManifest
    holdout: Sequence[tuple[str, str]]
    allowed: bool

    def decide(self, champion: ModelManifest | None) -> tuple[Decision, Comparable]:
        """The decision against a champion, and what was compared.

        Raises:
            InputError: names of either model are missing or damaged, or the champion cannot name the plates.
            StepError: a step of the champion's prediction failed, or the store did.
            ContactError: contact with the cluster was lost.
        """
        challenger = self.challenger
        if champion is None:
            return first_model(challenger.short), Comparable((), ())
        if champion.fingerprint == challenger.fingerprint:
            return same_model(champion.short), Comparable((), ())
        found = against(self.holdout, champion, challenger)
        if not found.experiments:
            why = "; ".join(found.remarks) or "no experiment is held out"
            return without_holdout(why, self.allowed, challenger.short, champion.short), found
        named = self.runs.name(self.store, champion, against(self.holdout, champion).experiments)
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
            work = Path(folder)
            fetch_run(self.store, self.run, work, label="run")
            plates = Manifest.read(work / HOLDOUT)
            found = self._without_twins(plates, champion, found)
            if not found.experiments:
                why = "; ".join(found.remarks)
                return without_holdout(why, self.allowed, challenger.short, champion.short), found
            wells = paired_wells(
                plates,
                work / HOLDOUT_LABELS,
                named,
                self._challengers_names(work, found.experiments),
                found.experiments,
                champion_knows=champion.vocabulary.treatments,
            )
        comparison = compare(wells, self.config.promotion, self.config.seed, self.config.screen.cell_types)
        return compared(comparison, challenger.short, champion.short), found

    def _without_twins(self, plates: Manifest, champion: ModelManifest, found: Comparable) -> Comparable:
        """Leaves out what either model was trained on under another name: plates of exactly the same pixel counts."""
        trained = {
            plate.histograms: f"{called} {model.short} was trained on the same images as {plate.experiment}"
            for called, model in (("the challenger", self.challenger), ("the champion", champion))
            for plate in trained_plates(self.store, model)
        }
        twins = {plate.experiment: trained[plate.histograms] for plate in plates.plates if plate.histograms in trained}
        kept = tuple(name for name in found.experiments if name not in twins)
        more = tuple(f"{name} is left out: {twins[name]}" for name in found.experiments if name in twins)
        return Comparable(kept, (*found.remarks, *more))

    def _challengers_names(self, folder: Path, experiments: Sequence[str]) -> Path:
        """Those of the published networks: their run's, or where that was another run of the same their own, asked anew."""
        if self.challenger.run != self.run:
            return self.runs.name(self.store, self.challenger, experiments)
        key, path = f"{RUNS}/{self.run}/{RESULTS}/{NAMES}", folder / NAMES
        try:
            self.store.download_file(key, path)
        except MissingObjectError:
            raise InputError(f"{self.store.uri(key)}: is missing; run {self.run} again to its end") from None
        return path


def against(
    holdout: Sequence[tuple[str, str]], champion: ModelManifest, challenger: ModelManifest | None = None
) -> Comparable:
    """The held-out experiments that tell a challenger from a champion.

    Args:
        holdout: held-out experiments, with their cell types.
        champion: the champion.
        challenger: None before it is trained.
    """
    models = [("the champion", champion)] + ([("the challenger", challenger)] if challenger is not None else [])
    return comparable(holdout, models)
