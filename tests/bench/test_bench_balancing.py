import json

import numpy as np
import pytest

from components.core.config import PriorConfig
from components.core.prior.balancing import greedy_balance, sinkhorn
from tests.bench import __main__ as bench
from tests.bench.balancing import SHIFTS, accuracy, calibrated_temperature, chosen_setting, greedy_search, plate
from tests.bench.row import Row


@pytest.mark.parametrize(("step", "iterations"), [(0.01, 300), (0.1, 2000), (0.3, 50)])
def test_the_plain_search_finds_the_same_weights_as_the_incremental_one(step, iterations):
    square = plate(3, 3.0, size=40)
    for log_prob in (square, square[:31], np.concatenate([square, plate(4, 3.0, size=40)])):
        weight = greedy_search(log_prob, step, iterations)
        np.testing.assert_array_equal(weight, greedy_balance(log_prob, step, iterations))
        assert weight.min() < 0


def test_on_calibrated_biased_plates_sinkhorn_names_no_fewer_wells_right_than_the_greedy_search_by_default():
    # By its default setting: a search of larger steps names more, and on logits as drawn so does the default. The
    # bench lists them.
    prior, shift = PriorConfig(), SHIFTS["biased plates"]
    temperature = calibrated_temperature(shift)
    raw, greedy, ours = [], [], []
    for seed in range(3):
        log_prob = plate(seed, shift, temperature=temperature)
        found = sinkhorn(log_prob, prior.sinkhorn_iterations, prior.sinkhorn_tolerance).log_prob_WK
        assert np.abs(np.exp(found).sum(axis=0) - 1).max() <= 1e-3
        raw.append(accuracy(log_prob))
        ours.append(accuracy(found))
        greedy.append(accuracy(log_prob + greedy_balance(log_prob, prior.greedy_step, prior.greedy_iterations)))
    assert 0.4 < np.mean(raw) < 0.6
    assert np.mean(greedy) > np.mean(raw)
    assert np.mean(ours) >= np.mean(greedy)


def test_the_baseline_is_the_cheapest_setting_close_to_the_best(monkeypatch):
    plates = [plate(seed, 3.0, size=30) for seed in range(2)]
    monkeypatch.setattr("tests.bench.balancing.STEPS", (0.05, 0.1))
    monkeypatch.setattr("tests.bench.balancing.ITERATIONS", (1, 400))
    monkeypatch.setattr("tests.bench.balancing.CLOSE", 1.0)
    assert chosen_setting(plates)[1] == 1
    monkeypatch.setattr("tests.bench.balancing.CLOSE", 0.0)
    assert chosen_setting(plates)[1] == 400


def test_rows_are_written_with_the_machine_they_hold_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "THREADS", {})  # the suite's own stay
    monkeypatch.setattr("tests.bench.balancing.rows", lambda: [Row("a figure", 2.0, "ms", 6.0, 3.0, "a note")])
    bench.main()
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["rows"] == [
        {"name": "a figure", "value": 2.0, "unit": "ms", "baseline": 6.0, "ratio": 3.0, "note": "a note"}
    ]
    assert {"cpu", "cores", "python", "numpy", "scipy"} <= written["machine"].keys()
    assert "a figure" in capsys.readouterr().out
