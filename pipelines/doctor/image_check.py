"""Whether the recorded images are in the engine here and in their registry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from components.core.errors import InputError
from pipelines.doctor.finding import Finding
from pipelines.images.engine import connect, one_line
from pipelines.images.record import read_images
from pipelines.images.registry import ask, missing, split_reference

SECONDS = 10


def check_images(record: Path) -> Iterator[Finding]:
    """Looks for each image of a record.

    Args:
        record: images.json.
    """
    found = read_images(record)
    yield Finding("images", "ok", f"{record}: version {found.version}, commit {found.commit}")
    for target, image in sorted(found.images.items()):
        yield _in_registry(f"{target} image, registry", image.reference)
        yield _in_engine(f"{target} image, engine", image.reference)


def _in_engine(what: str, reference: str) -> Finding:
    needed = "only `run --runner docker` needs it"
    try:
        client = connect(SECONDS)
    except InputError as error:
        return Finding(what, "warning", f"not looked at, {needed}: {error}")
    from docker.errors import DockerException, ImageNotFound

    try:
        with contextlib.closing(client):
            client.images.get(reference)
    except ImageNotFound:
        return Finding(what, "warning", f"not pulled, {needed}: docker pull {reference}")
    except (DockerException, OSError) as error:
        return Finding(what, "warning", f"not looked at, {needed}: the container engine failed ({one_line(error)})")
    return Finding(what, "ok", "is there")


def _in_registry(what: str, reference: str) -> Finding:
    registry, name, digest = split_reference(reference)
    try:
        status = ask(registry, name, digest)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        return Finding(what, "warning", f"{registry} cannot be reached from here ({why}); the cluster must reach it")
    if status == 200:
        return Finding(what, "ok", f"{registry}/{name} has {digest[:19]}...")
    if status in (401, 403):
        return Finding(what, "warning", f"{registry} asks for a login to show {name} ({status}), so it was not checked")
    if status == 404:
        return Finding(what, "failed", missing(reference))
    return Finding(what, "warning", f"{registry} answers {status} when asked for {name}")
