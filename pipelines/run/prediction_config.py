"""The configuration of a prediction: the model's own, where the user may change what is no part of the networks. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from components.core.config import RunConfig, StoreConfig
from components.core.config.file import apply_change, parse
from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest

CHANGEABLE = (
    "name", "screen.sites", "predict.views", "predict.batch_size", "embeddings", "prior", "pack", "store", "loader",
    "compute", "local", "cluster",
)  # fmt: skip
"""Sections and fields that a prediction may have otherwise than the training run had."""
OF_THE_MACHINE = ("pack", "store", "loader", "compute", "local", "cluster")
"""Sections that --config gives, for they are of where a run takes place."""


def check_changes(changes: Sequence[str]) -> None:
    """Refuses to change what the networks were trained with.

    Raises:
        InputError: names the field and those that may be changed.
    """
    for change in changes:
        key = change.partition("=")[0]
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in CHANGEABLE):
            raise InputError(
                f"--set {change}: {key} is part of the model; a prediction may change {', '.join(CHANGEABLE)}"
            )


def prediction_config(
    model: ModelManifest,
    machine: RunConfig | None,
    store: StoreConfig,
    changes: Sequence[str],
    cell_types: Sequence[str],
) -> RunConfig:
    """What the steps are given.

    Args:
        model: the model.
        machine: the configuration that the user named for where this takes place; None for the model's own.
        store: where new plates go.
        changes: KEY=VALUE, checked.
        cell_types: of the new plates.

    Raises:
        InputError: the model's configuration is of another version, or a change is impossible.
    """
    data = json.loads(model.run_config().model_dump_json())
    if machine is not None:
        data.update({name: json.loads(getattr(machine, name).model_dump_json()) for name in OF_THE_MACHINE})
    defaults = RunConfig().model_dump(mode="json")
    for change in changes:
        apply_change(data, change, defaults)
    data["store"] = store.model_dump()
    # What training started from, held out or learned from is not read again.
    data["init_from"] = None
    data["mean_teacher"]["fused_labels"] = None
    for backbone in data["backbones"]:
        backbone["weights"] = None
    data["screen"] |= {"cell_types": list(cell_types), "holdout_experiments": []}
    return parse(RunConfig, data, source=f"model {model.short}")
