"""normalize by hand: `python -m components.normalize --config demo --source SCREEN --screen F ...`; new plates with --model."""

import json
from typing import Annotated

import typer

from components.core.command import run_command
from components.core.config import RunConfig, StoreConfig
from components.core.errors import InputError
from components.core.registry.model_manifest import MODELS
from components.core.registry.published_models import find_model
from components.core.storage.exchange import exchange
from components.core.storage.opening import open_store
from components.normalize import new_plates
from components.normalize.config import NormalizeConfig
from components.normalize.step import main


def normalize(
    config: Annotated[str, typer.Option(help="shipped name or YAML file; of new plates, the model's config.yaml")],
    source: Annotated[
        str, typer.Option(help="screen in the Kaggle or the rxrx.ai layout: a directory, or s3://BUCKET/PREFIX")
    ],
    screen: Annotated[
        str,
        typer.Option(help="output: manifest of the screen, of new plates what stands for it; path or s3://BUCKET/KEY"),
    ],
    holdout: Annotated[
        str, typer.Option(help="output: manifest of the held-out experiments, or of the new plates, likewise")
    ],
    holdout_labels: Annotated[
        str | None, typer.Option(help="output: CSV of the held-out labels, likewise; new plates have none")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="predict new plates by it: champion, a fingerprint's first digits, or an address")
    ] = None,
    experiments: Annotated[str, typer.Option(help="with --model: those wanted, with commas between; default all")] = "",
    any_cell_type: Annotated[
        bool,
        typer.Option("--any-cell-type", help="with --model: ask networks that learned all cell types about another"),
    ] = False,
    change: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, a change of one field")] = None,
) -> None:
    """Packs a screen's plates into the object store and writes its manifests; with --model those of new plates."""
    section = RunConfig.load(config, change or []).section(NormalizeConfig)
    if model is None:
        if experiments or any_cell_type:
            raise InputError("--experiments and --any-cell-type are of new plates; give the --model that predicts them")
        if holdout_labels is None:
            raise InputError("--holdout-labels is missing; give where they go, or of new plates the --model")
        with exchange() as given:
            outputs = (given.output(each) for each in (screen, holdout, holdout_labels))
            main(section.model_dump_json(), source, *outputs)
        return
    if holdout_labels is not None:
        raise InputError("--holdout-labels: no label of new plates is read; leave it out, or --model")
    wanted = json.dumps([name.strip() for name in experiments.split(",") if name.strip()])
    with exchange() as given:
        manifests = [given.output(each) for each in (screen, holdout)]
        address = _whole_address(section.store, model)
        new_plates.main(section.model_dump_json(), source, address, wanted, any_cell_type, *manifests)


def _whole_address(store: StoreConfig, model: str) -> str:
    """Where the model itself is: the steps to come find the same one, whoever is the champion by then."""
    registry, found = find_model(open_store(store.bucket, store.prefix), model)
    return registry.uri(f"{MODELS}/{found.fingerprint}")


if __name__ == "__main__":
    run_command(normalize)
