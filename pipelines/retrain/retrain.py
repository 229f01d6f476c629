"""cellsignal retrain: from a screen, a configuration and a champion to a decision. Imports neither torch nor kfp.

Checks whether anything changed; predicts the held-out plates with the champion; trains the challenger; compares; promotes or not.
The champion predicts first, so that a champion that cannot is found before hours of training. Every part reuses what an
earlier attempt finished, so the same command resumes an interrupted retraining.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.evaluation.comparison.decision import too_few_plates
from components.core.files import locked
from components.core.learning.step_settings import library_versions
from components.core.registry.champion import CHAMPION, Champion, promote, read_champion
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.published_models import read_model
from components.core.screen.plane_header import pixels
from components.core.screen.wells import Screen
from components.core.storage.object_store import ObjectStore
from pipelines.checks import check_screen, screen_source, truth_file
from pipelines.cluster.checks import check_addresses, check_cluster
from pipelines.cluster.compile import images_of
from pipelines.cluster.endpoint import check_url
from pipelines.dag import training_graph
from pipelines.retrain.challenge import Challenge, Comparable, RetrainRequest, comparable
from pipelines.retrain.fingerprint import changes, fingerprint_of
from pipelines.retrain.records import RetrainingOutcome, fix_config, read_latest, with_champions_folds, write_outcome
from pipelines.retrain.report import RetrainReporter
from pipelines.run.containers import check_images

Result = Literal["promoted", "not promoted", "unchanged"]


def retrain(config: RunConfig, request: RetrainRequest, console: Console) -> Result:
    """Retrains if something changed, and decides about the challenger.

    Raises:
        InputError: bad input, or a registry that cannot be read; the registry is unchanged.
        StepError: a step failed.
        ContactError: contact was lost or the deadline has passed; a run on a cluster may continue.
    """
    report = RetrainReporter(console, request.summary)
    with report.failures():
        work = _Retraining(config, request, report)
        if not work.has_to_train():
            return "unchanged"
        with _lock(work):
            outcome = work.finished_by_another() or work.conclude()
        return "promoted" if outcome.promoted else "not promoted"


def plan(config: RunConfig, request: RetrainRequest, console: Console) -> dict[str, Any]:
    """Reports what `retrain` would do, and returns it in plain values; writes nothing to the store. Raises as retrain."""
    report = RetrainReporter(console, request.summary)
    with report.failures():
        work = _Retraining(config, request, report, dry_run=True)
        train = work.has_to_train()
        found = work.comparable if train else Comparable(())
        latest, champion = work.latest, work.champion
        if train:
            report.plan(request.endpoint, champion, found)
        return {
            "name": config.name,
            "fingerprint": work.fingerprint.digest,
            "changes": work.changes,
            "action": "train" if train else "nothing",
            "endpoint": request.endpoint or None,
            "champion": champion.fingerprint if champion else None,
            "generation": _generation(work.promotions),
            "compared_on": found.experiments if champion else (),
            "remarks": found.remarks,
            **{f"last_{name}": getattr(latest, name, None) for name in ("run", "model", "promoted", "reason")},
        }


class _Retraining:
    """A retraining of one fingerprint. `observed` is when the screen was in its state, `latest` the last retraining's outcome.

    `promotions` (champion.json) and `champion` (its model) are those at the start; None if no model was promoted.
    """

    def __init__(
        self, config: RunConfig, request: RetrainRequest, report: RetrainReporter, dry_run: bool = False
    ) -> None:
        """Checks the options, opens screen and store, and reads all that shows whether something has changed."""
        if request.endpoint:
            check_url(request.endpoint)
            check_addresses(request.screen, request.truth)
            check_cluster(config, training_graph(config))
        self.config, self.request, self.report = config, request, report
        self.truth = None if request.endpoint else truth_file(request.truth)
        self.source = screen_source(request.screen)
        self.store = ObjectStore(config.store.address)
        if not (dry_run and self.store.root):  # the check would create the folder
            self.store.check()
        self.promotions, self.champion = _read_champion(self.store)
        self.observed = datetime.now(UTC)
        self.fingerprint = fingerprint_of(self.source, config, _images(request), self.store)
        self.latest = read_latest(self.store, config.name)

    @property
    def changes(self) -> tuple[str, ...] | None:
        """Differences from the last retraining; None if there was none."""
        return changes(self.latest.fingerprint, self.fingerprint) if self.latest else None

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.request.out / self.fingerprint.digest[:12]

    def has_to_train(self) -> bool:
        """Reports what changed; False if this fingerprint was retrained last, and the registry still has its result."""
        latest = None if self.request.again else self.latest
        lost = latest is not None and latest.promoted and self.promotions is None
        if latest is not None and latest.fingerprint == self.fingerprint and not lost:
            self.report.unchanged(latest, self.promotions)
            return False
        self.report.changed(self.changes, self.fingerprint.digest)
        self._check()
        return True

    def _check(self) -> None:
        """Rejects a retraining that cannot end in a decision, before anything is started."""
        champion = self.champion
        given = self.config.screen.image_size is not None
        if champion is not None and given and champion.image_shape != self.config.screen.image_shape:
            raise InputError(
                f"screen.image_size is {self.config.screen.image_size}, but champion {champion.short} was trained with "
                f"{pixels(champion.image_shape)}, so that they cannot be compared; use another store.prefix for another champion"
            )
        if champion is not None and champion.name != self.config.name:
            self.report.warn(
                f"the champion {champion.short} is of configuration {champion.name}: a store has one champion, whatever its "
                "models are called; use another store.prefix for another champion"
            )
        found = self.comparable
        if not found.experiments:
            if self.request.allow_no_holdout:
                return
            why = "; ".join(found.remarks) or "screen.holdout_experiments is empty"
            raise InputError(
                f"no experiment is held out that could show whether the challenger is better ({why}); hold out labelled "
                "experiments that no model was trained on, or give --allow-no-holdout to promote without a comparison"
            )
        plates = [plate for plate in self._screen.plates if plate.experiment in found.experiments]
        lead = f"screen.holdout_experiments ({', '.join(found.experiments)})"
        few = too_few_plates(Counter(plate.cell_type for plate in plates), self.config.promotion)
        if few and champion is None:
            self.report.warn(
                f"{lead}: {'; '.join(few)}; the first model is promoted anyway, but no later one can be compared"
            )
        elif few:
            raise InputError(f"{lead}: {'; '.join([*few, *found.remarks])}")
        labels = {well.perturbation for plate in plates for well in plate.wells if well.role == "treatment"} - {None}
        if champion is not None and labels.isdisjoint(champion.vocabulary.treatments):
            raise InputError(
                f"{lead}: champion {champion.short} knows none of their labels (it knows, for example, "
                f"{champion.vocabulary.treatments[0]}); give labels in the encoding of its screen, or a screen of another library "
                "its own store.prefix"
            )

    @cached_property
    def comparable(self) -> Comparable:
        """The held-out experiments that a challenger can be compared on; all of them if there is no champion yet."""
        return comparable(self._holdout, {} if self.champion is None else {"champion": self.champion})

    def finished_by_another(self) -> RetrainingOutcome | None:
        """The outcome of this fingerprint that another process recorded since the start; None if there is none."""
        latest = read_latest(self.store, self.config.name)
        if latest is None or latest == self.latest or latest.fingerprint != self.fingerprint:
            return None
        self.report.followed(latest)
        return latest

    def conclude(self) -> RetrainingOutcome:
        """Trains, compares, promotes or not, and records the outcome."""
        deadline = time.monotonic() + self.request.timeout
        config = with_champions_folds(self.config, self.champion, self._screen.training_experiments())
        config = fix_config(self.store, self.fingerprint.digest, config)
        console = self.report.console
        challenge = Challenge(config, self.request, self.store, self._holdout, self.folder, console, deadline)
        if self.champion is not None and self.comparable.experiments:
            challenge.predict(self.champion)
        run, challenger = challenge.train()
        while (outcome := self._decide(challenge, run, challenger)) is None:
            pass  # another model was promoted during the comparison
        return outcome

    def _decide(self, challenge: Challenge, run: str, challenger: ModelManifest) -> RetrainingOutcome | None:
        """One comparison and its outcome; None if another model was promoted during it."""
        promotions, champion = _read_champion(self.store)
        decision = challenge.decide(run, challenger, champion, promotions.now.why if promotions else "")
        reason, generation, promoted = decision.reason, _generation(promotions), decision.outcome == "same_model"
        latest = read_latest(self.store, self.config.name) if decision.promote else None
        if latest and latest.observed > self.observed and latest.fingerprint != self.fingerprint:
            reason = (
                f"a later state of the screen has been retrained since (run {latest.run}), whose outcome an earlier state does "
                "not replace; --again decides by the present state"
            )
        elif decision.promote:
            change = promote(self.store, challenger.fingerprint, reason, expected=generation)
            now = change.champion.now
            if change.outcome == "overtaken":
                same = now.fingerprint == challenger.fingerprint
                self.report.say(
                    f"{now.by} has just promoted {'this model' if same else 'another model; comparing again with that one'}"
                )
                return None
            promoted, generation = True, now.generation
        outcome = RetrainingOutcome(
            name=self.config.name,
            fingerprint=self.fingerprint,
            run=run,
            model=challenger.fingerprint,
            generation=generation,
            promoted=promoted,
            reason=reason,
            observed=self.observed,
            at=datetime.now(UTC),
        )
        write_outcome(self.store, outcome)
        self.report.decided(decision, outcome, self.folder)
        return outcome

    @cached_property
    def _screen(self) -> Screen:
        """The screen's tables, checked."""
        return check_screen(self.config, self.source, self.truth)

    @cached_property
    def _holdout(self) -> Mapping[str, str]:
        """Cell type by held-out experiment."""
        return {plate.experiment: plate.cell_type for plate in self._screen.plates if plate.holdout}


