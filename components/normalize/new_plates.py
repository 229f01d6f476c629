"""normalize of new plates: tables and PNGs in; packed plates, their manifest and the model's reference out. No label is read.

What stands for the training screen is made from the model, see core.registry.reference.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from components.core import progress
from components.core.config import RunConfig, parse
from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.new_plates import check_first_image, plates_for, seen_before
from components.core.registry.published_models import OpenedModel, open_model
from components.core.registry.reference import reference_of
from components.core.screen.manifests import build_manifest
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate, Screen
from components.core.storage.interface import ObjectWriter
from components.core.storage.opening import join_address, open_screen, open_store
from components.core.storage.run_outcome import tell_failures
from components.core.storage.run_record import PredictionRecord, RunRecord, write_run
from components.normalize.config import NormalizeConfig
from components.normalize.record import is_waited_for, record_of
from components.normalize.step import Summary, check_files, pack, write_all


def run(
    config: NormalizeConfig,
    model: OpenedModel,
    address: str,
    place: ScreenSource,
    experiments: Sequence[str],
    any_cell_type: bool,
    store: ObjectWriter,
    reference_out: Path,
    plates_out: Path,
    record: RunRecord | None = None,
) -> Summary:
    """Packs what is not packed yet and describes it.

    Args:
        config: the model's sections, with what a prediction may change.
        model: the model; its networks are not needed.
        address: where it is published.
        place: the new plates.
        experiments: the wanted ones; none for all.
        any_cell_type: whether networks that learned all cell types may name wells of another one.
        store: receives plates and what leads to them.
        reference_out: manifest that stands for the training screen.
        plates_out: manifest of the new plates; no well of it has a label.
        record: the run that this is part of, written to the store beside its manifests; None where there is none.

    Raises:
        InputError: something is wrong with the plates, or the model cannot name them; names the file, the well, the field.
    """
    begun = time.monotonic()
    known = model.manifest
    plates = plates_for(known, place, experiments, any_cell_type, place.address())
    check_first_image(known, place, plates, config.screen.sites, place.address())
    screen = Screen(plates, known.vocabulary)
    check_files(place, screen, config.screen.sites)
    packed, warnings = pack(config, place, screen, store)
    seen = seen_before(known, plates)
    for message in seen:
        progress.warn(message)
    at = store.uri("").rstrip("/")
    described = build_manifest(
        screen,
        packed,
        holdout=False,
        store=at,
        image_size=known.image_size,
        codec=config.pack,
        folds={},
        well_folds={},
        warnings=[*seen, *warnings[False]],
        run=record.key if record else "",
    )
    reference = reference_of(known, model.plates(), address, at, config.pack, record.key if record else "")
    outputs = {
        path: each.model_dump_json().encode() for path, each in ((plates_out, described), (reference_out, reference))
    }
    if record:
        predicted = _prediction(known, address, experiments, any_cell_type, plates)
        record = record.model_copy(update={"prediction": predicted})
        write_run(store, record, outputs[reference_out], outputs[plates_out], None)
    write_all(outputs)
    reused = sum(result.reused for result in packed.values())
    return Summary(
        len(packed) - reused, reused, sum(result.written for result in packed.values()), time.monotonic() - begun
    )


def _prediction(
    model: ModelManifest, address: str, experiments: Sequence[str], any_cell_type: bool, plates: Sequence[Plate]
) -> PredictionRecord:
    """What the run's record says of the prediction."""
    return PredictionRecord(
        model=model.fingerprint,
        address=address,
        experiments=tuple(experiments),
        any_cell_type=any_cell_type,
        folds={plate.cell_type: model.folds_of(plate.cell_type) for plate in plates},
    )


def main(
    config: str,
    source: str,
    model: str,
    experiments: str,
    any_cell_type: bool,
    reference: str,
    plates: str,
    whole_config: str = "",
    lineage: str = "{}",
    fingerprint: str = "",
) -> Summary:
    """Runs the step on paths, with the store of the configuration.

    Args:
        config: NormalizeConfig as JSON.
        source: directory of the new plates, or their address in a bucket.
        model: address of the model.
        experiments: the wanted ones as a JSON list; an empty one for all.
        any_cell_type: whether networks that learned all cell types may name wells of another one.
        reference: path of the manifest that stands for the training screen.
        plates: path of the new plates' manifest.
        whole_config: RunConfig as JSON, for the run's record; empty where a step runs by hand.
        lineage: what is known of the run as JSON, as for normalize of a screen.
        fingerprint: of the plates' files, likewise.
    """
    with progress.task("normalize"), tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        settings = parse(NormalizeConfig, json.loads(config), source="normalize")
        whole = parse(RunConfig, json.loads(whole_config), source="normalize") if whole_config else None
        record = record_of(whole, lineage, source, fingerprint, predicts=True)
        at = join_address(settings.store.bucket, settings.store.prefix)
        tell_failures(at, record.key if record and is_waited_for(record) else "")
        wanted = json.loads(experiments)
        if not isinstance(wanted, list):
            raise InputError(f"experiments: a JSON list of names is expected, got {experiments!r}")
        place = open_screen(source)
        store = open_store(settings.store.bucket, settings.store.prefix)
        store.check()
        opened = open_model(store, model, Path(folder), cell_types=())
        outputs = (Path(reference), Path(plates))
        summary = run(settings, opened, model, place, wanted, any_cell_type, store, *outputs, record)
        progress.note(
            f"{summary.packed} plates packed, {summary.reused} reused, {summary.written} objects written, "
            f"{summary.seconds:.1f} s"
        )
    return summary
