"""Cheap checks of a run's input: the configuration, the files it refers to, and the screen's tables.

They run before anything is written and before hours of training. Imports neither torch nor kfp.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from components.core.config import RunConfig
from components.core.config.method import XCEPTION
from components.core.errors import InputError
from components.core.label_tables import matched_labels, read_label_table
from components.core.learning.sphering import check_sphering
from components.core.learning.warm_start import check_networks
from components.core.prior.pseudo_labels import read_fused_labels
from components.core.screen.folds import experiment_folds, screen_folds
from components.core.screen.histograms import check_controls
from components.core.screen.inspection import checked_screen
from components.core.screen.layouts import read_screen
from components.core.screen.screen_source import ScreenSource
from components.core.screen.simulation.plate_design import SimulationSettings, experiment_size
from components.core.screen.wells import Plate, Screen
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import is_bucket, open_screen
from components.core.storage.runs import read_source
from components.core.tables import TableFaults

FUSED = "mean_teacher.fused_labels"
MOST_SIMULATED_GB = 50
"""A larger simulated screen is probably a mistake; `cellsignal simulate` still writes it."""
SMALLEST_LIKE_IMAGENET = 224
"""Side of the networks' input, pixels."""


def check_input(config: RunConfig, screen: str | None, truth: Path | None) -> Screen | None:
    """Checks the input of `cellsignal run`: a directory of a screen or its address in a bucket, or None to simulate one.

    Returns:
        The screen's tables; None if there is no screen yet.

    Raises:
        InputError: names the option, file, row or field, and what to do.
    """
    check_files(config)
    refuse_interpreter(config.model_dump(mode="json"))
    if screen is None:
        if truth is not None:
            raise InputError(
                "--truth: a simulated screen has its own truth; give --screen as well, or leave out --truth"
            )
        _check_simulated(config)
        return None
    return check_screen(config, screen_source(screen), truth)


def check_screen(config: RunConfig, source: ScreenSource, truth: Path | None) -> Screen:
    """Checks a screen as check-screen does, and its tables against the configuration.

    Args:
        config: the run's configuration.
        source: the screen.
        truth: labels of its unlabelled wells.

    Raises:
        InputError: names the option, file, row or field, and what to do.
    """
    try:
        found = checked_screen(source, config.screen)
    except InputError as error:
        raise InputError(f"{error}{_also_of_truth(config, source, truth)}") from None
    check_configured(config, found, truth)
    return found


def check_configured(config: RunConfig, found: Screen, truth: Path | None) -> None:
    """Checks the tables of a screen, and the labels of its unlabelled wells, against the configuration.

    Raises:
        InputError: names the option, row or field, and what to do.
    """
    check_controls(found.plates, config.standardise, config.batch_norm)
    check_sphering(found.plates, config.embeddings, config.backbones)
    check_folds(config, found.training_experiments())
    screen_folds(found.training_plates, config.folds)
    if truth is not None:
        check_truth(truth, unlabelled_wells(found.plates), found.vocabulary.treatments, config.screen.label_column)
    fused = local_files(config).get(FUSED)
    if fused is not None:
        _check_fused(config.mean_teacher.fused_labels or str(fused), fused, found, config.screen.label_column)


def _also_of_truth(config: RunConfig, source: ScreenSource, truth: Path | None) -> str:
    """What is to be said of the labels of unlabelled wells of a screen that is refused, if its tables can be read."""
    if truth is None:
        return ""
    try:
        found = read_screen(source, config.screen, images=False)
    except InputError:
        return ""
    try:
        wells, treatments = unlabelled_wells(found.plates), found.vocabulary.treatments
        remark = check_truth(truth, wells, treatments, config.screen.label_column)
    except InputError as error:
        return f" | and {error}"
    return f" | --truth {truth} can be read: {remark}" if remark else ""


def check_start(config: RunConfig) -> None:
    """Checks the run whose weights a new run starts from: it exists, and has the same networks and folds.

    normalize and pretrain, which read the screen's tables, check whether the new run may use what it learned.

    Raises:
        InputError: names the run, and the backbone, field or fold.
    """
    if not config.init_from:
        return
    _, source = read_source(ObjectStore(config.store.address), config.init_from)
    check_networks(source, config.backbones, config.head, config.folds.trained, config.screen.cell_types)


