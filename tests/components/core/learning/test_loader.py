import copy
import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.learning.inference import Images
from components.core.learning.loader import DecodedSites, SiteCache
from components.core.learning.memory import BatchMemory, Upload
from components.core.learning.schedules import random_site_batches, random_sites
from tests.components.core.learning.tiny_networks import images_of

SHAPE = (2, 3, 3)
BYTES = int(np.prod(SHAPE))


class Table:
    """What the cache reads of a site table."""

    def __init__(self, sites: int) -> None:
        self.sites = sites


class Source:
    """Sites that hold their own number; remembers what was asked for, and by which threads."""

    def __init__(self, broken: int = -1, delays: bool = False) -> None:
        self.asked: list[int] = []
        self.broken = broken
        self.delays = delays
        self.threads: set[int] = set()
        self.side_by_side = self.most_side_by_side = 0
        self.lock = threading.Lock()

    def read_into(self, sites, out):
        with self.lock:
            self.threads.add(threading.get_ident())
            self.asked += sites.tolist()
            self.side_by_side += 1
            self.most_side_by_side = max(self.most_side_by_side, self.side_by_side)
        if self.delays:  # later sites arrive earlier
            time.sleep(0.0005 * (20 - int(sites[0])) / 20)
        for site, pixels in zip(sites, out, strict=True):
            pixels[:] = site
        with self.lock:
            self.side_by_side -= 1
        if self.broken in sites:
            raise OSError(f"site {self.broken} is lost")


@pytest.fixture(autouse=True)
def tasks_of_two_sites(monkeypatch):
    """Small sites would all be one thread's."""
    monkeypatch.setattr("components.core.learning.loader._TASK_BYTES", 2 * BYTES)


def cache_of(source: Source, sites: int, limit: float, **more) -> SiteCache:
    return SiteCache(source, Table(sites), SHAPE, limit, **more)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def arrays(orders):
    return [np.array(order, dtype=np.intp) for order in orders]


@settings(max_examples=40, deadline=None)
@given(
    limit=st.sampled_from([0, BYTES - 1, BYTES, 3 * BYTES, 7.5 * BYTES, 20 * BYTES, 1e12]),
    orders=st.lists(st.lists(st.integers(0, 19), max_size=9), max_size=12),
    ahead=st.integers(0, 4),
    threads=st.integers(1, 9),
    delays=st.booleans(),
)
def test_pixels_and_order_are_the_sources_whatever_the_limit_and_the_threads(limit, orders, ahead, threads, delays):
    cache = cache_of(Source(delays=delays), 20, limit, ahead=ahead, threads=threads)
    for _ in range(2):
        batches = list(cache.batches(arrays(orders)))
        assert [batch[:, 0, 0, 0].tolist() for batch in batches] == orders
        for batch, order in zip(batches, orders, strict=True):
            assert batch.dtype == torch.uint8
            assert batch.shape == (len(order), *SHAPE)
            assert (batch == batch[:, :1, :1, :1]).all()


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (BYTES - 1, 0), (5 * BYTES + 1, 5), (1e12, 20)])
def test_memory_never_exceeds_the_limit_nor_the_screen_and_what_is_kept_is_not_read_again(limit, kept):
    source = Source()
    cache = cache_of(source, 20, limit)
    assert DecodedSites(20, SHAPE, limit).nbytes == kept * BYTES <= max(limit, 0)
    everything = np.arange(20)
    first, second = cache.read(everything), cache.read(everything[::-1])
    assert np.array_equal(first, second[::-1])
    assert len(source.asked) == 20 + 20 - kept


def test_threads_that_decode_side_by_side_fill_the_memory_without_mixing_sites():
    source = Source()
    cache = cache_of(source, 200, 150 * BYTES, threads=8)
    rng = np.random.default_rng(0)
    for _ in range(5):
        orders = [rng.permutation(200).astype(np.intp)[:50] for _ in range(20)]
        for order, batch in zip(orders, cache.batches(orders), strict=True):
            assert np.array_equal(
                batch.numpy(), np.broadcast_to(order[:, None, None, None], batch.shape).astype(np.uint8)
            )
    before = len(source.asked)
    cache.read(np.arange(200))
    assert len(source.asked) - before == 50, "as many as there is no room for"


