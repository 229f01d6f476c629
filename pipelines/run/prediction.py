"""cellsignal predict: a published model on new plates, on this machine. Imports neither torch nor kfp.

Everything that can be refused by reading the registry and the tables is, before a folder is made or a task started.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import choose_store, open_existing, whole_address
from components.core.storage.run_record import RUNS
from pipelines.checks import screen_place
from pipelines.dag import prediction_graph
from pipelines.images.code_version import code_version
from pipelines.run.containers.engine_side import check_images, ended_containers
from pipelines.run.containers.mounts import check_credentials
from pipelines.run.containers.settings import container_settings, scratch
from pipelines.run.display import TaskDisplay
from pipelines.run.local import (
    JOB,
    collect,
    follow,
    opened_folder,
    run_key,
    task_environment,
)
from pipelines.run.prediction_checks import Wanted, check_prediction

RESULTS = ("predictions.csv", "qc.csv", "metrics.json", "report.html", "config.yaml", "lineage.json")


def predict_here(
    wanted: Wanted,
    screen: str,
    out: Path,
    truth: Path | None,
    store: str | None,
    console: Console,
    *,
    containers: bool = False,
) -> Path:
    """Predicts new plates on this machine.

    Args:
        wanted: the prediction.
        screen: directory of the new plates, or their address in a bucket.
        out: folder of the results; one that holds the same prediction goes on with it.
        truth: labels of their treatment wells, for the report's scoring alone.
        store: value of --store; None for the model's own store.
        console: where progress is shown.
        containers: whether each task is a container of its step's image.

    Returns:
        The folder of the results.

    Raises:
        InputError: bad input, wherever it was found; then nothing stays in `out`.
        StepError: a step failed; finished steps are kept.
    """
    machine = wanted.machine()
    meant = choose_store(wanted.store(machine), store)
    place = screen_place(screen)
    place.check()
    if containers:
        check_credentials(meant)
    images = check_images() if containers else {}
    with contextlib.ExitStack() as held:
        own = open_existing(meant.bucket, meant.prefix)
        checked = check_prediction(wanted, machine, meant, own, place, truth, f"--screen {screen}")
        settings, more = checked.config, checked.asked.plain()
        source, known_truth = whole_address(screen), truth.resolve() if truth else None
        key = run_key(settings, source, out, more)
        work = held.enter_context(opened_folder(out, settings, screen, truth, more, keep=False))
        held.enter_context(_unrecorded_if_refused(own, key))  # by this process, which has the folder to itself
        events = work / "events.jsonl"
        events.unlink(missing_ok=True)
        events.touch()
        environment = task_environment(settings, events)
        how = None
        if containers:
            held.enter_context(ended_containers(work))
            held.enter_context(scratch(work))
            how = container_settings(settings, work, source, known_truth, environment, [checked.asked.model])
        what = {
            "config": json.loads(settings.model_dump_json()),
            "source": source,
            "truth": str(known_truth or ""),
            "containers": how,
            "prediction": {"folds": dict(checked.folds), "parameters": checked.asked.parameters()},
            "lineage": {
                "run": key,
                "code_version": code_version(),
                "image_digests": dict(images),
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "screen": source,
                "model": dict(checked.told),
            },
        }
        _run(work, what, settings, checked.folds, environment, console)
        collect(work, out, events, RESULTS)
    return out


@contextlib.contextmanager
def _unrecorded_if_refused(store: ObjectStorage, key: str) -> Iterator[None]:
    """Bad input leaves no record of a run either, unless one was there before."""
    known = store.exists(f"{RUNS}/{key}/run.json")
    try:
        yield
    except InputError:
        if not known:
            store.delete_prefix(f"{RUNS}/{key}/")
        raise


def _run(
    work: Path,
    what: Mapping[str, Any],
    config: RunConfig,
    folds: Mapping[str, Sequence[int]],
    environment: Mapping[str, str],
    console: Console,
) -> None:
    """Runs the pipeline in a process of its own and shows how it goes."""
    root = work / "kfp"
    shutil.rmtree(root, ignore_errors=True)
    job = work / JOB
    job.write_text(json.dumps({**what, "pipeline_root": str(root)}), encoding="utf-8")
    with (
        TaskDisplay(config, prediction_graph(folds).counts(), console) as display,
        (work / "log.txt").open("ab") as log,
        (work / "events.jsonl").open(encoding="utf-8") as told,
    ):
        follow(["-m", "pipelines.run.worker", str(job)], environment, told, display, log)
