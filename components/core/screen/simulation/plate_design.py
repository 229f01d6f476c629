"""Settings, random streams and plates of a simulated screen, with RxRx1's plate design or without one. Pure.

Every plate, well and site draws from its own random stream, seeded by its position in the screen. So the pixels do not depend
on how many processes render them, and a screen with one more experiment contains the smaller one.

In RxRx1's design the treatments form four disjoint groups, each plate of an experiment holds one group, and which plate holds
which group is a cyclic rotation. Positive controls are on every plate; the wells of the treatments differ between experiments.
Without a design every plate holds the same compounds, replicated, and the controls at random wells.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from components.core.config import PLATE_FORMATS, CompoundsConfig, FrozenModel, ScreenConfig, SimulateConfig
from components.core.screen.plane_header import ImageForm
from components.core.screen.wells import COLUMNS, ROWS, well_key
from components.core.storage.manifest import Role


class SimulationSettings(FrozenModel):
    """The sections of a RunConfig that the simulated screen depends on."""

    seed: int = 0
    screen: ScreenConfig = ScreenConfig()
    simulate: SimulateConfig = SimulateConfig()

    @property
    def images(self) -> ImageForm:
        """Channels, size and depth of the images."""
        return ImageForm(
            self.screen.channel_names, self.screen.image_shape, "uint16" if self.simulate.bits == 16 else "uint8"
        )


def stream(seed: int, *position: str | int) -> np.random.Generator:
    """The random generator of a position in the screen, which names and numbers identify: "site", "HUVEC-01", 2, "B03", 1."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in position]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


PLATES = 4
"""Plates of an experiment in RxRx1's design, each with one group."""


def used_wells(plate_format: int) -> tuple[str, ...]:
    """The wells that are used, in row-major order: from 384 wells on not those at the edge, as on RxRx1.

    Args:
        plate_format: number of wells, one of PLATE_FORMATS.
    """
    rows, columns = PLATE_FORMATS[plate_format]
    edge = 1 if plate_format >= 384 else 0
    return tuple(row + column for row in ROWS[edge : rows - edge] for column in COLUMNS[edge : columns - edge])


USED_WELLS = used_wells(384)
"""The inner 308 wells of a 384-well plate."""
NEGATIVE_WELL = "B02"
POSITIVE_WELLS = tuple(f"{row}{column:02d}" for row in "CFHJM" for column in (3, 7, 11, 15, 19, 22))
LABELLED_ROTATIONS = (22 / 33, 7 / 33, 4 / 33)
"""How often the 33 labelled experiments of RxRx1 use each of three rotations; the fourth is only in unlabelled ones."""


@dataclass(frozen=True)
class Labels:
    """The names of the perturbations, by their index in the simulation: treatments in group order, then positive controls."""

    perturbations: tuple[str, ...]
    negative: str


@dataclass(frozen=True)
class SimulatedWell:
    """One imaged well. `perturbation` is the simulation's index, None for an untreated well."""

    well: str
    role: Role
    perturbation: int | None
    label: str
    sites: tuple[int, ...]
    dose: float | None = None  # of a compound, micromolar
    replicate: int | None = None  # number among the wells of the compound and dose on the plate, from 1
    strength: float = 1.0  # share of the perturbation's phenotype shift


@dataclass(frozen=True)
class SimulatedPlate:
    """One plate of an experiment; wells in row-major order.

    `plate` is its name, `number` counts the plates of the experiment from 1. `group` is the plate's part of the treatments.
    """

    experiment: str
    cell_type: str
    plate: str
    number: int
    labelled: bool
    group: int
    wells: tuple[SimulatedWell, ...]


def treatment_count(config: SimulateConfig) -> int:
    """The number of treatments of a screen, without the positive controls."""
    return config.compounds.count if config.compounds else PLATES * config.treatments_per_group


class ExperimentSize(NamedTuple):
    """Plates of an experiment, and the wells of one plate if none is missing."""

    plates: int
    treatments: int
    controls: int


