"""`python -m components.normalize --config demo --source SCREEN --screen F ...`: packs a screen, or new plates with --model."""

import json
from typing import Annotated

import typer

from components.core.command import AddressOption, ConfigOption, SetOption, list_items, run_command
from components.core.config import RunConfig, StoreConfig
from components.core.errors import InputError
from components.core.registry.model_manifest import MODELS
from components.core.registry.published_models import find_model
from components.core.storage.artifacts import step_files
from components.core.storage.object_store import ObjectStore
from components.normalize.step import main


def normalize(
    config: ConfigOption,
    source: Annotated[
        str, AddressOption(help="screen in the Kaggle or the rxrx.ai layout: a directory, or s3://BUCKET/PREFIX")
    ],
    screen: Annotated[
        str,
        AddressOption(
            help="output: manifest of the screen, or for new plates the model's reference; path or s3://BUCKET/KEY"
        ),
    ],
    holdout: Annotated[
        str, AddressOption(help="output: manifest of the held-out experiments, or of the new plates; path or s3://")
    ],
    holdout_labels: Annotated[
        str | None, AddressOption(help="output: CSV of the held-out labels, path or s3://; not needed with --model")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="the model that predicts new plates: champion, a fingerprint's first digits, or an address"),
    ] = None,
    experiments: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="with --model: experiments to predict, for example A,B; default: all"),
    ] = None,
    any_cell_type: Annotated[
        bool,
        typer.Option("--any-cell-type", help="with --model: predict unknown cell types by networks that learned all"),
    ] = False,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Packs a screen's plates into the object store and writes its manifests; with --model the same for new plates."""
    settings = RunConfig.load(config, changes)
    if model is None and (experiments or any_cell_type):
        raise InputError("--experiments and --any-cell-type are for new plates; give the --model that predicts them")
    if model is None and holdout_labels is None:
        raise InputError("--holdout-labels is missing; give a path for them, or for new plates the --model")
    names = json.dumps(list_items("--experiments", experiments or []))
    with step_files() as files:
        manifest, held_out, labels = (files.output(each) if each else "" for each in (screen, holdout, holdout_labels))
        address = _address(settings.store, model) if model else ""
        main(settings.model_dump_json(), source, manifest, held_out, labels, address, names, any_cell_type)


def _address(store: StoreConfig, model: str) -> str:
    """The model's address with its full fingerprint, so that a later promotion changes nothing."""
    registry, found = find_model(ObjectStore(store.address), model)
    return registry.uri(f"{MODELS}/{found.fingerprint}")


if __name__ == "__main__":
    run_command(normalize)
