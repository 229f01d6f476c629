"""Plate-group inference over the real plates of RxRx1's test experiments, 100 draws of synthetic logits a difficulty.

A draw takes one test experiment (in turn), one arrangement of the groups learned from train.csv, and logits of normal
noise plus a shift on each well's true class. The shift follows from the raw top-1 that it shall give.
"""

import csv
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from components.core.config import PriorConfig
from components.core.prior.arrangement import candidates, infer_arrangement
from components.core.prior.plate_groups import LabelledWell, PlateGroups, learn_groups

RXRX1 = Path(__file__).resolve().parents[4] / ".." / "shared" / "rxrx1"
TREATMENTS, DRAWS = 1108, 100


def read(name: str) -> list[dict[str, str]]:
    with (RXRX1 / name).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def groups() -> PlateGroups:
    if not RXRX1.is_dir():
        pytest.skip("shared/rxrx1 (real metadata) is not beside the repository")
    rows = read("train.csv")
    labels = sorted({row["sirna"] for row in rows})
    return learn_groups([LabelledWell(r["experiment"], int(r["plate"]), r["sirna"]) for r in rows], labels)


@pytest.fixture(scope="module")
def experiments(groups: PlateGroups) -> list[dict[int, int]]:
    """Wells by plate number of the 18 test experiments."""
    wells: dict[str, Counter[int]] = defaultdict(Counter)
    for row in read("test.csv"):
        wells[row["experiment"]][int(row["plate"])] += 1
    assert len(wells) == 18
    return [dict(sorted(count.items())) for _, count in sorted(wells.items())]


def top_1(shift: float) -> float:
    """Probability that a normal number plus the shift exceeds the 1,107 other classes' normal numbers."""
    noise = np.linspace(-8, 8, 4001)
    return float(np.trapezoid(norm.pdf(noise) * norm.cdf(noise + shift) ** (TREATMENTS - 1), noise))


@cache
def shift_for(accuracy: float) -> float:
    return float(brentq(lambda shift: top_1(shift) - accuracy, 0, 8))


def drawn(groups, experiments, kind: str, accuracy: float, draws: int = DRAWS, seed: int = 2019):
    """For each draw whether the best arrangement is the true one, and whether it is accepted; checks raw top-1."""
    rng, options = np.random.default_rng(seed), candidates(groups, kind)
    right, accepted, hits = np.zeros(draws, dtype=bool), np.zeros(draws, dtype=bool), []
    for n in range(draws):
        held, logits = options[rng.integers(len(options))], {}
        for (plate, count), group in zip(experiments[n % len(experiments)].items(), held, strict=True):
            true_W = rng.permutation(groups.members[group])[:count]
            logits_WK = rng.standard_normal((count, TREATMENTS), dtype=np.float32)
            logits_WK[np.arange(count), true_W] += np.float32(shift_for(accuracy))
            hits.append(logits_WK.argmax(axis=1) == true_W)
            logits[plate] = logits_WK
        found = infer_arrangement(logits, groups, kind, "drawn")
        right[n] = tuple(found.groups.values()) == held
        accepted[n] = found.accepted(PriorConfig())
    raw = np.concatenate(hits)
    # The difficulty is the stated one: no easier, and no harder, than four standard errors of sampling.
    assert abs(raw.mean() - accuracy) < 4 * np.sqrt(accuracy * (1 - accuracy) / len(raw))
    return right, accepted


def test_the_shift_gives_the_stated_top_1():
    assert top_1(0.0) == pytest.approx(1 / TREATMENTS, rel=1e-3)
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((4000, TREATMENTS), dtype=np.float32)
    logits[:, 0] += shift_for(0.12)
    assert (logits.argmax(axis=1) == 0).mean() == pytest.approx(0.12, abs=0.02)


@pytest.mark.slow
def test_a_rotation_is_found_in_99_of_100_draws_at_6_percent_top_1(groups, experiments):
    right, accepted = drawn(groups, experiments, "cyclic", 0.06)
    assert right.sum() >= 99
    assert (right & accepted).sum() >= 95, "of little use were they not accepted"


@pytest.mark.slow
def test_a_free_permutation_is_found_in_99_of_100_draws_at_12_percent_top_1(groups, experiments):
    right, _ = drawn(groups, experiments, "all", 0.12)
    assert right.sum() >= 99


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cyclic", "all"])
def test_at_2_4_percent_top_1_every_accepted_arrangement_is_right_and_the_rest_is_refused(groups, experiments, kind):
    right, accepted = drawn(groups, experiments, kind, 0.024)
    assert not right.all(), "so hard that the best arrangement is often wrong"
    assert not (accepted & ~right).any()
    assert accepted.sum() < DRAWS
    if kind == "cyclic":
        assert accepted.any()
