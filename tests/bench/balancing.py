"""Sinkhorn against the greedy search for class weights, on simulated plates: correct wells and CPU time.

Every well of a plate has one of its K perturbations, each once, so the true class of well w is w. The greedy setting that Sinkhorn
is compared with is chosen on tuning plates; Sinkhorn runs by the shipped defaults and at softer settings. The linear assignment is
listed for orientation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax

from components.core.config import PriorConfig
from components.core.prior.balancing import greedy_balance, sinkhorn, weights_over_wells
from tests.bench.measure import Row, report

SIZE = 277
SHIFTS = {"hard plates": 3.0, "biased plates": 4.0, "clear plates": 5.75}
"""Plain arg-max predicts about a quarter, half and seven eighths of the wells correctly."""
TUNING_SEEDS, EVALUATION_SEEDS = range(1000, 1010), range(20)
STEPS, ITERATIONS = (0.1, 0.3, 1.0, 3.0), (1000, 2000, 5000, 20_000)
SOFTER = (1.0, 1.5, 2.0)
"""Sharpness of softer balances, faster and less accurate than the shipped one."""
CLOSE = 0.002
"""The shortest greedy search this close to the most accurate one is the baseline."""
REPEATS = 3

Method = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Log-probabilities to values whose arg-max over the classes is the prediction; both (W, K)."""


def plate(seed: int, shift: float, size: int = SIZE) -> NDArray[np.float64]:
    """Log-probabilities of a plate; its logits are normal noise, a normal bias on every class, a shift on the true."""
    rng = np.random.default_rng(seed)
    logits_WK = rng.standard_normal((size, size)) + rng.standard_normal(size) + shift * np.eye(size)
    return np.asarray(log_softmax(logits_WK, axis=1))


def balanced(log_prob_WK: NDArray[np.float64], sharpness: float | None = None) -> NDArray[np.float64]:
    """Sinkhorn by the default configuration, or at another sharpness."""
    prior = PriorConfig()
    sharpness = sharpness or prior.sinkhorn_sharpness
    return sinkhorn(log_prob_WK, prior.sinkhorn_iterations, prior.sinkhorn_tolerance, sharpness).log_prob_WK


def over_wells(log_prob_WK: NDArray[np.float64]) -> NDArray[np.float64]:
    """A softmax over wells in place of classes, in which the search begins."""
    return log_prob_WK + weights_over_wells(log_prob_WK)


def searched(log_prob_WK: NDArray[np.float64], step: float, iterations: int) -> NDArray[np.float64]:
    """The greedy search for class weights."""
    return log_prob_WK + greedy_balance(log_prob_WK, step, iterations)


def assigned(log_prob_WK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The linear assignment: 1 at the assigned class."""
    assigned_WK = np.zeros(log_prob_WK.shape)
    assigned_WK[linear_sum_assignment(-log_prob_WK)] = 1.0
    return assigned_WK


def accuracy(values_WK: NDArray[np.float64]) -> float:
    """Share of wells whose arg-max is their own class."""
    return float((values_WK.argmax(axis=1) == np.arange(len(values_WK))).mean())


def chosen_setting(plates: Sequence[NDArray[np.float64]]) -> tuple[float, int]:
    """The greedy setting with the smallest limit of steps within CLOSE of the best mean accuracy."""
    found = []
    for step, iterations in product(STEPS, ITERATIONS):
        right = np.mean([accuracy(searched(log_prob_WK, step, iterations)) for log_prob_WK in plates])
        found.append((float(right), step, iterations))
    best = max(right for right, *_ in found)
    _, step, iterations = min(found, key=lambda each: (each[0] < best - CLOSE, each[2], -each[0]))
    return step, iterations


def rows() -> list[Row]:
    """Every difficulty: accuracy and time of every method, beside those of Sinkhorn by default."""
    return [row for name, shift in SHIFTS.items() for row in _rows(name, shift)]


def _rows(name: str, shift: float) -> list[Row]:
    report(f"balancing: {name}")
    prior, chosen = PriorConfig(), chosen_setting([plate(seed, shift) for seed in TUNING_SEEDS])
    methods: dict[str, Method] = {"plain arg-max": np.asarray, "softmax over wells": over_wells, "Sinkhorn": balanced}
    methods |= {f"Sinkhorn, sharpness {each:g}": partial(balanced, sharpness=each) for each in SOFTER}
    for label, (step, most) in (("shipped", (prior.greedy_step, prior.greedy_iterations)), ("best", chosen)):
        methods[f"greedy, {label}: {step} nats x {most}"] = partial(searched, step=step, iterations=most)
    methods["linear assignment"] = assigned
    plates = [plate(seed, shift) for seed in EVALUATION_SEEDS]
    # In turn, so that a busy machine affects all alike.
    taken: dict[str, list[Measured]] = {method: [] for method in methods}
    for log_prob_WK in plates:
        for method, of_method in methods.items():
            taken[method].append(measured(of_method, log_prob_WK))
    right, ms, error = ({name: np.array([each[k] for each in of]) for name, of in taken.items()} for k in range(3))
    found = []
    for method in methods:
        difference = right["Sinkhorn"] - right[method]
        deviation = difference.std(ddof=1) / np.sqrt(len(difference))
        took, sinkhorn_took = np.median(ms[method]), np.median(ms["Sinkhorn"])
        note = f"{took:.3g} CPU ms, {took / sinkhorn_took:.3g} x Sinkhorn's; Sinkhorn {difference.mean():+.4f} ± {deviation:.4f} "
        note += f"(paired standard error); largest column error {error[method].max():.1e}"
        own, of_sinkhorn = float(right[method].mean()), float(right["Sinkhorn"].mean())
        found.append(Row(f"{name}: {method}", own, "accuracy", of_sinkhorn, own / of_sinkhorn, note))
    return found


Measured = tuple[float, float, float]
"""Share of correct wells, CPU milliseconds, largest distance of a column sum from 1."""


def measured(method: Method, log_prob_WK: NDArray[np.float64]) -> Measured:
    """A method on one plate; the time is the median of REPEATS."""
    taken = []
    for _ in range(REPEATS):
        begun = time.process_time()
        values_WK = method(log_prob_WK)
        taken.append(1e3 * (time.process_time() - begun))
    error = np.abs(np.exp(log_softmax(values_WK, axis=1)).sum(axis=0) - 1).max()
    return accuracy(values_WK), float(np.median(taken)), float(error)
