"""report: outputs of assign, manifests and truth in; predictions, metrics and one page out. The numbers are core.evaluation's.

Truth of unlabelled, held-out and new wells is read here and nowhere else, and only compared with finished predictions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from components.core import progress
from components.core.config import RunConfig, parse
from components.core.errors import InputError, StepError
from components.core.evaluation.figures import image_strip
from components.core.evaluation.page import Report, render_prediction, render_report
from components.core.evaluation.plate_quality import plate_quality
from components.core.evaluation.quality import columns
from components.core.evaluation.scores import SCORES, UNSURE, Score, build_metrics, choose_examples, saved
from components.core.files import atomic_directory
from components.core.prior.plate_groups import WITHOUT_DESIGN
from components.core.screen.packed import SiteReader
from components.core.storage.artifacts import local_copy
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import lineage_of, record_results
from components.core.storage.task_status import finished_steps, report_status
from components.core.tables import write_table
from components.image import VERSION
from components.report.inputs import AssignOutput, json_object, own_columns, read_labels, read_outputs, treatment_wells
from components.report.quality import measure_wells, quality_columns

PREDICTIONS: dict[Score, str] = {
    "unlabelled": "predictions.csv",
    "out_of_fold": "predictions_oof.csv",
    "holdout": "predictions_holdout.csv",
}


def run(
    config: RunConfig,
    screen: Path,
    holdout: Path,
    holdout_labels: Path | None,
    truth: Path | None,
    uris: Sequence[str],
    out: Path,
    lineage: Mapping[str, Any],
    store: ObjectStore | None = None,
) -> dict[str, Any]:
    """Writes the report's directory atomically.

    Args:
        config: configuration of the whole run; it is written into the report.
        screen: manifest of the training and unlabelled experiments, or the reference that names the model of new plates.
        holdout: manifest of the held-out experiments (may have no plates), or of the new plates.
        holdout_labels: labels of the held-out wells, a table of id_code and label; not read for new plates.
        truth: labels of unlabelled or new wells, a table of id_code and label, if known. It may lack wells; for new plates,
            wells of experiments that are not predicted are ignored.
        uris: output directories of assign, one a cell type, as paths or object-store URIs.
        out: directory; an earlier report there is replaced.
        lineage: code_version, seeds, started, steps, image_digests, model as far as known; digests of manifests are added.
        store: the store of the packed plates, instead of the manifest's own.

    Returns:
        The content of metrics.json; the score of new plates is called `holdout`.

    Raises:
        InputError: a file is missing or malformed; names file, line, well and field.
    """
    known, held_out = Manifest.read(screen), Manifest.read(holdout)
    new_plates = known.model is not None
    wells, treatments = treatment_wells(known, held_out), known.vocabulary.treatments
    column = config.screen.label_column
    of_truth: Score = "holdout" if new_plates else "unlabelled"
    experiments = {plate.experiment for plate in held_out.plates} if new_plates else None
    labels, remark = read_labels(truth, wells, of_truth, treatments, column, experiments) if truth else ({}, "")
    labelled = len(labels)
    if not new_plates:
        if holdout_labels is None:
            raise InputError(
                "--holdout-labels is missing; give the labels that normalize wrote, or as --screen a manifest that names a "
                f"model, not {screen}"
            )
        training = wells[wells["score"] == "out_of_fold"].dropna(subset="label")
        labels |= dict(zip(training["id_code"], training["label"], strict=True))
        labels |= read_labels(holdout_labels, wells, "holdout", treatments, column)[0]
    outputs, predictions = read_outputs(uris, wells, treatments, config.screen.cell_types)
    predictions = predictions.assign(truth=predictions["id_code"].map(labels))
    lineage = {"code_version": VERSION, **lineage}
    notices = _notices(config, known, held_out, wells, outputs, predictions, lineage)
    if remark:
        progress.warn(f"the truth: {remark}")
        notices.append(("report", f"the truth: {remark}"))
    if truth and labelled < (count := int((predictions["score"] == of_truth).sum())):
        effect = "only those are scored" if labelled else "there is no score"
        kind = "" if new_plates else "unlabelled "
        notices.append(("report", f"the truth has {labelled:,} of {count:,} {kind}wells; {effect}"))
    report = Report(
        config=config,
        screen=known,
        holdout=held_out,
        predictions=predictions,
        arrangements=[
            {**entry, "cell_type": o.cell_type} for o in outputs for entry in o.assign.get("experiments", [])
        ],
        temperatures={o.cell_type: o.assign["temperature"] for o in outputs if o.assign.get("temperature")},
        prior_used=any(output.assign.get("prior_enabled") for output in outputs),
        metrics={},
        lineage=lineage,
        notices=list(dict.fromkeys(notices)),
    )
    names: dict[Score, str] = {"holdout": "predictions.csv"} if new_plates else PREDICTIONS
    own = own_columns(known, held_out, hidden=None if new_plates else holdout_labels)
    # Tables of wells whose truth has to be given do not hold it: they are the same with and without it.
    files = {
        name: saved(predictions[predictions["score"] == score], column, own, truth=score != of_truth)
        for score, name in names.items()
    }
    if new_plates:
        report, page, quality = _of_new_plates(report, outputs, store)
        files["qc.csv"] = quality.join(own, on="id_code")
    else:
        report, page = _of_training(report, outputs, store)
    with atomic_directory(out) as folder:
        for name, table in files.items():
            write_table(folder / name, table)
        for name, content in (("metrics.json", report.metrics), ("lineage.json", report.lineage)):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8")
    progress.note(f"the page has {max(1, round(len(page) / 1e3)):,} kB")
    return dict(report.metrics)


def _of_training(report: Report, outputs: Sequence[AssignOutput], store: ObjectStore | None) -> tuple[Report, str]:
    """Completes the report of a training run by metrics and lineage; also returns its page."""
    config, lineage = report.config, dict(report.lineage)
    # Each epoch once: pretrain's are in the history of every cell type.
    key = ("step", "fold", "cell_type", "backbone", "epoch")
    records = [record for output in outputs for record in output.meta.get("history", [])]
    history = list({tuple(record.get(name) for name in key): record for record in records}.values())
    cell_types = [output.cell_type for output in outputs]
    validated = {(f["fold"], o.cell_type): f["validated"] for o in outputs for f in o.meta.get("folds", [])}
    metrics = build_metrics(report.predictions, cell_types, history, validated, report.screen.more_folds)
    metrics |= _of_prior(report)
    if lineage.get("partial"):
        metrics["partial"] = lineage["partial"]
    if config.mean_teacher.fused_labels:
        metrics["fused_labels"] = config.mean_teacher.fused_labels
        progress.warn("out-of-fold scores of a further round are not independent of their own labels (see the report)")
    if config.init_from:
        lineage["init_from"] = config.init_from
    lineage |= {"manifest_digest": report.screen.digest(), "holdout_manifest_digest": report.holdout.digest()}
    report = replace(report, metrics=metrics, lineage=lineage)
    pictures_of, pictures, note = _pictures(report, store)
    return report, render_report(report, history, pictures, pictures_of, note)


def _of_new_plates(
    report: Report, outputs: Sequence[AssignOutput], store: ObjectStore | None
) -> tuple[Report, str, pd.DataFrame]:
    """Completes the report of new plates by metrics and lineage; also returns its page and the content of qc.csv."""
    plates, model, predictions = report.holdout, report.screen.model, report.predictions
    assert model is not None
    wells = measure_wells(plates, predictions, store if store is not None else ObjectStore(plates.store))
    quality = plate_quality(plates.plates, report.screen.plates, wells, predictions, report.holdout.channels)
    scores = build_metrics(predictions, [output.cell_type for output in outputs], [], {}, {})
    metrics: dict[str, Any] = {
        name: scores[name] for name in ("schema", "holdout", "wells", "labels", "calibration") if name in scores
    }
    metrics |= {"balanced_accuracy": scores["balanced_accuracy"], **_of_prior(report)}
    metrics["quality"] = {
        "wells_to_look_at": int((wells["look_at"] != "").sum()),
        "blurred_plates": int(quality["blurred"].sum()),
        "plates_that_drift": int(quality[columns("beyond", report.holdout.channels)].any(axis=1).sum()),
        "unsure": int((predictions["confidence"] < UNSURE).sum()),
    }
    known = {**report.lineage.get("model", {}), "fingerprint": model.fingerprint, "address": model.address}
    known["generation"] = known.get("generation")
    lineage = {**report.lineage, "model": known, "manifest_digest": plates.digest()}
    report = replace(report, metrics=metrics, lineage=lineage)
    shown = [name for name in quality_columns(report.holdout.channels) if name in wells]
    return report, render_prediction(report, quality, wells), wells[shown]


def _of_prior(report: Report) -> dict[str, Any]:
    return {"temperatures": report.temperatures, **({} if report.prior_used else {"plate_design": False})}


def main(
    config: str, screen: str, holdout: str, holdout_labels: str, truth: str, uris: list[str], results: str
) -> None:
    """`run` on strings, for the KFP component: config as JSON, truth empty if there is none. The run's record has its lineage."""
    with progress.task("report"), tempfile.TemporaryDirectory() as copies:
        manifest = Manifest.read(Path(screen))
        report_status(manifest.store, manifest.run)
        settings = parse(RunConfig, json_object(config, "config"), source="config")
        store = ObjectStore(manifest.store)
        known: dict[str, Any] = {}
        if manifest.run:
            lineage, steps = lineage_of(store, manifest.run), finished_steps(store, manifest.run)
            known = {"run": manifest.run, **lineage, "steps": steps}
        run(
            settings,
            Path(screen),
            Path(holdout),
            Path(holdout_labels),
            local_copy(truth, Path(copies)) if truth else None,
            uris,
            Path(results),
            known,
        )
        if manifest.run:
            # A process that waits on another machine cannot read a pod's files, and a published model needs its scores.
            record_results(store, manifest.run, Path(results))


