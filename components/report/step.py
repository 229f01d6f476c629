"""report: assign outputs, manifests and truth in; predictions, metrics and one page out. Numbers are core.evaluation.

Truth of unlabelled, held-out and new wells is read here and nowhere else, and only compared with finished predictions.
The report of new plates is another page, with quality control.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from components.core import progress
from components.core.config import RunConfig, parse
from components.core.errors import InputError, StepError
from components.core.evaluation.figures import image_strip
from components.core.evaluation.page import Notice
from components.core.evaluation.prediction_page import Prediction
from components.core.evaluation.prediction_page import render as render_prediction
from components.core.evaluation.predictions import SAVED, UNSURE, Score, with_truth
from components.core.evaluation.report_page import Picture, Report, render
from components.core.evaluation.scores import build_metrics, choose_examples
from components.core.files import atomic_directory
from components.core.screen.packed import SiteReader
from components.core.storage.artifacts import local_copy
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest, PlateRecord
from components.core.storage.opening import join_address, open_store
from components.core.storage.run_outcome import record_results, tell_failures
from components.core.storage.run_record import RECIPE, lineage_of
from components.core.tables import write_table
from components.report.inputs import (
    AssignOutput,
    TreatmentWells,
    merge_history,
    merge_validated,
    read_labels,
    read_outputs,
)
from components.report.quality import Quality, look_at, write_quality

PREDICTIONS: dict[Score, str] = {
    "unlabelled": "predictions.csv",
    "out_of_fold": "predictions_oof.csv",
    "holdout": "predictions_holdout.csv",
}


@dataclass(frozen=True)
class Content:
    """What a report consists of.

    Attributes:
        metrics: content of metrics.json.
        lineage: content of lineage.json.
        page: content of report.html.
        tables: predictions by file name.
        quality: quality control of new plates; None for a training.
    """

    metrics: dict[str, Any]
    lineage: Mapping[str, Any]
    page: str
    tables: Mapping[str, pd.DataFrame]
    quality: Quality | None = None


def run(
    config: RunConfig,
    screen: Path,
    holdout: Path,
    holdout_labels: Path | None,
    truth: Path | None,
    uris: Sequence[str],
    out: Path,
    lineage: Mapping[str, Any],
    store: ObjectReader | None = None,
) -> dict[str, Any]:
    """Writes the report's directory, whole or not at all.

    Args:
        config: of the whole run; it is written into the report.
        screen: manifest of the training and unlabelled experiments, or the reference that names the model of new plates.
        holdout: manifest of the held-out experiments, which may have no plates; or of the new plates.
        holdout_labels: labels of the held-out wells, id_code,sirna; not read for new plates, which have none.
        truth: labels of unlabelled or new wells, id_code,sirna, where known. It may lack wells; for new plates it may also hold
            wells of experiments that are not predicted, which are ignored.
        uris: output directories of assign, one a cell type, as paths or object-store URIs.
        out: directory to write; an earlier report there is replaced.
        lineage: code_version, seeds, started, steps, image_digests, model as far as known; digests of manifests are added.
        store: where the packed plates are, instead of the manifest's own store.

    Returns:
        The content of metrics.json; the scores of new plates are called `holdout`.

    Raises:
        InputError: a file is missing or malformed; names file, row and field.
    """
    known, held_out = Manifest.read(screen), Manifest.read(holdout)
    wells = TreatmentWells.of(known, held_out)
    if known.model is not None:
        content = _of_new_plates(config, known, held_out, wells, truth, uris, lineage, store)
    elif holdout_labels is not None:
        content = _of_training(config, known, held_out, wells, holdout_labels, truth, uris, lineage, store)
    else:
        raise InputError(
            "--holdout-labels is missing; give the labels that normalize wrote, or as --screen a manifest that names a model, "
            f"not {screen}"
        )
    with atomic_directory(out) as folder:
        for name, table in content.tables.items():
            write_predictions(folder / name, table)
        if content.quality is not None:
            write_quality(folder / "qc.csv", held_out, content.quality, pd.concat(content.tables.values()))
        (folder / "metrics.json").write_text(json.dumps(content.metrics, indent=2) + "\n", encoding="utf-8")
        (folder / "lineage.json").write_text(json.dumps(content.lineage, indent=2) + "\n", encoding="utf-8")
        (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
        (folder / "report.html").write_text(content.page, encoding="utf-8")
    progress.note(f"report: {out / 'report.html'} ({len(content.page) / 1e6:.1f} MB)")
    return content.metrics


def _of_training(
    config: RunConfig,
    screen: Manifest,
    holdout: Manifest,
    wells: TreatmentWells,
    holdout_labels: Path,
    truth: Path | None,
    uris: Sequence[str],
    lineage: Mapping[str, Any],
    store: ObjectReader | None,
) -> Content:
    """The report of a training run: scores of all kinds of wells, and its page."""
    known = read_labels(truth, wells, "unlabelled") if truth else {}
    labels = wells.labels() | known | read_labels(holdout_labels, wells, "holdout")
    outputs, predictions = read_outputs(uris, wells, config)
    cell_types = [output.cell_type for output in outputs]
    predictions = with_truth(predictions, labels)
    history = merge_history(outputs)
    metrics = build_metrics(predictions, cell_types, history, merge_validated(outputs))
    temperatures = {
        output.cell_type: output.assign["temperature"] for output in outputs if output.assign.get("temperature")
    }
    metrics["temperatures"] = temperatures
    if lineage.get("partial"):
        metrics["partial"] = lineage["partial"]
    if config.mean_teacher.fused_labels:
        metrics["fused_labels"] = config.mean_teacher.fused_labels
        progress.warn("out-of-fold scores of a further round are not independent of their own labels (see the report)")
    lineage = {
        "code_version": installed_version(),
        **lineage,
        **({"init_from": config.init_from} if config.init_from else {}),
        "manifest_digest": screen.digest(),
        "holdout_manifest_digest": holdout.digest(),
    }
    pictures_of, pictures, note = _pictures(predictions, screen, holdout, store)
    page = render(
        Report(
            config=config,
            screen=screen,
            holdout=holdout,
            predictions=predictions,
            metrics=metrics,
            history=history,
            arrangements=[entry for output in outputs for entry in output.arrangements],
            temperatures=temperatures,
            prior_used=any(output.assign.get("prior_enabled") for output in outputs),
            pictures=pictures,
            pictures_of=pictures_of,
            pictures_note=note,
            notices=[
                *(Notice("compile", message) for message in lineage.get("warnings", [])),
                *_notices(config, outputs, screen, holdout, wells, len(known)),
            ],
            lineage=lineage,
        )
    )
    tables = {name: predictions[predictions["score"] == score] for score, name in PREDICTIONS.items()}
    return Content(metrics, lineage, page, tables)


def _of_new_plates(
    config: RunConfig,
    reference: Manifest,
    plates: Manifest,
    wells: TreatmentWells,
    truth: Path | None,
    uris: Sequence[str],
    lineage: Mapping[str, Any],
    store: ObjectReader | None,
) -> Content:
    """The report of new plates: their predictions and quality control, and a score if there is a truth."""
    assert reference.model is not None
    experiments = {plate.experiment for plate in plates.plates}
    labels = read_labels(truth, wells, "holdout", experiments) if truth else {}
    outputs, predictions = read_outputs(uris, wells, config)
    predictions = with_truth(predictions[predictions["score"] == "holdout"], labels)
    quality = look_at(plates, reference, predictions, store if store is not None else open_store(plates.store))
    scores = build_metrics(predictions, [output.cell_type for output in outputs], [], {})
    metrics: dict[str, Any] = {
        name: scores[name] for name in ("schema", "holdout", "wells", "calibration") if name in scores
    }
    metrics["temperatures"] = {output.cell_type: output.assign["temperature"] for output in outputs}
    metrics["quality"] = {
        "wells_to_look_at": sum(map(bool, quality.reasons.values())),
        "blurred_plates": sum(plate.blurred for plate in quality.plates),
        "plates_that_drift": sum(any(plate.beyond_C) for plate in quality.plates),
        "unsure": int((predictions["confidence"] < UNSURE).sum()),
    }
    model = {"generation": None, **lineage.get("model", {})}
    lineage = {
        "code_version": installed_version(),
        **lineage,
        "model": {**model, "fingerprint": reference.model.fingerprint, "address": reference.model.address},
        "manifest_digest": plates.digest(),
    }
    notices = [Notice("compile", message) for message in lineage.get("warnings", [])]
    notices += [Notice("normalize", message) for message in plates.warnings]
    for output in outputs:
        notices += [Notice(f"assign {output.cell_type}", message) for message in output.assign.get("warnings", [])]
    notices += not_reported(outputs, plates.plates)
    if truth and len(labels) < len(predictions):
        so = "the score is of those" if labels else "there is no score"
        notices.append(Notice("report", f"the truth has {len(labels):,} of {len(predictions):,} wells; {so}"))
    page = render_prediction(
        Prediction(
            config=config,
            plates=plates,
            reference=reference,
            predictions=predictions,
            arrangements=[entry for output in outputs for entry in output.arrangements],
            prior_used=any(output.assign.get("prior_enabled") for output in outputs),
            quality=quality.plates,
            reasons=quality.reasons,
            notices=list(dict.fromkeys(notices)),
            lineage=lineage,
        )
    )
    return Content(metrics, lineage, page, {"predictions.csv": predictions}, quality)


def main(
    config: str, screen: str, holdout: str, holdout_labels: str, truth: str, uris: list[str], lineage: str, results: str
) -> None:
    """`run` on strings, for the KFP component: config and lineage as JSON, truth empty where there is none."""
    with progress.task("report"), tempfile.TemporaryDirectory() as copies:
        settings = parse(RunConfig, json_object(config, "config"), source="config")
        manifest = Manifest.read(Path(screen))
        known = with_start(json_object(lineage, "lineage"), manifest)
        tell_failures(join_address(settings.store.bucket, settings.store.prefix), str(known.get("run", "")))
        run(
            settings,
            Path(screen),
            Path(holdout),
            Path(holdout_labels),
            local_copy(truth, Path(copies)) if truth else None,
            uris,
            Path(results),
            with_durations(known),
        )
        if manifest.run:
            # A process that waits on another machine cannot see a pod's files, and a published model needs its scores.
            record_results(open_store(manifest.store), manifest.run, Path(results))


def _pictures(
    predictions: pd.DataFrame, screen: Manifest, holdout: Manifest, store: ObjectReader | None
) -> tuple[Score | None, list[Picture], str | None]:
    """The first site of each example well, drawn; a note if there are none. Plates may be gone from the store by now."""
    score, table = choose_examples(predictions)
    chosen = list(table.itertuples(index=False))
    if score is None:
        return None, [], "No well's truth is known, so there are no right and wrong predictions to show."
    manifest = holdout if score == "holdout" else screen
    try:
        reader = SiteReader(store if store is not None else open_store(manifest.store), manifest)
        sites = reader.table
        row = {str(id_code): w for w, id_code in enumerate(sites.id_code_W)}
        rows = [row[str(well.id_code)] for well in chosen]
        images_BCSS = reader.read([int(sites.first_site_W[w]) for w in rows])
    except (InputError, StepError) as error:
        progress.warn(f"the report has no example images: {error}")
        return score, [], f"The images could not be read: {error}"
    limits = [image_strip.contrast_limits(manifest.plates[int(sites.plate_W[w])].histograms) for w in rows]
    strips = [image_strip.draw(image_CSS, limit) for image_CSS, limit in zip(images_BCSS, limits, strict=True)]
    return score, [Picture(well, png) for well, png in zip(chosen, strips, strict=True)], None


def _notices(
    config: RunConfig,
    outputs: Sequence[AssignOutput],
    screen: Manifest,
    holdout: Manifest,
    wells: TreatmentWells,
    truth: int,
) -> list[Notice]:
    """Everything a reader should look at, in the order of the steps."""
    notices = [Notice("normalize", message) for manifest in (screen, holdout) for message in manifest.warnings]
    if config.mean_teacher.fused_labels:
        message = (
            f"a further round on the predictions of {config.mean_teacher.fused_labels}: networks of all folds made them, so that "
            "out-of-fold scores, and what is selected or calibrated by them, are not independent of their own labels"
        )
        notices.append(Notice("pseudo_label", message))
    for output in outputs:
        notices += [Notice(f"assign {output.cell_type}", message) for message in output.assign.get("warnings", [])]
        labelled = wells.of_score("out_of_fold")["cell_type"] == output.cell_type
        missing = int(labelled.sum()) - int((output.predictions["score"] == "out_of_fold").sum())
        if missing:
            message = (
                f"{missing:,} labelled wells of {output.cell_type} have no out-of-fold prediction: folds are missing"
            )
            notices.append(Notice("report", message))
    notices += not_reported(outputs, (*screen.plates, *holdout.plates))
    unlabelled = sum(int((output.predictions["score"] == "unlabelled").sum()) for output in outputs)
    if truth and truth < unlabelled:
        message = f"the truth has {truth:,} of {unlabelled:,} unlabelled wells; their score is of those"
        notices.append(Notice("report", message))
    return list(dict.fromkeys(notices))


def not_reported(outputs: Sequence[AssignOutput], plates: Sequence[PlateRecord]) -> list[Notice]:
    """One notice for each cell type of the plates that no output of assign is of."""
    reported = {output.cell_type for output in outputs}
    return [
        Notice("report", f"no output of assign was given for {name}; it is not in the predictions")
        for name in dict.fromkeys(plate.cell_type for plate in plates if plate.cell_type not in reported)
    ]


def write_predictions(path: Path, predictions: pd.DataFrame) -> None:
    """Writes the columns of a predictions table that users get."""
    write_table(path, predictions[list(SAVED)])


def with_start(lineage: dict[str, Any], screen: Manifest) -> dict[str, Any]:
    """The lineage with key, screen and start, which on a cluster are known to normalize first, and to the run's record."""
    if RECIPE not in lineage or "run" in lineage or not screen.run:
        return lineage
    return {**lineage, "run": screen.run, **lineage_of(open_store(screen.store), screen.run)}


def with_durations(lineage: dict[str, Any]) -> dict[str, Any]:
    """The lineage with the tasks finished so far, where this run tells of them."""
    steps = progress.finished_tasks()
    return {**lineage, "steps": steps} if steps else lineage


def json_object(text: str, name: str) -> dict[str, Any]:
    """A JSON object that is called so, empty for an empty text."""
    try:
        data = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{name}: a JSON object was expected")
    return data


def installed_version() -> str:
    """Of this package."""
    try:
        return version("cellsignal")
    except PackageNotFoundError:
        return "not installed"
