"""A prediction of new plates: the user's request, its checks, and the configuration of its steps.

The same for this machine and for a cluster. Reads the registry, tables and one image; imports neither torch nor kfp.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import FrozenModel, RunConfig, StoreConfig, parse
from components.core.errors import InputError
from components.core.learning.sphering import check_sphering
from components.core.registry.champion import read_champion
from components.core.registry.model_manifest import MODELS, ModelManifest
from components.core.registry.new_plates import check_first_image, plates_for
from components.core.registry.published_models import THE_CHAMPION, find_model, model_address
from components.core.screen.layouts import read_new_plates
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Screen
from components.core.storage.object_store import ObjectStore, parse_uri
from components.core.storage.opening import is_folder
from pipelines.checks import check_truth

FROM_THE_MODEL = (
    "name", "seed", "screen", "standardise", "batch_norm", "augment", "backbones", "head", "predict", "prior",
)  # fmt: skip
"""Fields that define the networks and their inputs, and how their logits become predictions."""
FROM_THE_USER = ("pack", "store", "loader", "compute", "local", "cluster", "embeddings")
"""Sections about the machine and store of a prediction: the user's, or the defaults, never the model's."""
FORM = (
    "layout", "table_columns", "plate_map", "path_prefixes", "pattern", "channels", "sites", "z", "time_point", "missing_images",
)  # fmt: skip
"""Fields of `screen` that say how new plates are read."""
CHANGEABLE = (
    "name",
    *(f"screen.{field}" for field in FORM),
    "predict.views",
    "predict.batch_size",
    "prior",
    *FROM_THE_USER,
)
"""Fields that --set may change."""


@dataclass(frozen=True)
class PredictRequest:
    """A prediction as the user requests it."""

    model: str = THE_CHAMPION  # `champion`, the first digits of a fingerprint, or the address of either
    # a configuration, or its name or file, whose sections FROM_THE_USER are used; None for the defaults
    config: str | RunConfig | None = None
    changes: Sequence[str] = ()  # KEY=VALUE
    experiments: Sequence[str] = ()  # those to predict; none for all
    any_cell_type: bool = False  # whether networks that learned all cell types may predict another one

    @property
    def model_changes(self) -> tuple[str, ...]:
        """The changes of the model's configuration: new plates may have another layout than its screen, so it is found again."""
        return "screen.layout=auto", *self.changes

    def user_config(self) -> RunConfig:
        """The configuration of machine and store, changes included.

        Raises:
            InputError: no such configuration, or a change of what the networks were trained with.
        """
        for change in self.changes:
            key = change.partition("=")[0]
            if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE):
                raise InputError(
                    f"--set {change}: {key} is part of the model; a prediction may change {', '.join(CHANGEABLE)}"
                )
        if isinstance(self.config, str):
            return RunConfig.load(self.config, self.changes)
        return (self.config or RunConfig()).changed(self.changes, "--set")

    def store(self) -> StoreConfig:
        """The store of new plates: the configuration's, else that of the model's address.

        Raises:
            InputError: as user_config.
        """
        config = self.user_config()
        address, _ = model_address(self.model)
        if self.config is not None or not address:
            return config.store
        bucket, prefix = (address, "") if is_folder(address) else parse_uri(address)
        start = RunConfig(store=StoreConfig(bucket=bucket, prefix=prefix))
        return start.changed(self.changes, "--set").store


class PredictParams(FrozenModel):
    """What distinguishes a prediction, beside its configuration, screen and truth."""

    model: str  # address of the model, with its whole fingerprint: another model may be promoted any time
    experiments: tuple[str, ...]  # those to predict, sorted; empty for all
    any_cell_type: bool  # whether networks that learned all cell types may predict another one

    def parameters(self) -> dict[str, Any]:
        """The parameters of the pipeline."""
        return {**self.model_dump(), "experiments": json.dumps(self.experiments)}


@dataclass(frozen=True)
class CheckedPrediction:
    """A prediction that can begin."""

    config: RunConfig  # the configuration of its steps
    params: PredictParams
    model: ModelManifest
    screen: Screen  # the plates to predict, by the tables
    folds: Mapping[str, Sequence[int]]  # the model's folds that predict, by cell type
    model_info: Mapping[str, Any]  # what the report shows of the model


def check_prediction(
    request: PredictRequest, chosen: StoreConfig, store: ObjectStore, source: ScreenSource, truth: Path | None
) -> CheckedPrediction:
    """Checks a prediction's input: the new plates, the labels of their wells, and the model.

    `store` is the opened store of new plates, `chosen`.

    Raises:
        InputError: a model that does not exist or lacks a network; tables or images that are wrong, or that it cannot predict; a
            truth of other plates.
    """
    registry, model = find_model(store, request.model)
    form = model.run_config().changed(request.model_changes, f"model {model.short}").screen
    screen = plates_for(model, source, request.experiments, request.any_cell_type, form)
    plates = screen.plates
    cell_types = list(dict.fromkeys(plate.cell_type for plate in plates))
    config = _steps_config(model, request, chosen, cell_types)
    check_sphering(plates, config.embeddings, config.backbones)
    check_first_image(model, source, screen, config.pack.bits)
    if truth is not None:
        others = read_new_plates(source, (), form, images=False).plates if request.experiments else ()
        others = tuple(plate for plate in others if plate.experiment not in request.experiments)
        check_truth(truth, plates, model.vocabulary.treatments, config.screen.label_column, "these plates", others)
    _check_networks(registry, model, cell_types)
    address = registry.uri(f"{MODELS}/{model.fingerprint}")
    champion = read_champion(registry) if THE_CHAMPION in request.model else None
    promoted = champion and champion.now.fingerprint == model.fingerprint
    return CheckedPrediction(
        config=config,
        params=PredictParams(
            model=address,
            experiments=tuple(sorted({*request.experiments})),
            any_cell_type=request.any_cell_type,
        ),
        model=model,
        screen=screen,
        folds={cell_type: tuple(model.folds_of(cell_type)) for cell_type in cell_types},
        model_info={
            "name": model.name,
            "run": model.run,
            "code_version": model.code_version,
            "generation": champion.now.generation if champion and promoted else None,
        },
    )


def _steps_config(
    model: ModelManifest, request: PredictRequest, store: StoreConfig, cell_types: Sequence[str]
) -> RunConfig:
    """The configuration of a prediction's steps.

    Raises:
        InputError: the model's configuration is of another version, or a change is impossible.
    """
    configs = (RunConfig(), model.run_config(), request.user_config())
    data, own, users = (each.model_dump(mode="json") for each in configs)
    data |= {name: own[name] for name in FROM_THE_MODEL} | {name: users[name] for name in FROM_THE_USER}
    # Weights that training started from are not read again, and new plates hold out nothing.
    data["backbones"] = [{**backbone, "weights": None} for backbone in data["backbones"]]
    data["screen"] |= {"cell_types": list(cell_types), "holdout_experiments": []}
    source = f"model {model.short}"
    found = parse(RunConfig, data, source=source).changed(request.model_changes, source)
    return found.model_copy(update={"store": store})


def _check_networks(registry: ObjectStore, model: ModelManifest, cell_types: Collection[str]) -> None:
    """Refuses a model that lacks a network; infer checks their content when it reads them."""
    for network in model.networks:
        key = model.key(network.path)
        if network.cell_type in (None, *cell_types) and not registry.exists(key):
            raise InputError(
                f"{registry.uri(key)}: is missing, so that model {model.short} cannot predict; "
                f"`cellsignal models publish {model.run} --repair`"
            )
