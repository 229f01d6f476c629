"""Labels of unlabelled wells from a whole earlier run: a further round whose labels fuse all folds. Reads one CSV; NumPy.

The earlier run named them by the mean of all folds, after assignment, which is better than what one fold's teachers can
say. Only unlabelled wells may be named so: a fold's validation wells are known to the other folds. Even so those networks
learned from their labels, so that out-of-fold scores of a further round are no longer independent of them; unlabelled
and holdout scores stay what they are.

W wells, K treatment siRNAs.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError
from components.core.prior.pseudo_labels import PseudoLabels, least_confident

NEEDED = ("id_code", "sirna", "confidence")


@dataclass(frozen=True)
class FusedLabels:
    """What an earlier run called some wells."""

    row_w: NDArray[np.intp]
    """the wells, as indices into the wells that get pseudo-labels"""
    class_w: NDArray[np.intp]
    """their treatment classes"""
    confidence_w: NDArray[np.float64]
    """calibrated probabilities of the names"""
    plates_w: tuple[tuple[str, int], ...]
    """experiment and plate of each"""

    def over(self, found: PseudoLabels, fraction: float) -> PseudoLabels:
        """The same pseudo-labels with the earlier run's names in place of those wells' own.

        Args:
            found: of all wells, by this fold's teachers.
            fraction: share of each plate that is labelled, the most confident first; soft labels are certain ones.
        """
        class_W, confidence_W, prob_WK = found.class_W.copy(), found.confidence_W.copy(), found.prob_WK.copy()
        class_W[self.row_w], confidence_W[self.row_w] = self.class_w, self.confidence_w
        prob_WK[self.row_w] = 0.0
        prob_WK[self.row_w, self.class_w] = 1.0
        for plate in dict.fromkeys(self.plates_w):
            of_plate = np.array([k for k, own in enumerate(self.plates_w) if own == plate], dtype=np.intp)
            left = self.row_w[of_plate[least_confident(self.confidence_w[of_plate], fraction)]]
            class_W[left] = -1
            prob_WK[left] = 0.0
        return replace(found, class_W=class_W, confidence_W=confidence_W, prob_WK=prob_WK)


def read_fused_labels(
    path: Path,
    ids_W: Sequence[str],
    unlabelled_W: NDArray[np.bool_],
    experiments_W: Sequence[str],
    plates_W: Sequence[int],
    treatments: Sequence[str],
    source: str | None = None,
) -> FusedLabels:
    """Reads the predictions.csv of an earlier run for the unlabelled wells of a fold.

    Args:
        path: the table; rows of other wells are not read.
        ids_W: id_codes of the wells that get pseudo-labels.
        unlabelled_W: which of them are unlabelled; the others are validation wells, which are never named so.
        experiments_W: the experiment of each well.
        plates_W: the plate number of each well.
        treatments: the treatment labels in class order.
        source: how the user named the file, for errors; None for its path.

    Raises:
        InputError: the file cannot be read or lacks a column or a well, or a siRNA or a confidence is none.
    """
    source = source or str(path)
    column = {label: k for k, label in enumerate(treatments)}
    row_of = {ids_W[int(row)]: int(row) for row in np.flatnonzero(unlabelled_W)}
    found: dict[int, tuple[int, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{source}: column {missing[0]} is missing; give the predictions.csv of an earlier run"
                )
            for record in reader:
                row = row_of.get(record["id_code"])
                if row is None:
                    continue
                where = f"{source}, row {reader.line_num}: well {record['id_code']}"
                if record["sirna"] not in column:
                    raise InputError(f"{where}: sirna {record['sirna']!r} is not a treatment of this screen")
                try:
                    confidence = float(record["confidence"])
                except (TypeError, ValueError):
                    confidence = -1.0
                if not 0.0 <= confidence <= 1.0:
                    raise InputError(f"{where}: confidence {record['confidence']!r} is not a number from 0 to 1")
                if row in found:
                    raise InputError(f"{where} appears twice; remove one of the rows")
                found[row] = (column[record["sirna"]], confidence)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{source}: is not a CSV table in UTF-8") from None
    absent = [id_code for id_code, row in row_of.items() if row not in found]
    if absent:
        raise InputError(
            f"{source}: has no row for {len(absent)} unlabelled wells, first {absent[0]}; give the predictions.csv of a "
            "run on this screen"
        )
    rows = sorted(found)
    return FusedLabels(
        np.array(rows, dtype=np.intp),
        np.array([found[row][0] for row in rows], dtype=np.intp),
        np.array([found[row][1] for row in rows], dtype=np.float64),
        tuple((experiments_W[row], int(plates_W[row])) for row in rows),
    )
