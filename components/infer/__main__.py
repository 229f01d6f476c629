"""python -m components.infer: the step by hand; new plates by a published model without --base."""

from pathlib import Path
from typing import Annotated

from typer import Option

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.step_settings import InferSettings
from components.core.registry.published_models import find_model
from components.core.storage.exchange import exchange
from components.core.storage.manifest import Manifest, ReferenceModel
from components.core.storage.opening import open_store


def infer(
    config: Annotated[
        str, Option(help="a shipped configuration's name, or a YAML file; of new plates, the model's config.yaml")
    ],
    screen: Annotated[
        str,
        Option(
            help="manifest that normalize wrote, of new plates what stands for the screen: a path, or s3://BUCKET/KEY"
        ),
    ],
    holdout: Annotated[str, Option(help="manifest of the held-out experiments, or of the new plates, likewise")],
    fold: Annotated[int, Option(help="the fold that the networks were trained for")],
    cell_type: Annotated[str, Option(help="whose wells")],
    logits: Annotated[str, Option(help="folder to write, path or s3://: logits of the fold")],
    embeddings: Annotated[str, Option(help="folder to write, path or s3://: embeddings of all wells, as Parquet")],
    base: Annotated[
        list[str],
        Option(
            help="finetune's output, path or s3://, or pretrain's, then once a backbone; none for new plates, whose model the "
            "screen's manifest names"
        ),
    ] = [],  # noqa: B006
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Predicts with trained networks. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, set).section(InferSettings)
    with exchange() as given:
        manifests = [given.input(each) for each in (screen, holdout)]
        known = Manifest.read(Path(manifests[0]))
        if known.model is not None and base:
            raise InputError(f"--base: {screen} is of new plates, whose networks are the model's; leave it out")
        if known.model is None and not base:
            raise InputError(
                f"--base is missing; give the networks, or for new plates as --screen what normalize --model wrote, not {screen}"
            )
        bases = [given.input(each) for each in base]
        written = [given.output(each) for each in (logits, embeddings)]
        if known.model is None:
            from components.infer.step import main  # loads torch, for which a wrong configuration need not wait

            main(settings.model_dump_json(), *manifests, bases, fold, cell_type, *written)
        else:
            _check_settings(settings, known.store, known.model)
            from components.infer.new_plates import main as main_of_new_plates

            main_of_new_plates(settings.model_dump_json(), *manifests, fold, cell_type, *written)


def _check_settings(settings: InferSettings, store: str, known: ReferenceModel) -> None:
    """Refuses a configuration that is not the model's, which would name wells wrongly and without a word."""
    _, model = find_model(open_store(store), known.address)
    own = model.run_config().section(InferSettings)
    for part in ("standardise", "batch_norm", "head", "backbones"):
        if _decisive(settings, part) != _decisive(own, part):
            raise InputError(
                f"--config: {part} is not as model {model.short} was trained; give the config.yaml of its run"
            )


def _decisive(settings: InferSettings, part: str) -> object:
    """A part of the settings without what only training starts from."""
    found = settings.model_dump(include={part})[part]
    return [{**each, "weights": None} for each in found] if part == "backbones" else found


if __name__ == "__main__":
    run_command(infer)
