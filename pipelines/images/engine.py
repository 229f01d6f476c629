"""The container engine of this machine, through the docker package, which is loaded when it is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from components.core.errors import InputError

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

SOURCES_LABEL = "cellsignal.sources"
"""Label of an image: digest of the sources that it holds."""


PATIENCE = 60
"""Seconds that the docker package waits for an answer unless told otherwise; a build takes longer, piece by piece."""


def connect(seconds: int = PATIENCE) -> DockerClient:
    """A client of the engine that the environment names (DOCKER_HOST), else of the usual socket.

    Args:
        seconds: that an answer may take.

    Raises:
        InputError: the docker package is missing; no engine listens; it listens, and this user may not ask it.
    """
    try:
        import docker
    except ImportError:
        raise InputError(
            "the Python package docker is missing; install it with pip install 'cellsignal[docker]'"
        ) from None
    try:
        return docker.from_env(timeout=seconds)  # asks the engine its version
    except (docker.errors.DockerException, ValueError) as error:  # ValueError: an address that cannot be read at all
        raise InputError(_refusal(error)) from None


def check_image(client: DockerClient, name: str, sources: str, whose: str) -> Image:
    """An image of this engine, with the sources that are expected in it.

    Args:
        client: of the engine.
        name: of the image.
        sources: digest of the expected ones.
        whose: who has these, for the message.

    Raises:
        InputError: it is not there, or holds other sources.
    """
    from docker.errors import ImageNotFound

    try:
        image = client.images.get(name)
    except ImageNotFound:
        raise InputError(f"{name}: there is no such image on this machine; run `cellsignal images build`") from None
    if image.labels.get(SOURCES_LABEL) != sources:
        raise InputError(f"{name}: holds other sources than {whose}; run `cellsignal images build`")
    return image


def whose_files(client: DockerClient) -> str:
    """The user in whose name a container writes files that belong to this process's user: UID:GID."""
    # A rootless engine maps its root to the user who runs it, and every other id to one that nobody else has.
    rootless = any("name=rootless" in option for option in client.info().get("SecurityOptions") or [])
    return "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"


def one_line(error: Exception) -> str:
    """What an engine or a registry said, without its punctuation around."""
    said = getattr(error, "explanation", None) or str(error)
    return " ".join(str(said).split()).strip('"')


def _refusal(error: Exception) -> str:
    where = os.environ.get("DOCKER_HOST") or "its usual socket"
    causes: list[object] = [error]
    for cause in causes:  # which grows: requests and urllib3 wrap the cause in arguments, and chain it
        if isinstance(cause, PermissionError):
            return (
                f"container engine at {where}: this user may not use it; join the group docker "
                "(sudo usermod -aG docker $USER, then log in anew), or run a rootless engine"
            )
        if isinstance(cause, BaseException):
            chained = (cause.__cause__, cause.__context__, getattr(cause, "reason", None))
            causes += [one for one in (*cause.args, *chained) if one is not None and one not in causes]
    return (
        f"container engine at {where}: no answer ({one_line(error)}); start it (sudo systemctl start docker), or name "
        "another one by DOCKER_HOST"
    )
