"""Errors of a configuration or an input on a cluster that are cheap to find before a run is submitted.

Tables are read and images are listed; no image is read. Imports neither torch nor kfp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from components.core.config import RunConfig
from components.core.config.cluster import StepResources
from components.core.errors import InputError
from components.core.screen.images import plate_files, table_facts
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Screen
from components.core.storage.digests import digest_text
from components.core.storage.opening import cluster_store, is_bucket
from pipelines.checks import local_files
from pipelines.cluster.pod_settings import SCRATCH, resources_of
from pipelines.dag import GPU_STEPS, TaskGraph
from pipelines.plan.memory import pod_memory_warnings

LISTINGS = 16
"""Folders that are listed in parallel."""


def on_cluster(config: RunConfig) -> RunConfig:
    """The configuration with an explicit store: null means the bucket `cellsignal`. InputError if it is a folder."""
    return config.model_copy(update={"store": cluster_store(config.store)})


def check_cluster(config: RunConfig, graph: TaskGraph, resubmits: bool = False) -> list[str]:
    """Refuses a configuration, from `on_cluster`, whose pods cannot work; returns warnings, a sentence each.

    If a failed run is submitted again, a pod that is taken from its node is no concern.

    Raises:
        InputError: names the field, and what to do.
    """
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
    pods = {step: resources_of(config, step) for step in graph.counts()}
    remarks = [remark for step, pod in pods.items() for remark in _remarks(config, step, pod.own)]
    spot = [step for step, pod in pods.items() if pod.spot]
    if spot and not resubmits:
        remarks.append(
            f"{', '.join(spot)} may run on spot nodes, and whether Kubeflow retries a pod that is taken from its node depends on "
            "the installation: submit with --wait, which submits a failed run again and resumes from its checkpoints"
        )
    return remarks


def _remarks(config: RunConfig, step: str, own: StepResources) -> Iterator[str]:
    """Warnings about a step's resources; InputError if its pod cannot work."""
    field, processes = f"cluster.steps.{step}", config.compute.processes
    if own.shm_gib > own.memory_gib:
        raise InputError(
            f"{field}.shm_gib: {own.shm_gib:g} GiB lie in the pod's memory, which has {own.memory_gib:g}; make one smaller or "
            "the other larger"
        )
    if step not in GPU_STEPS:
        if own.gpus:
            yield f"{field}.gpus is {own.gpus}, but this step computes on CPUs alone"
        return
    if own.gpus and processes > own.gpus:
        raise InputError(
            f"compute.processes is {processes}, but {field}.gpus {own.gpus}; raise the one, lower the other, or set processes "
            "to 0 for all GPUs of the pod"
        )
    yield from pod_memory_warnings(config, step)
    if own.gpus > (processes or own.gpus):
        yield f"{field}.gpus is {own.gpus}, but compute.processes uses {processes} of them"
    if own.gpus > 1 and not own.shm_gib:
        yield f"{field}.shm_gib is 0, and NCCL of {own.gpus} GPUs may not start with the runtime's 64 MiB"


def check_addresses(screen: str | None, truth: str | None) -> None:
    """Refuses values of --screen and --truth that pods cannot read: InputError unless they are in a bucket."""
    for option, address in (("--screen", screen), ("--truth", truth)):
        if address is not None and not is_bucket(address):
            raise InputError(
                f"{option} {address}: is not an address in a bucket, and pods read nothing else; copy it there (for example "
                "`aws s3 sync FOLDER s3://BUCKET/screen`) and give s3://BUCKET/..."
            )


def fingerprint(source: ScreenSource, screen: Screen) -> str:
    """Digest of names, sizes and ETags of a screen's tables and images; it changes if any of them is rewritten.

    A plate takes two to four requests. InputError if a file has vanished.
    """
    with ThreadPoolExecutor(LISTINGS, thread_name_prefix="list") as pool:
        plates = [
            [files.folder, files.facts] for files in pool.map(lambda plate: plate_files(source, plate), screen.plates)
        ]
    return digest_text(json.dumps([table_facts(source, screen), plates]))
