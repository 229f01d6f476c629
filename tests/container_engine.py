"""A real engine and the images of these sources, for tests marked docker; they skip if either is missing.

If CELLSIGNAL_DOCKER_TESTS is `required`, as .ci/docker sets it, they fail instead.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import pytest

from components.core.errors import InputError

if TYPE_CHECKING:
    from docker import DockerClient


def engine_or_skip() -> DockerClient:
    from pipelines.images.engine import connect

    try:
        return connect()
    except InputError as error:
        _give_up(str(error))


def images_or_skip() -> dict[str, str]:
    """Ids of the images by target."""
    from pipelines.run.containers import check_images

    engine_or_skip()
    try:
        return {**check_images()}
    except InputError as error:
        _give_up(str(error))


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CELLSIGNAL_DOCKER_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
