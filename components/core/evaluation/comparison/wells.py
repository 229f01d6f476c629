"""Held-out wells with both models' predictions, from three CSV tables, and how many of each plate's wells a model gets right."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import pandas as pd

from components.core.errors import InputError
from components.core.label_tables import read_label_table
from components.core.storage.manifest import Manifest
from components.core.tables import TableFaults

ComparedStage = Literal["assigned", "raw"]
COMPARED_STAGES: tuple[ComparedStage, ...] = ("assigned", "raw")


def paired_wells(
    plates: Manifest,
    truth: Path,
    champion: Path,
    challenger: Path,
    experiments: Collection[str],
    *,
    champion_knows: Collection[str],
    column: str,
) -> pd.DataFrame:
    """Every labelled treatment well of the held-out experiments, with the predictions of both models.

    Rows of other experiments are checked for their form and then ignored.

    Args:
        plates: manifest with the plates of the experiments.
        truth: their labels, as normalize writes holdout_labels.csv.
        champion: the champion's predictions.csv.
        challenger: the challenger's predictions_holdout.csv.
        experiments: experiments that neither model saw; at least one.
        champion_knows: treatments of the champion's vocabulary.
        column: the screen's column of labels.

    Returns:
        A row per well in the manifest's order: id_code, experiment, plate, cell_type, truth, champion_assigned, champion_raw,
        challenger_assigned, challenger_raw (labels in the input's encoding), champion_knows (whether its vocabulary has the truth).

    Raises:
        InputError: a table is missing or malformed, a well appears twice or has no row in one of the predictions, or the champion
            knows none of the labels.
    """
    assert experiments
    labels = _read(truth, column).rename(columns={"perturbation": "truth"})
    treatments = pd.DataFrame(
        [
            (well.id_code, plate.experiment, plate.plate, plate.cell_type)
            for plate in plates.plates
            if plate.experiment in experiments
            for well in plate.wells
            if well.role == "treatment"
        ],
        columns=["id_code", "experiment", "plate", "cell_type"],
    )
    wells = treatments.merge(labels, on="id_code")
    assert set(wells["experiment"]) == {*experiments}, "normalize packs wells and labels of every held-out experiment"
    wells["champion_knows"] = wells["truth"].isin(list(champion_knows))
    if not wells["champion_knows"].any():
        raise InputError(
            f"{truth}: the champion knows none of these labels, first {wells['truth'].iloc[0]}; give labels in the encoding of its "
            "screen, or promote manually if the library is another one"
        )
    for model, path in (("champion", champion), ("challenger", challenger)):
        predictions = _read(path, column, raw=True)
        missing = wells.loc[~wells["id_code"].isin(predictions["id_code"]), "id_code"]
        if len(missing):
            raise InputError(
                f"{path}: no row for {len(missing)} of {len(wells)} held-out wells, first {missing.iloc[0]}; give the {model}'s "
                f"predictions of all of {', '.join(sorted(experiments))}"
            )
        columns = {"perturbation": f"{model}_assigned", "raw_perturbation": f"{model}_raw"}
        wells = wells.merge(predictions.rename(columns=columns), on="id_code")
    return wells


def count_plates(wells: pd.DataFrame, stage: ComparedStage) -> pd.DataFrame:
    """Counts the wells of paired_wells by plate, with the predictions of one stage.

    Returns:
        A row per plate: cell_type, experiment, plate, and numbers of wells (wells), of those that each model gets right
        (champion, challenger) and of those whose label the champion does not know (unknown).
    """
    counted = wells.assign(
        wells=1,
        champion=(wells[f"champion_{stage}"] == wells["truth"]).astype(int),
        challenger=(wells[f"challenger_{stage}"] == wells["truth"]).astype(int),
        unknown=(~wells["champion_knows"]).astype(int),
    )
    plates = counted.groupby(["cell_type", "experiment", "plate"], sort=False)
    return plates[["wells", "champion", "challenger", "unknown"]].sum().reset_index()


def _read(path: Path, column: str, raw: bool = False) -> pd.DataFrame:
    """The label of each well, which appears once, and its label before the prior: perturbation and raw_perturbation."""
    table, column = read_label_table(path, column, raw=raw)
    columns = {"id_code": "id_code", column: "perturbation", **({f"raw_{column}": "raw_perturbation"} if raw else {})}
    faults = TableFaults(str(path), table)
    faults.require(list(columns))
    faults.require_unique("id_code")
    faults.check()
    return table[list(columns)].rename(columns=columns)
