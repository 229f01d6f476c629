"""Counts in records: what is written is read back, as an array and as a value."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.core.config import FrozenModel
from components.core.storage.counts import Counts


class Record(FrozenModel):
    counts: Counts


tables = arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 300)), elements=st.integers(0, 2**60))


@given(tables)
def test_a_record_is_read_back_from_its_json(counts_CG):
    record = Record(counts=counts_CG)
    again = Record.model_validate_json(record.model_dump_json())
    assert again == record
    assert hash(again.counts) == hash(record.counts)
    assert again.counts.shape == counts_CG.shape
    assert np.array_equal(again.counts, counts_CG)
    assert np.sum([again.counts, record.counts], axis=0).tolist() == (2 * counts_CG).tolist()


def test_other_counts_are_not_equal():
    assert Counts([[1, 2]]) != Counts([[1, 3]])
    assert Counts([[1, 2]]) != Counts([[1], [2]])


def test_changing_an_array_changes_no_record():
    counts = Counts([[1, 2]])
    counts.array[0, 0] = 5
    assert counts.array.tolist() == [[1, 2]]


def test_records_in_use_stay_small():
    records = [Counts(np.full((5, 65536), n)) for n in range(20)]
    tracemalloc.start()
    try:
        assert sum(int(np.asarray(record)[0, 0]) for record in records) == sum(range(20))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1e6
    assert peak < 20e6, "one plate at a time, of 2.6 MB"


def test_sixteen_bit_counts_are_small():
    counts_CG = np.random.default_rng(0).poisson(40, (6, 65536)) * (np.arange(65536) < 4096)
    assert len(str(Counts(counts_CG))) < 0.02 * counts_CG.nbytes


@pytest.mark.parametrize("text", ["", "1x2", "axb:", "1x2:!!", "1x2:AAAA", str(Counts([[1, 2]])).replace("1x2", "2x2")])
def test_rejects_damaged_text(text):
    with pytest.raises(ValueError, match="counts"):
        _ = Counts(text).array


def test_counts_have_two_axes():
    with pytest.raises(ValueError, match="got 1 axes"):
        Counts([1, 2])
