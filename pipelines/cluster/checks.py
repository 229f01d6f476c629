"""Errors of a configuration or an input on a cluster that are cheap to find before compiling. Imports neither torch nor kfp.

Tables are read and images are listed; no image is read.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.core.config import RunConfig, StoreConfig
from components.core.errors import InputError
from components.core.screen.images import PlateFiles, list_plate
from components.core.screen.layouts import TABLES
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate, Screen
from components.core.storage.digests import digest_text
from components.core.storage.endpoint import has_keys
from components.core.storage.exchange import local_file
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import cluster_store, is_bucket, is_folder, open_screen, open_store
from pipelines.checks import check_screen, check_start, local_files
from pipelines.cluster.pod_settings import REQUIRED_KEYS, SCRATCH, resources_of
from pipelines.dag import GPU_STEPS, training_graph
from pipelines.plan.estimate import pod_memory_gib

LISTINGS = 16
"""Folders that are listed in parallel."""


@dataclass(frozen=True)
class CheckedInput:
    """What the checks of a training's input found.

    Attributes:
        store: the run's object store.
        fingerprint: digest of the facts of the screen's files.
        remarks: warnings, a sentence each.
    """

    store: ObjectStorage
    fingerprint: str
    remarks: tuple[str, ...]


def steps_of(config: RunConfig) -> tuple[str, ...]:
    """The steps of a training, in the order of the DAG."""
    return tuple(training_graph(config).counts())


def check_cluster(config: RunConfig, steps: Sequence[str] | None = None) -> list[str]:
    """Refuses a configuration whose pods cannot work; returns warnings, a sentence each.

    Args:
        config: the run's configuration.
        steps: the steps that run; None for those of a training.

    Raises:
        InputError: names the field, and what to do.
    """
    check_bucket(config.store)
    for field, path in local_files(config).items():
        raise InputError(f"{field}: {path} is a file of this machine; upload it and give its s3:// address")
    start = config.init_from
    if start and (start.startswith("file://") or ("://" not in start and Path(start).is_dir())):
        raise InputError(
            f"init_from: {start} is a folder of this machine; give the run's key, or s3://BUCKET[/PREFIX]/runs/KEY"
        )
    cache = config.loader.node_cache
    if cache is not None and (not cache.startswith("/") or PurePosixPath(cache) in map(PurePosixPath, ("/", SCRATCH))):
        raise InputError(
            f"loader.node_cache: {cache} is mounted into pods as an empty folder, so give an absolute path of its own, for "
            "example /node-cache, or null"
        )
    steps = steps_of(config) if steps is None else steps
    for step in steps:
        _check_step(config, step)
    return list(_remarks(config, steps))


def preemption_remarks(config: RunConfig, steps: Sequence[str] | None = None) -> list[str]:
    """A warning if steps may run on spot nodes.

    Args:
        config: the run's configuration.
        steps: the steps that run; None for those of a training.
    """
    spot = [
        step
        for step in (steps_of(config) if steps is None else steps)
        if config.cluster.spot_toleration in resources_of(config, step).tolerations
    ]
    if not spot:
        return []
    *others, last = spot
    names = f"{', '.join(others)} and {last}" if others else last
    return [
        f"{names} may run on spot nodes, and whether Kubeflow retries a pod that is taken from its node depends on the "
        "installation: submit with --wait --resubmit N, which resumes from the checkpoints everywhere"
    ]


def on_cluster(config: RunConfig) -> RunConfig:
    """The configuration with an explicit store: pods share no folder, so null means the bucket `cellsignal`."""
    return config.model_copy(update={"store": cluster_store(config.store)})


def check_bucket(store: StoreConfig) -> None:
    """Refuses a store that pods do not share.

    Raises:
        InputError: it is a folder.
    """
    if store.bucket is not None and is_folder(store.bucket):  # null means the bucket cellsignal here
        raise InputError(
            f"store.bucket: {store.bucket} is a folder, which the pods of a cluster do not share; give an S3 bucket"
        )


def check_submission(config: RunConfig, screen: str | None, truth: str | None) -> CheckedInput:
    """Checks a training's input.

    Args:
        config: the run's configuration.
        screen: value of --screen.
        truth: value of --truth.

    Raises:
        InputError: names the option, file, row or field, and what to do.
    """
    if screen is None:
        raise InputError(
            "--screen is missing, and a cluster does not simulate: give its s3:// address; for a simulated one run "
            f"`cellsignal simulate --config {config.name} --out DIR` and copy DIR/screen into the bucket"
        )
    check_address("--screen", screen)
    if truth is not None:
        check_address("--truth", truth)
    remarks = check_cluster(config)
    store = checked_store(config, "the screen's files cannot be listed for their fingerprint")
    source = open_screen(screen)
    with truth_is_a_copy(), local_file(truth) as labels:
        tables = check_screen(config, source, labels)
    check_start(config)
    return CheckedInput(store, fingerprint(source, tables, config.screen.sites), tuple(remarks))


def checked_store(config: RunConfig, consequence: str) -> ObjectStorage:
    """The store of a run on a cluster, after it has answered.

    Args:
        config: the run's configuration.
        consequence: what cannot be done without credentials, for the message.

    Raises:
        InputError: no credentials, wrong ones, or no such bucket.
    """
    secret = config.cluster.store_secret
    check_keys(consequence, f"secret {secret}" if secret else "their service account")
    store = open_store(config.store.bucket, config.store.prefix)
    store.check()
    return store


@contextlib.contextmanager
def truth_is_a_copy() -> Iterator[None]:
    """Errors of a truth that was downloaded say that the path is a copy's."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--truth /", "--truth: a copy at /")) from None


