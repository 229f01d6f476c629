"""normalize: a screen's tables and PNGs in, packed plates and manifests out. The method is in core.screen.

With a model, the plates are new: no label of them is read, and the screen's manifest is a reference made from the model.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.core import progress
from components.core.config import PriorConfig, RunConfig, parse
from components.core.errors import InputError, StepError
from components.core.files import write_atomically
from components.core.learning.warm_start import Scored, check_labels, check_networks, scored_by_tables
from components.core.prior.plate_groups import check_design, labelled_treatments
from components.core.registry.new_plates import check_first_image, plates_for, seen_before
from components.core.registry.published_models import OpenedModel, open_model
from components.core.registry.reference import reference_of
from components.core.screen.folds import assign_folds, deal_wells, dealt_wells
from components.core.screen.histograms import PlateKey
from components.core.screen.images import list_plate
from components.core.screen.layouts import read_screen
from components.core.screen.manifests import build_manifest, holdout_labels
from components.core.screen.packing import Packing, PackResult, pack_plates
from components.core.screen.screen_source import ScreenSource, source_of
from components.core.screen.wells import Plate, Screen
from components.core.storage.artifacts import source_store
from components.core.storage.interface import ObjectStorage, ObjectWriter
from components.core.storage.opening import join_address, open_screen, open_store
from components.core.storage.run_outcome import tell_failures
from components.core.storage.run_record import PredictionRecord, RunRecord, write_run
from components.core.storage.source_run import read_source, read_source_screen
from components.normalize.config import NormalizeConfig
from components.normalize.record import is_waited_for, record_of

_SHOWN = 5
_LISTINGS = 8  # folders that are listed side by side


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run of normalize did.

    Attributes:
        packed: plates written.
        reused: plates that were in the store already.
        written: objects written for the plates.
        seconds: duration.
    """

    packed: int
    reused: int
    written: int
    seconds: float


def run(
    config: NormalizeConfig,
    source: ScreenSource | Path,
    store: ObjectWriter,
    screen_out: Path,
    holdout_out: Path,
    holdout_labels_out: Path,
    record: RunRecord | None = None,
    prior: PriorConfig | None = None,
    scored: Callable[[Sequence[Scored]], None] = lambda _: None,
) -> Summary:
    """Packs what is not packed yet and describes the screen.

    Tables and file names of the whole screen are checked before the first image is read, and the three outputs appear
    after the last plate is packed.

    Args:
        config: its sections.
        source: the screen, in either layout; a path is a directory's.
        store: receives plates and what leads to them.
        screen_out: manifest of the training and unlabelled experiments.
        holdout_out: manifest of the held-out experiments, without their treatments' labels.
        holdout_labels_out: CSV of those labels, id_code and sirna.
        record: the run that this is part of, written to the store beside its manifests; None where there is none.
        prior: the labelled plates' design is checked for use with it; None checks nothing.
        scored: hears what will score the run before anything is packed, and may refuse it.

    Raises:
        InputError: something is wrong with the screen; names the file, the well and the field.
    """
    begun = time.monotonic()
    place = source_of(source)
    screen = read_screen(place, config.screen)
    if prior is not None:
        trained = [plate for plate in screen.plates if not plate.holdout]
        check_design(labelled_treatments(trained), screen.vocabulary.treatments, prior)
    folds, well_folds = _folds(config, screen)
    scored(scored_by_tables(screen, folds, well_folds))
    check_files(place, screen, config.screen.sites)

    packed, warnings = pack(config, place, screen, store)
    address = store.uri("").rstrip("/")
    outputs = {holdout_labels_out: _table(holdout_labels(screen))}
    for path, holdout in ((holdout_out, True), (screen_out, False)):
        manifest = build_manifest(
            screen,
            packed,
            holdout=holdout,
            store=address,
            image_size=config.screen.image_size,
            codec=config.pack,
            folds={} if holdout else folds,
            well_folds={} if holdout else well_folds,
            warnings=warnings[holdout],
            run=record.key if record else "",
        )
        outputs[path] = manifest.model_dump_json().encode()
    if record:
        write_run(store, record, outputs[screen_out], outputs[holdout_out], outputs[holdout_labels_out])
    write_all(outputs)
    return _summary(packed, begun)


