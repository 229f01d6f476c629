"""The runs of a retraining, here or on a cluster: the challenger's training, and a model's prediction of held-out plates."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import ContactError, InputError
from components.core.registry.model_manifest import MODELS, ModelManifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import join_address
from pipelines.cluster.checks import check_addresses
from pipelines.cluster.submit import SubmitRequest, submit
from pipelines.options import HOURS
from pipelines.run.folder import find_run
from pipelines.run.predict_request import PredictRequest


@dataclass(frozen=True)
class RetrainRequest:
    """The options of `cellsignal retrain`.

    Attributes:
        screen: address of the screen.
        endpoint: of Kubeflow Pipelines; None for this machine.
        containers: on this machine: whether each task is a container of its step's image.
        truth: labels of unlabelled wells, for reports only; None for none.
        images: on a cluster: record of the images, or `tags`.
        out: folder that gets one for each fingerprint.
        summary: file to which the result is appended in Markdown; None for none.
        allow_no_holdout: whether a challenger may be promoted without a comparison if nothing is held out.
        again: whether to decide again although nothing has changed.
        resubmit: on a cluster: how often a failed run is submitted again.
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
        """Rejects options that do not fit the place of the runs, or that pods cannot read.

        Raises:
            InputError: names the option.
        """
        if self.endpoint:
            check_addresses(self.screen, self.truth)
        elif self.resubmit:
            raise InputError("--resubmit goes with --endpoint; on this machine the same command resumes")
        if self.summary is not None and self.summary.is_dir():
            raise InputError(f"--summary {self.summary}: is a folder; give the name of a file in it")
        if self.summary is not None and not self.summary.absolute().parent.is_dir():
            raise InputError(f"--summary {self.summary}: there is no folder {self.summary.parent}; create it")


@dataclass(frozen=True)
class Runs:
    """Starts runs and waits for them.

    Attributes:
        config: the challenger's.
        request: where and how.
        folder: of this retraining.
        console: where progress is shown.
        deadline: on a cluster, by time.monotonic(): when following ends, for all runs together.
    """

    config: RunConfig
    request: RetrainRequest
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

        truth, containers = Path(request.truth) if request.truth else None, request.containers
        run_here(self.config, out, request.screen, truth, self.console, containers=containers)
        return find_run(str(out)).key

    def predict(self, store: ObjectStore, model: ModelManifest, experiments: Sequence[str]) -> Path:
        """Predicts held-out experiments with a model, once per model; returns its predictions.csv.

        Args:
            store: the model's.
            model: the champion, or a challenger that another run trained.
            experiments: the experiments.

        Raises:
            As train.
        """
        if model.fingerprint in self._predicted:
            return self._predicted[model.fingerprint]
        request, out = self.request, self.folder / f"predictions-{model.short}"
        # With the challenger's machine, store and codec, so that plates are packed once; embeddings are not compared.
        wanted = PredictRequest(
            model=store.uri(f"{MODELS}/{model.fingerprint}"),
            config=self.config,
            changes=("embeddings.enabled=false",),
            experiments=tuple(experiments),
        )
        if request.endpoint:
            submit(wanted, self._submission(out, None), self.console)
        else:
            from pipelines.run.local import predict_here

            own = join_address(self.config.store.bucket, self.config.store.prefix)
            predict_here(wanted, request.screen, out, None, own, self.console, containers=request.containers)
        return self._predicted.setdefault(model.fingerprint, out / "predictions.csv")

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
