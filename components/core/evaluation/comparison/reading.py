"""Pairs what two models name the same held-out wells. Reads three tables; errors name file, well and field."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from components.core.errors import InputError
from components.core.evaluation.comparison.compared_well import ComparedWell, Names
from components.core.screen.tables import Table, check_present, read_records
from components.core.screen.wells import experiment_of
from components.core.storage.manifest import Manifest, PlateRecord


def paired_wells(
    plates: Manifest,
    truth: Path,
    champion: Path,
    challenger: Path,
    experiments: Collection[str],
    *,
    champion_knows: Collection[str],
) -> tuple[ComparedWell, ...]:
    """Every labelled treatment well of the held-out experiments, with its names by both models.

    Rows of other experiments are checked for their form and then left alone.

    Args:
        plates: manifest with the plates of the experiments; whether it is the challenger's holdout or what the champion
            predicted as new plates does not matter, for only places are read.
        truth: their labels, id_code,sirna, as normalize writes holdout_labels.csv.
        champion: predictions.csv of new plates.
        challenger: predictions_holdout.csv of its run.
        experiments: those that neither model ever saw; at least one.
        champion_knows: treatments of the champion's vocabulary.

    Returns:
        In the manifest's order.

    Raises:
        InputError: a table is missing or malformed, a well comes twice, an experiment is not there or has no label, a well
            has no plate or no row in one of the predictions, the champion knows none of the siRNAs, or its predictions
            name one that it does not know.
        ValueError: no experiment was given.
    """
    if not experiments:
        raise ValueError("no experiment to compare on; a decision without holdout is `without_holdout`")
    labels = {
        id_code: sirna for id_code, (sirna,) in _by_well(truth, ("sirna",)) if experiment_of(id_code) in experiments
    }
    places = _treatments(plates, experiments)
    _check_labels(truth, labels, places, experiments)
    known = frozenset(champion_knows)
    if known.isdisjoint(labels.values()):
        sirna = next(iter(labels.values()))
        raise InputError(
            f"{truth}: the champion knows none of these siRNAs, first {sirna}; give labels in the encoding of its screen, or "
            "promote by hand where the library is another one"
        )
    by_champion, by_challenger = _names(champion), _names(challenger)
    for id_code, names in by_champion.items():
        for field, name in (("sirna", names.assigned), ("raw_sirna", names.raw)):
            if name not in known:
                raise InputError(
                    f"{champion} ({id_code}): {field} {name!r} is no siRNA that the champion knows; give predictions of the "
                    "champion itself"
                )
    wells = [id_code for id_code in places if id_code in labels]
    for path, named, who in ((champion, by_champion, "champion"), (challenger, by_challenger, "challenger")):
        missing = [id_code for id_code in wells if id_code not in named]
        if missing:
            raise InputError(
                f"{path}: no row for {len(missing)} of {len(wells)} held-out wells, first {missing[0]}; give the {who}'s "
                f"predictions of all of {', '.join(sorted(experiments))}"
            )
    return tuple(
        ComparedWell(
            id_code=id_code,
            experiment=places[id_code].experiment,
            plate=places[id_code].plate,
            cell_type=places[id_code].cell_type,
            truth=labels[id_code],
            champion=by_champion[id_code],
            challenger=by_challenger[id_code],
            champion_knows=labels[id_code] in known,
        )
        for id_code in wells
    )


def _treatments(plates: Manifest, experiments: Collection[str]) -> dict[str, PlateRecord]:
    """The plates of the experiments' treatment wells, by id_code, in the manifest's order."""
    return {
        well.id_code: plate
        for plate in plates.plates
        if plate.experiment in experiments
        for well in plate.wells
        if well.well_type == "treatment"
    }


def _check_labels(
    path: Path, labels: dict[str, str], places: dict[str, PlateRecord], experiments: Collection[str]
) -> None:
    """Each experiment has plates and labels, and each label a well."""
    packed = {plate.experiment for plate in places.values()}
    labelled = {experiment_of(id_code) for id_code in labels}
    for experiment in sorted(experiments):
        if experiment not in packed:
            raise InputError(
                f"held-out experiment {experiment}: the manifest has no treatment well of it; give the manifest of the plates "
                "that were predicted"
            )
        if experiment not in labelled:
            raise InputError(
                f"{path}: no label of held-out experiment {experiment}; add its labels or leave it out of the comparison"
            )
    stray = next((id_code for id_code in labels if id_code not in places), None)
    if stray:
        raise InputError(
            f"{path} ({stray}): the manifest has no such treatment well; give labels and manifest of the same screen"
        )


def _names(path: Path) -> dict[str, Names]:
    return {
        id_code: Names(raw=raw, assigned=assigned)
        for id_code, (assigned, raw) in _by_well(path, ("sirna", "raw_sirna"))
    }


def _by_well(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The columns of each well, which is there once."""
    try:
        table = Table(str(path), path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the table ({error.strerror})") from None
    seen: set[str] = set()
    for line, record in read_records(table, ("id_code", *columns)):
        where = f"{path} line {line} ({record['id_code'] or 'no id_code'})"
        for field, value in record.items():
            check_present(where, field, value)
        if record["id_code"] in seen:
            raise InputError(f"{where}: the well appears twice; remove one of the rows")
        seen.add(record["id_code"])
        yield record["id_code"], tuple(record[column] for column in columns)