def weights_remarks(config: RunConfig) -> list[str]:
    """A warning if the published method's `xception`, which started from ImageNet's weights, starts from random ones.

    Of small images, for which these weights are not known to help, there is none.
    """
    if config.init_from or config.screen.input_side < SMALLEST_LIKE_IMAGENET:
        return []
    return [
        f"backbones.{n}.weights is null: {backbone.name} starts from random weights, in the published method from ImageNet's. "
        "Where the internet is, write them by `python -c \"import timm, torch; torch.save(timm.create_model('legacy_xception', "
        f"pretrained=True).state_dict(), 'xception.pt')\"`, and set backbones.{n}.weights to the file or its s3:// address"
        for n, backbone in enumerate(config.backbones)
        if backbone.model_copy(update={"depthwise_init": XCEPTION.depthwise_init}) == XCEPTION
    ]


def screen_source(screen: str) -> ScreenSource:
    """Opens --screen.

    Raises:
        InputError: no such folder, or an invalid address.
    """
    if "://" not in screen and not Path(screen).is_dir():
        raise InputError(f"--screen {screen}: no such folder")
    try:
        return open_screen(screen)
    except InputError as error:
        raise InputError(f"--screen {screen}: {error}") from None


def truth_file(truth: str | None) -> Path | None:
    """The file of --truth on this machine.

    Raises:
        InputError: an address.
    """
    if truth is not None and "://" in truth:
        raise InputError(f"--truth {truth}: an address is read on a cluster only; download it and give the file")
    return Path(truth) if truth is not None else None


def local_files(config: RunConfig) -> dict[str, Path]:
    """Files on this machine that the configuration refers to, by field."""
    found = {}
    for field, address in _addresses(config).items():
        if is_bucket(address):
            continue
        if "://" in address and not address.startswith("file://"):
            raise InputError(f"{field}: {address} is neither a file nor an s3:// address; download it first")
        found[field] = Path(unquote(urlsplit(address).path) if address.startswith("file://") else address)
    return found


def stored_files(config: RunConfig) -> dict[str, str]:
    """Addresses of files in an object store that the configuration refers to, by field."""
    return {field: address for field, address in _addresses(config).items() if is_bucket(address)}


def _addresses(config: RunConfig) -> dict[str, str]:
    """Addresses of files in the configuration, by field."""
    named = {f"backbones[{k}].weights": backbone.weights for k, backbone in enumerate(config.backbones)}
    return {field: address for field, address in {**named, FUSED: config.mean_teacher.fused_labels}.items() if address}


def check_files(config: RunConfig) -> None:
    """Checks the files of this machine that the configuration refers to; the steps check those in an object store.

    Raises:
        InputError: a file that does not exist, or holds no weights; names the field.
    """
    for field, path in local_files(config).items():
        if not path.is_file():
            instead = "predict pseudo-labels" if field == FUSED else "start at random"
            address = _addresses(config)[field]
            raise InputError(f"{field}: there is no file {address}; correct the path, or leave it out to {instead}")
        if field != FUSED and not _may_be_weights(path):
            raise InputError(f"{field}: {path} holds no weights; give a file of .safetensors, or of torch.save")


def _may_be_weights(path: Path) -> bool:
    """Whether a file begins as safetensors (a length, then JSON) or as torch.save writes (ZIP, or a pickle)."""
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors":
        return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    return start.startswith((b"PK", b"\x80"))


def refuse_interpreter(value: Any, field: str = "") -> None:
    """Raises InputError for a value with `python3`, which kfp.local replaces by the interpreter's path in a task's arguments."""
    if isinstance(value, dict):
        for key, inner in value.items():
            refuse_interpreter(key, field)
            refuse_interpreter(inner, f"{field}.{key}" if field else key)
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            refuse_interpreter(inner, f"{field}.{n}")
    elif isinstance(value, str) and "python3" in value:
        raise InputError(
            f"{field}: kfp.local cannot take a value with 'python3' in it, got {value!r}; use another name"
        )


def _check_fused(source: str, path: Path, screen: Screen, column: str) -> None:
    """Checks the predictions of an earlier run, which pseudo_label reads only after hours of training."""
    wells = [
        (well.id_code, plate.experiment, plate.plate)
        for plate in unlabelled_wells(screen.plates)
        for well in plate.wells
    ]
    ids, experiments, plates = zip(*wells, strict=True) if wells else ((), (), ())
    everything = np.ones(len(ids), dtype=bool)
    read_fused_labels(path, ids, everything, experiments, plates, screen.vocabulary.treatments, column, source)


