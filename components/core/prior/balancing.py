"""Balancing and one-to-one assignment of a plate's probabilities. Pure NumPy and SciPy.

A plate holds each of its perturbations once, or not at all where wells are missing. Balanced probabilities expect that: by Sinkhorn
normalisation, or by the class weights of a greedy search as in the CellSignal 2nd-place method. A bias towards a perturbation that
all wells of a plate share then vanishes on a complete plate; on one with missing wells it is estimated and removed before.

W wells, K perturbations. Each well holds one of them (rows sum to 1) and one well each of them (columns sum to 1, with those that
missing wells would hold). More wells than perturbations hold each W/K times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.config import PriorConfig

# Scalings further apart than this (nats) are folded into the log-domain matrix. Kernel values that have underflowed by then
# are below exp(-87) in single and exp(-708) in double precision, relative to the row's largest: no scaling restores them.
WIDEST = {np.float32: 30.0, np.float64: 345.0}
# Column errors below this fraction of the target are left to double precision.
SINGLE_PRECISION = 2e-5
# Logits of a network's classes are correlated. They count as at most so many independent ones where chance is judged.
MOST_INDEPENDENT = 50
# Halvings of the greedy search's step.
HALVINGS = 10
# An extrapolation after every PERIOD sweeps, from MEMORY differences between sweeps.
PERIOD, MEMORY = 4, 6


@dataclass(frozen=True)
class Balanced:
    """Balanced log-probabilities and how close they came."""

    log_prob_WK: NDArray[np.float64]
    """natural log; rows sum to 1 within 1e-5, columns to max(1, W/K) within `error`, with missing wells"""
    iterations: int
    """Sinkhorn sweeps done"""
    error: float
    """largest distance of a column sum from max(1, W/K), within 1e-5"""


def balanced(
    log_prob_WK: NDArray[np.float64], prior: PriorConfig, sharpness: float | None = None
) -> NDArray[np.float64]:
    """Balanced log-probabilities by the configured method, without the wells' shared bias, shape (W, K); rows sum to 1.

    Args:
        log_prob_WK: natural-log probabilities or logits, shape (W, K), finite.
        prior: `balancing`, and the limits of either method.
        sharpness: replaces the configured sharpness of Sinkhorn.

    Raises:
        ValueError: empty, or a value that is not finite.
    """
    _check(log_prob_WK)
    log_prob_WK = without_bias(log_prob_WK)
    if prior.balancing == "sinkhorn":
        limits = prior.sinkhorn_iterations, prior.sinkhorn_tolerance
        return sinkhorn(log_prob_WK, *limits, prior.sinkhorn_sharpness if sharpness is None else sharpness).log_prob_WK
    log_prob_WK = scipy.special.log_softmax(log_prob_WK.astype(np.float64), axis=1)
    weight_K = greedy_balance(log_prob_WK, prior.greedy_step, prior.greedy_iterations)
    return np.asarray(scipy.special.log_softmax(log_prob_WK + weight_K, axis=1))


def expected(
    log_prob_WK: NDArray[np.float64], balanced_WK: NDArray[np.float64], prior: PriorConfig
) -> NDArray[np.float64]:
    """The balance at sharpness 1, as confident as the networks: `balanced_WK`, the configured one, is overconfident if sharper."""
    sharper = prior.balancing == "sinkhorn" and prior.sinkhorn_sharpness != 1.0
    return balanced(log_prob_WK, prior, sharpness=1.0) if sharper else balanced_WK


def without_bias(log_prob_WK: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities less the bias towards a perturbation that all wells of a plate share, shape (W, K).

    The bias is the mean of a column, as far as columns differ by more than chance: a two-way analysis of variance compares
    the variance of their means with that of single wells, whose ratio must exceed two standard errors. A complete plate is
    returned as it is, because constants of columns change neither its balance nor its assignment.

    Args:
        log_prob_WK: natural-log probabilities or logits, shape (W, K), finite.

    Source: empirical Bayes after Efron and Morris 1973 (doi:10.1080/01621459.1973.10481350), shrinking more by those errors.
    """
    own_WK = log_prob_WK.astype(np.float64)
    wells, perturbations = own_WK.shape
    if not 1 < wells < perturbations:
        return own_WK
    centred_WK = own_WK - own_WK.mean(axis=1, keepdims=True)
    bias_K = centred_WK.mean(axis=0)
    of_columns = wells * float((bias_K**2).sum()) / (perturbations - 1)
    of_wells = float(((centred_WK - bias_K) ** 2).sum()) / ((wells - 1) * (perturbations - 1))
    independent = min(perturbations - 1, MOST_INDEPENDENT)
    by_chance = of_wells * (1 + 2 * np.sqrt(2 / independent * wells / (wells - 1)))
    return own_WK - bias_K * (1 - by_chance / of_columns) if of_columns > by_chance else own_WK


