"""The container engine of this machine, through the docker package, which is imported when it is used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from components.core.errors import InputError
from pipelines.images.code_version import sources_digest

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

SOURCES_LABEL = "cellsignal.sources"
"""Label of an image: digest of the sources in it."""
PATIENCE = 60
"""Seconds that an answer may take; a build sends many."""


def connect() -> DockerClient:
    """A client of the engine at DOCKER_HOST, or at the usual socket.

    Raises:
        InputError: the docker package is missing, no engine listens, or this user has no access to it.
    """
    try:
        import docker
    except ImportError:
        raise InputError(
            "the Python package docker is missing; install it with pip install 'cellsignal[docker]'"
        ) from None
    try:
        return docker.from_env(timeout=PATIENCE)  # asks the engine for its version
    except (docker.errors.DockerException, ValueError) as error:  # ValueError: not an address
        raise InputError(_refusal(error)) from None


def check_image(client: DockerClient, name: str) -> Image:
    """An image of this engine; InputError if there is none, or it contains other sources than this package."""
    from docker.errors import ImageNotFound

    try:
        image = client.images.get(name)
    except ImageNotFound:
        raise InputError(f"{name}: there is no such image on this machine; run `cellsignal images build`") from None
    if image.labels.get(SOURCES_LABEL) != sources_digest():
        raise InputError(f"{name}: contains other sources than this package; run `cellsignal images build`")
    return image


def container_user(client: DockerClient) -> str:
    """UID:GID with which a container writes files that belong to this process's user."""
    # A rootless engine maps its root to the user who runs it.
    rootless = any("name=rootless" in option for option in client.info().get("SecurityOptions") or [])
    return "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"


def one_line(error: Exception) -> str:
    """The message of an engine or a registry on one line."""
    message = getattr(error, "explanation", None) or str(error)
    return " ".join(str(message).split()).strip('"')


def _refusal(error: Exception) -> str:
    engine = f"container engine at {os.environ.get('DOCKER_HOST') or 'its usual socket'}"
    if "PermissionError" in str(error):  # the docker package wraps it in errors of other kinds
        return (
            f"{engine}: this user may not use it; join the group docker (sudo usermod -aG docker $USER, then log in again), or "
            "run a rootless engine"
        )
    return f"{engine}: no answer ({one_line(error)}); start it (sudo systemctl start docker), or set DOCKER_HOST to another one"
