"""The wells that a protocol holds out, and the configuration that it trains with. Pure; imports neither torch nor kfp.

A repeat deals the folds with its number as seed; one fold of it is held out and scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from components.core.config import FoldsConfig, RunConfig
from components.core.errors import InputError
from components.core.screen.manifests import dealt_again
from components.core.storage.manifest import Manifest

Protocol = Literal["batch", "random"]
SPLITS: dict[Protocol, Literal["experiment", "well"]] = {"batch": "experiment", "random": "well"}


def protocol_config(config: RunConfig, protocol: Protocol, repeat: int, backbones: int = 1) -> RunConfig:
    """A configuration as a protocol needs it: supervised training only, and nothing selected on scored wells.

    Args:
        config: the networks and their training.
        protocol: decides what is held out.
        repeat: seed of the folds.
        backbones: number of configured networks in the ensemble.

    Raises:
        InputError: fewer backbones are configured, or a single fold, which holds nothing out.
    """
    if config.folds.count == 1:
        raise InputError("folds.count is 1, but a protocol needs a fold to hold out; set it to 2 or more")
    if not 1 <= backbones <= len(config.backbones):
        raise InputError(
            f"--backbones {backbones}: the configuration has {len(config.backbones)}; use 1 to {len(config.backbones)}"
        )
    folds = FoldsConfig(count=config.folds.count, split=SPLITS[protocol], seed=repeat)
    # Scored wells must not select a checkpoint; one validation at the end is for the record.
    pretrain = config.pretrain.model_copy(update={"selection": "last", "validate_every": config.pretrain.epochs})
    return config.model_copy(
        update={
            "folds": folds,
            "pretrain": pretrain,
            "backbones": config.backbones[:backbones],
            "mean_teacher": config.mean_teacher.model_copy(update={"enabled": False}),
            "prior": config.prior.model_copy(update={"enabled": False}),
            "embeddings": config.embeddings.model_copy(update={"enabled": False}),
        }
    )


def check_experiments(folds: FoldsConfig, experiments: int) -> None:
    """Refuses to hold out the only labelled experiment, in whose place a run would hold out plates or wells."""
    if folds.split == "experiment" and experiments == 1:
        raise InputError(
            "the protocol batch holds out whole experiments, but the screen has 1 labelled experiment that is not held out; add "
            "others, or measure the protocol random alone (--protocol random)"
        )


def split_screen(manifest: Manifest, folds: FoldsConfig) -> tuple[Manifest, int]:
    """The screen of a repeat, and the fold that it holds out.

    The treatments of unlabelled experiments, which cannot be scored, are left out; their controls stay. The first fold with the
    most cell types is held out: if a cell type has fewer experiments than folds, some folds have none of it.

    Raises:
        InputError: too few labelled experiments, or wells, for the folds.
    """
    dealt = dealt_again(manifest, folds)
    check_experiments(folds, len({plate.experiment for plate in manifest.plates if plate.labelled}))
    plates = tuple(
        plate
        if plate.labelled
        else plate.model_copy(update={"wells": tuple(w for w in plate.wells if w.role != "treatment")})
        for plate in dealt.plates
    )
    split = dealt.model_copy(update={"plates": plates})
    held_out = max(range(folds.count), key=lambda fold: (len(held_out_types(split, fold)), -fold))
    return split, held_out


def held_out_types(manifest: Manifest, fold: int) -> list[str]:
    """The cell types of a fold's held-out wells, sorted."""
    return sorted({cell_type for cell_type, _, _ in held_out_wells(manifest, fold)})


def held_out_wells(manifest: Manifest, fold: int) -> list[tuple[str, str, str]]:
    """Cell type, id_code and perturbation of the wells that a fold holds out."""
    found = []
    for plate in manifest.plates:
        own = plate.well_folds or [manifest.folds.get(plate.experiment, -1)] * len(plate.wells)
        for well, of_well in zip(plate.wells, own, strict=True):
            if of_well == fold and plate.labelled and well.role == "treatment" and well.perturbation is not None:
                found.append((plate.cell_type, well.id_code, well.perturbation))
    return found


def held_out_experiments(manifest: Manifest, fold: int) -> Sequence[str]:
    """The experiments that a fold holds out; empty if it holds out single wells."""
    return [experiment for experiment, own in manifest.folds.items() if own == fold]
