"""Training steps read wells and images as configured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from components.core.learning import fold_data
from components.core.learning.fold_data import FoldData, fold_wells, open_fold
from components.core.learning.images import Images, open_images
from components.core.learning.step_settings import LearningSettings, MeanTeacherSettings, PretrainSettings
from components.core.storage.manifest import Manifest
from tests.components.core.learning.tiny_networks import CPU, RUN
from tests.components.test_leakage import changed
from tests.tiny_screen import MemoryStore

FOLD = 0
"""HUVEC-01 and RPE-01 validate, HUVEC-02 trains, HUVEC-03 has no labels."""
STEPS = [(PretrainSettings, None), (MeanTeacherSettings, "HUVEC")]

Screen = tuple[MemoryStore, Manifest]


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_data, "pick_device", lambda: CPU)


def opened(screen: Screen, settings: LearningSettings, cell_type: str | None) -> FoldData:
    store, manifest = screen
    return open_fold(settings, manifest, store, FOLD, "group", cell_type)


@pytest.mark.parametrize("controls", ["all", "training"])
@pytest.mark.parametrize(("section", "cell_type"), STEPS)
def test_the_configured_wells_train_and_validate(section, cell_type, controls, screen: Screen) -> None:
    data = opened(screen, changed(RUN, screen={"controls": controls}).section(section), cell_type)
    table = data.images.table
    expected = fold_wells(table, FOLD, controls, cell_type)
    for role in ("training", "validation", "unlabelled"):
        assert np.array_equal(getattr(data.wells, role), getattr(expected, role))
    others = {"RPE-01"} if cell_type is None else set()
    for wells, names in ((data.wells.hidden, {"HUVEC-01", "HUVEC-03"}), (data.validation.wells, {"HUVEC-01"})):
        assert {table.experiments[e] for e in table.experiment_W[wells]} == names | others


UNUSUAL = changed(
    RUN,
    standardise={"domain": "global", "jitter": 0.05},
    batch_norm={"domain": "experiment", "statistics": "controls"},
    augment={"scale": 0.3, "erase_probability": 0.2},
)


def inputs(images: Images) -> Tensor:
    """A few grey levels on every plate, standardised and jittered."""
    plates = len(images.table.plate_number_P)
    pixels = torch.arange(plates * 6 * 4).remainder(251).to(torch.uint8).reshape(plates, 6, 2, 2)
    return images.standardise(pixels, torch.arange(plates), torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("section", "cell_type"), STEPS)
def test_images_are_standardised_augmented_and_batched_as_configured(section, cell_type, screen: Screen) -> None:
    store, manifest = screen
    for config, other in ((RUN, UNUSUAL), (UNUSUAL, RUN)):
        images = opened(screen, config.section(section), cell_type).images
        expected, otherwise = (open_images(c.section(section), manifest, store, CPU) for c in (config, other))
        assert images.batch_norm == config.batch_norm != other.batch_norm
        assert images.augment == config.augment != other.augment
        assert torch.equal(inputs(images), inputs(expected))
        assert not torch.allclose(inputs(images), inputs(otherwise), atol=1e-3)
