"""Training steps read wells and images as configured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.core.config import RunConfig
from components.core.learning import fold_data
from components.core.learning.fold_data import FoldData, open_fold
from components.core.learning.images import Images, open_images
from components.core.learning.step_settings import LearningSettings, MeanTeacherSettings, PretrainSettings
from components.core.screen.packed import TREATMENT
from components.core.storage.manifest import Manifest
from tests.components.core.learning.tiny_networks import CPU, RUN
from tests.tiny_screen import MemoryStore

FOLD = 0
"""HUVEC-01 and RPE-01 validate, HUVEC-02 trains, HUVEC-03 has no labels."""
STEPS = [(PretrainSettings, None), (MeanTeacherSettings, "HUVEC")]

Screen = tuple[MemoryStore, Manifest]


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_data, "pick_device", lambda: CPU)


def changed(**sections: Mapping[str, Any]) -> RunConfig:
    """A configuration with other fields in some sections."""
    update = {name: getattr(RUN, name).model_copy(update=dict(fields)) for name, fields in sections.items()}
    return RunConfig.model_validate(RUN.model_copy(update=update).model_dump())


def opened(screen: Screen, settings: LearningSettings, cell_type: str | None) -> FoldData:
    store, manifest = screen
    return open_fold(settings, manifest, store, FOLD, "group", cell_type)


def experiments(data: FoldData, wells: np.ndarray) -> set[str]:
    table = data.images.table
    return {table.experiments[e] for e in table.experiment_W[wells]}


@pytest.mark.parametrize("controls", ["all", "training"])
@pytest.mark.parametrize(("section", "cell_type"), STEPS)
def test_the_configured_wells_train_and_validate(section, cell_type, controls, screen: Screen) -> None:
    data = opened(screen, changed(screen={"controls": controls}).section(section), cell_type)
    training = data.wells.training
    treated_W = data.images.table.well_type_W == TREATMENT
    others = {"RPE-01"} if cell_type is None else set()
    assert experiments(data, training[treated_W[training]]) == {"HUVEC-02"}
    everywhere = {"HUVEC-01", "HUVEC-02", "HUVEC-03"} | others
    assert experiments(data, training[~treated_W[training]]) == (everywhere if controls == "all" else {"HUVEC-02"})
    assert experiments(data, data.wells.unlabelled) == {"HUVEC-03"}
    assert experiments(data, data.wells.hidden) == {"HUVEC-01", "HUVEC-03"} | others
    assert experiments(data, data.validation.wells) == {"HUVEC-01"} | others


UNUSUAL = changed(
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
