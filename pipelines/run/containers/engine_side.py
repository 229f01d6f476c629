"""What a run needs of the engine before it starts, and the end of its containers, however the run ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.images.code_version import CURRENT, Target, sources_digest
from pipelines.images.engine import check_image, connect

if TYPE_CHECKING:
    from docker import DockerClient

WORK_LABEL = "cellsignal.work"
"""Label of a container: the working folder of its run, in which one run works at a time."""


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
    """Sees to it that no container of the run in this folder is left: neither of an earlier process, nor of this one."""
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
            with contextlib.suppress(DockerException):  # it may have gone by itself meanwhile
                container.remove(force=True, v=True)