def _read_champion(store: ObjectStore) -> tuple[Champion | None, ModelManifest | None]:
    """champion.json and the champion's manifest; None if no model was promoted."""
    promotions = read_champion(store)
    if promotions is None:
        return None, None
    try:
        return promotions, read_model(store, promotions.now.fingerprint)
    except InputError as error:
        raise InputError(
            f"{store.uri(CHAMPION)} names a champion that cannot be read ({error}); promote another model with "
            "`cellsignal models promote`"
        ) from None


def _generation(promotions: Champion | None) -> int:
    """0 if there is no champion."""
    return promotions.now.generation if promotions else 0


@contextlib.contextmanager
def _lock(work: _Retraining) -> Iterator[None]:
    """Allows one process at a time to retrain in a folder of this machine; a cluster's run is followed instead."""
    with contextlib.ExitStack() as held:
        if not work.request.endpoint:
            path = work.folder / "lock"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(path, wait=False))
            except BlockingIOError:
                work.report.say("another process retrains the same; waiting for its outcome")
                held.enter_context(locked(path))
        yield


def _images(request: RetrainRequest) -> Mapping[str, str]:
    """The steps' container images, or the libraries' versions."""
    if request.endpoint:
        return images_of(request.images).references or {"tags": "unpinned"}
    return dict[str, str](**check_images()) if request.containers else {"libraries": library_versions()}