def run_new_plates(
    config: NormalizeConfig,
    model: OpenedModel,
    address: str,
    source: ScreenSource,
    experiments: Sequence[str],
    any_cell_type: bool,
    store: ObjectWriter,
    screen_out: Path,
    holdout_out: Path,
    holdout_labels_out: Path | None,
    record: RunRecord | None = None,
) -> Summary:
    """Packs new plates and describes them for their prediction by a model.

    Args:
        config: its sections.
        model: the model that predicts; its networks are not needed.
        address: where the model is published.
        source: the new plates.
        experiments: those to predict; none for all.
        any_cell_type: whether networks that learned all cell types may predict another one.
        store: receives plates and what leads to them.
        screen_out: the reference that stands for the training screen, see core.registry.new_plates.
        holdout_out: manifest of the new plates, without labels.
        holdout_labels_out: a table without rows, since no labels are known; None for none.
        record: the run that this is part of, written to the store beside its manifests; None if there is none.

    Raises:
        InputError: something is wrong with the plates, or the model cannot predict them; names the file, the well, the field.
    """
    begun = time.monotonic()
    known, key = model.manifest, record.key if record else ""
    plates = plates_for(known, source, experiments, any_cell_type, source.address())
    check_first_image(known, source, plates, config.screen.sites, source.address())
    screen = Screen(plates, known.vocabulary)
    check_files(source, screen, config.screen.sites)
    packed, warnings = pack(config, source, screen, store)
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
        run=key,
    )
    reference = reference_of(known, model.plates(), address, at, config.pack, key)
    outputs = {holdout_labels_out: _table([])} if holdout_labels_out else {}
    for path, manifest in ((holdout_out, described), (screen_out, reference)):
        outputs[path] = manifest.model_dump_json().encode()
    if record:
        prediction = PredictionRecord(
            model=known.fingerprint,
            address=address,
            experiments=tuple(experiments),
            any_cell_type=any_cell_type,
            folds={plate.cell_type: known.folds_of(plate.cell_type) for plate in plates},
        )
        record = record.model_copy(update={"prediction": prediction})
        write_run(store, record, outputs[screen_out], outputs[holdout_out], None)
    write_all(outputs)
    return _summary(packed, begun)


def _summary(packed: Mapping[PlateKey, PackResult], begun: float) -> Summary:
    reused = sum(result.reused for result in packed.values())
    return Summary(
        len(packed) - reused, reused, sum(result.written for result in packed.values()), time.monotonic() - begun
    )


def _folds(config: NormalizeConfig, screen: Screen) -> tuple[dict[str, int], dict[str, int]]:
    """Fold by experiment and fold by id_code, one of them empty."""
    if config.folds.split == "well":
        return {}, deal_wells(dealt_wells(screen), config.folds.count, config.folds.seed)
    known = config.folds.known
    return assign_folds(screen.training_experiments(), config.folds.count, known, config.folds.seed), {}


def check_files(source: ScreenSource, screen: Screen, sites: int) -> None:
    """Every image that the tables need is there; in a bucket each plate takes several requests to tell."""

    def check(plate: Plate) -> None:
        list_plate(source, plate, sites)

    with ThreadPoolExecutor(_LISTINGS, thread_name_prefix="list") as pool:
        checks = [pool.submit(check, plate) for plate in screen.plates]
        try:
            for done in checks:
                done.result()
        finally:
            for waiting in checks:
                waiting.cancel()


def pack(
    config: NormalizeConfig, source: ScreenSource, screen: Screen, store: ObjectWriter
) -> tuple[dict[PlateKey, PackResult], dict[bool, list[str]]]:
    """Packs all plates; returns the warnings of the screen (False) and of its held-out experiments (True)."""
    packed: dict[PlateKey, PackResult] = {}
    warnings: dict[bool, list[str]] = {False: [], True: []}
    for holdout, found in warnings.items():
        found += _without_controls([plate for plate in screen.plates if plate.holdout == holdout])
    packing = Packing(source, config.screen.sites, config.screen.image_size, config.pack, store)
    for plate, result in zip(screen.plates, pack_plates(packing, screen.plates), strict=True):
        packed[plate.experiment, plate.plate] = result
        warnings[plate.holdout] += result.warnings
        progress.advance("plates", len(packed), len(screen.plates))
    for message in (*warnings[False], *warnings[True]):
        progress.warn(message)
    return packed, warnings


