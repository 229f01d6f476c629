"""normalize: a screen's tables and PNGs in, packed plates and manifests out. The method is in core.screen.

With a model, the plates are new: their labels are not read, and the screen's manifest is a reference made from the model.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.core import progress
from components.core.config import RunConfig, parse
from components.core.errors import InputError
from components.core.files import write_atomically
from components.core.learning.sphering import check_sphering
from components.core.learning.warm_start import Scored, check_labels, check_networks, scored_by_tables
from components.core.prior.plate_groups import WITHOUT_DESIGN, check_design
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.new_plates import plates_for, reference_of, seen_before
from components.core.registry.published_models import find_model, trained_plates
from components.core.screen.batches import Packing
from components.core.screen.folds import chosen_split, screen_folds, split_remarks
from components.core.screen.histograms import PlateKey, check_controls
from components.core.screen.images import image_form
from components.core.screen.layouts import read_screen
from components.core.screen.manifests import build_manifest, controls_warnings, depth_warning, holdout_labels
from components.core.screen.packing import PackResult, pack_plates
from components.core.screen.screen_source import ScreenSource, source_of
from components.core.screen.wells import Screen
from components.core.storage.manifest import Manifest, PlateRecord
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_screen
from components.core.storage.run_records import RECIPE, PredictionRecord, RunRecord, cluster_run_key, predicting_name
from components.core.storage.runs import read_source, read_source_screen, write_run
from components.core.storage.task_status import report_status
from components.core.tables import csv_bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers of plates packed and found in the store, and of objects written."""

    packed: int
    reused: int
    written: int

    @classmethod
    def of(cls, results: Mapping[PlateKey, PackResult]) -> Summary:
        """Counts results of packing."""
        reused = sum(result.reused for result in results.values())
        return cls(len(results) - reused, reused, sum(result.written for result in results.values()))


def run(
    config: RunConfig,
    source: ScreenSource | Path,
    store: ObjectStore,
    screen_out: Path,
    holdout_out: Path,
    holdout_labels_out: Path,
    record: RunRecord | None = None,
    check_scored: Callable[[Sequence[Scored]], None] = lambda _: None,
) -> Summary:
    """Packs the plates of a screen that are not in the store yet and describes the screen.

    Tables and file names of the whole screen are checked before the first image is read, and the three outputs appear
    after the last plate is packed.

    Args:
        config: the run's configuration, which the manifests pass on to the later steps.
        source: the screen, in either layout; a path is a directory's.
        store: receives plates and the pointers to them.
        screen_out: manifest of the training and unlabelled experiments.
        holdout_out: manifest of the held-out experiments, without their treatments' labels.
        holdout_labels_out: CSV of those labels, id_code and label.
        record: the run, written to the store with its manifests; None without a run.
        check_scored: called before packing with the wells that will score the run; may raise.

    Raises:
        InputError: something is wrong with the screen; names the file, the well and the field.
    """
    source = source_of(source)
    screen = read_screen(source, config.screen)
    trained = [plate for plate in screen.plates if not plate.holdout]
    split = chosen_split(screen.training_plates, config.folds)
    no_design = check_design(trained, screen.vocabulary.treatments, config.prior, split)
    if no_design:
        progress.warn(f"{WITHOUT_DESIGN}: {no_design}")
    remarks = split_remarks(screen.training_plates, config.folds)
    for remark in remarks:
        progress.warn(remark)
    folds, well_folds = screen_folds(screen.training_plates, config.folds)
    check_scored(scored_by_tables(screen, folds, well_folds))

    check_controls(screen.plates, config.standardise, config.batch_norm)
    check_sphering(screen.plates, config.embeddings, config.backbones)
    given = config.screen.image_shape if config.screen.image_size is not None else None
    packing = Packing(source, image_form(source, screen, given), config.pack, store)
    try:
        config.screen.input_side_of(packing.form.shape)
    except ValueError as error:
        raise InputError(f"screen.{error}; lower screen.crop or screen.bin") from None
    packed, warnings = _pack(packing, screen)
    warnings[False][:0] = remarks
    columns = config.screen.own_columns(screen.columns)
    outputs = {holdout_labels_out: csv_bytes(holdout_labels(screen, config.screen.label_column, columns))}
    for path, holdout in ((holdout_out, True), (screen_out, False)):
        manifest = build_manifest(
            screen,
            packed,
            packing,
            holdout=holdout,
            folds=folds,
            well_folds=well_folds,
            warnings=warnings[holdout],
            no_design=no_design,
            columns=columns,
            run=record.key if record else "",
        )
        outputs[path] = _with_config(manifest, config)
    if record:
        plates = [result.prefix for result in packed.values()]
        write_run(store, record, outputs[screen_out], outputs[holdout_out], outputs[holdout_labels_out], plates)
    _write(outputs)
    return Summary.of(packed)


