"""What the training steps hand to their methods: the wells, images and networks that the configuration asks for.

A step runs up to the call of its method, and the arguments are compared with what they should be; nothing is trained.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core.config import RunConfig
from components.core.learning import fold_data
from components.core.learning.fold_data import fold_wells
from components.core.learning.images import Images, open_images
from components.core.learning.mean_teacher import Pair
from components.core.learning.network import Classifier
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.core.learning.weight_files import save_pairs, save_weights
from components.core.screen.site_table import TREATMENT, SiteTable
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.finetune import step as finetune
from components.infer import step as infer
from components.normalize.config import NormalizeConfig
from components.normalize.step import run as normalize
from components.pretrain import step as pretrain
from components.pseudo_label import step as pseudo_label
from tests.components.core.learning.tiny_networks import CPU, RUN, SLIM, classifier, same, weights_of
from tests.tiny_screen import MemoryStore, TinyScreen

HELD_OUT = "HUVEC-04"
FOLD, CELL_TYPE = 0, "HUVEC"
"""HUVEC-01 validates, HUVEC-02 trains, HUVEC-03 has no labels; RPE-01 is of fold 0."""


def changed(config: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """A configuration with other fields in some sections."""
    update = {name: getattr(config, name).model_copy(update=dict(fields)) for name, fields in sections.items()}
    return RunConfig.model_validate(config.model_copy(update=update).model_dump())


USUAL = changed(RUN.model_copy(update={"backbones": (SLIM,)}), screen={"holdout_experiments": (HELD_OUT,)})


@dataclass(frozen=True)
class Screen:
    """A screen as normalize leaves it, and weights that training could have left."""

    store: ObjectStore
    training: Manifest
    holdout: Manifest
    pretrained: Classifier
    base: Path
    tuned: Path

    @property
    def table(self) -> SiteTable:
        return SiteTable.of(self.training)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    folder, store = tmp_path_factory.mktemp("packed"), MemoryStore()
    tiny = TinyScreen(
        folder / "screen", more=[HELD_OUT], imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03", "RPE-01", HELD_OUT)
    )
    paths = [folder / name for name in ("screen.json", "holdout.json", "labels.csv")]
    normalize(USUAL.section(NormalizeConfig), tiny.root, store, *paths)
    training, holdout = Manifest.read(paths[0]), Manifest.read(paths[1])
    assert training.folds == {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0}
    network, base, tuned = classifier(len(training.vocabulary.classes), 7, SLIM), folder / "base", folder / "tuned"
    base.mkdir()
    save_weights(network, base / "weights.safetensors")
    (base / "history.json").write_text("[]")
    (base / "meta.json").write_text(json.dumps({"fold": FOLD, "cell_type": None, "backbone": SLIM.name}))
    pair = Pair(SLIM.name, network, network, 1)
    save_pairs([pair], tuned, 1, [], fold=FOLD, cell_type=CELL_TYPE)
    return Screen(store, training, holdout, network, base, tuned)


class CalledError(Exception):
    """The method was called; nothing after it matters."""


METHODS = {
    "pretrain": (pretrain, "SupervisedTraining"),
    "finetune": (finetune, "MeanTeacherTraining"),
    "pseudo_label": (pseudo_label, "MeanTeacherTraining"),
    "infer": (infer, "predict_fold"),
}


def start(step: str, config: RunConfig, screen: Screen, out: Path) -> None:
    """Runs a step of a configuration."""
    one, where = (screen.store, screen.training), (FOLD, CELL_TYPE)
    weights, logits, embeddings = (out / name for name in ("weights", "logits", "embeddings"))
    if step == "pretrain":
        pretrain.run(config.section(PretrainSettings), *one, FOLD, SLIM.name, weights)
    elif step == "finetune":
        finetune.run(config.section(MeanTeacherSettings), *one, [screen.base], *where, weights)
    elif step == "pseudo_label":
        settings = config.section(MeanTeacherSettings)
        pseudo_label.run(settings, *one, screen.holdout, screen.tuned, *where, weights, logits, embeddings)
    else:
        infer.run(config.section(InferSettings), *one, screen.holdout, [screen.base], *where, logits, embeddings)


Given = Callable[[str, RunConfig], dict[str, Any]]


@pytest.fixture
def given(screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """The arguments by name that a step of a configuration gives to its method."""

    def arguments(step: str, config: RunConfig) -> dict[str, Any]:
        module, method = METHODS[step]
        signature = inspect.signature(getattr(module, method))

        def called(*args: Any, **kwargs: Any) -> None:
            raise CalledError(signature.bind(*args, **kwargs).arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, method, called)
            for user in (module, fold_data):
                patch.setattr(user, "pick_device", lambda: CPU)
            with pytest.raises(CalledError) as caught:
                start(step, config, screen, tmp_path)
        found: dict[str, Any] = caught.value.args[0]
        if step != "infer":
            data = found["data"]
            found |= {"images": data.images, "wells": data.wells, "validation": data.validation}
        return found

    return arguments


def experiments(table: SiteTable, wells: NDArray[np.intp]) -> set[str]:
    return {table.experiments[e] for e in table.experiment_W[wells]}


@pytest.mark.parametrize("controls", ["all", "training"])
@pytest.mark.parametrize("step", METHODS)
def test_the_configured_controls_join_the_labelled_wells(step, controls, given, screen):
    found = given(step, changed(USUAL, screen={"controls": controls}))
    wells, table = found["wells"], screen.table
    own = fold_wells(table, FOLD, controls, None if step == "pretrain" else CELL_TYPE)
    wells = wells.training
    assert np.array_equal(wells, own.training)
    treated_W = table.well_type_W == TREATMENT
    assert experiments(table, wells[treated_W[wells]]) == {"HUVEC-02"}
    everywhere = {"HUVEC-01", "HUVEC-02", "HUVEC-03"} | ({"RPE-01"} if step == "pretrain" else set())
    assert experiments(table, wells[~treated_W[wells]]) == (everywhere if controls == "all" else {"HUVEC-02"})


@pytest.mark.parametrize("step", ["finetune", "pseudo_label"])
def test_validation_wells_are_among_the_unlabelled_ones_and_validate(step, given, screen):
    found, table = given(step, USUAL), screen.table
    own = fold_wells(table, FOLD, "all", CELL_TYPE)
    assert experiments(table, own.validation) == {"HUVEC-01"}
    assert experiments(table, own.unlabelled) == {"HUVEC-03"}
    assert sorted(found["wells"].hidden) == sorted([*own.validation, *own.unlabelled])
    assert np.array_equal(found["validation"].wells, own.validation)
    if step == "pseudo_label":
        assert np.array_equal(np.sort(found["refresh"].wells), np.sort(own.hidden))


def test_pretrain_validates_on_the_folds_own_wells_of_all_cell_types(given, screen):
    validation = given("pretrain", USUAL)["validation"].wells
    assert np.array_equal(validation, fold_wells(screen.table, FOLD, "all").validation)
    assert experiments(screen.table, validation) == {"HUVEC-01", "RPE-01"}


@pytest.mark.parametrize("keep", [True, False])
def test_the_student_keeps_the_pretrained_classifier_where_configured(keep, given, screen):
    (pair,) = given("finetune", changed(USUAL, mean_teacher={"keep_classifier": keep}))["pairs"]
    before, student = weights_of(screen.pretrained), weights_of(pair.student)
    assert same(weights_of(pair.teacher), before)
    assert {name for name in before if not torch.equal(student[name], before[name])} == (
        set() if keep else {"head.weight"}
    )


UNUSUAL = changed(
    USUAL,
    standardise={"domain": "global", "jitter": 0.05},
    batch_norm={"domain": "experiment", "statistics": "controls"},
    augment={"scale": 0.3, "erase_probability": 0.2},
)


def inputs(images: Images) -> Tensor:
    """What a few grey levels become on every plate, jittered."""
    plates = len(images.table.plate_number_P)
    pixels = torch.arange(plates * 6 * 4).remainder(251).to(torch.uint8).reshape(plates, 6, 2, 2)
    return images.standardise(pixels, torch.arange(plates), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("step", METHODS)
def test_images_are_standardised_augmented_and_batched_as_configured(step, given, screen):
    for config, other in ((USUAL, UNUSUAL), (UNUSUAL, USUAL)):
        images = given(step, config)["images"]
        opened, otherwise = (open_images(c, screen.training, screen.store, CPU) for c in (config, other))
        assert images.batch_norm == config.batch_norm != other.batch_norm
        assert images.augment == config.augment != other.augment
        assert torch.equal(inputs(images), inputs(opened))
        assert not torch.allclose(inputs(images), inputs(otherwise), atol=1e-3)


def test_held_out_images_are_prepared_as_those_of_the_training_screen(given, screen):
    held_out = given("infer", UNUSUAL)["held_out"]
    assert held_out.table.experiments == (HELD_OUT,)
    assert held_out.batch_norm == UNUSUAL.batch_norm
    assert held_out.augment == UNUSUAL.augment
    by_training = open_images(UNUSUAL, screen.holdout, screen.store, CPU, reference=screen.training)
    by_itself = open_images(UNUSUAL, screen.holdout, screen.store, CPU)
    assert torch.equal(inputs(held_out), inputs(by_training))
    assert not torch.equal(inputs(held_out), inputs(by_itself))


@pytest.mark.parametrize("step", ["finetune", "pseudo_label"])
def test_validation_measures_what_is_configured(step, given, screen, monkeypatch):
    asked = []
    monkeypatch.setattr(fold_data, "validation_score", lambda *args: asked.append(args[-1]))
    given(step, changed(USUAL, mean_teacher={"selection": "raw"}))
    assert asked == ["raw"]
