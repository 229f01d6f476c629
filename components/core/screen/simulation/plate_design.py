"""Settings, random streams and plate design of a simulated screen, after RxRx1. Pure; writer.py writes the files.

Every plate, well and site draws from its own random stream, seeded by its position in the screen. So the pixels do not depend
on how many processes render them, and a screen with one more experiment contains the smaller one.

The treatments form four disjoint groups, each plate of an experiment holds one group, and which plate holds which group
is a cyclic rotation. Positive controls are on every plate; the wells of the treatments differ between experiments.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.core.config import FrozenModel, ScreenConfig, SimulateConfig
from components.core.storage.manifest import Role


class SimulationSettings(FrozenModel):
    """The sections of a RunConfig that the simulated screen depends on."""

    seed: int = 0
    screen: ScreenConfig = ScreenConfig()
    simulate: SimulateConfig = SimulateConfig()


def stream(seed: int, *position: str | int) -> np.random.Generator:
    """The random generator of a position in the screen, which names and numbers identify: "site", "HUVEC-01", 2, "B03", 1."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in position]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


PLATES = 4
USED_WELLS = tuple(f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24))
"""The inner 308 wells of a 384-well plate; the outermost two rows and columns stay empty (RxRx1)."""
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
    """One imaged well. `sirna` is the simulation's index, None for an untreated well."""

    well: str
    role: Role
    perturbation: int | None
    label: str
    sites: tuple[int, ...]


@dataclass(frozen=True)
class SimulatedPlate:
    """One plate of an experiment; wells in row-major order."""

    experiment: str
    cell_type: str
    number: int
    labelled: bool
    group: int
    wells: tuple[SimulatedWell, ...]


def label_perturbations(seed: int, config: SimulateConfig) -> Labels:
    """Numbers the perturbations independently of their plate group, as in the releases of RxRx1.

    `string`: sirna_N with the positive controls interleaved, and UNTREATED. `integer`: treatments from 0, then positive
    controls, then the negative control.
    """
    treatments = PLATES * config.treatments_per_group
    total = treatments + config.positive_controls
    rng = stream(seed, "labels")
    if config.label_style == "string":
        return Labels(tuple(f"sirna_{n}" for n in rng.permutation(total)), "UNTREATED")
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
            if labelled:
                rotation = int(stream(settings.seed, "rotation", experiment).choice(3, p=LABELLED_ROTATIONS))
            else:
                rotation = (3 + unlabelled_before) % PLATES
                unlabelled_before += 1
            for number in range(1, PLATES + 1):
                group = (number - 1 + rotation) % PLATES
                wells = _lay_out(settings, labels, experiment, number, group)
                plates.append(SimulatedPlate(experiment, cell_type, number, labelled, group, wells))
    return tuple(plates)


def treatment_wells(seed: int, count: int) -> tuple[str, ...]:
    """The wells that hold treatments, the same on every plate of a screen, in row-major order."""
    free = [well for well in USED_WELLS if well != NEGATIVE_WELL and well not in POSITIVE_WELLS]
    chosen = stream(seed, "treatment wells").permutation(len(free))[:count]
    return tuple(free[i] for i in sorted(chosen))


def _lay_out(
    settings: SimulationSettings, labels: Labels, experiment: str, number: int, group: int
) -> tuple[SimulatedWell, ...]:
    config = settings.simulate
    per_group = config.treatments_per_group
    rng = stream(settings.seed, "layout", experiment, number)
    wells = [
        SimulatedWell(
            NEGATIVE_WELL, "negative_control", None, labels.negative, _sites(settings, experiment, number, -1)
        )
    ]

    # The positive controls keep their wells within an experiment, so that they do not distinguish its plates.
    positives = stream(settings.seed, "positive wells", experiment).permutation(config.positive_controls).tolist()
    for well, positive in zip(POSITIVE_WELLS, positives, strict=False):
        perturbation = PLATES * per_group + positive
        sites = _sites(settings, experiment, number, perturbation)
        wells.append(SimulatedWell(well, "positive_control", perturbation, labels.perturbations[perturbation], sites))

    order: Sequence[int] = rng.permutation(per_group).tolist()
    fate_W = rng.random(per_group)
    for well, member, fate in zip(treatment_wells(settings.seed, per_group), order, fate_W, strict=True):
        perturbation = group * per_group + member
        sites = _sites(settings, experiment, number, perturbation)
        if fate >= config.missing_wells:
            wells.append(SimulatedWell(well, "treatment", perturbation, labels.perturbations[perturbation], sites))
        elif fate < config.missing_wells / 2:
            # Half of the missing treatments were never dispensed: RxRx1 keeps such wells as stray untreated ones.
            wells.append(SimulatedWell(well, "negative_control", None, labels.negative, sites))
    return tuple(sorted(wells, key=lambda w: w.well))


def _sites(settings: SimulationSettings, experiment: str, number: int, perturbation: int) -> tuple[int, ...]:
    """Imaged sites; a site other than the first is missing with a small probability, so that a well keeps one."""
    rng = stream(settings.seed, "missing sites", experiment, number, perturbation + 1)
    missing = rng.random(settings.screen.sites) < settings.simulate.missing_sites
    return tuple(s for s in range(1, settings.screen.sites + 1) if s == 1 or not missing[s - 1])
