"""report: outputs of assign, manifests and truth in; predictions, metrics and one page out. Numbers are core.evaluation.

Truth of unlabelled, held-out and new wells is read here and nowhere else, and only compared with finished predictions.
The report of new plates is another page, with quality control.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from components.core.evaluation.predictions import SAVED, SCORES, UNSURE, Score, with_truth
from components.core.evaluation.report_page import Picture, Report, render
from components.core.evaluation.scores import build_metrics, choose_examples
from components.core.files import atomic_directory
from components.core.screen.packed import SiteReader
from components.core.storage.exchange import local_copy
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest
from components.core.storage.opening import join_address, open_store
from components.core.storage.run_outcome import record_results, report_failures
from components.core.storage.runs import RECIPE, lineage_of
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
class Inputs:
    """What a report is made from.

    Attributes:
        screen: manifest of the training and unlabelled experiments, or the reference that names the model of new plates.
        holdout: manifest of the held-out experiments, or of the new plates.
        wells: the treatment wells of both.
        outputs: the outputs of assign.
        predictions: a predictions table of all of them.
        truth: number of wells in the user's truth; None without one.
        store: where the packed plates are; None for the manifests' own store.
    """

    config: RunConfig
    screen: Manifest
    holdout: Manifest
    wells: TreatmentWells
    outputs: Sequence[AssignOutput]
    predictions: pd.DataFrame
    truth: int | None
    store: ObjectReader | None

    @property
    def arrangements(self) -> list[dict[str, Any]]:
        """`experiments` of all assign.json, each with its cell type."""
        return [entry for output in self.outputs for entry in output.arrangements]

    @property
    def prior_used(self) -> bool:
        """Whether the plate design took part in any prediction."""
        return any(output.assign.get("prior_enabled") for output in self.outputs)

    @property
    def temperatures(self) -> dict[str, Any]:
        """The temperatures of the confidences by cell type."""
        return {o.cell_type: o.assign["temperature"] for o in self.outputs if o.assign.get("temperature")}

    @property
    def cell_types(self) -> list[str]:
        """The cell types with predictions, in the configuration's order."""
        return [output.cell_type for output in self.outputs]


