"""An epoch's figures."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from components.core.config import PretrainConfig
from components.core.learning import training_metrics
from components.core.learning.loader import SiteCache
from components.core.learning.supervised import SupervisedTraining
from components.core.learning.team import Team
from components.core.learning.training_metrics import EpochMeter, Validation
from tests.components.core.learning.tiny_networks import classifier, images_of

CONFIG = PretrainConfig(epochs=1, batch_size=8, learning_rates=(3e-3,), milestones=())
NOBODY = Validation(np.empty(0, dtype=np.intp), lambda _: 0.0, 16, 2)


def test_sites_of_all_processes_and_the_share_of_time_that_was_waited(monkeypatch):
    now = 10.0
    monkeypatch.setattr(training_metrics.time, "monotonic", lambda: now)
    images: Any = SimpleNamespace(cache=SimpleNamespace(waited=7.0), device=torch.device("cpu"), team=Team(0, 2))
    meter = EpochMeter(images)
    meter.add(30)
    meter.add(10)
    images.cache.waited += 1.0
    now = 14.0
    measured, meter_state = meter.measured(), meter.state()
    assert measured["sites_per_s"] == pytest.approx(2 * 40 / 4)
    assert (measured["seconds"], measured["data_wait"]) == (4.0, pytest.approx(0.25))
    now = 20.0
    images.cache.waited = 0.0
    resumed = EpochMeter(images, meter_state)
    now = 24.0
    images.cache.waited = 1.0
    resumed.add(40)
    assert resumed.measured()["seconds"] == 8.0
    assert resumed.measured()["sites_per_s"] == pytest.approx(2 * 80 / 8)
    assert resumed.measured()["data_wait"] == pytest.approx(2 / 8)
    assert 0.01 < measured["peak_memory_gib"] < 64  # of this process, which has loaded torch


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.4, 0.3, 1.0), (0.0, 0.0, 0.3)])
def test_a_slow_source_is_waited_for_and_the_record_says_so(screen, seconds, least, most):
    images = images_of(screen)
    table = replace(images.table, class_W=np.zeros_like(images.table.class_W))

    class Source:
        def read_into(self, _sites: NDArray[np.intp], places: list[NDArray[np.uint8]]) -> None:
            time.sleep(seconds)
            for pixels in places:
                pixels[:] = 0

    fed = replace(images, table=table, cache=SiteCache(Source(), table, (6, 16, 16), 0, threads=1, ahead=0))
    wells = np.arange(table.wells)
    training = SupervisedTraining(classifier(2), fed, wells, NOBODY, CONFIG, 1)
    training.run()
    (record,) = training.history
    assert least <= record["data_wait"] <= most
