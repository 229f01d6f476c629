import numpy as np
import pytest

from components.core.evaluation.metrics import top1, top1_by_cell_type


def test_top1_by_cell_type_weighs_wells_not_cell_types():
    predicted, truth = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    assert top1_by_cell_type(predicted, truth, ["A", "A", "A", "B"]) == {"overall": 0.75, "A": 1.0, "B": 0.0}


def test_rejects_no_wells():
    with pytest.raises(ValueError, match="at least one"):
        top1(np.array([], dtype=np.intp), np.array([], dtype=np.intp))
