"""Batches of sites: order, memory, reading ahead, errors."""

import gc
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.learning.loader import BatchMemory, SiteLoader, Upload

SHAPE = (2, 3, 3)
UINT8 = np.dtype(np.uint8)
BYTES = int(np.prod(SHAPE))


class Reader:
    """Sites that hold their own number; records which were read, and by which threads."""

    def __init__(self, broken: int = -1, delays: bool = False) -> None:
        self.read: list[int] = []
        self.broken = broken
        self.delays = delays
        self.threads: set[int] = set()
        self.concurrent = self.most_concurrent = 0
        self.lock = threading.Lock()

    def read_into(self, sites, out):
        with self.lock:
            self.threads.add(threading.get_ident())
            self.read += sites.tolist()
            self.concurrent += 1
            self.most_concurrent = max(self.most_concurrent, self.concurrent)
        if self.delays:  # later sites arrive earlier
            time.sleep(0.0005 * (20 - int(sites[0])) / 20)
        for site, pixels in zip(sites, out, strict=True):
            pixels[:] = site
        with self.lock:
            self.concurrent -= 1
        if self.broken in sites:
            raise OSError(f"site {self.broken} is lost")


@pytest.fixture(autouse=True)
def two_sites_per_task(monkeypatch):
    monkeypatch.setattr("components.core.learning.loader._TASK_BYTES", 2 * BYTES)


def loader_of(reader: Reader, limit: float = 0, sites: int = 20, **more) -> SiteLoader:
    return SiteLoader(reader, sites, SHAPE, limit, **more)


def read(loader: SiteLoader, sites) -> np.ndarray:
    """The first value of each site of a single batch."""
    return next(loader.batches([np.asarray(sites)])).numpy()[:, 0, 0, 0].tolist()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@settings(max_examples=40, deadline=None)
@given(
    limit=st.sampled_from([0, BYTES - 1, BYTES, 3 * BYTES, 7.5 * BYTES, 20 * BYTES, 1e12]),
    orders=st.lists(st.lists(st.integers(0, 19), max_size=9), max_size=12),
    ahead=st.integers(0, 4),
    threads=st.integers(1, 9),
    delays=st.booleans(),
)
def test_batches_hold_the_requested_sites_in_order(limit, orders, ahead, threads, delays):
    loader = loader_of(Reader(delays=delays), limit, ahead=ahead, threads=threads)
    for _ in range(2):
        batches = list(loader.batches([np.array(order, dtype=np.intp) for order in orders]))
        assert [batch[:, 0, 0, 0].tolist() for batch in batches] == orders
        for batch, order in zip(batches, orders, strict=True):
            assert batch.dtype == torch.uint8
            assert batch.shape == (len(order), *SHAPE)
            assert (batch == batch[:, :1, :1, :1]).all()


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (BYTES - 1, 0), (5 * BYTES + 1, 5), (1e12, 20)])
def test_decoded_sites_stay_within_the_limit_and_are_not_read_again(limit, kept):
    reader = Reader()
    loader = loader_of(reader, limit)
    assert read(loader, np.arange(20)) == read(loader, np.arange(20)[::-1])[::-1]
    assert len(reader.read) == 20 + 20 - kept
    loader.release()
    assert read(loader, np.arange(20)) == list(range(20))
    assert len(reader.read) == 60 - kept, "after a release every site is fetched"


def test_concurrent_threads_fill_the_memory_without_mixing_sites():
    reader = Reader()
    loader = loader_of(reader, 150 * BYTES, 200, threads=8)
    rng = np.random.default_rng(0)
    for _ in range(5):
        orders = [rng.permutation(200).astype(np.intp)[:50] for _ in range(20)]
        for order, batch in zip(orders, loader.batches(orders), strict=True):
            assert (batch.numpy() == order[:, None, None, None].astype(np.uint8)).all()
    before = len(reader.read)
    read(loader, np.arange(200))
    assert len(reader.read) - before == 50, "as many as there is no room for"


def test_a_site_that_occurs_twice_in_a_batch_is_read_once():
    reader = Reader()
    assert read(loader_of(reader), [7, 3, 7, 7]) == [7, 3, 7, 7]
    assert sorted(reader.read) == [3, 7]


@pytest.mark.parametrize("delays", [False, True])
def test_a_readers_error_is_raised_after_the_batches_before_it(delays):
    loader = loader_of(Reader(broken=4, delays=delays), 1e6)
    batches = loader.batches([np.array([k]) for k in range(8)])
    assert [int(next(batches)[0, 0, 0, 0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="site 4 is lost"):
        next(batches)
    assert loader_threads() == []
    assert read(loader, [2]) == [2], "the loader is still usable"


@pytest.mark.parametrize(("ahead", "size"), [(0, 4), (2, 6)])
def test_reading_ahead_is_bounded(ahead, size):
    reader = Reader()
    orders = np.split(np.arange(20 // size * size), 20 // size)
    batches = loader_of(reader, ahead=ahead).batches(orders)
    for taken in range(1, len(orders) + 1):
        next(batches)
        time.sleep(0.005)
        assert len(reader.read) <= (taken + ahead) * size
    assert sorted(reader.read) == list(range(len(orders) * size))
    assert threading.get_ident() not in reader.threads


@pytest.mark.parametrize("taken", [0, 5])
def test_abandoned_batches_end_the_threads_at_once(taken):
    reader = Reader(delays=True)
    loader = loader_of(reader, threads=4)

    def train():
        for k, _ in enumerate(loader.batches([np.arange(20)] * 50)):
            assert len(loader_threads()) > 0
            if k == taken:
                raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        train()
    assert loader_threads() == []
    assert len(reader.read) <= 20 * (taken + 1 + 4)


def test_batch_memory_is_not_reused_while_anything_refers_to_a_batch():
    memory = BatchMemory()
    first = memory.take((4, 3), UINT8)
    first[:] = 1
    held = [first[2:], first.numpy()[0], first.T]
    place = first.data_ptr()
    del first
    while held:
        other = memory.take((4, 3), UINT8)
        assert other.data_ptr() != place
        other[:] = 2
        assert int(held.pop().max()) == 1
    del other
    gc.collect()
    assert {memory.take((2, 3), UINT8).data_ptr() for _ in range(3)} <= {place, memory.take((4, 3), UINT8).data_ptr()}
    assert memory.take((5, 3), UINT8).shape == (5, 3), "larger than any before"


@pytest.mark.gpu
def test_pinned_batches_arrive_on_the_device_complete_and_in_order():
    """Many batches, each dropped while its copy may be in flight, beside work that keeps the device busy."""
    device = torch.device("cuda")
    rng = np.random.default_rng(0)
    orders = [rng.permutation(20)[:16] for _ in range(100)]
    upload, sums = Upload(device), []
    busy = torch.randn(2048, 2048, device=device)
    for batch in SiteLoader(Reader(), 20, (6, 256, 256), 0, pinned=True).batches(orders):
        assert batch.is_pinned()
        x = upload(batch)
        busy = busy @ busy / 2048.0
        sums.append((x.amin((1, 2, 3)), x.amax((1, 2, 3))))
    for order, (low, high) in zip(orders, sums, strict=True):
        assert low.tolist() == high.tolist() == order.tolist()
