"""Tasks of a local run as containers: images, mounts, limits, variables, and how kfp.local's DockerRunner runs one.

Every path is mounted at the same path, so that a path in a configuration, a screen's address or an artifact means the same
inside and outside. kfp and docker are imported by the functions that use them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from components.core.config import RunConfig, StoreConfig
from components.core.config.cluster import StepResources
from components.core.errors import InputError
from components.core.progress import emit
from components.core.storage.opening import is_bucket, is_folder
from pipelines.checks import local_files
from pipelines.images.code_version import CURRENT, Target
from pipelines.images.engine import check_image, connect, container_user, one_line
from pipelines.run.folder import LocalRun, RunFolder

if TYPE_CHECKING:
    from docker import DockerClient
    from kfp.local import DockerRunner

WORK_LABEL = "cellsignal.work"
"""Label of a container: the working folder of its run, in which one run works at a time."""
CERTIFICATES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that hold the path of a file of certificates."""
GIB = 2**30


def check_images() -> dict[Target, str]:
    """The ids of the images that a run's containers start from, by target.

    Raises:
        InputError: no engine, an image that is missing or contains other sources than this package.
    """
    client = connect()
    return {target: check_image(client, name).id for target, name in CURRENT.items()}


def check_credentials(store: StoreConfig, variables: Mapping[str, str] = os.environ) -> None:
    """Refuses a bucket whose credentials lie in files, before anything is written.

    Raises:
        InputError: they do.
    """
    from components.core.storage.s3 import credential_variables  # loads boto3

    in_bucket = is_bucket(store.address)
    if in_bucket and credential_variables(variables) and not credential_variables(container_environment(variables)):
        raise InputError(
            "--runner docker: containers see no files of credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a profile's "
            "are shown by `aws configure export-credentials --format env`)"
        )


@contextlib.contextmanager
def containers_removed(work: Path) -> Iterator[None]:
    """Removes the containers of the run in this folder: those of an earlier process at the start, its own at the end."""
    client = connect()
    remove_containers(client, work)
    try:
        yield
    finally:
        remove_containers(client, work)


def remove_containers(client: DockerClient, work: Path) -> None:
    """Kills and removes the containers of the run in a folder; steps may be killed at any moment."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    with contextlib.suppress(DockerException, RequestException):  # a stopped engine runs none
        for container in client.containers.list(
            all=True, ignore_removed=True, filters={"label": f"{WORK_LABEL}={work}"}
        ):
            with contextlib.suppress(DockerException):  # it may have ended by itself
                container.remove(force=True, v=True)


def mounts_of(run: LocalRun, folder: RunFolder, environment: Mapping[str, str]) -> dict[str, bool]:
    """The paths of this machine that a run's containers see, and whether they may write to them; `environment` is theirs."""
    config, source, truth = run.config, folder.source(run.screen), folder.truth(run)
    read = _folder(source) if "://" in source else [Path(source)]
    read += [truth] if truth else []
    read += [path.resolve() for path in local_files(config).values()]
    read += _folder((config.init_from or "").partition("/runs/")[0])
    read += _folder(run.prediction.model) if run.prediction else []
    read += [Path(environment[name]) for name in CERTIFICATES if environment.get(name)]
    write = [folder.work, *_folder(config.store.address)]
    write += [Path(config.loader.node_cache).absolute()] if config.loader.node_cache else []
    writable = {str(path): False for path in read if path.exists()}
    writable |= {str(path): True for path in write if path.exists()}
    return {path: writable[path] for path in sorted(writable) if not _covered(path, writable)}


def _folder(address: str) -> list[Path]:
    return [Path(unquote(urlsplit(address).path)).absolute()] if is_folder(address) else []


def _covered(path: str, writable: Mapping[str, bool]) -> bool:
    """Whether a parent folder is mounted already, with the same rights."""
    above = [str(parent) for parent in Path(path).parents]
    return any(writable[parent] >= writable[path] for parent in above if parent in writable)


