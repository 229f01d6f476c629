"""Learning rates, EMA decay, ramps, and batches of wells."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import MeanTeacherConfig
from components.core.learning.images import Images
from components.core.learning.schedules import CycleSchedule, ramp, random_sites, well_batches

REFERENCE = MeanTeacherConfig()


@pytest.mark.parametrize(
    ("epoch", "value"), [(0.0, math.exp(-5)), (2.5, math.exp(-1.25)), (4.0, math.exp(-0.2)), (5.0, 1.0), (80.0, 1.0)]
)
def test_ramp_values(epoch, value):
    assert ramp(epoch, 5.0) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("cell_type", "length"), [("U2OS", 40), ("RPE", 20), ("HEPG2", 20), ("HUVEC", 10), ("unheard of", 40)]
)
def test_ratios_shorten_the_cycles(cell_type, length):
    schedule = CycleSchedule.of(REFERENCE, cell_type)
    assert (schedule.cycle_epochs, schedule.cut, schedule.total) == (length, length, 4 * length + 5)


def test_a_cycle_has_at_least_one_epoch_and_the_cut_is_config():
    config = MeanTeacherConfig(cycle_epochs=2, ratio={"HUVEC": 0.1}, finetune_cycles=3)
    schedule = CycleSchedule.of(config, "HUVEC")
    assert (schedule.cycle_epochs, schedule.cut, schedule.total) == (1, 3, 9)
    half_way = MeanTeacherConfig(finetune_cycles=0.5)
    assert [CycleSchedule.of(half_way, cell_type).cut for cell_type in ("U2OS", "HUVEC")] == [20, 5]
    assert CycleSchedule.of(half_way.model_copy(update={"cycle_epochs": 1}), "U2OS").cut == 1


domains = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda values: np.array(values, dtype=np.intp))


@given(domains, st.integers(2, 16), st.integers(0, 99))
def test_a_batch_holds_one_domain_and_an_epoch_every_well_once(domain_W, size, seed):
    batches = well_batches(np.arange(len(domain_W)), size, np.random.default_rng(seed), domain_W)
    counts = np.bincount(domain_W)
    drawn = np.concatenate([*batches, np.empty(0, dtype=np.intp)])
    # A domain of one well would leave BatchNorm nothing to average.
    assert sorted(drawn) == [w for w in range(len(domain_W)) if counts[domain_W[w]] > 1]
    for batch in batches:
        assert len(set(domain_W[batch])) == 1
        assert 2 <= len(batch) <= max(3, 1.5 * size)


@given(st.integers(1, 80), st.integers(1, 16), st.integers(0, 99))
def test_without_domains_batches_are_nearly_equal(wells, size, seed):
    batches = well_batches(np.arange(wells), size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(wells))
    lengths = {len(batch) for batch in batches}
    assert max(lengths) - min(lengths) <= 1
    assert len(batches) == max(1, round(wells / size))


def test_random_sites_belong_to_their_wells_and_are_equally_likely(images: Images):
    table = images.table
    wells = np.tile(np.arange(table.wells), 200)
    sites = random_sites(table, wells, np.random.default_rng(0))
    assert np.array_equal(table.well_S[sites], wells)
    counts = np.bincount(sites, minlength=table.sites)
    assert counts.min() > 60
    assert counts.max() < 140
