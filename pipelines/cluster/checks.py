"""Errors of a configuration or an input on a cluster that are cheap to find before a run is submitted.

Tables are read and images are listed; no image is read. Imports neither torch nor kfp.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from components.core.config import RunConfig, StoreConfig
from components.core.config.cluster import ClusterConfig
from components.core.errors import InputError
from components.core.screen.images import PlateFiles, list_plate
from components.core.screen.layouts import TABLES
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate, Screen
from components.core.storage.artifacts import local_file
from components.core.storage.digests import digest_text
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import cluster_store, is_bucket, is_folder, open_screen, open_store
from components.core.storage.s3 import has_keys
from pipelines.checks import local_files
from pipelines.cluster.pod_settings import REQUIRED_KEYS, SCRATCH, Resources, resources_of
from pipelines.dag import GPU_STEPS, training_graph
from pipelines.plan.estimate import pod_memory_gib

LISTINGS = 16
"""Folders that are listed in parallel."""


def steps_of(config: RunConfig) -> tuple[str, ...]:
    """The steps of a training, in the order of the DAG."""
    return tuple(training_graph(config).counts())


def on_cluster(config: RunConfig) -> RunConfig:
    """The configuration with an explicit store: pods share no folder, so null means the bucket `cellsignal`."""
    return config.model_copy(update={"store": cluster_store(config.store)})


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
            f"loader.node_cache: {cache} is mounted into pods as an empty folder; give an absolute path of its own, for example "
            "/node-cache, or null"
        )
    steps = steps_of(config) if steps is None else steps
    return [remark for step in steps for remark in _remarks(config, resources_of(config, step))]


def _remarks(config: RunConfig, resources: Resources) -> Iterator[str]:
    """Warnings about a step's resources.

    Raises:
        InputError: its pod cannot work.
    """
    step, gpus, processes = resources.step, resources.gpus, config.compute.processes
    field = f"cluster.steps.{step}"
    if resources.shm_gib > resources.memory_gib:
        raise InputError(
            f"{field}.shm_gib: {resources.shm_gib:g} GiB lie in the pod's memory, which has {resources.memory_gib:g}; make one "
            "smaller or the other larger"
        )
    if step not in GPU_STEPS:
        if gpus:
            yield f"{field}.gpus is {gpus}, but this step computes on CPUs alone"
        return
    if gpus and processes > gpus:
        raise InputError(
            f"compute.processes is {processes}, but {field}.gpus {gpus}; raise the one, lower the other, or set processes to 0 "
            "for all GPUs of the pod"
        )
    processes = processes or max(1, gpus)
    needed = pod_memory_gib(config, processes) + resources.shm_gib
    if config.screen.image_size >= 256 and needed > resources.memory_gib:
        yield (
            f"{step} needs about {needed:.0f} GiB of memory ({processes} process{'es' if processes > 1 else ''}, "
            f"loader.cache_gib {config.loader.cache_gib:g} each), {field}.memory_gib is {resources.memory_gib:g}"
        )
    if gpus > processes:
        yield f"{field}.gpus is {gpus}, but compute.processes uses {processes} of them"
    if gpus > 1 and not resources.shm_gib:
        yield f"{field}.shm_gib is 0, and NCCL of {gpus} GPUs may not start with the runtime's 64 MiB"


def preemption_remarks(config: RunConfig, steps: Sequence[str] | None = None) -> list[str]:
    """A warning if steps may run on spot nodes; steps: None for those of a training."""
    spot = [
        step
        for step in (steps_of(config) if steps is None else steps)
        if config.cluster.spot_toleration in resources_of(config, step).tolerations
    ]
    if not spot:
        return []
    return [
        f"{', '.join(spot)} may run on spot nodes, and whether Kubeflow retries a pod that is taken from its node depends on "
        "the installation: submit with --wait --resubmit N, which resumes from the checkpoints everywhere"
    ]


def check_bucket(store: StoreConfig) -> None:
    """Refuses a store that pods do not share.

    Raises:
        InputError: it is a folder.
    """
    if store.bucket is not None and is_folder(store.bucket):  # null means the bucket cellsignal here
        raise InputError(
            f"store.bucket: {store.bucket} is a folder, which the pods of a cluster do not share; give an S3 bucket"
        )


def check_addresses(screen: str | None, truth: str | None) -> None:
    """Refuses values of --screen and --truth that pods cannot read.

    Raises:
        InputError: an address is not in a bucket.
    """
    for option, address in (("--screen", screen), ("--truth", truth)):
        if address is None or is_bucket(address):
            continue
        here = (
            "is on this machine, which pods cannot read" if Path(address).exists() else "is not an address in a bucket"
        )
        advice = f"copy it there (for example `aws s3 sync {address} s3://BUCKET/screen`) and give s3://BUCKET/..."
        raise InputError(
            f"{option} {address}: {here}; {advice if '://' not in address else 'write s3://BUCKET/PREFIX'}"
        )


def checked_store(store: StoreConfig, cluster: ClusterConfig) -> ObjectStore:
    """The store of a run on a cluster, after it has answered.

    Raises:
        InputError: no credentials, wrong ones, or no such bucket.
    """
    if not has_keys(os.environ):
        missing = next(name for name in REQUIRED_KEYS if not os.environ.get(name))
        raise InputError(
            f"{missing} is not set, so the store and the screen cannot be read; set {' and '.join(REQUIRED_KEYS)}, or AWS_PROFILE, "
            "and AWS_ENDPOINT_URL unless it is Amazon S3 (the pods have their own, from "
            f"{f'secret {cluster.store_secret}' if cluster.store_secret else 'their service account'})"
        )
    opened = open_store(store.bucket, store.prefix)
    opened.check()
    return opened


@contextlib.contextmanager
def opened_input(screen: str, truth: str | None) -> Iterator[tuple[ScreenSource, Path | None]]:
    """Opens --screen, and downloads --truth; errors of the truth say that the path is a copy's.

    Raises:
        InputError: there is no such screen or truth.
    """
    source = open_screen(screen)
    source.check()
    try:
        with local_file(truth) as labels:
            yield source, labels
    except InputError as error:
        raise InputError(str(error).replace("--truth /", "--truth: a copy at /")) from None


def fingerprint(source: ScreenSource, screen: Screen, sites: int) -> str:
    """Digest of names, sizes and ETags of a screen's tables and images; it changes if any of them is rewritten.

    Lists as normalize does, so a missing image is found before any pod starts. A plate takes two to four requests.

    Args:
        source: the screen.
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
