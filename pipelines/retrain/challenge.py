"""A challenger against a champion: trains the challenger, has both predict the held-out plates, and compares. Promotes nothing.

They are compared on held-out experiments that neither was trained on, by labels, images or under another name, and whose cell type
both know. The runs are on this machine or on a cluster.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import ContactError, InputError, MissingObjectError
from components.core.evaluation.comparison.decision import Decision, compare
from components.core.evaluation.comparison.wells import paired_wells
from components.core.registry.model_manifest import MODELS, ModelManifest
from components.core.registry.published_models import trained_plates
from components.core.registry.publishing import publish
from components.core.storage.manifest import Manifest, PlateRecord
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import HOLDOUT, HOLDOUT_LABELS, RESULTS, RUNS
from components.core.storage.runs import fetch_run, has_results
from pipelines.checks import truth_file
from pipelines.cluster.submit import SubmitRequest, submit
from pipelines.options import print_line
from pipelines.run.predict_request import PredictRequest

PREDICTIONS = "predictions_holdout.csv"
_ALLOWED = "promoted without a comparison, as allowed"
_NOT_ALLOWED = (
    "nothing shows that the challenger is not worse; hold out experiments that neither model saw "
    "(screen.holdout_experiments), or allow promotion without a comparison"
)


@dataclass(frozen=True)
class RetrainRequest(SubmitRequest):
    """The options of `cellsignal retrain`: how its runs are submitted (without an endpoint they run here), and what is decided.

    Attributes:
        out: folder of the results, with one folder per fingerprint.
        timeout: seconds until following ends, of all runs together.
        containers: on this machine: whether each task is a container of its step's image.
    """

    screen: str
    out: Path = Path("runs/retrain")
    wait: bool = True
    reuse_results: bool = True
    containers: bool = False
    summary: Path | None = None
    allow_no_holdout: bool = False
    again: bool = False


@dataclass(frozen=True)
class Challenge:
    """The runs of a retraining in its folder, and the comparison of their predictions."""

    config: RunConfig  # the challenger's configuration
    request: RetrainRequest
    store: ObjectStore
    holdout: Mapping[str, str]  # cell type by held-out experiment
    folder: Path
    console: Console
    deadline: float  # on a cluster, by time.monotonic(): when following ends, for all runs together
    _predicted: dict[str, Path] = field(default_factory=dict)

    def train(self) -> tuple[str, ModelManifest]:
        """Trains and publishes the challenger; returns the key of its run and its manifest. Raises as `submit` or `run_here`."""
        out, request = self.folder / "challenger", self.request
        if request.endpoint:
            submit(self.config, self._submission(out, request.truth), self.console)
        else:
            if not request.truth and (finished := self._finished_here(out)):  # a truth changes the report
                try:
                    return finished, publish(self.store, finished).model
                except InputError as error:
                    why = f"it cannot be published ({error})"
                    print_line(self.console, f"warning: run {finished} is repeated, because {why}", "yellow")
            from pipelines.run.local import run_here

            truth = truth_file(request.truth)
            run_here(self.config, out, request.screen, truth, self.console, containers=request.containers)
        run = _run_of(out)
        return run, publish(self.store, run).model

    def predict(self, model: ModelManifest) -> Path:
        """The predictions.csv of held-out experiments that a model did not see, whatever it is compared with; raises as train."""
        if model.fingerprint in self._predicted:
            return self._predicted[model.fingerprint]
        request, out = self.request, self.folder / f"predictions-{model.short}"
        # With the challenger's machine, store and codec, so that plates are packed once; embeddings are not compared.
        prediction = PredictRequest(
            model=self.store.uri(f"{MODELS}/{model.fingerprint}"),
            config=self.config,
            changes=("embeddings.enabled=false",),
            experiments=comparable(self.holdout, {"model": model}).experiments,
        )
        if request.endpoint:
            submit(prediction, self._submission(out, None), self.console)
        elif not self._finished_here(out):
            from pipelines.run.local import predict_here

            own = self.config.store.address
            predict_here(prediction, request.screen, out, None, own, self.console, containers=request.containers)
        return self._predicted.setdefault(model.fingerprint, out / "predictions.csv")

    def decide(
        self, run: str, challenger: ModelManifest, champion: ModelManifest | None, promotion_reason: str
    ) -> Decision:
        """The decision about the challenger of a run; `promotion_reason` is that of the champion. Raises as predict.

        InputError also if predictions of either model are damaged, or the champion cannot classify the plates.
        """
        decision = partial(Decision, challenger=challenger.short, champion=champion.short if champion else None)
        if champion is None:
            reason = "the first model: there is no champion to compare with"
            return decision(outcome="first_model", promote=True, reason=reason)
        if champion.fingerprint == challenger.fingerprint:
            # Promoted by an attempt that was killed before it recorded the outcome, or by another process.
            return decision(outcome="same_model", promote=False, reason=promotion_reason)
        models = {"champion": champion, "challenger": challenger}
        found = comparable(self.holdout, models)
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
            work = Path(folder)
            if found.experiments:
                fetch_run(self.store, run, work, "run")
                plates = Manifest.read(work / HOLDOUT)
                for label, model in models.items():
                    trained = trained_plates(self.store, model)
                    found = found.without(same_images(plates, trained, f"the {label} {model.short}"))
            if not found.experiments:
                allowed = self.request.allow_no_holdout
                why = found.remarks or ("no experiment is held out",)
                reason = "; ".join((*why, _ALLOWED if allowed else _NOT_ALLOWED))
                return decision(outcome="without_holdout", promote=allowed, reason=reason)
            wells = paired_wells(
                plates,
                work / HOLDOUT_LABELS,
                self.predict(champion),
                self.predictions_of_challenger(run, challenger, work),
                found.experiments,
                champion_knows=champion.vocabulary.treatments,
                column=self.config.screen.label_column,
            )
        result = compare(wells, self.config.promotion, self.config.seed, self.config.screen.cell_types)
        return decision(
            outcome="compared", promote=result.promote, reason=result.reason, comparison=result, left_out=found.remarks
        )

    def predictions_of_challenger(self, run: str, challenger: ModelManifest, folder: Path) -> Path:
        """The published networks' predictions: their run's, from the store.

        They predict again if another run of the same content trained them, or if the store has no predictions of the run.
        """
        if challenger.run == run:
            path = folder / PREDICTIONS
            with suppress(MissingObjectError):
                self.store.download_file(f"{RUNS}/{run}/{RESULTS}/{PREDICTIONS}", path)
                return path
        return self.predict(challenger)

    def _finished_here(self, out: Path) -> str | None:
        """The key of the run of this fingerprint that has its results in a folder, and all of them still in the store."""
        try:
            run = _run_of(out)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not has_results(self.store, run):
            return None
        print_line(self.console, f"run {run} has finished before, so nothing is started")
        return run

    def _submission(self, out: Path, truth: str | None) -> SubmitRequest:
        """A run on a cluster, within the time left."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ContactError("the deadline of --timeout has passed; the same command resumes here")
        return replace(self.request, out=out, truth=truth, timeout=left)