@dataclass(frozen=True)
class Content:
    """What a report consists of.

    Attributes:
        metrics: content of metrics.json.
        lineage: content of lineage.json.
        page: content of report.html.
        quality: quality control of new plates; None for a training run.
    """

    metrics: dict[str, Any]
    lineage: Mapping[str, Any]
    page: str
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
    """Writes the report's directory atomically.

    Args:
        config: configuration of the whole run; it is written into the report.
        screen: manifest of the training and unlabelled experiments, or the reference that names the model of new plates.
        holdout: manifest of the held-out experiments, which may have no plates; or of the new plates.
        holdout_labels: labels of the held-out wells, id_code,sirna; not read for new plates, which have none.
        truth: labels of unlabelled or new wells, id_code,sirna, if known. It may lack wells; for new plates it may also hold
            wells of experiments that are not predicted, which are ignored.
        uris: output directories of assign, one a cell type, as paths or object-store URIs.
        out: directory to write; an earlier report there is replaced.
        lineage: code_version, seeds, started, steps, image_digests, model as far as known; digests of manifests are added.
        store: where the packed plates are, instead of the manifest's own store.

    Returns:
        The content of metrics.json; the score of new plates is called `holdout`.

    Raises:
        InputError: a file is missing or malformed; names file, line, well and field.
    """
    known, held_out = Manifest.read(screen), Manifest.read(holdout)
    new_plates = known.model is not None
    if not new_plates and holdout_labels is None:
        raise InputError(
            "--holdout-labels is missing; give the labels that normalize wrote, or as --screen a manifest that names a model, "
            f"not {screen}"
        )
    wells = TreatmentWells.of(known, held_out)
    experiments = {plate.experiment for plate in held_out.plates} if new_plates else None
    truth_labels = read_labels(truth, wells, "holdout" if new_plates else "unlabelled", experiments) if truth else {}
    labels = dict(truth_labels)
    if not new_plates and holdout_labels is not None:
        labels |= wells.labels() | read_labels(holdout_labels, wells, "holdout")
    outputs, predictions = read_outputs(uris, wells, config)
    if new_plates:
        predictions = predictions[predictions["score"] == "holdout"]
    predictions = with_truth(predictions, labels)
    inputs = Inputs(config, known, held_out, wells, outputs, predictions, len(truth_labels) if truth else None, store)
    lineage = {"code_version": installed_version(), **lineage}
    content = _of_new_plates(inputs, lineage) if new_plates else _of_training(inputs, lineage)
    with atomic_directory(out) as folder:
        if content.quality is not None:
            write_predictions(folder / "predictions.csv", predictions)
            write_quality(folder / "qc.csv", held_out, content.quality, predictions)
        else:
            for score in SCORES:
                write_predictions(folder / PREDICTIONS[score], predictions[predictions["score"] == score])
        (folder / "metrics.json").write_text(json.dumps(content.metrics, indent=2) + "\n", encoding="utf-8")
        (folder / "lineage.json").write_text(json.dumps(content.lineage, indent=2) + "\n", encoding="utf-8")
        (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
        (folder / "report.html").write_text(content.page, encoding="utf-8")
    progress.note(f"report: {out / 'report.html'} ({len(content.page) / 1e6:.1f} MB)")
    return content.metrics


def _of_training(inputs: Inputs, lineage: dict[str, Any]) -> Content:
    """The report of a training run: scores of all kinds of wells, and its page."""
    config, history = inputs.config, merge_history(inputs.outputs)
    metrics = build_metrics(inputs.predictions, inputs.cell_types, history, merge_validated(inputs.outputs))
    metrics["temperatures"] = inputs.temperatures
    if lineage.get("partial"):
        metrics["partial"] = lineage["partial"]
    if config.mean_teacher.fused_labels:
        metrics["fused_labels"] = config.mean_teacher.fused_labels
        progress.warn("out-of-fold scores of a further round are not independent of their own labels (see the report)")
    if config.init_from:
        lineage["init_from"] = config.init_from
    lineage |= {"manifest_digest": inputs.screen.digest(), "holdout_manifest_digest": inputs.holdout.digest()}
    pictures_of, pictures, note = _pictures(inputs)
    page = render(
        Report(
            config=config,
            screen=inputs.screen,
            holdout=inputs.holdout,
            predictions=inputs.predictions,
            metrics=metrics,
            history=history,
            arrangements=inputs.arrangements,
            temperatures=inputs.temperatures,
            prior_used=inputs.prior_used,
            pictures=pictures,
            pictures_of=pictures_of,
            pictures_note=note,
            notices=_notices(inputs, lineage),
            lineage=lineage,
        )
    )
    return Content(metrics, lineage, page)


def _of_new_plates(inputs: Inputs, lineage: dict[str, Any]) -> Content:
    """The report of new plates: their predictions and quality control, and a score if there is a truth."""
    plates, model = inputs.holdout, inputs.screen.model
    assert model is not None
    store = inputs.store if inputs.store is not None else open_store(plates.store)
    quality = look_at(plates, inputs.screen, inputs.predictions, store)
    scores = build_metrics(inputs.predictions, inputs.cell_types, [], {})
    metrics: dict[str, Any] = {
        name: scores[name] for name in ("schema", "holdout", "wells", "calibration") if name in scores
    }
    metrics["temperatures"] = inputs.temperatures
    metrics["quality"] = {
        "wells_to_look_at": sum(map(bool, quality.reasons.values())),
        "blurred_plates": sum(plate.blurred for plate in quality.plates),
        "plates_that_drift": sum(any(plate.beyond_C) for plate in quality.plates),
        "unsure": int((inputs.predictions["confidence"] < UNSURE).sum()),
    }
    known = {**lineage.get("model", {}), "fingerprint": model.fingerprint, "address": model.address}
    known.setdefault("generation", None)
    lineage |= {"model": known, "manifest_digest": plates.digest()}
    page = render_prediction(
        Prediction(
            config=inputs.config,
            plates=plates,
            reference=inputs.screen,
            predictions=inputs.predictions,
            arrangements=inputs.arrangements,
            prior_used=inputs.prior_used,
            quality=quality.plates,
            reasons=quality.reasons,
            notices=_notices(inputs, lineage),
            lineage=lineage,
        )
    )
    return Content(metrics, lineage, page, quality)


def main(
    config: str, screen: str, holdout: str, holdout_labels: str, truth: str, uris: list[str], lineage: str, results: str
) -> None:
    """`run` on strings, for the KFP component: config and lineage as JSON, truth empty if there is none."""
    with progress.task("report"), tempfile.TemporaryDirectory() as copies:
        settings = parse(RunConfig, json_object(config, "config"), source="config")
        manifest = Manifest.read(Path(screen))
        known = with_start(json_object(lineage, "lineage"), manifest)
        report_failures(join_address(settings.store.bucket, settings.store.prefix), str(known.get("run", "")))
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


def _pictures(inputs: Inputs) -> tuple[Score | None, list[Picture], str | None]:
    """The first site of each example well, drawn; a note if there are none. Plates may be gone from the store by now."""
    score, table = choose_examples(inputs.predictions)
    if score is None:
        return None, [], "No well's truth is known, so there are no right and wrong predictions to show."
    manifest = inputs.holdout if score == "holdout" else inputs.screen
    chosen = list(table.itertuples(index=False))
    try:
        reader = SiteReader(inputs.store if inputs.store is not None else open_store(manifest.store), manifest)
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


def _notices(inputs: Inputs, lineage: Mapping[str, Any]) -> list[Notice]:
    """Everything a reader should look at, in the order of the steps."""
    new_plates = inputs.screen.model is not None
    manifests = (inputs.holdout,) if new_plates else (inputs.screen, inputs.holdout)
    notices = [Notice("compile", message) for message in lineage.get("warnings", [])]
    notices += [Notice("normalize", message) for manifest in manifests for message in manifest.warnings]
    fused = inputs.config.mean_teacher.fused_labels
    if fused and not new_plates:
        message = (
            f"a further round on the predictions of {fused}: networks of all folds made them, so out-of-fold scores, and "
            "what is selected or calibrated by them, are not independent of their own labels"
        )
        notices.append(Notice("pseudo_label", message))
    predicted = inputs.predictions.groupby(["score", "cell_type"]).size()
    for output in inputs.outputs:
        name = output.cell_type
        notices += [Notice(f"assign {name}", message) for message in output.assign.get("warnings", [])]
        labelled = int((inputs.wells.of_score("out_of_fold")["cell_type"] == name).sum())
        missing = labelled - int(predicted.get(("out_of_fold", name), 0))
        if missing and not new_plates:
            message = f"{missing:,} labelled wells of {name} have no out-of-fold prediction: folds are missing"
            notices.append(Notice("report", message))
    plates = [plate for manifest in manifests for plate in manifest.plates]
    for name in dict.fromkeys(plate.cell_type for plate in plates):
        if name not in inputs.cell_types:
            message = f"no output of assign was given for {name}; it is not in the predictions"
            notices.append(Notice("report", message))
    of_truth = "holdout" if new_plates else "unlabelled"
    wells = int((inputs.predictions["score"] == of_truth).sum())
    if inputs.truth is not None and inputs.truth < wells:
        so = "the score is of those" if inputs.truth else "there is no score"
        message = f"the truth has {inputs.truth:,} of {wells:,} {'unlabelled ' * (not new_plates)}wells; {so}"
        notices.append(Notice("report", message))
    return list(dict.fromkeys(notices))


def write_predictions(path: Path, predictions: pd.DataFrame) -> None:
    """Writes the columns of a predictions table that users get."""
    write_table(path, predictions[list(SAVED)])


def with_start(lineage: dict[str, Any], screen: Manifest) -> dict[str, Any]:
    """The lineage with key, screen and start from the run's record: on a cluster they are not known at submission."""
    if RECIPE not in lineage or "run" in lineage or not screen.run:
        return lineage
    return {**lineage, "run": screen.run, **lineage_of(open_store(screen.store), screen.run)}


def with_durations(lineage: dict[str, Any]) -> dict[str, Any]:
    """The lineage with the durations of the tasks finished so far, if this process ran them."""
    steps = progress.finished_tasks()
    return {**lineage, "steps": steps} if steps else lineage


def json_object(text: str, name: str) -> dict[str, Any]:
    """Parses a JSON object, empty for an empty text; `name` is for errors."""
    try:
        data = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{name}: a JSON object was expected")
    return data


def installed_version() -> str:
    """The version of the installed package."""
    try:
        return version("cellsignal")
    except PackageNotFoundError:
        return "not installed"


def publish(results: str, page: str, log_metric: Callable[[str, float], None]) -> None:
    """Shows a finished report in the KFP user interface: its page and its overall accuracies.

    Args:
        results: folder that the report step wrote.
        page: path of the HTML artifact.
        log_metric: called with name and value, for example `unlabelled_assigned`.
    """
    folder = Path(results)
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "report.html", page)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for score in ("out_of_fold", "unlabelled", "holdout"):
        for stage, values in metrics.get(score, {}).items():
            if isinstance(values, dict) and values.get("overall") is not None:
                log_metric(f"{score}_{stage}", float(values["overall"]))