def _without_controls(plates: list[Plate]) -> list[str]:
    bare = [plate.name for plate in plates if all(well.well_type == "treatment" for well in plate.wells)]
    if not bare:
        return []
    more = f" and {len(bare) - _SHOWN} more" if len(bare) > _SHOWN else ""
    return [f"no control wells on {', '.join(bare[:_SHOWN])}{more}"]


def _table(rows: list[tuple[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id_code", "sirna"))
    writer.writerows(rows)
    return text.getvalue().encode()


def write_all(outputs: Mapping[Path, bytes]) -> None:
    """Writes files atomically, one after the other."""
    for path, content in outputs.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:  # a full disk names no file
            raise StepError(f"{path}: cannot be written ({error.strerror})") from None


def _check_start(config: RunConfig, own: ObjectStorage, scored: Sequence[Scored]) -> None:
    """Refuses to pack for a run that pretrain would refuse to start from the weights that it names."""
    store, key = source_store(own, config.init_from or "")
    source = read_source(store, key)
    check_networks(source, config.backbones, config.head, config.folds.trained)
    names = [backbone.name for backbone in config.backbones]
    for remark in check_labels(source, read_source_screen(store, source), scored, config.folds.trained, names):
        progress.warn(remark)


def main(
    config: str,
    source: str,
    screen: str,
    holdout: str,
    holdout_labels: str,
    model: str = "",
    experiments: str = "[]",
    any_cell_type: bool = False,
    whole_config: str = "",
    lineage: str = "{}",
    fingerprint: str = "",
) -> Summary:
    """Runs the step on paths, with the store of the configuration.

    Args:
        config: NormalizeConfig as JSON.
        source: directory of the screen, or its address in a bucket.
        screen: path of the screen's manifest; with a model, of the reference that stands for the training screen.
        holdout: path of the held-out experiments' manifest; with a model, of the new plates'.
        holdout_labels: path of the held-out labels; with a model, of a table without rows, and may be empty.
        model: address of the published model that predicts new plates; empty for a training screen.
        experiments: new plates' experiments to predict as a JSON list; an empty one for all.
        any_cell_type: whether networks that learned all cell types may predict another one.
        whole_config: RunConfig as JSON, for the run's record and the check of the plate design; empty if the step runs by
            hand.
        lineage: what is known of the run as JSON; with its key as `run`, or what that is made of, the run is recorded in the
            store.
        fingerprint: digest of the screen's files, computed when the run was submitted; part of such a key.
    """
    with progress.task("normalize"):
        settings = parse(NormalizeConfig, json.loads(config), source="normalize")
        whole = parse(RunConfig, json.loads(whole_config), source="normalize") if whole_config else None
        record = record_of(whole, lineage, source, fingerprint, predicts=bool(model))
        at = join_address(settings.store.bucket, settings.store.prefix)
        tell_failures(at, record.key if record and is_waited_for(record) else "")
        opened = open_screen(source)
        store = open_store(settings.store.bucket, settings.store.prefix)
        store.check()
        outputs = (Path(screen), Path(holdout))
        if model:
            labels = Path(holdout_labels) if holdout_labels else None
            wanted = _names(experiments)
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                published = open_model(store, model, Path(folder), cell_types=())
                summary = run_new_plates(
                    settings, published, model, opened, wanted, any_cell_type, store, *outputs, labels, record
                )
        else:
            summary = run(
                settings,
                opened,
                store,
                *outputs,
                Path(holdout_labels),
                record,
                whole.prior if whole else None,
                partial(_check_start, whole, store) if whole and whole.init_from else lambda _: None,
            )
        progress.note(
            f"{summary.packed} plates packed, {summary.reused} reused, {summary.written} objects written, "
            f"{summary.seconds:.1f} s"
        )
    return summary


def _names(experiments: str) -> list[str]:
    names = json.loads(experiments)
    if not isinstance(names, list):
        raise InputError(f"experiments: a JSON list of names is expected, got {experiments!r}")
    return names
