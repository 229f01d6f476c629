"""cellsignal retrain: from a screen, a configuration and a champion to a decision. Imports neither torch nor kfp.

Looks whether anything changed; has the champion name the held-out plates; trains the challenger; compares; promotes or not. The
champion comes first since it is quick, and one that cannot predict is found before hours of training. Each part finds what an
earlier attempt finished, so that the same command goes on wherever one was ended.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from rich.console import Console

from components.core.config import CHANNELS, RunConfig
from components.core.errors import InputError, StepError
from components.core.learning.step_settings import library_versions
from components.core.registry.champion import (
    CHAMPION,
    Champion,
    PromotionResult,
    current_user,
    promote,
    read_champion,
)
from components.core.registry.model_manifest import SHORT, ModelManifest
from components.core.registry.published_models import read_model
from components.core.registry.publishing import publish
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Screen
from components.core.storage.folder_store import FolderStore
from components.core.storage.interface import ObjectStorage
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_screen, open_store
from pipelines.checks import check_screen, screen_source
from pipelines.cluster.checks import check_cluster, checked_store
from pipelines.cluster.compile import images_of
from pipelines.retraining.fingerprint import Fingerprint, changes, fingerprint_of
from pipelines.retraining.holdout import Comparable, check_plates
from pipelines.retraining.judging import Judge, against
from pipelines.retraining.order import Order
from pipelines.retraining.records import Outcome, now, read_latest, read_outcome, source_of, write_outcome
from pipelines.retraining.runs import Runs
from pipelines.retraining.start import started
from pipelines.retraining.telling import Telling
from pipelines.retraining.turn import in_progress, turn
from pipelines.run.containers import check_images

ROUNDS = 20
"""Comparisons with champions that others promoted meanwhile, before it is given up: each is another model's promotion."""


Result = Literal["promoted", "not promoted", "unchanged", "planned"]
"""What came of a call: of the challenger; nothing has changed; or it was a dry run."""


def retrain(config: RunConfig, order: Order, console: Console) -> Result:
    """Retrains where something changed, and decides about the challenger.

    Args:
        config: of the challenger.
        order: where, and what may be decided.
        console: where progress is shown.

    Raises:
        InputError: bad input, or a registry that cannot be read; the registry is as it was.
        StepError: a step failed, here or where the same was retrained.
        ContactError: contact or the deadline was lost; a run on a cluster may go on.
    """
    telling = Telling(console, order.summary)
    with telling.failures(), contextlib.ExitStack() as held:
        order.check()
        store, place = _on_cluster(config, order) if order.endpoint else _here(config, order, console, held)
        throne = _Throne.read(store)
        looked = now()
        current = fingerprint_of(place, config, _images(order), store)
        latest = read_latest(store, config.name)
        if latest and not order.again and _settled(latest, current, throne):
            telling.unchanged(latest, throne.champion)
            return "unchanged"
        telling.changed(changes(latest.fingerprint, current) if latest else None, current.digest[:SHORT])
        work = _Retraining(config, order, store, place, current, looked, telling, console)
        work.check(throne.model)
        if order.dry_run:
            claim = in_progress(store, work.turn) if not order.endpoint else None
            telling.plan(order, throne.champion, work.comparisons(throne.model), claim.who if claim else "")
            return "planned"
        if order.endpoint:  # Kubeflow knows what is in progress
            return _result(work.conclude(throne))
        with turn(store, work.turn, telling.say) as followed:
            if followed is not None:
                followed.raise_failure()
                outcome = read_outcome(store, config.name, current.digest)
                if outcome is None:
                    raise StepError(f"{followed.claim.who} left no outcome; run the same command again")
                telling.followed(outcome)
                return _result(outcome)
            latest, throne = read_latest(store, config.name), _Throne.read(store)  # as they are after the wait
            if latest and not order.again and _settled(latest, current, throne):
                telling.unchanged(latest, throne.champion)  # somebody was quicker
                return "unchanged"
            return _result(work.conclude(throne))


def _result(outcome: Outcome) -> Result:
    return "promoted" if outcome.promoted else "not promoted"


