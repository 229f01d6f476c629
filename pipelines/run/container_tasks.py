"""How kfp.local's DockerRunner runs a task here. Imports kfp and docker.

kfp's own function lets the engine remove a container the moment it ends, and takes a task whose exit code is gone by then for
done; this one removes it itself, once it has the code. It also gives every step its own limits.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException
from docker.types import DeviceRequest, Mount
from kfp import local
from kfp.local import docker_task_handler
from requests.exceptions import RequestException

from components.core.progress import emit
from pipelines.images.engine import connect, container_user, one_line
from pipelines.run.containers import WORK_LABEL, Limits, environment_of

GIB = 2**30
_LABELS = ("fold", "cell_type", "backbone")
_NO_DRIVER = "could not select device driver"


def docker_runner(job: dict[str, Any]) -> local.DockerRunner:
    """kfp.local's runner for a job's containers; from now on this process runs its tasks by `run_task`."""
    client = connect()
    unconfined = "name=selinux" in (client.info().get("SecurityOptions") or [])

    # `volumes` is the pipeline's root, which lies in the run's folder; a path with a colon could not be written as one.
    def run(client: docker.DockerClient, image: str, command: Sequence[str], volumes: Any, **rest: Any) -> int:
        return run_task(client, image, command, job["limits"], **rest)

    docker_task_handler.run_docker_container = run
    return local.DockerRunner(
        environment={**environment_of(os.environ), "TMPDIR": job["tmp"]},
        mounts=[Mount(one["path"], one["path"], type="bind", read_only=not one["write"]) for one in job["mounts"]],
        working_dir=job["folder"],
        network_mode="host",  # the embedded object store listens on this machine's loopback
        user=container_user(client),
        group_add=[str(group) for group in os.getgroups()],
        read_only=True,
        tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777,size=1g"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", *(["label=disable"] if unconfined else [])],
        init=True,
        labels={WORK_LABEL: job["work"]},
    )


def run_task(
    client: docker.DockerClient, image: str, command: Sequence[str], limits: dict[str, Limits], **arguments: Any
) -> int:
    """Runs one task to its end; prints what it prints.

    Args:
        client: of the engine.
        image: its name.
        command: of kfp's executor.
        limits: by step.
        **arguments: of the container, as docker-py names them.

    Returns:
        Its exit code; not 0 where it left an output out, was killed, or did not start.
    """
    step, given = _task(command)
    told = {"step": step, **{name: _plain(given[name]) for name in _LABELS if name in given}}
    own = limits[step]
    if own["gpus"]:
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    if own["shm_gib"]:
        arguments["shm_size"] = int(own["shm_gib"] * GIB)
    memory = int(own["memory_gib"] * GIB)
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
                emit(
                    "failed",
                    kind="step",
                    **told,
                    message=(
                        f"its container was killed at its limit of {own['memory_gib']:g} GiB of memory; raise "
                        f"cluster.steps.{step}.memory_gib, or lower loader.cache_gib"
                    ),
                )
            return code
        missing = _missing_outputs(command)
        if missing:
            emit("failed", kind="step", **told, message=f"its container ended well but left no {missing}")
            return 1
        return 0
    except (DockerException, RequestException) as error:
        emit("failed", kind="step", **told, message=_refusal(image, one_line(error)))
        return 1
    finally:
        if container is not None:
            _remove(container)


def _task(command: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The step of an executor's command, and its parameters."""
    step = command[command.index("--function_to_execute") + 1]
    return step, _executor_input(command)["inputs"].get("parameterValues", {})


def _executor_input(command: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(command[command.index("--executor_input") + 1])
    return parsed


def _plain(value: Any) -> Any:
    """A number as the steps tell it: kfp makes a float of an int."""
    return int(value) if isinstance(value, float) else value


def _missing_outputs(command: Sequence[str]) -> str:
    """The first output of a task that is not there; metrics are in the executor's own file."""
    outputs = _executor_input(command)["outputs"]
    found = [("record of outputs", outputs["outputFile"])]
    for name, artifacts in outputs.get("artifacts", {}).items():
        for artifact in artifacts["artifacts"]:
            if artifact["type"].get("schemaTitle") != "system.Metrics":
                found.append((name, artifact["uri"]))
    return next((name for name, path in found if not Path(path).exists()), "")


def _refusal(image: str, said: str) -> str:
    if _NO_DRIVER in said:
        return "the engine cannot give a container the GPU of this machine; install the NVIDIA Container Toolkit"
    if "No such image" in said:
        return f"{image} is gone from this machine; run `cellsignal images build`"
    return f"the container engine could not run it ({said})"


def _remove(container: Any) -> None:
    with contextlib.suppress(DockerException, RequestException):  # whoever ended the run removes what is left
        container.remove(force=True, v=True)
