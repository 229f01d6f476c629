"""What can be wrong with a prediction and is found before anything is made or started. Reads the registry, tables and one image.

The same for this machine and for a cluster. Imports neither torch nor kfp.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.core.config import RunConfig, StoreConfig
from components.core.config.file import apply_change, parse
from components.core.errors import InputError
from components.core.registry.champion import read_champion
from components.core.registry.model_manifest import MODELS, ModelManifest
from components.core.registry.new_plates import check_first_image, plates_for
from components.core.registry.published_models import THE_CHAMPION, find_model, model_address
from components.core.screen.layouts import read_new_plates
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate
from components.core.storage.interface import ObjectStorage
from components.core.storage.object_store import parse_uri
from components.core.storage.opening import is_folder
from pipelines.checks import check_truth
from pipelines.run.prediction_config import check_changes, prediction_config


@dataclass(frozen=True)
class Wanted:
    """A prediction as the user asks for it.

    Attributes:
        model: `champion`, the first digits of a fingerprint, or the address of either.
        config: a configuration, or its name or file, whose sections of the machine are taken; None for the model's own.
        changes: KEY=VALUE.
        experiments: the wanted ones; none for all.
        any_cell_type: whether networks that learned all cell types may name wells of another one.
    """

    model: str = THE_CHAMPION
    config: str | RunConfig | None = None
    changes: Sequence[str] = ()
    experiments: Sequence[str] = ()
    any_cell_type: bool = False

    def machine(self) -> RunConfig | None:
        """The configuration of where this takes place; None for the model's own.

        Raises:
            InputError: no such configuration, or a change of the networks.
        """
        check_changes(self.changes)
        if self.config is None:
            return None
        if isinstance(self.config, str):
            return RunConfig.load(self.config, self.changes)
        data, defaults = self.config.model_dump(mode="json"), RunConfig().model_dump(mode="json")
        for change in self.changes:
            apply_change(data, change, defaults)
        return parse(RunConfig, data, source="--set")

    def store(self, machine: RunConfig | None) -> StoreConfig:
        """Where new plates go: the store that is asked for, else the model's."""
        if machine is not None:
            return machine.store  # with the changes in it
        address, _ = model_address(self.model)
        bucket, prefix = (address, "") if is_folder(address) else parse_uri(address) if address else (None, "")
        usual = StoreConfig(bucket=bucket, prefix=prefix)
        data = {"store": usual.model_dump()}
        for change in self.changes:
            if change.startswith("store."):
                apply_change(data, change)
        return parse(StoreConfig, data["store"], source="--set store")


@dataclass(frozen=True)
class Asked:
    """What makes a prediction another one, beside its configuration, screen and truth.

    Attributes:
        model: address of the model, by its whole fingerprint: the champion may be another one meanwhile.
        experiments: the wanted ones, sorted; none for all.
        any_cell_type: whether networks that learned all cell types may name wells of another one.
    """

    model: str
    experiments: tuple[str, ...]
    any_cell_type: bool

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(json.loads(json.dumps(asdict(self))))

    def parameters(self) -> dict[str, Any]:
        """As the pipeline takes it."""
        return {**asdict(self), "experiments": json.dumps(self.experiments)}


@dataclass(frozen=True)
class Checked:
    """A prediction that can begin.

    Attributes:
        config: what the steps are given.
        asked: what makes it another one.
        model: the model's manifest.
        plates: that are predicted, as the tables say.
        folds: of the model that predict, by cell type.
        told: what the report tells of the model.
    """

    config: RunConfig
    asked: Asked
    model: ModelManifest
    plates: tuple[Plate, ...]
    folds: Mapping[str, Sequence[int]]
    told: Mapping[str, Any]


def check_prediction(
    wanted: Wanted,
    machine: RunConfig | None,
    meant: StoreConfig,
    store: ObjectStorage,
    place: ScreenSource,
    truth: Path | None,
    said: str,
) -> Checked:
    """Checks a prediction's input.

    Args:
        wanted: the prediction.
        machine: its `machine`.
        meant: its `store`.
        store: that one, opened.
        place: the new plates.
        truth: labels of their treatment wells, for the report's scoring alone.
        said: how the user named the screen.

    Raises:
        InputError: no such model, one that lacks a network, tables or images that are wrong or that it cannot name, or a
            truth that is not theirs.
    """
    registry, model = find_model(store, wanted.model)
    plates = plates_for(model, place, wanted.experiments, wanted.any_cell_type, said)
    cell_types = list(dict.fromkeys(plate.cell_type for plate in plates))
    config = prediction_config(model, machine, meant, wanted.changes, cell_types)
    check_first_image(model, place, plates, config.screen.sites, said)
    if truth is not None:
        others = read_new_plates(place) if wanted.experiments else ()
        others = tuple(plate for plate in others if plate.experiment not in wanted.experiments)
        check_truth(truth, plates, model.vocabulary.treatments, "these plates", others)
    _check_networks(registry, model, cell_types)
    return Checked(
        config=config,
        asked=Asked(
            registry.uri(f"{MODELS}/{model.fingerprint}"), tuple(sorted({*wanted.experiments})), wanted.any_cell_type
        ),
        model=model,
        plates=plates,
        folds={cell_type: list(model.folds_of(cell_type)) for cell_type in cell_types},
        told=_told(model, registry, wanted.model),
    )


def _check_networks(registry: ObjectStorage, model: ModelManifest, cell_types: Collection[str]) -> None:
    """Refuses a model that lacks a network; whether they are what they should be, infer finds when it reads them."""
    for network in model.networks:
        key = model.key(network.path)
        if network.cell_type in (None, *cell_types) and not registry.exists(key):
            raise InputError(
                f"{registry.uri(key)}: is missing, so that model {model.short} cannot predict; "
                f"`cellsignal models publish {model.run} --anew`"
            )


def _told(model: ModelManifest, registry: ObjectStorage, given: str) -> dict[str, Any]:
    champion = read_champion(registry) if THE_CHAMPION in given else None
    return {
        "name": model.name,
        "run": model.run,
        "code_version": model.code_version,
        "generation": champion.now.generation if champion and champion.now.fingerprint == model.fingerprint else None,
    }