def experiment_size(config: SimulateConfig) -> ExperimentSize:
    """The size of every experiment of a simulated screen."""
    some = config.compounds
    if some is None:
        return ExperimentSize(PLATES, config.treatments_per_group, config.positive_controls + 1)
    controls = some.negative_wells + config.positive_controls * some.positive_wells
    return ExperimentSize(some.plates, some.count * some.replicates, controls)


def label_perturbations(seed: int, config: SimulateConfig) -> Labels:
    """Numbers the perturbations independently of their plate group, as in the releases of RxRx1.

    `string`: sirna_N with the positive controls interleaved, and UNTREATED, or compound_N and DMSO. `integer`: treatments
    from 0, then positive controls, then the negative control.
    """
    treatments = treatment_count(config)
    total = treatments + config.positive_controls
    rng = stream(seed, "labels")
    if config.label_style == "string":
        word, negative = ("compound", "DMSO") if config.compounds else ("sirna", "UNTREATED")
        return Labels(tuple(f"{word}_{n}" for n in rng.permutation(total)), negative)
    numbers = [*rng.permutation(treatments).tolist(), *range(treatments, total)]
    return Labels(tuple(map(str, numbers)), str(total))


def design_screen(settings: SimulationSettings) -> tuple[SimulatedPlate, ...]:
    """All plates of a screen, by experiment name and plate number.

    The experiments of a cell type are numbered from 01, labelled ones first. Labelled experiments use three of the four
    rotations; unlabelled ones cycle through all four, the fourth first.
    """
    config = settings.simulate
    labels = label_perturbations(settings.seed, config)
    plates: list[SimulatedPlate] = []
    unlabelled_before = 0
    for cell_type in sorted({*config.labelled, *config.unlabelled}):
        labelled_count = config.labelled.get(cell_type, 0)
        for index in range(labelled_count + config.unlabelled.get(cell_type, 0)):
            experiment = f"{cell_type}-{index + 1:02d}"
            labelled = index < labelled_count
            if config.compounds:
                for number in range(1, config.compounds.plates + 1):
                    # A barcode of its own, which says nothing about the plate's contents.
                    barcode = f"BR{zlib.crc32(f'{experiment} {number}'.encode()) % 10**8:08d}"
                    wells = _scatter(settings, config.compounds, labels, experiment, number)
                    plates.append(SimulatedPlate(experiment, cell_type, barcode, number, labelled, 0, wells))
                continue
            if labelled:
                rotation = int(stream(settings.seed, "rotation", experiment).choice(3, p=LABELLED_ROTATIONS))
            else:
                rotation = (3 + unlabelled_before) % PLATES
                unlabelled_before += 1
            for number in range(1, PLATES + 1):
                group = (number - 1 + rotation) % PLATES
                wells = _lay_out(settings, labels, experiment, number, group)
                plates.append(SimulatedPlate(experiment, cell_type, str(number), number, labelled, group, wells))
    return tuple(plates)


def _control_wells(config: SimulateConfig) -> tuple[str, tuple[str, ...]]:
    """The well of the negative control, and those kept for positive ones, in RxRx1's design."""
    if config.plate_format == 384:
        return NEGATIVE_WELL, POSITIVE_WELLS
    first, *others = used_wells(config.plate_format)
    step = len(others) // max(config.positive_controls, 1)
    return first, tuple(others[::step][: config.positive_controls])


def treatment_wells(seed: int, config: SimulateConfig) -> tuple[str, ...]:
    """The wells that hold treatments in RxRx1's design, the same on every plate of a screen, in row-major order."""
    negative, positives = _control_wells(config)
    free = [well for well in used_wells(config.plate_format) if well != negative and well not in positives]
    chosen = stream(seed, "treatment wells").permutation(len(free))[: config.treatments_per_group]
    return tuple(free[i] for i in sorted(chosen))