def _pictures(report: Report, store: ObjectStore | None) -> tuple[Score | None, list[tuple[Any, bytes]], str | None]:
    """The first site of each example well, drawn; a note if there are none. The store may have lost the plates by now."""
    score, table = choose_examples(report.predictions)
    if score is None:
        return None, [], "No truth of a predicted well is known, so there are no right and wrong predictions to show."
    manifest = report.holdout if score == "holdout" else report.screen
    chosen = list(table.itertuples(index=False))
    try:
        reader = SiteReader(store if store is not None else ObjectStore(manifest.store), manifest)
        sites = reader.table
        row = {str(id_code): w for w, id_code in enumerate(sites.id_code_W)}
        rows = [row[str(well.id_code)] for well in chosen]
        images_BCSS = reader.read([int(sites.first_site_W[w]) for w in rows])
    except (InputError, StepError) as error:
        progress.warn(f"the report has no example images: {error}")
        return score, [], f"The images could not be read: {error}"
    limits = [image_strip.contrast_limits(manifest.plates[int(sites.plate_W[w])].histograms) for w in rows]
    strips = [image_strip.draw(image_CSS, limit) for image_CSS, limit in zip(images_BCSS, limits, strict=True)]
    return score, list(zip(chosen, strips, strict=True)), None


def _notices(
    config: RunConfig,
    screen: Manifest,
    holdout: Manifest,
    wells: pd.DataFrame,
    outputs: Sequence[AssignOutput],
    predictions: pd.DataFrame,
    lineage: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """The warnings of all steps, in the steps' order, each with its step."""
    manifests = (holdout,) if screen.model else (screen, holdout)
    notices = [("compile", message) for message in lineage.get("warnings", [])]
    notices += [("normalize", message) for manifest in manifests for message in manifest.warnings]
    if screen.no_design:
        notices.append(("normalize", f"{WITHOUT_DESIGN}: {screen.no_design}"))
    fused = config.mean_teacher.fused_labels
    if fused and not screen.model:
        message = (
            f"a further round on the predictions of {fused}: networks of all folds made them, so out-of-fold scores, and "
            "what is selected or calibrated by them, are not independent of their own labels"
        )
        notices.append(("pseudo_label", message))
    held_out = (wells["score"] == "out_of_fold") & (wells["fold"] < config.folds.count)  # by some fold
    labelled = wells[held_out & ~wells["id_code"].isin(predictions["id_code"])]
    missing = labelled.groupby("cell_type").size()
    said = [set(output.assign.get("warnings", ())) for output in outputs]
    by_all = set.intersection(*said) if len(said) > 1 else set()
    for output in outputs:
        name = output.cell_type
        notices += [
            ("assign" if message in by_all else f"assign {name}", message)
            for message in output.assign.get("warnings", [])
        ]
        if name in missing:
            message = f"{missing[name]:,} labelled wells of {name} have no out-of-fold prediction: folds are missing"
            notices.append(("report", message))
    present = {output.cell_type for output in outputs}
    for name in dict.fromkeys(plate.cell_type for manifest in manifests for plate in manifest.plates):
        if name not in present:
            notices.append(("report", f"no output of assign was given for {name}; it is not in the predictions"))
    return notices


def publish(results: str, page: str, log_metric: Callable[[str, float], None]) -> None:
    """Shows a report in KFP's user interface: copies its page, and logs its overall accuracies, such as `unlabelled_raw`."""
    folder = Path(results)
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "report.html", page)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for score in SCORES:
        for stage, values in metrics.get(score, {}).items():
            log_metric(f"{score}_{stage}", values["overall"])