def sinkhorn(log_prob_WK: NDArray[np.float64], iterations: int, tolerance: float, sharpness: float = 1.0) -> Balanced:
    """Scales rows and columns until every perturbation is expected once: the closest such matrix in relative entropy.

    Wells that are missing on a plate, W < K, are one more row, which expects K - W perturbations and prefers none. So a column of
    the others sums to 1 at most, and a single sure well stays sure.

    A sweep is two matrix-vector products with one kernel, exp of the logits less their row maxima, in single precision
    until double is needed; every few sweeps the logs of the column scalings are extrapolated. Scalings that would become
    extreme are folded into the logits; if a column of the kernel vanishes, one sweep is done in the log domain. None of
    this moves the fixed point, which is unique.

    Args:
        log_prob_WK: natural-log probabilities or logits, shape (W, K), finite.
        iterations: largest number of sweeps.
        tolerance: stop when all column sums are this close to max(1, W/K), in wells; checked every few sweeps.
        sharpness: factor of the logits; the larger, the closer to a one-to-one assignment.

    Raises:
        ValueError: empty, or a value that is not finite.

    Source: Sinkhorn and Knopp 1967; stabilisation after Schmitzer 2019 (doi:10.1137/16M1106018); Anderson's
    extrapolation (Walker and Ni 2011, doi:10.1137/10078356X) between plain sweeps.
    """
    _check(log_prob_WK)
    wells, perturbations = log_prob_WK.shape
    target, holds_W = max(1.0, wells / perturbations), np.ones(wells)
    if wells < perturbations:
        log_prob_WK = np.append(log_prob_WK, np.zeros((1, perturbations)), axis=0)
        holds_W = np.append(holds_W, perturbations - wells)
    single_limit = SINGLE_PRECISION * target
    enough_single, single_will_do = max(0.9 * tolerance, single_limit), 0.9 * tolerance >= single_limit
    scaled_WK = np.multiply(log_prob_WK, sharpness, dtype=np.float64)
    memory_WK = np.empty(scaled_WK.shape)  # reused by every kernel: fresh memory costs as much as the exponentials
    single_WK = memory_WK.reshape(-1).view(np.float32)[: scaled_WK.size].reshape(scaled_WK.shape)
    done = 0
    kernel_WK: NDArray[np.floating] = single_WK
    while True:
        largest_W = scaled_WK.max(axis=1)
        np.subtract(scaled_WK, largest_W[:, None], out=kernel_WK, casting="same_kind")
        enough = enough_single if kernel_WK is single_WK else tolerance
        found = _sweep(np.exp(kernel_WK, out=kernel_WK), holds_W, target, iterations - done, enough)
        done += found.sweeps
        scaled_WK += found.log_scale_K
        # A tolerance within single precision needs no check in double, which would cost as much as all the rest.
        if found.finished and (kernel_WK is not single_WK or (single_will_do and found.error <= enough_single)):
            scaled_WK += (found.log_scale_W - largest_W)[:, None]
            return Balanced(scaled_WK[:wells], done, found.error)
        if found.finished:
            kernel_WK = memory_WK
        elif found.vanished:
            scaled_WK += (found.log_scale_W - largest_W)[:, None]
            scaled_WK -= _log_sum_exp(scaled_WK)  # to columns of 1 instead of the target: rows are scaled next
            done += 1