def run_new_plates(
    config: RunConfig,
    model: ModelManifest,
    trained: Sequence[PlateRecord],
    address: str,
    source: ScreenSource,
    experiments: Sequence[str],
    any_cell_type: bool,
    store: ObjectStore,
    screen_out: Path,
    holdout_out: Path,
    holdout_labels_out: Path | None,
    record: RunRecord | None = None,
) -> Summary:
    """Packs new plates and describes them for their prediction by a model.

    Args:
        config: the run's configuration, which the manifests pass on to the later steps.
        model: the model that predicts.
        trained: the plates that it was trained on.
        address: the model's address.
        source: the new plates.
        experiments: those to predict; none for all.
        any_cell_type: whether networks that learned all cell types may predict another one.
        store: receives plates and the pointers to them.
        screen_out: the reference for the training screen, see core.registry.new_plates.
        holdout_out: manifest of the new plates, without labels.
        holdout_labels_out: a table without rows, since no labels are known; None writes none.
        record: the run, written to the store with its manifests; None without a run.

    Raises:
        InputError: something is wrong with the plates, or the model cannot predict them; names the file, the well, the field.
    """
    key = record.key if record else ""
    screen = plates_for(model, source, experiments, any_cell_type, config.screen)
    plates = screen.plates
    check_controls(plates, config.standardise, config.batch_norm)
    check_sphering(plates, config.embeddings, config.backbones)
    packing = Packing(source, image_form(source, screen, model.image_shape), config.pack, store)
    packed, warnings = _pack(packing, screen)
    seen = seen_before(model, plates)
    for message in seen:
        progress.warn(message)
    described = build_manifest(
        screen,
        packed,
        packing,
        holdout=False,
        folds={},
        well_folds={},
        warnings=[*seen, *warnings[False]],
        columns=config.screen.own_columns(screen.columns),
        run=key,
    )
    reference = reference_of(model, trained, address, described.store, key)
    outputs = (
        {holdout_labels_out: csv_bytes(holdout_labels(screen, config.screen.label_column, described.columns))}
        if holdout_labels_out
        else {}
    )
    for path, manifest in ((holdout_out, described), (screen_out, reference)):
        outputs[path] = _with_config(manifest, config)
    if record:
        prediction = PredictionRecord(
            model=model.fingerprint,
            folds={plate.cell_type: model.folds_of(plate.cell_type) for plate in plates},
        )
        record = record.model_copy(update={"prediction": prediction})
        prefixes = [result.prefix for result in packed.values()]
        write_run(store, record, outputs[screen_out], outputs[holdout_out], None, prefixes)
    _write(outputs)
    return Summary.of(packed)


def _pack(packing: Packing, screen: Screen) -> tuple[dict[PlateKey, PackResult], dict[bool, list[str]]]:
    """Packs all plates; returns the warnings of the screen (False) and of its held-out experiments (True)."""
    packed: dict[PlateKey, PackResult] = {}
    warnings = {holdout: controls_warnings(screen.plates, holdout) for holdout in (False, True)}
    held_out = tuple(f"{plate.name}:" for plate in screen.plates if plate.holdout)
    for message in screen.warnings:
        warnings[message.startswith(held_out)].append(message)
    for plate, result in zip(screen.plates, pack_plates(packing, screen.plates), strict=True):
        packed[plate.experiment, plate.plate] = result
        warnings[plate.holdout] += result.warnings
        progress.advance("plates", len(packed), len(screen.plates))
    warnings[False] += depth_warning(packing, packed.values())
    for message in (*warnings[False], *warnings[True]):
        progress.warn(message)
    return packed, warnings


