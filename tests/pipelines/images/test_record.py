"""Images looked up by digest in their registry."""

from __future__ import annotations

import socket

import pytest

from components.core.errors import InputError
from pipelines.images.record import DOCKER_HUB, check_pushed, split_reference
from tests.pipelines.images.registry_server import DIGEST


def test_only_an_image_that_its_registry_lacks_is_rejected(registry: tuple[str, dict[str, int]]):
    place, statuses = registry
    for status in (200, 401, 403, 500):
        statuses["lab/cpu"] = status
        check_pushed(f"{place}/lab/cpu@{DIGEST}")
    statuses["lab/cpu"] = 404
    with pytest.raises(
        InputError, match=rf"^{place}/lab/cpu has no {DIGEST}; push again with `cellsignal images push`$"
    ):
        check_pushed(f"{place}/lab/cpu@{DIGEST}")


def test_a_registry_that_cannot_be_reached_from_here_is_accepted():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        check_pushed(f"127.0.0.1:{free.getsockname()[1]}/cpu@{DIGEST}")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        (f"ghcr.io/lab/cellsignal-cpu@{DIGEST}", ("ghcr.io", "lab/cellsignal-cpu", DIGEST)),
        (f"localhost:5000/cpu@{DIGEST}", ("localhost:5000", "cpu", DIGEST)),
        (f"lab/cpu@{DIGEST}", (DOCKER_HUB, "lab/cpu", DIGEST)),
        (f"cpu@{DIGEST}", (DOCKER_HUB, "library/cpu", DIGEST)),
    ],
)
def test_references_are_read_as_engines_do(reference: str, parts: tuple[str, str, str]):
    assert split_reference(reference) == parts