def _lay_out(
    settings: SimulationSettings, labels: Labels, experiment: str, number: int, group: int
) -> tuple[SimulatedWell, ...]:
    """The wells of a plate that holds one group."""
    config = settings.simulate
    per_group = config.treatments_per_group
    rng = stream(settings.seed, "layout", experiment, number)
    negative, positive_wells = _control_wells(config)
    wells = [
        SimulatedWell(negative, "negative_control", None, labels.negative, _sites(settings, experiment, number, 0))
    ]

    # The positive controls keep their wells within an experiment, so that they do not distinguish its plates.
    positives = stream(settings.seed, "positive wells", experiment).permutation(config.positive_controls).tolist()
    for well, positive in zip(positive_wells, positives, strict=False):
        perturbation = PLATES * per_group + positive
        sites = _sites(settings, experiment, number, perturbation + 1)
        wells.append(SimulatedWell(well, "positive_control", perturbation, labels.perturbations[perturbation], sites))

    order: Sequence[int] = rng.permutation(per_group).tolist()
    fate_W = rng.random(per_group)
    for well, member, fate in zip(treatment_wells(settings.seed, config), order, fate_W, strict=True):
        perturbation = group * per_group + member
        sites = _sites(settings, experiment, number, perturbation + 1)
        if fate >= config.missing_wells:
            wells.append(SimulatedWell(well, "treatment", perturbation, labels.perturbations[perturbation], sites))
        elif fate < config.missing_wells / 2:
            # Half of the missing treatments were never dispensed: RxRx1 keeps such wells as stray untreated ones.
            wells.append(SimulatedWell(well, "negative_control", None, labels.negative, sites))
    return tuple(sorted(wells, key=lambda well: well_key(well.well)))


def _scatter(
    settings: SimulationSettings, compounds: CompoundsConfig, labels: Labels, experiment: str, number: int
) -> tuple[SimulatedWell, ...]:
    """The wells of a plate without a design: every compound and control in its replicates, at random."""
    config, doses = settings.simulate, compounds.doses
    contents: list[tuple[Role, int | None, float | None, int]] = [
        ("treatment", c, doses[n % len(doses)], n // len(doses) + 1)
        for c in range(compounds.count)
        for n in range(compounds.replicates)
    ]
    contents += [
        ("positive_control", compounds.count + p, max(doses), n + 1)
        for p in range(config.positive_controls)
        for n in range(compounds.positive_wells)
    ]
    contents += [("negative_control", None, None, n + 1) for n in range(compounds.negative_wells)]
    rng = stream(settings.seed, "layout", experiment, number)
    free = rng.permutation(used_wells(config.plate_format)).tolist()
    fate_W = rng.random(len(contents))
    wells = []
    for well, fate, (role, index, dose, replicate) in zip(free, fate_W, contents, strict=False):
        if role == "treatment" and fate < config.missing_wells:
            continue
        label = labels.negative if index is None else labels.perturbations[index]
        sites = _sites(settings, experiment, number, well)
        strength = _dose_effect(dose / max(doses)) if dose else 1.0
        wells.append(SimulatedWell(well, role, index, label, sites, dose, replicate, strength))
    return tuple(sorted(wells, key=lambda well: well_key(well.well)))


def _dose_effect(dose: float) -> float:
    """The share of the full effect at a dose, a fraction of the highest one: Hill's curve, half the effect at a tenth."""
    return 1.1 * dose / (dose + 0.1)


def _sites(settings: SimulationSettings, experiment: str, number: int, content: int | str) -> tuple[int, ...]:
    """Imaged sites; a site other than the first is missing with a small probability, so that a well keeps one.

    `content` tells the wells of a plate apart: the perturbation's index from 1, or the well's name.
    """
    rng = stream(settings.seed, "missing sites", experiment, number, content)
    missing = rng.random(settings.screen.usual_sites) < settings.simulate.missing_sites
    return tuple(s for s in range(1, settings.screen.usual_sites + 1) if s == 1 or not missing[s - 1])