def check_keys(consequence: str, source: str) -> None:
    """Refuses an environment without credentials.

    Args:
        consequence: what cannot be done without them, for the message.
        source: where pods get theirs from, for the message.

    Raises:
        InputError: there are none.
    """
    if not has_keys(os.environ):
        missing = next(name for name in REQUIRED_KEYS if not os.environ.get(name))
        raise InputError(
            f"{missing} is not set, so {consequence}; set {' and '.join(REQUIRED_KEYS)}, or AWS_PROFILE, and AWS_ENDPOINT_URL "
            f"unless it is Amazon S3 (the pods have their own, from {source})"
        )


def check_address(option: str, address: str) -> None:
    """Refuses an address that pods cannot read.

    Raises:
        InputError: the address is not in a bucket.
    """
    if is_bucket(address):
        return
    here = "is on this machine, which pods cannot read" if Path(address).exists() else "is not an address in a bucket"
    advice = f"copy it there (for example `aws s3 sync {address} s3://BUCKET/screen`) and give s3://BUCKET/..."
    raise InputError(f"{option} {address}: {here}; {advice if '://' not in address else 'write s3://BUCKET/PREFIX'}")


def fingerprint(source: ScreenSource, screen: Screen, sites: int) -> str:
    """Digest of names, sizes and ETags of a screen's tables and images; it changes if any of them is rewritten.

    Lists as normalize does, so a missing image is found before any pod starts. A plate takes two to four requests.

    Args:
        source: where the screen is.
        screen: content of its tables.
        sites: largest number of sites per well.

    Raises:
        InputError: an image that the tables list is missing.
    """

    def files_of(plate: Plate) -> PlateFiles:
        return list_plate(source, plate, sites)

    with ThreadPoolExecutor(LISTINGS, thread_name_prefix="list") as pool:
        plates = [[files.folder, sorted(files.facts)] for files in pool.map(files_of, screen.plates)]
    tables = sorted(facts for facts in source.list_files() if facts.name in TABLES)
    return digest_text(json.dumps([tables, plates]))


def _check_step(config: RunConfig, step: str) -> None:
    resources = resources_of(config, step)
    field = f"cluster.steps.{step}"
    if resources.shm_gib > resources.memory_gib:
        raise InputError(
            f"{field}.shm_gib: {resources.shm_gib:g} GiB lie in the pod's memory, which has {resources.memory_gib:g}; make one "
            "smaller or the other larger"
        )
    processes = config.compute.processes
    if step in GPU_STEPS and resources.gpus and processes > resources.gpus:
        raise InputError(
            f"compute.processes is {processes}, but {field}.gpus {resources.gpus}; raise the one, lower the other, or set "
            "processes to 0 for all GPUs of the pod"
        )


def _remarks(config: RunConfig, steps: Sequence[str]) -> Iterator[str]:
    for step in steps:
        resources = resources_of(config, step)
        processes = config.compute.processes or max(1, resources.gpus)
        field = f"cluster.steps.{step}"
        if step not in GPU_STEPS:
            if resources.gpus:
                yield f"{field}.gpus is {resources.gpus}, but this step computes on CPUs alone"
            continue
        needed = pod_memory_gib(config, processes) + resources.shm_gib
        if config.screen.image_size >= 256 and needed > resources.memory_gib:
            yield (
                f"{step} needs about {needed:.0f} GiB of memory ({processes} process{'es' if processes > 1 else ''}, "
                f"loader.cache_gib {config.loader.cache_gib:g} each), {field}.memory_gib is {resources.memory_gib:g}"
            )
        if resources.gpus > processes:
            yield f"{field}.gpus is {resources.gpus}, but compute.processes uses {processes} of them"
        if resources.gpus > 1 and not resources.shm_gib:
            yield f"{field}.shm_gib is 0, and NCCL of {resources.gpus} GPUs may not start with the runtime's 64 MiB"
