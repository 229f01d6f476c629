"""cellsignal predict: a published model on new plates, on this machine. Imports neither torch nor kfp.

Everything that can be refused by reading the registry and the tables is, before a folder is made or a task started.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig, StoreConfig
from components.core.config_file import apply_change, parse
from components.core.errors import InputError, StepError
from components.core.registry.champion import read_champion
from components.core.registry.model_manifest import MODELS, ModelManifest
from components.core.registry.new_plates import check_first_image, plates_for
from components.core.registry.published_models import THE_CHAMPION, find_model, model_address
from components.core.storage.interface import ObjectStorage
from components.core.storage.object_store import parse_uri
from components.core.storage.opening import is_folder, open_existing, open_store, whole_address
from pipelines.code_version import code_version
from pipelines.containers.engine_side import check_images, ended_containers
from pipelines.containers.mounts import check_credentials
from pipelines.containers.settings import container_settings, scratch
from pipelines.display import Display
from pipelines.input_checks import check_truth, screen_place
from pipelines.local import (
    JOB,
    collect,
    default_store,
    follow,
    full_disk,
    opened_folder,
    storage,
    task_environment,
)
from pipelines.prediction_config import check_changes, prediction_config

RESULTS = ("predictions.csv", "qc.csv", "metrics.json", "report.html", "config.yaml", "lineage.json")


@dataclass(frozen=True)
class Asked:
    """What makes a prediction another one, beside its configuration, screen and truth.

    Attributes:
        model: address of the model, by its whole fingerprint: the champion may be another one meanwhile.
        experiments: the wanted ones; none for all.
        any_cell_type: whether networks that learned all cell types may name wells of another one.
    """

    model: str
    experiments: tuple[str, ...]
    any_cell_type: bool


def predict_here(
    screen: str,
    model: str,
    out: Path,
    truth: Path | None,
    store_dir: Path | None,
    console: Console,
    *,
    config: str | None = None,
    changes: Sequence[str] = (),
    experiments: Sequence[str] = (),
    any_cell_type: bool = False,
    containers: bool = False,
) -> Path:
    """Predicts new plates on this machine.

    Args:
        screen: directory of the new plates, or their address in a bucket.
        model: `champion`, the first digits of a fingerprint, or the address of either.
        out: folder of the results; one that holds the same prediction goes on with it.
        truth: labels of their treatment wells, for the report's scoring alone.
        store_dir: data of the embedded object store; None for the user's cache folder.
        console: where progress is shown.
        config: a configuration by name or file, whose sections of the machine are taken; None for the model's own.
        changes: KEY=VALUE.
        experiments: the wanted ones; none for all.
        any_cell_type: whether networks that learned all cell types may name wells of another one.
        containers: whether each task is a container of its step's image.

    Returns:
        The folder of the results.

    Raises:
        InputError: bad input, wherever it was found; then nothing stays in `out`.
        StepError: a step failed; finished steps are kept.
    """
    check_changes(changes)
    machine = RunConfig.load(config, changes) if config is not None else None
    place = screen_place(screen, meant := _store(model, machine, changes))
    place.check()
    if containers:
        check_credentials(os.environ)
    images = check_images() if containers else {}
    with contextlib.ExitStack() as held:
        _check_there(meant, store_dir or default_store())
        environment = held.enter_context(storage(meant, store_dir, console, create=False))
        own = open_store(meant.bucket, meant.prefix, {**os.environ, **environment})
        registry, found = find_model(own, model)
        said = f"--screen {screen}"
        plates = plates_for(found, place, experiments, any_cell_type, said)
        cell_types = list(dict.fromkeys(plate.cell_type for plate in plates))
        settings = prediction_config(found, machine, meant, changes, cell_types)
        check_first_image(found, place, plates, settings.screen.sites, said)
        if truth is not None:
            check_truth(truth, plates, found.vocabulary.treatments, "these plates")
        _check_networks(registry, found, cell_types)
        asked = Asked(registry.uri(f"{MODELS}/{found.fingerprint}"), tuple(experiments), any_cell_type)
        more = json.loads(json.dumps(asdict(asked)))
        work = held.enter_context(opened_folder(out, settings, screen, truth, more, keep=False))
        events = work / "events.jsonl"
        events.unlink(missing_ok=True)
        events.touch()
        environment = task_environment(settings, environment, events)
        source, known_truth = whole_address(screen), truth.resolve() if truth else None
        how = None
        if containers:
            held.enter_context(ended_containers(work))
            held.enter_context(scratch(work))
            how = container_settings(settings, work, source, known_truth, environment, [asked.model])
        folds = {cell_type: list(found.folds_of(cell_type)) for cell_type in cell_types}
        what = {
            "config": json.loads(settings.model_dump_json()),
            "source": source,
            "truth": str(known_truth or ""),
            "store": str(store_dir.resolve()) if store_dir else "",
            "containers": how,
            "prediction": {"folds": folds, "asked": more},
            "lineage": {
                "code_version": code_version(),
                "image_digests": dict(images),
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "screen": source,
                "model": _told(found, registry, model),
            },
        }
        _run(work, what, settings, folds, environment, store_dir or default_store(), console)
        collect(work, out, events, RESULTS, "report-new-plates")
    return out


def _store(model: str, machine: RunConfig | None, changes: Sequence[str]) -> StoreConfig:
    """Where new plates go: the store that is asked for, else the model's."""
    if machine is not None:
        return machine.store  # with the changes in it
    address, _ = model_address(model)
    bucket, prefix = (address, "") if is_folder(address) else parse_uri(address) if address else (None, "")
    usual = StoreConfig() if bucket is None else StoreConfig(bucket=bucket, prefix=prefix)
    data = {"store": usual.model_dump()}
    for change in changes:
        if change.startswith("store."):
            apply_change(data, change)
    return parse(StoreConfig, data["store"], source="--set store")