@dataclass(frozen=True)
class _Throne:
    """The champion of a moment."""

    champion: Champion | None
    model: ModelManifest | None

    @classmethod
    def read(cls, store: ObjectStorage) -> _Throne:
        champion = read_champion(store)
        if champion is None:
            return cls(None, None)
        try:
            return cls(champion, read_model(store, champion.now.fingerprint))
        except InputError as error:
            raise InputError(
                f"{store.uri(CHAMPION)} names a champion that cannot be read ({error}); promote another model with "
                "`cellsignal models promote`"
            ) from None

    @property
    def generation(self) -> int:
        return self.champion.now.generation if self.champion else 0


@dataclass(frozen=True)
class _Retraining:
    """One fingerprint that has to be retrained."""

    config: RunConfig
    order: Order
    store: ObjectStorage
    place: ScreenSource
    fingerprint: Fingerprint
    looked: datetime
    telling: Telling
    console: Console

    @property
    def turn(self) -> str:
        return f"{source_of(self.config.name, self.fingerprint.digest)}/turn.json"

    def check(self, champion: ModelManifest | None) -> None:
        """Refuses what cannot end in a decision, before anything is started.

        Raises:
            InputError: bad input; images that the champion cannot name; or nothing to compare with, where that is not allowed.
        """
        if champion is not None:
            size = self.config.screen.image_size
            champion.check_screen(len(CHANNELS), size, (), f"--screen {self.order.screen}")
        found = self.comparisons(champion)
        experiments = found.experiments
        if not experiments and not self.order.allow_no_holdout:
            why = "; ".join(found.remarks) or "screen.holdout_experiments names none"
            raise InputError(
                f"no experiment is held out that could show whether the challenger is better ({why}); hold labelled experiments "
                "out that no model was trained on, or give --allow-no-holdout to promote without a comparison"
            )
        plates = [plate for plate in self._screen.plates if plate.experiment in experiments]
        fewest = self.config.promotion.min_plates
        few = (
            f"screen.holdout_experiments: {len(plates)} plates ({', '.join(experiments)}), where fewer than {fewest} "
            f"(promotion.min_plates) show nothing{''.join(f'; {remark}' for remark in found.remarks)}"
        )
        if champion is None:
            if experiments and len(plates) < fewest:
                self.telling.warn(f"{few}; the first model is promoted all the same, but no later one can be compared")
            return
        if champion.name != self.config.name:
            self.telling.warn(
                f"the champion {champion.short} is of configuration {champion.name}: a store has one champion, whatever its models "
                "are called; another store.prefix has its own"
            )
        if not experiments:
            return
        if len(plates) < fewest:
            raise InputError(f"{few}; hold more experiments out that the champion was not trained on")
        check_plates(plates, champion)

    def comparisons(self, champion: ModelManifest | None) -> Comparable:
        """The held-out experiments that a challenger can be compared on; all of them where there is no champion yet."""
        holdout = self._holdout()
        return Comparable(tuple(name for name, _ in holdout), ()) if champion is None else against(holdout, champion)

    def conclude(self, throne: _Throne) -> Outcome:
        """Trains, compares, promotes or not, and writes down what came of it."""
        experiments = self._screen.training_experiments()
        settings = started(self.store, self.config, self.fingerprint.digest, throne.model, experiments)
        folder = self.order.out / self.fingerprint.digest[:SHORT]
        runs = Runs(settings, self.order, folder, self.console, time.monotonic() + self.order.timeout)
        if throne.model is not None and (held_out := self.comparisons(throne.model).experiments):
            self.telling.say(f"champion {throne.model.short} names {', '.join(held_out)}, which are held out")
            runs.name(self.store, throne.model, held_out)
        run = runs.train()
        challenger = publish(self.store, run).model
        allowed = self.order.allow_no_holdout
        judge = Judge(settings, self.store, runs, run, challenger, self._holdout(), allowed)
        for _ in range(ROUNDS):
            if (outcome := self._decided(judge, folder)) is not None:
                return outcome
        raise StepError(
            f"{ROUNDS} other models were promoted while model {challenger.short} was compared; run the same command again"
        )

    def _decided(self, judge: Judge, folder: Path) -> Outcome | None:
        """One comparison and what came of it; None where another model was promoted meanwhile."""
        challenger, throne = judge.challenger, _Throne.read(self.store)
        decision, found = judge.decide(throne.model)
        reason, compared_with = decision.reason, throne.model.fingerprint if throne.model else None
        change: PromotionResult | None = None
        if decision.outcome == "same_model" and throne.champion:
            # Whoever promoted it said why, and which was the champion before.
            reason = throne.champion.now.why
            compared_with = next((promotion.fingerprint for promotion in throne.champion.history), None)
        elif decision.promote and (later := self._later()):
            reason = (
                f"a later state of the screen was retrained meanwhile (run {later.run}), whose outcome an earlier one does not "
                "replace; --again decides by the present one"
            )
        elif decision.promote:
            change = promote(self.store, challenger.fingerprint, reason, expected=throne.generation)
            if change.outcome == "overtaken":
                same = change.champion.now.fingerprint == challenger.fingerprint
                so = "this model meanwhile" if same else "another model meanwhile; compared again with it"
                self.telling.say(f"{change.champion.now.by} promoted {so}")
                return None
        outcome = Outcome(
            name=self.config.name,
            fingerprint=self.fingerprint,
            run=judge.run,
            model=challenger.fingerprint,
            champion=compared_with,
            generation=change.champion.now.generation if change else throne.generation,
            promoted=change is not None or decision.outcome == "same_model",
            reason=reason,
            looked=self.looked,
            at=now(),
            by=current_user(),
        )
        write_outcome(self.store, outcome)
        self.telling.decided(decision, outcome, found.remarks, folder)
        return outcome

    def _later(self) -> Outcome | None:
        """What was concluded meanwhile about a state of the screen later than this one's; None where nothing was."""
        latest = read_latest(self.store, self.config.name)
        later = latest is not None and latest.looked > self.looked and latest.fingerprint != self.fingerprint
        return latest if later else None

    @cached_property
    def _screen(self) -> Screen:
        """The screen's tables, checked."""
        truth = Path(self.order.truth) if self.order.truth and not self.order.endpoint else None
        return check_screen(self.config, self.place, truth)

    def _holdout(self) -> Sequence[tuple[str, str]]:
        plates = [plate for plate in self._screen.plates if plate.holdout]
        return list(dict.fromkeys((plate.experiment, plate.cell_type) for plate in plates))


