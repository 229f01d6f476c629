"""The method never uses labels of validation, unlabelled and held-out wells, nor held-out images.

Through the steps as the pipeline runs them, compared bit for bit on the CPU. Validation labels may select checkpoints, by
configuration; with selection `last` they decide nothing at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.core.config import RunConfig
from components.core.learning.fold_data import groups_of_fold
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.core.screen.manifests import dealt_again
from components.core.storage.arrays import USES, read_logits
from components.core.storage.manifest import Manifest, PlateRecord, WellRecord
from components.core.storage.object_store import ObjectStore
from components.finetune.step import run as finetune
from components.infer.step import run as infer
from components.normalize.step import run as normalize
from components.pretrain.step import run as pretrain
from components.pseudo_label.step import run as pseudo_label
from tests.components.core.learning.tiny_networks import RUN, SLIM, changed
from tests.tiny_screen import LABELLED, PLATES, TREATED_WELLS, UNLABELLED, MemoryStore, TinyScreen, write_png

HELD_OUT = "HUVEC-04"
FOLD, CELL_TYPE = 0, "HUVEC"
"""Folds {HUVEC-01: 0, HUVEC-02: 1, RPE-01: 0}: HUVEC-01 validates, HUVEC-02 trains, HUVEC-03 has no labels."""


LAST = changed(
    RUN.model_copy(update={"backbones": (SLIM,)}),
    screen={"holdout_experiments": (HELD_OUT,)},
    augment={"cutmix": 1.0},
    pretrain={"selection": "last"},
    mean_teacher={"selection": "last", "refresh_epochs": 1, "keep_classifier": True},
    predict={"views": 1},
    embeddings={"enabled": False},
)
WELLS = changed(LAST, folds={"split": "well"}, prior={"enabled": False}, batch_norm={"domain": "plate"})
BEST = changed(LAST, pretrain={"selection": "balanced"}, mean_teacher={"selection": "balanced"})


@dataclass(frozen=True)
class Screen:
    """A screen as normalize leaves it."""

    store: ObjectStore
    training: Manifest
    holdout: Manifest


def packed(folder: Path, config: RunConfig, change: Callable[[TinyScreen], None] = lambda _: None) -> Screen:
    """Writes the tiny screen with a fourth labelled HUVEC experiment, changes something, and normalises it."""
    tiny = TinyScreen(folder / "screen", imaged=(*LABELLED, *UNLABELLED, HELD_OUT), more=[HELD_OUT])
    change(tiny)
    store = MemoryStore()
    paths = [folder / name for name in ("screen.json", "holdout.json", "labels.csv")]
    normalize(config, tiny.root, store, *paths)
    return Screen(store, Manifest.read(paths[0]), Manifest.read(paths[1]))


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Screen]:
    """By split: folds of experiments, and of wells."""
    return {config.folds.split: packed(tmp_path_factory.mktemp(config.folds.split), config) for config in (LAST, WELLS)}


def fold_of(config: RunConfig) -> int:
    """The fold to train."""
    return FOLD if config.folds.train is None else config.folds.train[0]


@dataclass(frozen=True)
class Trained:
    """The results of a chain of steps, without durations."""

    weights: dict[str, bytes]
    logits: dict[str, tuple[tuple[str, ...], bytes]]
    pseudo_labels: str
    losses: list[float]
    accuracies: list[float | None]


def train(folder: Path, config: RunConfig, screen: Screen, epochs: int | None = None) -> Trained:
    """pretrain -> finetune -> pseudo_label, or pretrain -> infer if the mean teacher is off."""
    if epochs is not None:
        config = changed(config, pretrain={"epochs": epochs})
    bases = [folder / f"base-{backbone.name}" for backbone in config.backbones]
    for backbone, base in zip(config.backbones, bases, strict=True):
        pretrain(config.section(PretrainSettings), screen.store, screen.training, fold_of(config), backbone.name, base)
    part, logits, embeddings = (fold_of(config), CELL_TYPE), folder / "logits", folder / "embeddings"
    if config.mean_teacher.enabled:
        settings, tuned, final = config.section(MeanTeacherSettings), folder / "tuned", folder / "final"
        finetune(settings, screen.store, screen.training, bases, *part, tuned)
        pseudo_label(settings, screen.store, screen.training, screen.holdout, tuned, *part, final, logits, embeddings)
    else:
        settings = config.section(InferSettings)
        infer(settings, screen.store, screen.training, screen.holdout, bases, *part, logits, embeddings)
    found = read_logits(logits)
    labels = folder / "final" / "pseudo_labels.csv"
    history = found.meta["history"]
    return Trained(
        weights={str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))},
        logits={role: (found.wells[role].ids_W, found.wells[role].logits_WK.tobytes()) for role in USES},
        pseudo_labels=labels.read_text() if labels.exists() else "",
        losses=[record["loss"] for record in history],
        accuracies=[record["accuracy"] for record in history],
    )


def relabelled(manifest: Manifest, picked: Callable[[PlateRecord, int], bool], seed: int = 0) -> Manifest:
    """The manifest with other labels on the treatment wells for which `picked(plate, index)` is true."""
    rng = np.random.default_rng(seed)

    def well_of(plate: PlateRecord, n: int, well: WellRecord) -> WellRecord:
        if well.role != "treatment" or not picked(plate, n):
            return well
        others = [name for name in manifest.vocabulary.treatments if name != well.perturbation]
        return well.model_copy(update={"perturbation": str(rng.choice(others))})

    def plate_of(plate: PlateRecord) -> PlateRecord:
        return plate.model_copy(update={"wells": tuple(well_of(plate, n, w) for n, w in enumerate(plate.wells))})

    return manifest.model_copy(update={"plates": tuple(map(plate_of, manifest.plates))})


def validates(manifest: Manifest, fold: int = FOLD) -> Callable[[PlateRecord, int], bool]:
    """Whether the fold validates on a well."""

    def own(plate: PlateRecord, n: int) -> bool:
        if plate.well_folds:
            return plate.well_folds[n] == fold
        return manifest.folds.get(plate.experiment) == fold or fold in manifest.more_folds.get(plate.experiment, ())

    return own


SUPERVISED = changed(
    LAST,
    mean_teacher={"enabled": False},
    head={"cell_types": True, "linear_weight": 0.8},
    pretrain={"class_balance": 0.5, "label_smoothing": 0.1},
)
CONTROLS = changed(
    LAST,
    standardise={"wells": "controls"},
    batch_norm={"domain": "plate", "statistics": "controls"},
    head={"cell_types": True},
)
GROWING = {"confident_by": "epoch", "confident_fractions": (0.4, 1.0), "pseudo_label_choice": "assignment"}
OVERLAPPING = changed(
    LAST,
    mean_teacher={"mix": "natural", **GROWING},
    folds={"validation": (("HUVEC-01", "HUVEC-02"), ("RPE-01", "HUVEC-01")), "train": (1,)},
)


@pytest.mark.parametrize(
    "config",
    [LAST, WELLS, SUPERVISED, OVERLAPPING, CONTROLS],
    ids=["experiments", "wells", "supervised", "overlapping", "controls"],
)
def test_labels_of_validation_and_unlabelled_wells_change_no_weight_and_no_prediction(tmp_path, screens, config):
    screen = screens[config.folds.split]
    if config.folds.validation:
        screen = replace(screen, training=dealt_again(screen.training, config.folds))
    true = train(tmp_path / "true", config, screen)
    assert true.weights
    assert [len(true.logits[role][0]) for role in USES] == [6, 6, 6]
    own = validates(screen.training, fold_of(config))
    # Labels on unlabelled wells would be a leak of the truth that no table of the screen can cause.
    hidden = relabelled(screen.training, lambda plate, n: own(plate, n) or not plate.labelled)
    blind = train(tmp_path / "blind", config, Screen(screen.store, hidden, screen.holdout))
    assert blind.weights == true.weights
    assert blind.logits == true.logits
    assert blind.pseudo_labels == true.pseudo_labels
    assert blind.losses == true.losses
    assert None not in blind.accuracies, "validation used the other labels"
    # Labels of training wells do change everything.
    seen = relabelled(screen.training, lambda plate, n: plate.labelled and not own(plate, n))
    other = train(tmp_path / "seen", config, Screen(screen.store, seen, screen.holdout))
    assert all(other.weights[name] != true.weights[name] for name in true.weights)
    assert all(other.logits[role] != true.logits[role] for role in USES)


@pytest.mark.parametrize("config", [LAST, SUPERVISED], ids=["mean teacher", "supervised"])
def test_labels_of_unlabelled_wells_change_nothing_if_all_others_are_learned(tmp_path, screens, config):
    screen, config = screens["experiment"], changed(config, folds={"count": 1})
    screen = replace(screen, training=dealt_again(screen.training, config.folds))
    hidden = relabelled(screen.training, lambda plate, _: not plate.labelled)
    assert hidden != screen.training
    true, blind = (
        train(tmp_path / seen.digest(), config, Screen(screen.store, seen, screen.holdout))
        for seen in (screen.training, hidden)
    )
    assert true == blind
    assert not true.logits["oof"][0]


def test_plate_groups_are_not_learned_from_validation_experiments(screens):
    screen = screens["experiment"]
    true = groups_of_fold(screen.training, FOLD, LAST.prior)
    assert true is not None
    for seed in range(3):
        other = relabelled(screen.training, validates(screen.training), seed)
        found = groups_of_fold(other, FOLD, LAST.prior)
        assert found is not None
        assert (found.plates, found.arrangements) == (true.plates, true.arrangements)
        assert [members.tolist() for members in found.members] == [members.tolist() for members in true.members]


def test_validation_labels_choose_among_the_same_epochs(tmp_path, screens):
    """Selection may pick another epoch, but the epochs to choose among are the same, bit for bit."""
    screen, config = screens["experiment"], changed(BEST, mean_teacher={"enabled": False}, pretrain={"epochs": 3})
    name = f"base-{SLIM.name}/weights.safetensors"
    candidates = [
        train(tmp_path / f"until-{n}", changed(config, pretrain={"selection": "last"}), screen, epochs=n).weights[name]
        for n in (1, 2, 3)
    ]
    assert len(set(candidates)) == 3
    losses = set()
    for seed in range(3):
        labels = relabelled(screen.training, validates(screen.training), seed)
        trained = train(tmp_path / str(seed), config, Screen(screen.store, labels, screen.holdout))
        assert trained.weights[name] in candidates
        losses.add(tuple(trained.losses))
    assert len(losses) == 1


def test_labels_of_unlabelled_wells_select_nothing(tmp_path, screens):
    screen = screens["experiment"]
    hidden = relabelled(screen.training, lambda plate, _: not plate.labelled)
    assert hidden != screen.training
    found = [
        train(tmp_path / seen.digest(), BEST, Screen(screen.store, seen, screen.holdout))
        for seen in (screen.training, hidden)
    ]
    assert None not in found[0].accuracies
    assert found[0] == found[1]


def test_validation_labels_do_not_change_mean_teacher_epochs_without_pseudo_labels(tmp_path, screens):
    screen = screens["experiment"]
    config = changed(BEST, mean_teacher={"pseudo_labels": "none"}, pretrain={"selection": "last"})
    losses = []
    for name, seed in (("a", 1), ("b", 2)):
        labels = relabelled(screen.training, validates(screen.training), seed)
        folder = tmp_path / name
        base = folder / "base"
        pretrain(config.section(PretrainSettings), screen.store, labels, FOLD, SLIM.name, base)
        finetune(config.section(MeanTeacherSettings), screen.store, labels, [base], FOLD, CELL_TYPE, folder / "tuned")
        history = json.loads((folder / "tuned" / "history.json").read_text())
        losses.append([record["loss"] for record in history])
    assert losses[0] == losses[1]


def test_the_truth_of_unlabelled_wells_is_not_even_read(tmp_path):
    """Two screens that differ in the perturbations of test.csv have the same manifest."""

    def with_perturbations(tiny: TinyScreen, order: int) -> None:
        table = pd.read_csv(tiny.root / "test.csv")
        perturbations = ["sirna_7", "sirna_30", "sirna_2", "sirna_100", "sirna_11", "sirna_9"][::order]
        table.assign(sirna=perturbations).to_csv(tiny.root / "test.csv", index=False)

    one, two = (packed(tmp_path / str(order), LAST, partial(with_perturbations, order=order)) for order in (1, -1))
    assert one.training.digest() == two.training.digest()
    hidden = [well for plate in one.training.plates if not plate.labelled for well in plate.wells]
    assert {well.perturbation for well in hidden if well.role == "treatment"} == {None}


def permute_held_out_labels(tiny: TinyScreen) -> None:
    """Within each plate, so that the plate design stays intact."""
    table = pd.read_csv(tiny.root / "train.csv")
    for plate in PLATES:
        own = (table["experiment"] == HELD_OUT) & (table["plate"] == plate)
        assert own.sum() == len(TREATED_WELLS)
        table.loc[own, "sirna"] = np.roll(table.loc[own, "sirna"], 1)
    table.to_csv(tiny.root / "train.csv", index=False)


def replace_held_out_images(tiny: TinyScreen) -> None:
    rng = np.random.default_rng(5)
    for path in sorted((tiny.root / "train" / HELD_OUT).rglob("*.png")):
        write_png(path, rng.integers(0, 256, (16, 16), dtype=np.uint8))


def test_held_out_labels_change_nothing_and_held_out_images_nothing_before_their_prediction(tmp_path, screens):
    screen = screens["experiment"]
    true = train(tmp_path / "true", LAST, screen)
    labels = packed(tmp_path / "labels", LAST, permute_held_out_labels)
    assert (labels.training.digest(), labels.holdout.digest()) == (screen.training.digest(), screen.holdout.digest())
    images = packed(tmp_path / "images", LAST, replace_held_out_images)
    assert images.training.digest() == screen.training.digest()
    assert images.holdout.digest() != screen.holdout.digest()
    blind = train(tmp_path / "blind", LAST, images)
    assert blind.weights == true.weights
    assert blind.pseudo_labels == true.pseudo_labels
    assert (blind.logits["oof"], blind.logits["unlabelled"]) == (true.logits["oof"], true.logits["unlabelled"])
    assert blind.logits["holdout"] != true.logits["holdout"]


def test_nothing_before_prediction_reads_a_held_out_plate(tmp_path, screens):
    """A store without the held-out plates serves all training; prediction is the first to miss them."""
    screen = screens["experiment"]
    prefixes = tuple(plate.prefix for plate in screen.holdout.plates)
    assert prefixes

    store = MemoryStore()
    store.put_many((key, data) for key, data in screen.store.objects.items() if not key.startswith(prefixes))
    assert len(store.objects) < len(screen.store.objects)
    with pytest.raises(Exception, match=HELD_OUT):
        train(tmp_path, LAST, Screen(store, screen.training, screen.holdout))
    assert (tmp_path / "final" / f"{SLIM.name}.student.safetensors").exists(), "trained and saved before it"