def _check_there(store: StoreConfig, store_dir: Path) -> None:
    """A store that is not there is not made: no model can be in it."""
    if is_folder(store.bucket):
        open_existing(store.bucket, store.prefix)
    elif not os.environ.get("AWS_ENDPOINT_URL") and not store_dir.is_dir():
        raise InputError(
            f"{store_dir}: there is no object store; give its folder with --store, set AWS_ENDPOINT_URL and the usual AWS "
            "variables for your own, or give the model's address"
        )


def _check_networks(registry: ObjectStorage, model: ModelManifest, cell_types: Collection[str]) -> None:
    """Refuses a model that lacks a network; whether they are what they should be, infer finds when it reads them."""
    for network in model.networks:
        key = model.key(network.path)
        if network.cell_type in (None, *cell_types) and not registry.exists(key):
            raise InputError(
                f"{registry.uri(key)}: is missing, so that model {model.short} cannot predict; publish run {model.run} again"
            )


def _told(model: ModelManifest, registry: ObjectStorage, given: str) -> dict[str, Any]:
    """What the report tells of a model."""
    champion = read_champion(registry) if THE_CHAMPION in given else None
    return {
        "name": model.name,
        "run": model.run,
        "code_version": model.code_version,
        "generation": champion.now.generation if champion and champion.now.fingerprint == model.fingerprint else None,
    }


def _run(
    work: Path,
    what: Mapping[str, Any],
    config: RunConfig,
    folds: Mapping[str, Sequence[int]],
    environment: Mapping[str, str],
    store_dir: Path,
    console: Console,
) -> None:
    """Runs the pipeline in a process of its own and shows how it goes."""
    root = work / "kfp"
    shutil.rmtree(root, ignore_errors=True)
    job = work / JOB
    job.write_text(json.dumps({**what, "pipeline_root": str(root)}), encoding="utf-8")
    counts = task_counts(folds)
    with (
        Display(config, sum(counts.values()), console, counts=counts) as display,
        (work / "log.txt").open("ab") as log,
        (work / "events.jsonl").open(encoding="utf-8") as told,
    ):
        try:
            follow(["-m", "pipelines.local_worker", str(job)], environment, told, display, log)
        except StepError as error:
            raise StepError(f"{error}{full_disk(config.store, store_dir)}") from None


def task_counts(folds: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Tasks by step; those of pipelines.prediction, which imports kfp.

    Args:
        folds: those that predict, by cell type.
    """
    tasks = sum(map(len, folds.values()))
    return {"normalize": 1, "infer": tasks, "ensemble": len(folds), "assign": len(folds), "report": 1}
