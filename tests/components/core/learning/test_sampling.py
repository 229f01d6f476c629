import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.core.learning.schedules import well_batches

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


def test_domains_and_wells_come_in_an_order_that_the_generator_decides():
    domain_W = np.repeat([0, 1, 2], 30)

    def drawn(seed):
        return well_batches(np.arange(90), 10, np.random.default_rng(seed), domain_W)

    assert [b.tolist() for b in drawn(1)] == [b.tolist() for b in drawn(1)]
    order = [domain_W[batch[0]] for batch in drawn(1)]
    assert order != sorted(order), "batches of a domain must not follow each other throughout"
    assert [b.tolist() for b in drawn(1)] != [b.tolist() for b in drawn(2)]
