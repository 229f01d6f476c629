"""Balancing: probabilities whose columns agree that every siRNA of a plate occurs equally often. Pure NumPy and SciPy.

Sinkhorn normalisation, or the class weights of the reference's greedy search.

W wells, K siRNAs. Each well holds one siRNA (rows sum to 1) and each siRNA is expected W/K times (columns sum to W/K).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from components.core.config import PriorConfig

# Scalings further apart than this are folded into the log-domain matrix. What has then underflowed in the kernel is
# below 1e-308 where a row's largest is 1, and no scaling can lift it above 1e-158 of a well.
WIDEST_SCALING = 1e150


@dataclass(frozen=True)
class Balanced:
    """Balanced log-probabilities and how close they came."""

    log_prob_WK: NDArray[np.float64]
    """natural log; rows sum to 1 exactly, columns to W/K within `error`"""
    iterations: int
    """Sinkhorn sweeps done"""
    error: float
    """largest distance of a column sum from W/K"""
    converged: bool
    """whether the error is within the tolerance"""


def balanced(log_prob_WK: NDArray[np.float64], prior: PriorConfig) -> NDArray[np.float64]:
    """Balanced log-probabilities by the configured method, shape (W, K); rows sum to 1.

    Args:
        log_prob_WK: natural-log probabilities or logits, shape (W, K), finite.
        prior: `balancing`, and the limits of either method.

    Raises:
        ValueError: empty, or a value that is not finite.
    """
    if prior.balancing == "sinkhorn":
        return sinkhorn(log_prob_WK, prior.sinkhorn_iterations, prior.sinkhorn_tolerance).log_prob_WK
    _check(log_prob_WK)
    log_prob_WK = log_softmax(log_prob_WK.astype(np.float64), axis=1)
    weight_K = greedy_balance(log_prob_WK, prior.greedy_step, prior.greedy_iterations)
    return np.asarray(log_softmax(log_prob_WK + weight_K, axis=1))


def sinkhorn(log_prob_WK: NDArray[np.float64], iterations: int, tolerance: float) -> Balanced:
    """Scales rows and columns until every siRNA is expected equally often: the closest such matrix in relative entropy.

    Sweeps are two matrix-vector products with one kernel, exp of the logits less their row maxima; the result is that
    difference plus the logs of the scalings. Where scalings would become extreme, or a column of the kernel vanishes,
    one sweep is done in the log domain and the kernel is built anew. Agrees with sweeps in the log domain throughout.

    Args:
        log_prob_WK: natural-log probabilities or logits, shape (W, K), finite.
        iterations: largest number of sweeps.
        tolerance: stop when all column sums are this close to W/K, in wells.

    Raises:
        ValueError: empty, or a value that is not finite.

    Source: Sinkhorn and Knopp 1967; stabilisation after Schmitzer 2019 (doi:10.1137/16M1106018).
    """
    _check(log_prob_WK)
    wells, sirnas = log_prob_WK.shape
    target = wells / sirnas
    log_WK = np.asarray(log_prob_WK, dtype=np.float64)
    kernel_WK = np.empty(log_WK.shape)  # the only large array: fresh memory costs as much as the exponentials
    done = 0
    while True:
        largest_W = log_WK.max(axis=1)
        np.exp(np.subtract(log_WK, largest_W[:, None], out=kernel_WK), out=kernel_WK)
        scale_K = np.ones(sirnas)
        while True:
            scale_W = 1.0 / (kernel_WK @ scale_K)
            column_K = scale_W @ kernel_WK  # before the columns' own scaling
            error = float(np.abs(column_K * scale_K - target).max())
            finished = error <= tolerance or done >= iterations
            if finished or column_K.max() > WIDEST_SCALING * column_K.min():
                break
            scale_K = target / column_K
            done += 1
        scaled_WK = np.add(log_WK, (np.log(scale_W) - largest_W)[:, None], out=kernel_WK)
        scaled_WK += np.log(scale_K)
        if finished:
            return Balanced(scaled_WK, done, error, error <= tolerance)
        log_WK = scaled_WK - _log_sum_exp(scaled_WK)  # to columns of 1 instead of the target: rows are scaled next
        done += 1


def greedy_balance(log_prob_WK: NDArray[np.float64], step: float, iterations: int) -> NDArray[np.float64]:
    """Log class weights under which arg-max predictions spread evenly: lowers the most predicted class over and over.

    The slow counterpart of `sinkhorn`, as the CellSignal 2nd-place method balances: thousands of small steps, each with
    an arg-max of its own.

    Args:
        log_prob_WK: natural-log probabilities, shape (W, K).
        step: how much one step lowers a log weight, nats.
        iterations: number of steps; it stops early where no class is predicted more than ceil(W/K) times.

    Returns:
        Log weights, shape (K,), to be added to the log-probabilities; at most 0.
    """
    wells, sirnas = log_prob_WK.shape
    log_weight_K = np.zeros(sirnas)
    weighted_WK = log_prob_WK.astype(np.float64)
    best_W = weighted_WK.argmax(axis=1)
    predicted_K = np.bincount(best_W, minlength=sirnas)
    for _ in range(iterations):
        most = int(predicted_K.argmax())
        if predicted_K[most] <= -(-wells // sirnas):
            break
        log_weight_K[most] -= step
        weighted_WK[:, most] -= step
        # A lowered class can only lose wells, so the others keep their arg-max.
        losing_w = np.flatnonzero(best_W == most)
        best_W[losing_w] = weighted_WK[losing_w].argmax(axis=1)
        predicted_K = np.bincount(best_W, minlength=sirnas)
    return log_weight_K


def _check(log_prob_WK: NDArray[np.float64]) -> None:
    if 0 in log_prob_WK.shape:
        raise ValueError(f"nothing to balance in shape {log_prob_WK.shape}")
    if not np.isfinite(log_prob_WK).all():
        raise ValueError("log-probabilities must be finite")


def _log_sum_exp(log_WK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the column sums, shape (K,)."""
    largest_K = log_WK.max(axis=0)
    return np.asarray(largest_K + np.log(np.exp(log_WK - largest_K).sum(axis=0)))