def test_a_site_that_is_asked_for_twice_in_a_batch_is_read_once():
    source = Source()
    assert cache_of(source, 20, 0).read(np.array([7, 3, 7, 7]))[:, 0, 0, 0].tolist() == [7, 3, 7, 7]
    assert sorted(source.asked) == [3, 7]


@pytest.mark.parametrize("delays", [False, True])
def test_a_sources_error_reaches_the_consumer_after_the_batches_before_it(delays):
    cache = cache_of(Source(broken=4, delays=delays), 20, 1e6)
    batches = cache.batches([np.array([k]) for k in range(8)])
    assert [int(next(batches)[0, 0, 0, 0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="site 4 is lost"):
        next(batches)
    assert loader_threads() == []
    assert cache.read(np.array([2]))[0, 0, 0, 0] == 2, "the cache is still usable"


@pytest.mark.parametrize(("ahead", "size"), [(0, 4), (2, 1), (2, 6)])
def test_reading_ahead_is_bounded(ahead, size):
    source = Source()
    orders = np.split(np.arange(20 // size * size), 20 // size)
    batches = cache_of(source, 20, 0, ahead=ahead).batches(orders)
    for taken in range(1, len(orders) + 1):
        next(batches)
        time.sleep(0.005)
        assert len(source.asked) <= (taken + ahead) * size
    assert sorted(source.asked) == list(range(len(orders) * size))
    assert threading.get_ident() not in source.threads


def test_requests_of_later_batches_do_not_wait_for_earlier_ones():
    """Six batches of two sites: twelve threads are at work although the first batch has not come."""
    together = threading.Barrier(6)

    class Meeting(Source):
        def read_into(self, sites, out):
            together.wait(timeout=10)
            super().read_into(sites, out)

    orders = np.split(np.arange(12), 6)
    found = list(cache_of(Meeting(), 20, 0, ahead=5, threads=6).batches(orders))
    assert [batch[:, 0, 0, 0].tolist() for batch in found] == [order.tolist() for order in orders]


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_abandoned_batches_end_the_threads_at_once(taken):
    source = Source(delays=True)
    cache = cache_of(source, 20, 0, threads=4)

    def train():
        for k, _ in enumerate(cache.batches([np.arange(20)] * 50)):
            assert len(loader_threads()) > 0
            if k == taken:
                raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        train()
    assert loader_threads() == []
    asked = len(source.asked)
    assert asked <= 20 * (taken + 1 + 4), "and nothing is read any more"
    time.sleep(0.02)
    assert len(source.asked) == asked


def test_released_memory_is_given_back_and_sites_are_fetched_again():
    source = Source()
    cache = cache_of(source, 20, 1e6)
    cache.read(np.arange(20))
    cache.release()
    assert cache.read(np.arange(20))[:, 0, 0, 0].tolist() == list(range(20))
    assert len(source.asked) == 40


def test_memory_is_not_used_again_while_anything_refers_to_a_batch():
    rooms = BatchMemory()
    first = rooms.take((4, 3))
    first[:] = 1
    held = [first[2:], first.numpy()[0], first.T]
    place = first.data_ptr()
    del first
    while held:
        other = rooms.take((4, 3))
        assert other.data_ptr() != place
        other[:] = 2
        assert int(held.pop().max()) == 1
    del other
    gc.collect()
    assert {rooms.take((2, 3)).data_ptr() for _ in range(3)} <= {place, rooms.take((4, 3)).data_ptr()}
    assert rooms.take((5, 3)).shape == (5, 3), "larger than any before"


def test_the_jitter_of_a_batch_is_drawn_when_it_is_taken(screen):
    """Never ahead: what has been consumed decides the generator's state, so that training can go on from it."""
    images = images_of(screen, jitter=0.1)
    sites = [np.arange(k, k + 4) for k in range(0, 32, 4)]
    whole = [x for _, x in images.batches(sites, [torch.Generator().manual_seed(5)])]
    generator = torch.Generator().manual_seed(5)
    first = []
    for _, x in images.batches(sites, [generator]):
        first.append(x)
        if len(first) == 3:
            break
    rest = [x for _, x in images.batches(sites[3:], [generator])]
    assert all(torch.equal(a, b) for a, b in zip([*first, *rest], whole, strict=True))
    assert not torch.equal(whole[0], next(images.batches(sites))[1])


def test_a_broken_chunk_is_named_by_plate_and_well_through_the_threads(screen):
    store, manifest = screen
    store = copy.deepcopy(store)
    key = images_of(screen).table.key_S[13]
    store.objects[key] = store.objects[key][:-5]
    batches = images_of((store, manifest)).batches([np.arange(8), np.arange(8, 16)])
    assert len(next(batches)[0]) == 8
    with pytest.raises(InputError, match=r"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* the manifest says"):
        next(batches)
    del store.objects[key]
    with pytest.raises(InputError, match=r"HUVEC-01 plate 2, well B03, site 2: its chunk plates/.* is missing"):
        list(images_of((store, manifest)).batches([np.arange(16)]))
    assert loader_threads() == []


def test_random_sites_of_batches_are_those_of_one_batch_after_the_other(images: Images):
    rng = np.random.default_rng(3)
    wells = [rng.permutation(40)[:size] for size in (5, 1, 16, 0, 7)]
    one, all_ = np.random.default_rng(7), np.random.default_rng(7)
    expected = [random_sites(images.table, batch, one) for batch in wells]
    got = random_site_batches(images.table, wells, all_)
    assert [batch.tolist() for batch in got] == [batch.tolist() for batch in expected]
    assert one.integers(2**60) == all_.integers(2**60), "and leave the generator alike"
    assert random_site_batches(images.table, [], all_) == []


@pytest.mark.gpu
def test_pinned_batches_arrive_on_the_device_in_order_and_whole():
    """Many batches, each dropped while its copy may be under way, beside work that keeps the device busy."""
    device = torch.device("cuda")
    rng = np.random.default_rng(0)
    orders = [rng.permutation(20)[:16] for _ in range(100)]
    upload, sums = Upload(device), []
    busy = torch.randn(2048, 2048, device=device)
    source = Source()
    cache = SiteCache(source, Table(20), (6, 256, 256), 0, pinned=True)
    for batch in cache.batches(orders):
        assert batch.is_pinned()
        x = upload(batch)
        busy = busy @ busy / 2048.0
        sums.append((x.amin((1, 2, 3)), x.amax((1, 2, 3))))
    for order, (low, high) in zip(orders, sums, strict=True):
        assert low.tolist() == high.tolist() == order.tolist()


def test_random_sites_are_sites_of_their_wells_all_equally_likely(images: Images):
    table = images.table
    wells = np.tile(np.arange(table.wells), 200)
    sites = random_sites(table, wells, np.random.default_rng(0))
    assert np.array_equal(table.well_S[sites], wells)
    counts = np.bincount(sites, minlength=table.sites)
    assert counts.min() > 60
    assert counts.max() < 140
    assert np.array_equal(sites, random_sites(table, wells, np.random.default_rng(0)))


def test_a_program_ends_although_nobody_closes():
    """As when an uncaught exception keeps the frame that holds an iterator of batches."""
    program = (
        "from components.core.learning.loader import Workers\n"
        "workers = Workers(print, 2, 'left')\n"
        "workers.submit('worked')\n"
        "raise RuntimeError('training failed')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "training failed" in ended.stderr
    assert ended.stdout == "worked\n"
