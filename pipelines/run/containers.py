"""Tasks of a local run as containers: images, mounts, limits, variables, and the end of every container.

Every path is mounted at its own place, so that a path in a configuration, a screen's address or an artifact means the same
inside and outside. What runs a task is container_tasks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import unquote, urlsplit

from components.core.config import RunConfig, StoreConfig
from components.core.config.cluster import StepsConfig
from components.core.errors import InputError
from components.core.storage.opening import is_bucket, is_folder, join_address
from pipelines.checks import local_files
from pipelines.cluster.pod_settings import resources_of
from pipelines.images.code_version import CURRENT, Target, sources_digest
from pipelines.images.engine import check_image, connect

if TYPE_CHECKING:
    from docker import DockerClient

WORK_LABEL = "cellsignal.work"
"""Label of a container: the working folder of its run, in which one run works at a time."""
CERTIFICATES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that hold the path of a file of certificates."""


class Limits(TypedDict):
    """Limits of one step's container.

    memory_gib: GiB, beyond which it is killed; /dev/shm counts.
    shm_gib: size of /dev/shm, GiB; 0 for the engine's own.
    gpus: whether it gets this machine's GPUs.
    """

    memory_gib: float
    shm_gib: float
    gpus: bool


class Mount(TypedDict):
    """A folder or file in a container, at its own path."""

    path: str
    write: bool


def check_images() -> dict[Target, str]:
    """The images that a run's containers start from, by target: their ids.

    Raises:
        InputError: no engine, an image that is not there or contains other sources than this package.
    """
    client, sources = connect(), sources_digest()
    return {
        target: check_image(client, name, sources, "the package that starts the run").id
        for target, name in CURRENT.items()
    }


@contextlib.contextmanager
def ended_containers(work: Path) -> Iterator[None]:
    """Removes the containers of the run in this folder: those of an earlier process at the start, its own at the end."""
    client = connect()
    remove_containers(client, str(work))
    try:
        yield
    finally:
        remove_containers(client, str(work))


def remove_containers(client: DockerClient, work: str) -> None:
    """Kills and removes the containers of the run in a folder; steps are made to be killed at any moment."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    with contextlib.suppress(DockerException, RequestException):  # an engine that has ended runs none
        for container in client.containers.list(
            all=True, ignore_removed=True, filters={"label": f"{WORK_LABEL}={work}"}
        ):
            with contextlib.suppress(DockerException):  # it may have ended by itself
                container.remove(force=True, v=True)


def container_settings(
    config: RunConfig,
    work: Path,
    tmp: Path,
    source: str,
    truth: Path | None,
    environment: Mapping[str, str],
    models: Sequence[str] = (),
) -> dict[str, Any]:
    """What the process that runs the pipeline must know about its containers; no variable's value is in it.

    Args:
        config: the run's configuration.
        work: its working folder.
        tmp: the tasks' temporary files, in it.
        source: address of the screen.
        truth: labels of the unlabelled wells.
        environment: of the process that runs the pipeline.
        models: addresses of published models that are read.
    """
    if config.loader.node_cache:
        with contextlib.suppress(OSError):  # then the steps work without it, and warn
            Path(config.loader.node_cache).mkdir(parents=True, exist_ok=True)
    return {
        "work": str(work),
        "tmp": str(tmp),
        "folder": str(Path.cwd()),
        "mounts": mounts_of(config, work, source, str(truth or ""), environment_of(environment), models),
        "limits": limits_of(config),
    }


def limits_of(config: RunConfig) -> dict[str, Limits]:
    """The limits of every step's container: those of its pod on a cluster, but that a step takes all GPUs there are."""
    has_gpus = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    asked = {step: resources_of(config, step) for step in StepsConfig.model_fields}
    return {
        step: Limits(memory_gib=one.memory_gib, shm_gib=one.shm_gib, gpus=has_gpus and one.gpus > 0)
        for step, one in asked.items()
    }


def mounts_of(
    config: RunConfig,
    work: Path,
    source: str,
    truth: str,
    environment: Mapping[str, str],
    models: Sequence[str] = (),
) -> list[Mount]:
    """The paths of this machine that a run's containers see, each once.

    Args:
        config: the run's configuration.
        work: its working folder.
        source: address of the screen.
        truth: file of labels, empty for none.
        environment: variables of the containers.
        models: addresses of published models that are read.
    """
    read = list(_folder(source)) if "://" in source else [Path(source)]
    read += [Path(truth)] if truth else []
    read += [path.resolve() for path in local_files(config).values()]
    read += _folder((config.init_from or "").partition("/runs/")[0])
    read += [path for model in models for path in _folder(model)]
    read += [Path(environment[name]) for name in CERTIFICATES if environment.get(name)]
    write = [work, *_folder(join_address(config.store.bucket, ""))]
    write += [Path(config.loader.node_cache).absolute()] if config.loader.node_cache else []
    found: dict[str, bool] = {}
    for path, writing in (*((path, False) for path in read), *((path, True) for path in write)):
        if path.exists():
            found[str(path)] = found.get(str(path), False) or writing
    return [Mount(path=path, write=found[path]) for path in sorted(found) if not _covered(path, found)]


def _folder(address: str) -> Iterator[Path]:
    if is_folder(address):
        yield Path(unquote(urlsplit(address).path)).absolute()


def _covered(path: str, found: dict[str, bool]) -> bool:
    """Whether a parent folder is mounted already, with the same rights."""
    return any(
        found.get(above, False) >= found[path]
        for above in (str(parent) for parent in Path(path).parents)
        if above in found
    )


def check_credentials(store: StoreConfig, variables: Mapping[str, str] = os.environ) -> None:
    """Refuses a bucket whose credentials lie in files, before anything is written.

    Raises:
        InputError: they do.
    """
    from components.core.storage.endpoint import has_keys  # loads boto3

    in_bucket = is_bucket(join_address(store.bucket, store.prefix))
    if in_bucket and has_keys(variables) and not has_keys(environment_of(variables)):
        raise InputError(
            "--runner docker: containers see no files of credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a profile's "
            "are shown by `aws configure export-credentials --format env`)"
        )


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that a step needs: access to the object store, threads, the events file.

    Credentials among them go to the engine with the request, and are in no argument, file or log.
    """
    named = ("AWS_", "CELLSIGNAL_", "OMP_", "MKL_", "NCCL_")
    single = {*CERTIFICATES, "http_proxy", "https_proxy", "no_proxy", "all_proxy", "PYTHONUNBUFFERED", "PYTHONSAFEPATH"}
    # Files of credentials stay here: the store is reached by what the variables themselves say.
    unread = {"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"}
    kept = {
        name: value
        for name, value in variables.items()
        if (name.startswith(named) or name in single or name.lower() in single) and name not in unread
    }
    return {name: os.path.abspath(value) if name in CERTIFICATES and value else value for name, value in kept.items()}  # noqa: PTH100