@dataclass(frozen=True)
class _Sweeps:
    """Sweeps with one kernel."""

    log_scale_W: NDArray[np.float64]
    log_scale_K: NDArray[np.float64]
    sweeps: int
    error: float
    finished: bool = True
    """within the tolerance, or as many sweeps as allowed; otherwise scalings became extreme"""
    vanished: bool = False
    """a column of the kernel underflowed"""


def _sweep(
    kernel_WK: NDArray[np.floating], holds_W: NDArray[np.float64], target: float, most: int, enough: float
) -> _Sweeps:
    """Sweeps until columns sum to `target` nearly enough, and rows to `holds_W`; extrapolates the logs of the column scalings.

    An extrapolation subtracts the combination of past differences that would cancel the last step if sweeps were
    linear. It is kept if it does not lower the dual objective, which plain sweeps always raise.
    """
    wells, perturbations = kernel_WK.shape
    kind = kernel_WK.dtype.type
    row_W = holds_W.astype(kind)
    smallest, slack = 1e8 * np.finfo(kind).tiny, 8 * wells * np.finfo(kind).eps
    log_K = plain_K = np.zeros(perturbations)
    trail_2MK = np.empty((2, MEMORY + 1, perturbations))  # past sweeps, oldest first: log scalings and steps
    known, least, sweeps = 0, -np.inf, 0
    while True:
        path_PK = np.empty((min(PERIOD, most - sweeps) + 1, perturbations), kind)
        path_PK[0] = np.exp(log_K)
        scale_W = row_W / (kernel_WK @ path_PK[0])
        column_K = scale_W @ kernel_WK
        error = float(np.abs(column_K * path_PK[0] - target).max())
        log_scale_W = np.log(scale_W).astype(np.float64)
        dual = (holds_W * log_scale_W).sum() + target * log_K.sum()
        if dual < least:
            log_K, known, least = plain_K, 0, -np.inf
            continue
        if error <= enough or len(path_PK) == 1:
            return _Sweeps(log_scale_W, log_K, sweeps, error)
        if column_K.min() < smallest:
            return _Sweeps(log_scale_W, log_K, sweeps, error, finished=False, vanished=True)
        np.divide(target, column_K, out=path_PK[1])
        with np.errstate(all="ignore"):  # overflow is detected below
            for n in range(1, len(path_PK) - 1):
                scale_W = row_W / (kernel_WK @ path_PK[n])
                np.divide(target, scale_W @ kernel_WK, out=path_PK[n + 1])
            log_PK = np.log(path_PK).astype(np.float64)
        if not np.abs(log_PK).max() <= WIDEST[kind]:
            return _Sweeps(log_scale_W, log_PK[1], sweeps + 1, error, finished=False)
        new = len(path_PK) - 1
        trail_2MK[:, :-new] = trail_2MK[:, new:]
        trail_2MK[0, -new:] = log_PK[1:]
        np.subtract(log_PK[1:], log_PK[:-1], out=trail_2MK[1, -new:])
        known, sweeps = min(known + new, MEMORY + 1), sweeps + new
        log_K = plain_K = log_PK[-1]
        if sweeps < most and known > 1:
            moved_MK, changed_MK = trail_2MK[:, 1 - known :] - trail_2MK[:, -known:-1]
            gram_MM = changed_MK @ changed_MK.T
            gram_MM.flat[::known] *= 1 + 1e-8  # its diagonal
            _, share_M, failed = scipy.linalg.lapack.dposv(gram_MM, changed_MK @ trail_2MK[1, -1])
            further_K = plain_K - share_M @ moved_MK
            if not failed and np.abs(further_K).max() <= WIDEST[kind]:
                log_K, least = further_K, dual - slack


