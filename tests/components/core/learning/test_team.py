"""Parts of a batch: their wells, weights, random numbers and running statistics do not depend on the number of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from components.core.learning.team import Slots, StatisticsOfParts, Team, running_statistics

teams = st.tuples(st.integers(1, 4), st.integers(1, 3))


def of_all(size: int, accumulate: int) -> list[Slots]:
    """The slots of every process."""
    return [Slots(Team(rank, size), accumulate) for rank in range(size)]


@given(teams, st.integers(0, 60))
def test_every_well_of_a_batch_is_in_one_part_and_parts_are_nearly_equal(team, wells):
    slots = of_all(*team)
    batch = np.arange(wells) + 7
    parts = [part for own in slots for part in own.parts(batch)]
    count = team[0] * team[1]
    assert len(parts) == count
    together = np.concatenate(parts)
    assert len(together) == slots[0].size(batch)
    assert set(together) == set(batch)
    if wells >= 2 * count or count == 1:
        assert len(together) == wells
    if wells:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert count == 1 or min(map(len, parts)) >= 2


@given(teams, st.integers(1, 6), st.integers(1, 12))
def test_a_part_has_whole_domains_or_equal_shares_of_them(team, domains, wells):
    """And parts are those of one process, whoever computes them."""
    batch = np.arange(domains * wells)
    of_W = np.repeat(np.arange(domains), wells)
    slots = of_all(*team)
    count = team[0] * team[1]
    found = [part for own in slots for part in own.parts(batch, domains)]
    assert sum(map(len, found)) == slots[0].size(batch, domains)
    assert set(np.concatenate(found)) == set(batch)
    own = slots[0].domains_of_part(domains)
    for part in found:
        of_part = of_W[part].reshape(own, -1)
        assert (of_part == of_part[:, :1]).all()
        assert len(set(of_part[:, 0])) == own
        assert of_part.shape[1] >= (2 if count > 1 else 1)
    if domains % count == 0:
        assert {len(part) for part in found} == {len(batch) // count} or wells < 2
    (alone,) = of_all(1, count)
    expected = alone.parts(batch, domains)
    for each in slots:
        for slot, part in zip(each.own, each.parts(batch, domains), strict=True):
            assert np.array_equal(part, expected[slot])


def test_a_single_image_is_repeated_for_batch_norm_of_embeddings():
    (image,), pair = np.array([[7]]), np.array([7, 8])
    for fills, expected in ((True, [7, 7]), (False, [7])):
        slots = Slots(Team(0, 1), 1, fills)
        assert slots.parts(image)[0].tolist() == expected
        assert slots.size(image) == len(expected)
        assert slots.parts(pair)[0].tolist() == [7, 8]


@given(teams, st.integers(1, 60))
def test_weights_make_the_mean_over_processes_the_mean_over_wells(team, wells):
    """What each process sums over its parts, averaged over processes, is the mean of all wells' values."""
    batch = np.arange(max(wells, 2 * team[0] * team[1]))
    value = np.random.default_rng(wells).standard_normal(len(batch))
    size = of_all(*team)[0].size(batch)
    sums = [sum(own.weight(len(part), size) * value[part].mean() for part in own.parts(batch)) for own in of_all(*team)]
    assert np.mean(sums) == pytest.approx(value.mean())


@given(teams)
def test_a_parts_random_numbers_do_not_depend_on_its_process(team):
    size, accumulate = team
    (alone,) = of_all(1, size * accumulate)
    expected = [torch.rand(2, generator=generator) for generator in alone.generators(5)]
    for own in of_all(size, accumulate):
        for slot, generator in zip(own.own, own.generators(5), strict=True):
            assert torch.equal(torch.rand(2, generator=generator), expected[slot])
    assert len({tuple(numbers.tolist()) for numbers in expected}) == size * accumulate


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("parts", [2, 3])
def test_running_statistics_are_the_mean_over_parts(parts, passes):
    """As if each part were a process's own, whose statistics are averaged afterwards; over two steps."""
    torch.manual_seed(0)
    x = torch.randn(2, parts, passes, 5, 3, 4, 4) * 3 + 1
    together = nn.Sequential(nn.BatchNorm2d(3)).train()
    statistics = StatisticsOfParts([together], parts)
    for step in range(2):
        with statistics.step() as part_of_step:
            for part in range(parts):
                with part_of_step():
                    for k in range(passes):
                        together(x[step, part, k])
    apart = [nn.Sequential(nn.BatchNorm2d(3)).train() for _ in range(parts)]
    for step in range(2):
        for part, network in enumerate(apart):
            for k in range(passes):
                network(x[step, part, k])
    for got, *own in zip(running_statistics([together]), *map(running_statistics, [[n] for n in apart]), strict=True):
        torch.testing.assert_close(got, torch.stack(own).mean(0), atol=1e-6, rtol=1e-5)
