"""Learning rates, EMA decay, ramps, and batches of wells."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import MeanTeacherConfig
from components.core.learning.images import Images
from components.core.learning.schedules import (
    CycleSchedule,
    balanced_draw,
    domains_of_step,
    one_cycle_rate,
    ramp,
    random_sites,
    well_batches,
)

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


def test_one_cycle_agrees_with_torch():
    steps, peak = 1000, 0.02
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    # torch's cycle takes total_steps - 1 steps from end to end, and peaks a step before 30 %.
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps + 1)
    for step in range(steps):
        assert one_cycle_rate(step / steps, peak) == pytest.approx(optimiser.param_groups[0]["lr"], abs=4e-3 * peak)
        optimiser.step()
        torchs.step()


classes = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda values: np.array(values, dtype=np.int32))


@given(classes, st.floats(0.0, 1.0), st.integers(0, 99))
def test_a_well_is_drawn_as_often_as_its_class_size_demands(class_w, power, seed):
    wells = np.arange(len(class_w)) + 7
    drawn = balanced_draw(wells, class_w, power, np.random.default_rng(seed))
    weight_w = np.array([(class_w == own).sum() ** -power for own in class_w])
    expected_w = len(wells) * weight_w / weight_w.sum()
    times_w = np.array([(drawn == well).sum() for well in wells])
    assert len(drawn) == len(wells)
    assert (np.abs(times_w - expected_w) < 1 + 1e-6).all()
    if power == 0.0:
        assert sorted(drawn) == list(wells)


def test_draws_are_fair_on_average():
    class_w = np.repeat(np.arange(3, dtype=np.int32), (4, 9, 36))
    rng = np.random.default_rng(0)
    drawn = np.concatenate([balanced_draw(np.arange(49), class_w, 0.5, rng) for _ in range(400)])
    # By the inverse root, classes of 4, 9 and 36 wells are drawn as 2 : 3 : 6.
    assert np.bincount(class_w[drawn]) / len(drawn) == pytest.approx([2 / 11, 3 / 11, 6 / 11], abs=0.005)
    assert np.bincount(drawn)[:4] / 400 == pytest.approx(49 * 2 / 11 / 4, rel=0.1)


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


@given(domains, st.integers(2, 16), st.integers(2, 5), st.integers(0, 99))
def test_a_batch_holds_equally_many_wells_of_several_domains(domain_W, size, wanted, seed):
    wells, counts = np.arange(len(domain_W)), np.bincount(domain_W)
    several = domains_of_step(wells, domain_W, wanted)
    fewest = 4 if (counts >= 4).sum() > 1 else 2
    assert several == max(1, min(wanted, (counts >= fewest).sum()))
    fewest = fewest if several > 1 else 2
    batches = well_batches(wells, size, np.random.default_rng(seed), domain_W, several)
    parts = [part for batch in batches for part in np.split(batch, several)]
    assert all(len(set(domain_W[part])) == 1 for part in parts)
    drawn = np.bincount(np.concatenate([*batches, np.empty(0, np.intp)]), minlength=len(domain_W))
    assert (drawn[counts[domain_W] >= fewest] >= 1).all()
    assert (drawn[counts[domain_W] < fewest] == 0).all()
    # A domain occurs twice in a batch only if it has more portions than there are batches.
    of_domain = np.bincount([domain_W[part[0]] for part in parts], minlength=len(counts))
    if of_domain.max(initial=0) <= len(batches):
        assert all(len({domain_W[part[0]] for part in np.split(batch, several)}) == several for batch in batches)


def test_a_batch_is_full_if_few_domains_were_drawn():
    """Class-balanced wells may leave domains out."""
    batches = well_batches(np.arange(6), 4, np.random.default_rng(0), np.repeat([0, 1], 3), 4)
    assert {len(batch) for batch in batches} == {12}


def test_wells_occur_again_only_to_fill_a_batch():
    """Four plates of 29 wells and one of 4, in batches of two plates of eight."""
    domain_W = np.repeat(np.arange(5), [29, 29, 29, 29, 4])
    batches = well_batches(np.arange(len(domain_W)), 16, np.random.default_rng(0), domain_W, 2)
    assert len(batches) == 9, "of 17 portions"
    assert {len(batch) for batch in batches} <= {14, 16}
    drawn = np.bincount(np.concatenate(batches), minlength=len(domain_W))
    assert drawn[domain_W < 4].max() <= 3
    assert drawn[domain_W < 4].sum() <= 4 * 32 + 8
    assert drawn[domain_W == 4].sum() in (7, 8), "once a batch to fill its share, and no other batch"


def test_a_tiny_domain_is_in_no_batch_of_several():
    """Three plates of 40 wells and one of 3, whose wells would each occur four times an epoch."""
    domain_W, rng = np.repeat(np.arange(4), [40, 40, 40, 3]), np.random.default_rng(0)
    wells = np.arange(len(domain_W))
    several = domains_of_step(wells, domain_W, 4)
    assert several == 3
    assert sorted(np.concatenate(well_batches(wells, 60, rng, domain_W, several))) == list(range(120))
    assert sorted(np.concatenate(well_batches(wells, 60, rng, domain_W, 1))) == list(wells)


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
