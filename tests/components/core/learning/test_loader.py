import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.learning.inference import Images
from components.core.learning.loader import SiteCache, random_sites

SHAPE = (2, 3, 3)
BYTES = int(np.prod(SHAPE))


class Table:
    """What the cache reads of a site table."""

    def __init__(self, sites: int) -> None:
        self.sites = sites


class Source:
    """Sites that hold their own number; remembers what was asked for."""

    def __init__(self, broken: int = -1) -> None:
        self.asked: list[int] = []
        self.broken = broken
        self.threads: set[int] = set()

    def read(self, sites):
        self.threads.add(threading.get_ident())
        self.asked += sites.tolist()
        if self.broken in sites:
            raise OSError(f"site {self.broken} is lost")
        return np.broadcast_to(sites.astype(np.uint8)[:, None, None, None], (len(sites), *SHAPE)).copy()


def cache_of(source: Source, sites: int, limit: float) -> SiteCache:
    return SiteCache(source, Table(sites), SHAPE, limit)


@settings(max_examples=60, deadline=None)
@given(
    limit=st.sampled_from([0, BYTES - 1, BYTES, 3 * BYTES, 7.5 * BYTES, 20 * BYTES, 1e12]),
    orders=st.lists(st.lists(st.integers(0, 19), max_size=9), max_size=12),
    ahead=st.integers(0, 4),
)
def test_pixels_and_order_are_the_sources_whatever_the_limit(limit, orders, ahead):
    source = Source()
    cache = cache_of(source, 20, limit)
    batches = list(cache.batches([np.array(order, dtype=np.intp) for order in orders], ahead))
    assert [batch[:, 0, 0, 0].tolist() for batch in batches] == orders
    for batch, order in zip(batches, orders, strict=True):
        assert batch.dtype == torch.uint8
        assert batch.shape == (len(order), *SHAPE)
        assert (batch == batch[:, :1, :1, :1]).all()


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (BYTES - 1, 0), (5 * BYTES + 1, 5), (1e12, 20)])
def test_memory_never_exceeds_the_limit_nor_the_screen_and_what_is_kept_is_not_read_again(limit, kept):
    source = Source()
    cache = cache_of(source, 20, limit)
    held = sum(value.nbytes for value in vars(cache).values() if isinstance(value, np.ndarray) and value.ndim == 4)
    assert held == kept * BYTES <= max(limit, 0)
    everything = np.arange(20)
    first, second = cache.read(everything), cache.read(everything[::-1])
    assert np.array_equal(first, second[::-1])
    assert len(source.asked) == 20 + 20 - kept


def test_a_site_that_is_asked_for_twice_in_a_batch_is_read_once():
    source = Source()
    assert cache_of(source, 20, 0).read(np.array([7, 3, 7, 7]))[:, 0, 0, 0].tolist() == [7, 3, 7, 7]
    assert sorted(source.asked) == [3, 7]


def test_a_sources_error_reaches_the_consumer_after_the_batches_before_it():
    cache = cache_of(Source(broken=4), 20, 1e6)
    batches = cache.batches([np.array([k]) for k in range(8)])
    assert [int(next(batches)[0, 0, 0, 0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="site 4 is lost"):
        next(batches)
    assert cache.read(np.array([2]))[0, 0, 0, 0] == 2, "the cache is still usable"


def test_reading_ahead_is_bounded_and_in_one_thread():
    source = Source()
    batches = cache_of(source, 20, 0).batches([np.array([k]) for k in range(20)], ahead=2)
    next(batches)
    assert len(source.asked) <= 3
    batches.close()
    assert len(source.asked) <= 4
    assert len(source.threads) == 1
    assert threading.get_ident() not in source.threads


def test_cached_pixels_cannot_be_changed_through_a_batch():
    cache = cache_of(Source(), 20, 1e6)
    cache.read(np.array([5]))[:] = 99
    assert cache.read(np.array([5]))[0, 0, 0, 0] == 5


def test_random_sites_are_sites_of_their_wells_all_equally_likely(images: Images):
    table = images.table
    wells = np.tile(np.arange(table.wells), 200)
    sites = random_sites(table, wells, np.random.default_rng(0))
    assert np.array_equal(table.well_S[sites], wells)
    counts = np.bincount(sites, minlength=table.sites)
    assert counts.min() > 60
    assert counts.max() < 140
    assert np.array_equal(sites, random_sites(table, wells, np.random.default_rng(0)))
