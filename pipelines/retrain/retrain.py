"""cellsignal retrain: from a screen, a configuration and a champion to a decision. Imports neither torch nor kfp.

Checks whether anything changed; predicts the held-out plates with the champion; trains the challenger; compares; promotes or not.
The champion predicts first, so that one that cannot is found before hours of training. Every part reuses what an earlier attempt
finished, so the same command resumes an interrupted retraining.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.files import cache_folder, locked
from components.core.learning.step_settings import library_versions
from components.core.registry.champion import CHAMPION, Champion, current_user, promote, read_champion
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.published_models import read_model
from components.core.registry.publishing import publish
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Screen
from components.core.storage.digests import digest_text
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_store
from pipelines.checks import check_screen, screen_source, truth_file
from pipelines.cluster.checks import check_cluster
from pipelines.cluster.compile import images_of
from pipelines.retrain.challenge import Challenge, Comparable, RetrainRequest, check_plates, comparable
from pipelines.retrain.fingerprint import Fingerprint, changes, fingerprint_of
from pipelines.retrain.records import RetrainingOutcome, fix_config, read_latest, with_champions_folds, write_outcome
from pipelines.retrain.report import RetrainReporter
from pipelines.run.containers import check_images

Result = Literal["promoted", "not promoted", "unchanged"]


def retrain(config: RunConfig, request: RetrainRequest, console: Console) -> Result:
    """Retrains if something changed, and decides about the challenger.

    Args:
        config: the challenger's configuration.
        request: where it is trained, and what may be decided.
        console: where progress is shown.

    Raises:
        InputError: bad input, or a registry that cannot be read; the registry is unchanged.
        StepError: a step failed.
        ContactError: contact was lost or the deadline has passed; a run on a cluster may go on.
    """
    report = RetrainReporter(console, request.summary)
    with report.failures():
        work = _Retraining.prepare(config, request, report)
        if not work.has_to_train():
            return "unchanged"
        with _lock(work):
            outcome = work.finished_by_another() or work.conclude()
        return "promoted" if outcome.promoted else "not promoted"


def plan(config: RunConfig, request: RetrainRequest, console: Console) -> dict[str, Any]:
    """Reports what `retrain` would do, and returns it in plain values; writes nothing to the store. Raises as retrain."""
    report = RetrainReporter(console, request.summary)
    with report.failures():
        work = _Retraining.prepare(config, request, report, dry_run=True)
        train = work.has_to_train()
        found = work.comparable if train else Comparable()
        latest, champion = work.latest, work.champion
        if train:
            report.plan(request.endpoint, champion, found)
        return {
            "name": config.name,
            "fingerprint": work.fingerprint.digest,
            "changes": work.changes,
            "action": "train" if train else "nothing",
            "endpoint": request.endpoint,
            "champion": champion.fingerprint if champion else None,
            "generation": _generation(work.promotions),
            "compared_on": found.experiments if champion else (),
            "remarks": found.remarks,
            **{f"last_{name}": getattr(latest, name, None) for name in ("run", "model", "promoted", "reason")},
        }


@dataclass(frozen=True)
class _Retraining:
    """A retraining of one fingerprint. `observed` is when the screen was in its state, `latest` the last retraining's outcome.

    `promotions` (champion.json) and `champion` (its model) are those at the start; None if no model was promoted.
    """

    config: RunConfig
    request: RetrainRequest
    store: ObjectStore
    source: ScreenSource
    fingerprint: Fingerprint
    observed: datetime
    latest: RetrainingOutcome | None
    promotions: Champion | None
    champion: ModelManifest | None
    report: RetrainReporter

    @classmethod
    def prepare(
        cls, config: RunConfig, request: RetrainRequest, report: RetrainReporter, dry_run: bool = False
    ) -> _Retraining:
        """Opens screen and store, and reads all that shows whether something has changed."""
        request.check()
        if request.endpoint:
            check_cluster(config)
        source = screen_source(request.screen)
        store = open_store(config.store.bucket, config.store.prefix)
        if not (dry_run and store.root):  # the check would create the folder
            store.check()
        champion, observed = _read_champion(store), datetime.now(UTC)
        fingerprint = fingerprint_of(source, config, _images(request), store)
        latest = read_latest(store, config.name)
        return cls(config, request, store, source, fingerprint, observed, latest, *champion, report)

    @property
    def changes(self) -> tuple[str, ...] | None:
        """Differences from the last retraining; None if there was none."""
        return changes(self.latest.fingerprint, self.fingerprint) if self.latest else None

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
        champion, found = self.champion, self.comparable
        if champion is not None:
            champion.check_images(self.config.screen.image_size, f"--screen {self.request.screen}")
            if champion.name != self.config.name:
                self.report.warn(
                    f"the champion {champion.short} is of configuration {champion.name}: a store has one champion, whatever its "
                    "models are called; use another store.prefix for another champion"
                )
        if not found.experiments:
            if self.request.allow_no_holdout:
                return
            why = "; ".join(found.remarks) or "screen.holdout_experiments is empty"
            raise InputError(
                f"no experiment is held out that could show whether the challenger is better ({why}); hold out labelled "
                "experiments that no model was trained on, or give --allow-no-holdout to promote without a comparison"
            )
        plates = [plate for plate in self._screen.plates if plate.experiment in found.experiments]
        fewest = self.config.promotion.min_plates
        few = (
            f"screen.holdout_experiments: {len(plates)} plates ({', '.join(found.experiments)}), but fewer than {fewest} "
            f"(promotion.min_plates) show nothing{''.join(f'; {remark}' for remark in found.remarks)}"
        )
        if champion is None:
            if len(plates) < fewest:
                self.report.warn(f"{few}; the first model is promoted anyway, but no later one can be compared")
            return
        if len(plates) < fewest:
            raise InputError(f"{few}; hold out more experiments that the champion was not trained on")
        check_plates(plates, champion)

    @cached_property
    def comparable(self) -> Comparable:
        """The held-out experiments that a challenger can be compared on; all of them if there is no champion yet."""
        if self.champion is None:
            return Comparable(tuple(name for name, _ in self._holdout))
        return comparable(self._holdout, self.champion)

    def finished_by_another(self) -> RetrainingOutcome | None:
        """The outcome of this fingerprint that another process recorded since the start; None if there is none."""
        latest = read_latest(self.store, self.config.name)
        if latest is None or latest == self.latest or latest.fingerprint != self.fingerprint:
            return None
        self.report.followed(latest)
        return latest

    def conclude(self) -> RetrainingOutcome:
        """Trains, compares, promotes or not, and records the outcome."""
        digest, deadline = self.fingerprint.digest, time.monotonic() + self.request.timeout
        config = with_champions_folds(self.config, self.champion, self._screen.training_experiments())
        config = fix_config(self.store, digest, config)
        folder = self.request.out / digest[:12]
        challenge = Challenge(config, self.request, self.store, self._holdout, folder, self.report.console, deadline)
        if self.champion is not None and self.comparable.experiments:
            challenge.predict(self.champion, self.comparable.experiments)
        run = challenge.train()
        challenger = publish(self.store, run).model
        while (outcome := self._decide(challenge, run, challenger)) is None:
            pass  # another model was promoted during the comparison
        return outcome

    def _decide(self, challenge: Challenge, run: str, challenger: ModelManifest) -> RetrainingOutcome | None:
        """One comparison and its outcome; None if another model was promoted during it."""
        promotions, champion = _read_champion(self.store)
        decision, remarks = challenge.decide(run, challenger, champion)
        reason, generation = decision.reason, _generation(promotions)
        compared_with = champion.fingerprint if champion else None
        promoted = decision.outcome == "same_model"
        if promoted and promotions:
            # The process that promoted it recorded the reason, and which champion was before.
            reason = promotions.now.why
            compared_with = next((promotion.fingerprint for promotion in promotions.history), None)
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
            champion=compared_with,
            generation=generation,
            promoted=promoted,
            reason=reason,
            observed=self.observed,
            at=datetime.now(UTC),
            by=current_user(),
        )
        write_outcome(self.store, outcome)
        self.report.decided(decision, outcome, remarks, challenge.folder)
        return outcome

    @cached_property
    def _screen(self) -> Screen:
        """The screen's tables, checked."""
        truth = None if self.request.endpoint else truth_file(self.request.truth)
        return check_screen(self.config, self.source, truth)

    @cached_property
    def _holdout(self) -> Sequence[tuple[str, str]]:
        """Held-out experiments with their cell types."""
        plates = [plate for plate in self._screen.plates if plate.holdout]
        return list(dict.fromkeys((plate.experiment, plate.cell_type) for plate in plates))


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


def lock_file(store: str, name: str, digest: str) -> Path:
    """The lock of a retraining on this machine, by the store's address, the configuration's name and the fingerprint."""
    return cache_folder() / "locks" / f"retrain-{digest_text(f'{store} {name} {digest}')[:16]}.lock"


@contextlib.contextmanager
def _lock(work: _Retraining) -> Iterator[None]:
    """Allows one process of this user at a time to retrain a fingerprint on this machine; a cluster's run is followed instead."""
    if work.request.endpoint:
        yield
        return
    path = lock_file(work.store.uri(""), work.config.name, work.fingerprint.digest)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(path, wait=False))
            except BlockingIOError:
                work.report.say("another process retrains the same; waiting for its outcome")
                stack.enter_context(locked(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        yield


def _images(request: RetrainRequest) -> Mapping[str, str]:
    """The steps' container images, or the libraries' versions."""
    if request.endpoint:
        record = images_of(request.images)
        return record.references if record else {"tags": "unpinned"}
    return dict[str, str](**check_images()) if request.containers else {"libraries": library_versions()}