def _check_simulated(config: RunConfig) -> None:
    simulate, screen = config.simulate, config.screen
    size, images = experiment_size(simulate), config.section(SimulationSettings).images
    experiments = sum(simulate.labelled.values()) + sum(simulate.unlabelled.values())
    wells = experiments * size.plates * (size.treatments + size.controls)
    pixels = math.prod(images.site_shape)
    gigabytes = wells * screen.usual_sites * pixels * np.dtype(images.dtype).itemsize / 1e9
    if gigabytes > MOST_SIMULATED_GB:
        raise InputError(
            f"--screen is missing: a simulated screen of this configuration has {gigabytes:.0f} GB of pixels (at most "
            f"{MOST_SIMULATED_GB}); give --screen, or make screen.image_size or the numbers under simulate smaller"
        )
    check_folds(config, simulated_experiments(config))


def simulated_experiments(config: RunConfig) -> dict[str, list[str]]:
    """The labelled experiments of a simulated screen that are not held out, by cell type.

    Raises:
        InputError: a cell type or an experiment that the rest of the configuration does not fit; names the field.
    """
    for split, table in (("labelled", config.simulate.labelled), ("unlabelled", config.simulate.unlabelled)):
        for cell_type in table:
            if cell_type not in config.screen.cell_types:
                raise InputError(
                    f"simulate.{split} names {cell_type!r}, which is not in screen.cell_types; correct one of them"
                )
    labelled = {
        cell_type: [f"{cell_type}-{n + 1:02d}" for n in range(count)]
        for cell_type, count in config.simulate.labelled.items()
    }
    known = [name for names in labelled.values() for name in names]
    held_out = config.screen.holdout_experiments
    for experiment in held_out:
        if experiment not in known:
            raise InputError(
                f"screen.holdout_experiments: {experiment} is not a labelled experiment of the simulated screen; "
                f"those are {', '.join(sorted(known))}"
            )
    return {cell_type: [name for name in names if name not in held_out] for cell_type, names in labelled.items()}


def check_folds(config: RunConfig, experiments: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Checks that every trained fold leaves labelled experiments of every cell type to train on.

    `experiments` are the labelled ones that are not held out, by cell type. Returns the folds that validate on each of them; empty
    if folds hold out plates or wells.

    Raises:
        InputError: names the fold and the cell type.
    """
    folds: dict[str, tuple[int, ...]] = {}
    given = config.folds.known or config.folds.validation
    if config.folds.split == "experiment" and (given or sum(map(len, experiments.values())) != 1):
        folds = experiment_folds(experiments, config.folds)
    for cell_type in config.screen.cell_types:
        names = experiments.get(cell_type, ())
        if not names:
            raise InputError(
                f"screen.cell_types: {cell_type} has no labelled experiment that is not held out; "
                "add one, or remove the cell type from the list"
            )
        of_all = [fold for fold in config.folds.trained if folds and all(fold in folds[name] for name in names)]
        if of_all:
            raise InputError(
                f"fold {of_all[0]} validates on all labelled experiments of {cell_type} ({', '.join(names)}) and "
                "has none to train on; set folds.split to plate or well, add an experiment, or remove the cell type from the "
                "screen and screen.cell_types"
            )
    return folds


def unlabelled_wells(plates: Iterable[Plate]) -> list[Plate]:
    """Plates that are not held out, with their unlabelled treatment wells alone; labelled experiments may have some, too."""
    return [
        replace(
            plate,
            wells=tuple(well for well in plate.wells if well.role == "treatment" and well.perturbation is None),
        )
        for plate in plates
        if not plate.holdout
    ]


def check_truth(
    truth: Path,
    plates: Iterable[Plate],
    treatments: Collection[str],
    column: str,
    of: str = "an unlabelled experiment of this screen",
    others: Iterable[Plate] = (),
) -> str:
    """Checks the labels that the report scores by, a table of id_code and label, before anything is trained or predicted.

    The treatment wells of `plates`, which errors call `of`, are scored; those of `others` may be in the table.

    Returns:
        What to tell the user of labels that are written in another way, which the report says; empty if there are none.

    Raises:
        InputError: it cannot be read, or has an unknown well or perturbation, or a duplicate well.
    """
    name = f"--truth {truth}"
    if truth.exists() and not truth.is_file():
        raise InputError(f"{name}: is not a file")
    table, column = read_label_table(truth, column, name=name)
    wells, ignored = (
        {well.id_code for plate in some for well in plate.wells if well.role == "treatment"}
        for some in (plates, others)
    )
    table = table[~table["id_code"].isin(list(ignored))]
    faults = TableFaults(name, table)
    faults.require_one_of(["id_code"], wells, f"it is not a treatment well of {of}: remove the row")
    table[column], remark = matched_labels(table[column], treatments)
    faults.require_one_of([column], treatments, "it is not a treatment of this screen: use the labels of its tables")
    faults.require_unique("id_code")
    faults.check()
    return remark