def _with_config(manifest: Manifest, config: RunConfig) -> bytes:
    """A manifest's JSON, with the configuration in it."""
    read = config.model_dump(mode="json", exclude={"cluster", "local"})
    return manifest.model_copy(update={"config": read}).model_dump_json().encode()


def _write(outputs: Mapping[Path, bytes]) -> None:
    """Writes files atomically, one after the other."""
    for path, content in outputs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def _check_start(config: RunConfig, own: ObjectStore, scored: Sequence[Scored]) -> None:
    """Raises, before anything is packed, if pretrain could not start from the configured weights."""
    store, source = read_source(own, config.init_from or "")
    check_networks(source, config.backbones, config.head, config.folds.trained, config.screen.cell_types)
    names = [backbone.name for backbone in config.backbones]
    for remark in check_labels(source, read_source_screen(store, source), scored, config.folds.trained, names):
        progress.warn(remark)


def _record_of(
    config: RunConfig, lineage: str, source: str, fingerprint: str, predicts: bool = False
) -> RunRecord | None:
    """The record of the run that this step starts; None if the lineage has neither its key, `run`, nor the key's recipe."""
    try:
        known = dict(json.loads(lineage))
        if not {"run", RECIPE} & known.keys():
            return None
        if "run" not in known:  # on a cluster source and fingerprint are not known earlier
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            name = predicting_name(config.name) if predicts else config.name
            found = {"run": cluster_run_key(name, known[RECIPE], source, fingerprint), "screen": source}
            known = {**known, **found, "data_fingerprint": fingerprint, "started": now}
        return RunRecord(key=known["run"], config=json.loads(config.model_dump_json()), lineage=known)
    except (ValueError, TypeError):
        raise InputError(
            f"lineage: JSON is expected, with `run` of letters, digits, dots, dashes and underscores; got {lineage!r}"
        ) from None


def _is_waited_for(record: RunRecord | None) -> bool:
    """Whether a process on another machine may wait for the run: it learns of failures through the store alone.

    A run on this machine reports them as events, so that rejected input leaves nothing in the store.
    """
    return record is not None and RECIPE in record.lineage


def main(
    config: str,
    source: str,
    screen: str,
    holdout: str,
    holdout_labels: str,
    model: str = "",
    experiments: str = "[]",
    any_cell_type: bool = False,
    lineage: str = "{}",
    fingerprint: str = "",
) -> Summary:
    """Runs the step on paths, with the store of the configuration.

    Args:
        config: the run's configuration, RunConfig as JSON; sections that no step reads may be missing.
        source: directory of the screen, or its address in a bucket.
        screen: path of the screen's manifest; with a model, of the reference for the training screen.
        holdout: path of the held-out experiments' manifest; with a model, of the new plates'.
        holdout_labels: path of the held-out labels; with a model, of a table without rows, and may be empty.
        model: address of the published model that predicts new plates; empty for a training screen.
        experiments: new plates' experiments to predict as a JSON list; an empty one for all.
        any_cell_type: whether networks that learned all cell types may predict another one.
        lineage: the run's lineage as JSON; the run is recorded if it holds the run's key or its recipe.
        fingerprint: digest of the screen's files, part of a key that is derived from a recipe.
    """
    with progress.task("normalize"):
        settings = parse(RunConfig, json.loads(config), source="config")
        record = _record_of(settings, lineage, source, fingerprint, predicts=bool(model))
        at = settings.store.address
        report_status(at, record.key if record and _is_waited_for(record) else "")
        opened = open_screen(source)
        store = ObjectStore(at)
        store.check()
        outputs = (Path(screen), Path(holdout))
        if model:
            labels = Path(holdout_labels) if holdout_labels else None
            names = json.loads(experiments)
            if not isinstance(names, list):
                raise InputError(f"experiments: a JSON list of names is expected, got {experiments!r}")
            registry, published = find_model(store, model)
            trained = trained_plates(registry, published)
            summary = run_new_plates(
                settings, published, trained, model, opened, names, any_cell_type, store, *outputs, labels, record
            )
        else:
            summary = run(
                settings,
                opened,
                store,
                *outputs,
                Path(holdout_labels),
                record,
                partial(_check_start, settings, store) if settings.init_from else lambda _: None,
            )
        progress.note(f"{summary.packed} plates packed, {summary.reused} reused, {summary.written} objects written")
    return summary