def _run_of(out: Path) -> str:
    """The key of the run whose results are in a folder."""
    return str(json.loads((out / "lineage.json").read_text(encoding="utf-8"))["run"])


class Comparable(NamedTuple):
    """The held-out experiments that models can be compared on, in the configuration's order, and why others are left out."""

    experiments: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def without(self, reasons: Mapping[str, str]) -> Comparable:
        """Leaves out the experiments that have a reason."""
        kept = tuple(name for name in self.experiments if name not in reasons)
        more = (f"{name} is left out: {reasons[name]}" for name in self.experiments if name in reasons)
        return Comparable(kept, (*self.remarks, *more))


def comparable(holdout: Mapping[str, str], models: Mapping[str, ModelManifest]) -> Comparable:
    """The held-out experiments that none of the models saw, of cell types that all know; `models` are by their names in remarks."""
    reasons: dict[str, str] = {}
    for label, model in models.items():
        seen = model.learned_from | {*model.unlabelled}
        for experiment, cell_type in holdout.items():
            if experiment in seen or cell_type not in model.folds:
                why = "was trained with it" if experiment in seen else f"does not know {cell_type}"
                reasons.setdefault(experiment, f"the {label} {model.short} {why}")
    return Comparable(tuple(holdout)).without(reasons)


def same_images(plates: Manifest, trained: Iterable[PlateRecord], label: str) -> dict[str, str]:
    """By experiment, that model `label` was trained on it under another name: a plate has exactly the same pixel counts."""
    known = {plate.histograms: plate.experiment for plate in trained}
    return {
        plate.experiment: f"{label} was trained on the same images as {known[plate.histograms]}"
        for plate in plates.plates
        if plate.histograms in known
    }