def weights_over_wells(log_prob_WK: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log class weights, (K,), that make a softmax over wells of one over classes: the columns then sum to 1.

    Half a sweep of Sinkhorn's. Missing wells, W < K, hold an even share of every column, so that a single well keeps its arg-max.

    Args:
        log_prob_WK: natural-log probabilities or logits, shape (W, K), finite.
    """
    wells, perturbations = log_prob_WK.shape
    log_sum_K = _log_sum_exp(log_prob_WK.astype(np.float64))
    if wells < perturbations:
        even = scipy.special.logsumexp(log_sum_K) - np.log(wells * perturbations)
        log_sum_K = np.logaddexp(log_sum_K, even + np.log(perturbations - wells))
    return -log_sum_K


def greedy_balance(log_prob_WK: NDArray[np.float64], step: float, iterations: int) -> NDArray[np.float64]:
    """Log class weights, (K,), that spread arg-max predictions evenly, by lowering the most predicted class again and again.

    The search begins at a softmax over wells and returns the best weights it met: those with the smallest sum of squared
    numbers of predictions.

    Args:
        log_prob_WK: natural-log probabilities, shape (W, K), finite.
        step: how much a step lowers a log weight at first, nats; halved HALVINGS times, after equal numbers of steps.
        iterations: number of steps; it stops early if no class is predicted more than ceil(W/K) times.

    Source: the description of the CellSignal 2nd-place method's search.
    """
    wells, perturbations = log_prob_WK.shape
    log_weight_K = weights_over_wells(log_prob_WK)
    weighted_WK = log_prob_WK + log_weight_K
    predicted_W = weighted_WK.argmax(axis=1)
    best_K, least = log_weight_K, np.inf
    for done in range(iterations + 1):
        count_K = np.bincount(predicted_W, minlength=perturbations)
        spread = int(count_K @ count_K)
        if spread < least:
            best_K, least = log_weight_K.copy(), spread
        most = int(count_K.argmax())
        if done == iterations or count_K[most] <= -(-wells // perturbations):
            break
        lowered = step / 2.0 ** (done * (HALVINGS + 1) // iterations)
        log_weight_K[most] -= lowered
        weighted_WK[:, most] -= lowered
        # A lowered class can only lose wells, so the others keep their arg-max.
        losing_w = np.flatnonzero(predicted_W == most)
        predicted_W[losing_w] = weighted_WK[losing_w].argmax(axis=1)
    return best_K


def assign_plate(log_prob_WK: NDArray[np.float64]) -> NDArray[np.intp]:
    """The most probable perturbations of a plate's wells, (W,), if no perturbation appears twice.

    Row constants (any softmax normaliser) do not change it; nor do column constants on a square plate, so balanced and
    plain log-probabilities give the same result there.

    Args:
        log_prob_WK: natural-log probabilities, or logits, shape (W, K), finite.

    Raises:
        ValueError: more wells than perturbations, or a value that is not finite.

    Source: linear sum assignment (Crouse 2016, doi:10.1109/TAES.2016.140952), as the CellSignal 2nd-place method
        post-processes.
    """
    wells, perturbations = log_prob_WK.shape
    if wells > perturbations:
        raise ValueError(f"{wells} wells cannot each hold a different one of {perturbations} perturbations")
    if not np.isfinite(log_prob_WK).all():
        raise ValueError("log-probabilities must be finite")
    # With W <= K SciPy returns every row, in order.
    _, perturbation_W = scipy.optimize.linear_sum_assignment(log_prob_WK, maximize=True)
    return perturbation_W.astype(np.intp)


def _check(log_prob_WK: NDArray[np.float64]) -> None:
    if 0 in log_prob_WK.shape:
        raise ValueError(f"nothing to balance in shape {log_prob_WK.shape}")
    if not np.isfinite(log_prob_WK).all():
        raise ValueError("log-probabilities must be finite")


def _log_sum_exp(log_WK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the column sums, shape (K,)."""
    largest_K = log_WK.max(axis=0)
    return np.asarray(largest_K + np.log(np.exp(log_WK - largest_K).sum(axis=0)))
