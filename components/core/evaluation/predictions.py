"""The predictions of a run as one table: a row a treatment well, its siRNA and confidence at each stage. Pure pandas.

Columns of a predictions table, none missing unless noted:
    score: out_of_fold, unlabelled or holdout, see SCORES.
    id_code, experiment, plate (int), well, cell_type.
    fold: int, the fold that validates on the well; -1 if none does.
    sirna, raw_sirna, group_sirna: labels in the screen's encoding, see LABEL.
    confidence, raw_confidence, group_confidence: calibrated probabilities of those, float.
    margin: lead of the assigned siRNA over the most probable other one, float.
    raw_confidence_uncalibrated: raw confidence at temperature 1, float.
    top5: the most probable treatments before the prior, separated by blanks.
    truth: the true label; NaN if unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pandas as pd

Stage = Literal["raw", "group", "assigned"]
Score = Literal["out_of_fold", "unlabelled", "holdout"]
STAGES: tuple[Stage, ...] = ("raw", "group", "assigned")
SCORES: tuple[Score, ...] = ("out_of_fold", "unlabelled", "holdout")
"""What training saw of the wells; the scores are never mixed.

out_of_fold: labelled wells, predicted by models that never saw their labels; checkpoints were selected on them.
unlabelled: transductive; the images were trained on, the labels never seen.
holdout: inductive; neither images nor labels were seen by any step but prediction.
"""
LABEL: dict[Stage, str] = {"raw": "raw_sirna", "group": "group_sirna", "assigned": "sirna"}
"""The column of the predicted siRNA at each stage."""
CONFIDENCE: dict[Stage, str] = {"raw": "raw_confidence", "group": "group_confidence", "assigned": "confidence"}
"""The column of its calibrated probability."""
UNSURE = 0.6
"""A prediction of a lower confidence is called unsure, and its colour on the plate maps is a warm one."""
SAVED = ("id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence", "top5")
"""Columns of predictions.csv and its siblings."""


def with_truth(predictions: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """The table with its column truth, looked up by id_code."""
    return predictions.assign(truth=predictions["id_code"].map(dict(labels)))


def scored(predictions: pd.DataFrame, score: Score | None = None) -> pd.DataFrame:
    """The wells whose truth is known, of one score or of all."""
    known = predictions["truth"].notna()
    return predictions[known if score is None else known & (predictions["score"] == score)]


def correct(predictions: pd.DataFrame) -> pd.DataFrame:
    """Whether each well's prediction is its truth: one column of booleans a stage; False if the truth is unknown."""
    return pd.DataFrame({stage: predictions[LABEL[stage]] == predictions["truth"] for stage in STAGES})