def container_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that a step needs: access to the object store, threads, the events file.

    Credentials among them go to the engine with the request, and are in no argument, file or log.
    """
    prefixes = ("AWS_", "CELLSIGNAL_", "OMP_", "MKL_", "NCCL_")
    single = {*CERTIFICATES, "http_proxy", "https_proxy", "no_proxy", "all_proxy", "PYTHONUNBUFFERED", "PYTHONSAFEPATH"}
    # Files of credentials are not mounted: containers reach the store with the other variables alone.
    unread = {"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"}
    kept = {
        name: value
        for name, value in variables.items()
        if (name.startswith(prefixes) or name in single or name.lower() in single) and name not in unread
    }
    return {name: os.path.abspath(value) if name in CERTIFICATES and value else value for name, value in kept.items()}  # noqa: PTH100


def docker_runner(run: LocalRun, folder: RunFolder) -> DockerRunner:
    """kfp.local's runner for containers; from now on this process runs its tasks by `run_task`.

    kfp's own function lets the engine remove a container the moment it ends, and treats a task whose exit code is gone by then
    as done; `run_task` removes it itself, once it has the code. It also gives every step its own limits.
    """
    from docker.types import Mount
    from kfp import local
    from kfp.local import docker_task_handler

    client = connect()
    unconfined = "name=selinux" in (client.info().get("SecurityOptions") or [])
    if run.config.loader.node_cache:
        with contextlib.suppress(OSError):  # without it the steps work too, and warn
            Path(run.config.loader.node_cache).mkdir(parents=True, exist_ok=True)
    environment = container_environment(os.environ)
    mounts = mounts_of(run, folder, environment)

    # `volumes` is the pipeline's root, which lies in the run's folder; a path with a colon could not be written as one.
    def run_container(client: DockerClient, image: str, command: Sequence[str], volumes: Any, **rest: Any) -> int:
        return run_task(client, image, command, run.config, **rest)

    docker_task_handler.run_docker_container = run_container
    return local.DockerRunner(
        environment={**environment, "TMPDIR": str(folder.tmp)},
        mounts=[Mount(path, path, type="bind", read_only=not writable) for path, writable in mounts.items()],
        working_dir=str(Path.cwd()),
        network_mode="host",  # an object store may listen on this machine's loopback
        user=container_user(client),
        group_add=[str(group) for group in os.getgroups()],
        read_only=True,
        tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777,size=1g"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", *(["label=disable"] if unconfined else [])],
        init=True,
        labels={WORK_LABEL: str(folder.work)},
    )


def run_task(client: DockerClient, image: str, command: Sequence[str], config: RunConfig, **arguments: Any) -> int:
    """Runs one task to its end within the limits of its pod on a cluster, but with all GPUs of this machine; prints its output.

    `command` is kfp's executor with its arguments; `arguments` are the container's, as docker-py names them.

    Returns:
        Its exit code; not 0 if an output is missing, or it was killed or did not start.
    """
    from docker.errors import DockerException
    from docker.types import DeviceRequest
    from requests.exceptions import RequestException

    step = command[command.index("--function_to_execute") + 1]
    task = json.loads(command[command.index("--executor_input") + 1])
    parameters = task["inputs"].get("parameterValues", {})
    labels = {name: parameters[name] for name in ("fold", "cell_type", "backbone") if name in parameters}
    if "fold" in labels:
        labels["fold"] = int(labels["fold"])  # kfp makes a float of an int

    def failed(message: str) -> None:
        emit("failed", kind="step", step=step, **labels, message=message)

    limits: StepResources = getattr(config.cluster.steps, step)
    if limits.gpus and any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg")):
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    if limits.shm_gib:
        arguments["shm_size"] = int(limits.shm_gib * GIB)
    memory = int(limits.memory_gib * GIB)  # with /dev/shm
    container = None
    try:
        container = client.containers.create(image, list(command), mem_limit=memory, memswap_limit=memory, **arguments)
        container.start()
        for line in container.logs(stream=True):
            print(line.decode(errors="replace"), end="")  # noqa: T201 - kfp indents it into the run's log
        code = int(container.wait()["StatusCode"])
        if code:
            container.reload()
            if container.attrs["State"].get("OOMKilled"):
                failed(
                    f"its container was killed at its limit of {limits.memory_gib:g} GiB of memory; raise "
                    f"cluster.steps.{step}.memory_gib, or lower loader.cache_gib"
                )
            return code
        missing = _missing_output(task["outputs"])
        if missing:
            failed(f"its container ended well but left no {missing}")
            return 1
        return 0
    except (DockerException, RequestException) as error:
        failed(_refusal(image, one_line(error)))
        return 1
    finally:
        if container is not None:
            with contextlib.suppress(DockerException, RequestException):  # the end of the run removes what is left
                container.remove(force=True, v=True)


def _missing_output(outputs: Mapping[str, Any]) -> str:
    """The first output of a task that does not exist; metrics are in the executor's own file."""
    paths = [("record of outputs", outputs["outputFile"])]
    for name, artifacts in outputs.get("artifacts", {}).items():
        for artifact in artifacts["artifacts"]:
            if artifact["type"].get("schemaTitle") != "system.Metrics":
                paths.append((name, artifact["uri"]))
    return next((name for name, path in paths if not Path(path).exists()), "")


def _refusal(image: str, message: str) -> str:
    if "could not select device driver" in message:
        return "the engine cannot give a container the GPU of this machine; install the NVIDIA Container Toolkit"
    if "No such image" in message:
        return f"{image} is gone from this machine; run `cellsignal images build`"
    return f"the container engine could not run it ({message})"
