"""What is wrong with a configuration on a cluster, and cheap to find out before compiling. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from components.core.config import RunConfig, StoreConfig
from components.core.errors import InputError
from components.core.storage.opening import is_folder
from pipelines.checks import local_files
from pipelines.cluster.pod_settings import SCRATCH, resources_of
from pipelines.plan.dag import GPU_STEPS
from pipelines.plan.estimate import pod_memory_gib
from pipelines.run.display import task_counts


def steps_of(config: RunConfig, tasks: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """The steps that a DAG has, in its order.

    Args:
        config: of the run.
        tasks: by step; None for those of a training.
    """
    return tuple(step for step, count in (task_counts(config) if tasks is None else tasks).items() if count)


def check_cluster(config: RunConfig, tasks: Mapping[str, int] | None = None) -> list[str]:
    """Refuses a configuration whose pods cannot work, and returns what should be looked at, a sentence each.

    Args:
        config: of the run.
        tasks: by step; None for those of a training.

    Raises:
        InputError: names the field, and what to do.
    """
    _check_addresses(config)
    cache = config.loader.node_cache
    if cache is not None and (not cache.startswith("/") or PurePosixPath(cache) in map(PurePosixPath, ("/", SCRATCH))):
        raise InputError(
            f"loader.node_cache: {cache} is mounted into pods as an empty folder, so give an absolute path of its own, for "
            "example /node-cache, or null"
        )
    steps = steps_of(config, tasks)
    for step in steps:
        _check_step(config, step)
    return list(_remarks(config, steps))


def preemption_remarks(config: RunConfig, tasks: Mapping[str, int] | None = None) -> list[str]:
    """What becomes of pods that are taken away, a sentence where the configuration lets them be.

    Args:
        config: of the run.
        tasks: by step; None for those of a training.
    """
    spot = [
        step
        for step in steps_of(config, tasks)
        if config.cluster.spot_toleration in resources_of(config, step).tolerations
    ]
    if not spot:
        return []
    *others, last = spot
    who = f"{', '.join(others)} and {last}" if others else last
    return [
        f"{who} may run on spot nodes, and Kubeflow tries no pod again that is taken from its node: the run fails, so "
        "submit it with --wait --resubmit N, which goes on from its checkpoints"
    ]


def check_bucket(store: StoreConfig) -> None:
    """Refuses a store that pods do not share.

    Raises:
        InputError: it is a folder.
    """
    if is_folder(store.bucket):
        raise InputError(
            f"store.bucket: {store.bucket} is a folder, which the pods of a cluster do not share; give an S3 bucket"
        )


def _check_addresses(config: RunConfig) -> None:
    """Pods see no file of this machine."""
    check_bucket(config.store)
    for field, path in local_files(config).items():
        raise InputError(f"{field}: {path} is a file of this machine; upload it and give its s3:// address")
    start = config.init_from
    if start and (start.startswith("file://") or ("://" not in start and Path(start).is_dir())):
        raise InputError(
            f"init_from: {start} is a folder of this machine; give the run's key, or s3://BUCKET[/PREFIX]/runs/KEY"
        )


def _check_step(config: RunConfig, step: str) -> None:
    asked = resources_of(config, step)
    where = f"cluster.steps.{step}"
    if asked.shm_gib > asked.memory_gib:
        raise InputError(
            f"{where}.shm_gib: {asked.shm_gib:g} GiB lie in the pod's memory, which has {asked.memory_gib:g}; make one smaller or "
            "the other larger"
        )
    processes = config.compute.processes
    if step in GPU_STEPS and asked.gpus and processes > asked.gpus:
        raise InputError(
            f"compute.processes is {processes}, but {where}.gpus {asked.gpus}; raise the one, lower the other, or set processes "
            "to 0 for all GPUs of the pod"
        )


def _remarks(config: RunConfig, steps: tuple[str, ...]) -> Iterator[str]:
    for step in steps:
        asked = resources_of(config, step)
        processes = config.compute.processes or max(1, asked.gpus)
        if step not in GPU_STEPS:
            if asked.gpus:
                yield f"cluster.steps.{step}.gpus is {asked.gpus}, but this step computes on CPUs alone"
            continue
        needed = pod_memory_gib(config, processes) + asked.shm_gib
        if config.screen.image_size >= 256 and needed > asked.memory_gib:
            yield (
                f"{step} needs about {needed:.0f} GiB of memory ({processes} process{'es' if processes > 1 else ''}, "
                f"loader.cache_gib {config.loader.cache_gib:g} each), cluster.steps.{step}.memory_gib is {asked.memory_gib:g}"
            )
        if asked.gpus > processes:
            yield f"cluster.steps.{step}.gpus is {asked.gpus}, but compute.processes uses {processes} of them"
        if asked.gpus > 1 and not asked.shm_gib:
            yield f"cluster.steps.{step}.shm_gib is 0, and NCCL of {asked.gpus} GPUs may not start with the runtime's 64 MiB"
