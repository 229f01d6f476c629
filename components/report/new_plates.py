"""report of new plates: assign outputs and manifests in; predictions, quality control and one page out.

Truth, if any, is read here and nowhere else, and only compared with finished predictions.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.core import progress
from components.core.config import RunConfig, parse
from components.core.errors import InputError
from components.core.evaluation.page import Notice
from components.core.evaluation.prediction_page import Prediction, render
from components.core.evaluation.predictions import UNSURE, with_truth
from components.core.evaluation.scores import build_metrics
from components.core.files import atomic_directory
from components.core.storage.artifacts import local_copy
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest
from components.core.storage.opening import open_store
from components.core.storage.run_outcome import record_results, tell_failures
from components.report.inputs import AssignOutput, TreatmentWells, read_labels, read_outputs
from components.report.quality import look_at, write_quality
from components.report.step import (
    installed_version,
    json_object,
    not_reported,
    with_durations,
    with_start,
    write_predictions,
)


def run(
    config: RunConfig,
    reference: Path,
    plates: Path,
    truth: Path | None,
    uris: Sequence[str],
    out: Path,
    lineage: Mapping[str, Any],
    store: ObjectReader | None = None,
) -> dict[str, Any]:
    """Writes the report's directory, whole or not at all.

    Args:
        config: of the prediction; it is written into the report.
        reference: manifest that stands for the training screen.
        plates: manifest of the new plates.
        truth: labels of their treatment wells, id_code,sirna, where known; may name some wells only, and those of other
            experiments, which are left alone.
        uris: output directories of assign, one a cell type, as paths or object-store URIs.
        out: directory to write: predictions.csv, qc.csv, metrics.json, lineage.json, config.yaml, report.html.
        lineage: `model` (name, run, code_version, generation), and code_version, started, screen as far as known.
        store: where the packed plates are, instead of the manifest's own store.

    Returns:
        The content of metrics.json: scores as `holdout` where a truth was given, and `quality`.

    Raises:
        InputError: a file is missing or malformed; names file, row and field.
    """
    known, new = Manifest.read(reference), Manifest.read(plates)
    if known.model is None:
        raise InputError(f"{reference}: names no model; give the reference that normalize wrote for new plates")
    wells = TreatmentWells.of(known, new)
    experiments = {plate.experiment for plate in new.plates}
    labels = read_labels(truth, wells, "holdout", experiments) if truth else {}
    outputs, predictions = read_outputs(uris, wells, config)
    predictions = with_truth(predictions[predictions["score"] == "holdout"], labels)
    quality = look_at(new, known, predictions, store if store is not None else open_store(new.store))
    found = build_metrics(predictions, [output.cell_type for output in outputs], [], {})
    metrics = {name: found[name] for name in ("schema", "holdout", "wells", "calibration") if name in found}
    metrics["temperatures"] = {output.cell_type: output.assign["temperature"] for output in outputs}
    metrics["quality"] = {
        "wells_to_look_at": sum(map(bool, quality.reasons.values())),
        "blurred_plates": sum(plate.blurred for plate in quality.plates),
        "plates_that_drift": sum(any(plate.beyond_C) for plate in quality.plates),
        "unsure": int((predictions["confidence"] < UNSURE).sum()),
    }
    told = {
        "code_version": installed_version(),
        **lineage,
        "model": {**lineage.get("model", {}), "fingerprint": known.model.fingerprint, "address": known.model.address},
        "manifest_digest": new.digest(),
    }
    told["model"].setdefault("generation", None)
    page = render(
        Prediction(
            config=config,
            plates=new,
            reference=known,
            predictions=predictions,
            arrangements=[entry for output in outputs for entry in output.arrangements],
            prior_used=any(output.assign.get("prior_enabled") for output in outputs),
            quality=quality.plates,
            reasons=quality.reasons,
            notices=[
                *(Notice("compile", message) for message in told.get("warnings", [])),
                *_notices(new, outputs, labels if truth else None, len(predictions)),
            ],
            lineage=told,
        )
    )
    with atomic_directory(out) as folder:
        write_predictions(folder / "predictions.csv", predictions)
        write_quality(folder / "qc.csv", new, quality, predictions)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (folder / "lineage.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8")
    progress.note(f"report: {out / 'report.html'} ({len(page) / 1e6:.1f} MB)")
    return metrics


def _notices(
    plates: Manifest, outputs: Sequence[AssignOutput], labels: Mapping[str, str] | None, wells: int
) -> list[Notice]:
    """Everything a reader should look at, in the order of the steps; labels are None without a truth."""
    notices = [Notice("normalize", message) for message in plates.warnings]
    for output in outputs:
        notices += [Notice(f"assign {output.cell_type}", message) for message in output.assign.get("warnings", [])]
    notices += not_reported(outputs, plates.plates)
    if labels is not None and len(labels) < wells:
        so = "the score is of those" if labels else "there is no score"
        notices.append(Notice("report", f"the truth has {len(labels):,} of {wells:,} wells; {so}"))
    return list(dict.fromkeys(notices))


def main(config: str, reference: str, plates: str, truth: str, uris: list[str], lineage: str, out: str) -> None:
    """`run` on strings, for the KFP component: config and lineage as JSON, truth empty where there is none."""
    with progress.task("report"), tempfile.TemporaryDirectory() as copies:
        settings, new = parse(RunConfig, json_object(config, "config"), source="config"), Manifest.read(Path(plates))
        tell_failures(new.store, new.run)
        run(
            settings,
            Path(reference),
            Path(plates),
            local_copy(truth, Path(copies)) if truth else None,
            uris,
            Path(out),
            with_durations(with_start(json_object(lineage, "lineage"), new)),
        )
        if new.run:
            record_results(open_store(new.store), new.run, Path(out))
