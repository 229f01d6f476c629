"""The two runs of a retraining: the challenger's training, and the champion's names for held-out plates. Here or on a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import ContactError
from components.core.registry.model_manifest import MODELS, ModelManifest
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import join_address
from pipelines.retraining.order import Order
from pipelines.run.known_run import find_run
from pipelines.run.predict_request import PredictRequest


@dataclass(frozen=True)
class Runs:
    """Starts them and waits.

    Attributes:
        config: of the challenger.
        order: where and how.
        folder: of this retraining.
        console: where progress is shown.
        deadline: on a cluster, by time.monotonic(): when following ends, whichever run it is.
    """

    config: RunConfig
    order: Order
    folder: Path
    console: Console
    deadline: float
    _named: dict[str, Path] = field(default_factory=dict)

    def train(self) -> str:
        """Trains the challenger; returns the key of its run.

        Raises:
            InputError: bad input.
            StepError: a step failed.
            ContactError: contact or the deadline was lost; a run on a cluster may go on.
        """
        out, order = self.folder / "challenger", self.order
        if order.endpoint:
            from pipelines.cluster.submit import submit_training

            submit_training(self.config, order.on_cluster(out, self._left()), self.console)
            return str(json.loads((out / "lineage.json").read_text(encoding="utf-8"))["run"])
        from pipelines.run.local import run_here

        truth = Path(order.truth) if order.truth else None
        run_here(self.config, out, order.screen, truth, self.console, containers=order.containers)
        return find_run(str(out)).key

    def name(self, store: ObjectStorage, model: ModelManifest, experiments: Sequence[str]) -> Path:
        """Has a model name the wells of held-out experiments, once; returns the file of its names.

        Args:
            store: of the model.
            model: usually the champion.
            experiments: which.

        Raises:
            As train.
        """
        if model.fingerprint in self._named:
            return self._named[model.fingerprint]
        order = self.order
        out = self.folder / f"names-{model.short}"
        address = store.uri(f"{MODELS}/{model.fingerprint}")
        # The challenger's machine, store and codec, so that plates are packed once; no embedding is compared.
        without = ("embeddings.enabled=false",)
        request = PredictRequest(model=address, config=self.config, changes=without, experiments=tuple(experiments))
        if order.endpoint:
            from pipelines.cluster.submit_prediction import predict_on_cluster

            predict_on_cluster(request, order.on_cluster(out, self._left(), truth=False), self.console)
        else:
            from pipelines.run.local import predict_here

            own = join_address(self.config.store.bucket, self.config.store.prefix)
            predict_here(request, order.screen, out, None, own, self.console, containers=order.containers)
        self._named[model.fingerprint] = out / "predictions.csv"
        return self._named[model.fingerprint]

    def _left(self) -> float:
        """Seconds until following ends."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ContactError("the deadline of --timeout has passed; the same command goes on where this one ended")
        return left
