"""A challenger against a champion: trains the challenger, has both predict the held-out plates, and compares. Promotes nothing.

They are compared on held-out experiments that neither was trained on, by labels, images or under another name, and whose cell type
both know. The runs are on this machine or on a cluster.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import ContactError, InputError, MissingObjectError
from components.core.evaluation.comparison.decision import Decision, compare
from components.core.evaluation.comparison.wells import paired_wells
from components.core.registry.model_manifest import MODELS, ModelManifest, TrainedPlate
from components.core.registry.published_models import trained_plates
from components.core.screen.wells import Plate
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import join_address
from components.core.storage.run_records import HOLDOUT, HOLDOUT_LABELS, RESULTS, RUNS
from components.core.storage.runs import fetch_run
from pipelines.checks import truth_file
from pipelines.cluster.checks import check_addresses
from pipelines.cluster.submit import SubmitRequest, submit
from pipelines.options import HOURS
from pipelines.run.folder import find_run
from pipelines.run.predict_request import PredictRequest

PREDICTIONS = "predictions_holdout.csv"
_ALLOWED = "promoted without a comparison, as allowed"
_NOT_ALLOWED = (
    "nothing shows that the challenger is not worse; hold out experiments that neither model saw "
    "(screen.holdout_experiments), or allow promotion without a comparison"
)


@dataclass(frozen=True)
class RetrainRequest:
    """The options of `cellsignal retrain`, described there.

    Attributes:
        endpoint: address of Kubeflow Pipelines; None for this machine.
        containers: on this machine: whether each task is a container of its step's image.
        timeout: on a cluster: seconds until following ends, of all runs together.
    """

    screen: str
    endpoint: str | None = None
    containers: bool = False
    truth: str | None = None
    images: str = "images.json"
    out: Path = Path("runs/retrain")
    summary: Path | None = None
    allow_no_holdout: bool = False
    again: bool = False
    resubmit: int = 0
    timeout: float = HOURS * 3600.0

    def check(self) -> None:
        """Rejects options that do not apply here, or that pods cannot read.

        Raises:
            InputError: names the option.
        """
        if self.endpoint:
            check_addresses(self.screen, self.truth)
        else:
            truth_file(self.truth)
            if self.resubmit:
                raise InputError("--resubmit goes with --endpoint; on this machine the same command resumes")
        if self.summary is not None and self.summary.is_dir():
            raise InputError(f"--summary {self.summary}: is a folder; give the name of a file in it")
        if self.summary is not None and not self.summary.absolute().parent.is_dir():
            raise InputError(f"--summary {self.summary}: there is no folder {self.summary.parent}; create it")


@dataclass(frozen=True)
class Challenge:
    """The runs of a retraining, and the comparison of their predictions.

    Attributes:
        config: the challenger's configuration.
        holdout: held-out experiments, with their cell types.
        folder: receives the runs' folders.
        deadline: on a cluster, by time.monotonic(): when following ends, for all runs together.
    """

    config: RunConfig
    request: RetrainRequest
    store: ObjectStore
    holdout: Sequence[tuple[str, str]]
    folder: Path
    console: Console
    deadline: float
    _predicted: dict[str, Path] = field(default_factory=dict)

    def train(self) -> str:
        """Trains the challenger; returns the key of its run.

        Raises:
            InputError: bad input.
            StepError: a step failed.
            ContactError: contact was lost or the deadline has passed; a run on a cluster may go on.
        """
        out, request = self.folder / "challenger", self.request
        if request.endpoint:
            submit(self.config, self._submission(out, request.truth), self.console)
            return str(json.loads((out / "lineage.json").read_text(encoding="utf-8"))["run"])
        from pipelines.run.local import run_here

        truth = truth_file(request.truth)
        run_here(self.config, out, request.screen, truth, self.console, containers=request.containers)
        return find_run(str(out)).key

    def predict(self, model: ModelManifest, experiments: Sequence[str]) -> Path:
        """Predicts held-out experiments with a model, once per model; returns its predictions.csv. Raises as train."""
        if model.fingerprint in self._predicted:
            return self._predicted[model.fingerprint]
        request, out = self.request, self.folder / f"predictions-{model.short}"
        # With the challenger's machine, store and codec, so that plates are packed once; embeddings are not compared.
        prediction = PredictRequest(
            model=self.store.uri(f"{MODELS}/{model.fingerprint}"),
            config=self.config,
            changes=("embeddings.enabled=false",),
            experiments=tuple(experiments),
        )
        if request.endpoint:
            submit(prediction, self._submission(out, None), self.console)
        else:
            from pipelines.run.local import predict_here

            own = join_address(self.config.store.bucket, self.config.store.prefix)
            predict_here(prediction, request.screen, out, None, own, self.console, containers=request.containers)
        return self._predicted.setdefault(model.fingerprint, out / "predictions.csv")

    def decide(
        self, run: str, challenger: ModelManifest, champion: ModelManifest | None
    ) -> tuple[Decision, tuple[str, ...]]:
        """The decision about the challenger of a run, and why held-out experiments were left out.

        Raises:
            InputError: predictions of either model are missing or damaged, or the champion cannot classify the plates.
            StepError: a step of the champion's prediction failed, or the store did.
            ContactError: contact with the cluster was lost.
        """
        decision = partial(Decision, challenger=challenger.short, champion=champion.short if champion else None)
        if champion is None:
            reason = "the first model: there is no champion to compare with"
            return decision(outcome="first_model", promote=True, reason=reason), ()
        if champion.fingerprint == challenger.fingerprint:
            reason = "the challenger is the champion: the same data, configuration and code"
            return decision(outcome="same_model", promote=False, reason=reason), ()
        found = comparable(self.holdout, champion, challenger)
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
            work = Path(folder)
            if found.experiments:
                fetch_run(self.store, run, work, "run")
                plates = Manifest.read(work / HOLDOUT)
                for label, model in (("challenger", challenger), ("champion", champion)):
                    found = without_same_images(
                        found, plates, trained_plates(self.store, model), f"the {label} {model.short}"
                    )
            if not found.experiments:
                allowed = self.request.allow_no_holdout
                reason = "; ".join(found.remarks) or "no experiment is held out"
                reason += f"; {_ALLOWED if allowed else _NOT_ALLOWED}"
                return decision(outcome="without_holdout", promote=allowed, reason=reason), found.remarks
            wells = paired_wells(
                plates,
                work / HOLDOUT_LABELS,
                self.predict(champion, comparable(self.holdout, champion).experiments),
                self.challengers_predictions(run, challenger, work, found.experiments),
                found.experiments,
                champion_knows=champion.vocabulary.treatments,
            )
        result = compare(wells, self.config.promotion, self.config.seed, self.config.screen.cell_types)
        return decision(
            outcome="compared", promote=result.promote, reason=result.reason, comparison=result
        ), found.remarks

    def challengers_predictions(
        self, run: str, challenger: ModelManifest, folder: Path, experiments: Sequence[str]
    ) -> Path:
        """The published networks' predictions: their run's, or new ones if another run of the same content trained them."""
        if challenger.run != run:
            return self.predict(challenger, experiments)
        path, key = folder / PREDICTIONS, f"{RUNS}/{run}/{RESULTS}/{PREDICTIONS}"
        try:
            self.store.download_file(key, path)
        except MissingObjectError:
            raise InputError(f"{self.store.uri(key)}: is missing; run {run} again to its end") from None
        return path

    def _submission(self, out: Path, truth: str | None) -> SubmitRequest:
        """A run on a cluster, within the time left."""
        assert self.request.endpoint
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ContactError("the deadline of --timeout has passed; the same command resumes here")
        return SubmitRequest(
            endpoint=self.request.endpoint,
            screen=self.request.screen,
            truth=truth,
            images=self.request.images,
            out=out,
            wait=True,
            resubmit=self.request.resubmit,
            timeout=left,
            reuse_results=True,
        )


class Comparable(NamedTuple):
    """The held-out experiments that models can be compared on, in the configuration's order, and why others are left out."""

    experiments: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def comparable(
    holdout: Iterable[tuple[str, str]], champion: ModelManifest, challenger: ModelManifest | None = None
) -> Comparable:
    """The held-out experiments (with their cell types) that neither model saw, of cell types that both know.

    The challenger is None before it is trained.
    """
    models = [("champion", champion)] + ([("challenger", challenger)] if challenger is not None else [])
    known = [(label, model, model.learned_from | {*model.unlabelled}) for label, model in models]
    kept, remarks = [], []
    for experiment, cell_type in holdout:
        for label, model, seen in known:
            if experiment in seen or cell_type not in model.folds:
                why = "was trained with it" if experiment in seen else f"does not know {cell_type}"
                remarks.append(f"{experiment} is left out: the {label} {model.short} {why}")
                break
        else:
            kept.append(experiment)
    return Comparable(tuple(kept), tuple(remarks))


def without_same_images(found: Comparable, plates: Manifest, trained: Iterable[TrainedPlate], label: str) -> Comparable:
    """Leaves out experiments that a model was trained on under another name: a plate has exactly the same pixel counts.

    Args:
        found: experiments that can be compared by their names.
        plates: manifest of the held-out plates.
        trained: the plates that the model was trained on.
        label: what remarks call the model.
    """
    known = {plate.histograms: plate.experiment for plate in trained}
    same = {plate.experiment: known[plate.histograms] for plate in plates.plates if plate.histograms in known}
    kept = tuple(name for name in found.experiments if name not in same)
    more = tuple(
        f"{name} is left out: {label} was trained on the same images as {same[name]}"
        for name in found.experiments
        if name in same
    )
    return Comparable(kept, (*found.remarks, *more))


def check_plates(plates: Collection[Plate], champion: ModelManifest) -> None:
    """Rejects held-out plates on which no challenger could be promoted, before one is trained.

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