def _settled(latest: Outcome, current: Fingerprint, throne: _Throne) -> bool:
    """Whether nothing is left to do: the same was retrained last, and the registry did not lose what came of it."""
    return latest.fingerprint == current and (throne.champion is not None or not latest.promoted)


def _images(order: Order) -> Mapping[str, str]:
    """What the steps run in."""
    if order.endpoint:
        record = images_of(order.images)
        return {target: image.reference for target, image in record.images.items()} if record else {"tags": "unpinned"}
    return dict(check_images()) if order.containers else {"libraries": library_versions()}


def _on_cluster(config: RunConfig, order: Order) -> tuple[ObjectStorage, ScreenSource]:
    """Store and screen where pods find them: by this environment alone, Amazon S3 where it names no endpoint."""
    check_cluster(config)
    store = checked_store(config, "neither the screen nor the models can be looked at")
    return store, open_screen(order.screen)


def _here(config: RunConfig, order: Order, held: contextlib.ExitStack) -> tuple[ObjectStorage, ScreenSource]:
    """Store and screen of this machine; the store is open as long as `held` is."""
    place = screen_source(order.screen)
    return held.enter_context(_opened(config, order)), place


@contextlib.contextmanager
def _opened(config: RunConfig, order: Order) -> Iterator[FolderStore | ObjectStore]:
    """The store of registry and runs; a dry run makes none."""
    store = open_store(config.store.bucket, config.store.prefix)
    if order.dry_run and isinstance(store, FolderStore) and not store.root.is_dir():
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as empty:
            yield FolderStore(Path(empty))
        return
    store.check()
    yield store
