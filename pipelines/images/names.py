"""What the images are called. Pure, but for the commit.

On this machine each has two names: NAME:COMMIT, and NAME:VERSION, which the components' signatures hold and which is the
newest build. In a registry it has the first.
"""

from __future__ import annotations

from pathlib import Path

from components.core.errors import InputError
from components.image import CPU, GPU
from pipelines.images.code_version import ROOT, UNCOMMITTED, code_commit
from pipelines.images.record import Target

CURRENT: dict[Target, str] = {"cpu": str(CPU["base_image"]), "gpu": str(GPU["base_image"])}
"""Names of the newest build on this machine, by target."""


def repository(target: Target) -> str:
    """An image's name without a tag."""
    return CURRENT[target].rpartition(":")[0]


def tag_of(commit: str) -> str:
    """A commit as a tag, which cannot have a plus sign."""
    return commit.replace(UNCOMMITTED, "-changes")


def checkout() -> tuple[Path, str]:
    """The folder of the checkout, and its commit.

    Raises:
        InputError: this package does not run from a checkout with a history.
    """
    commit = code_commit()
    if not commit or not (ROOT / "docker" / "Dockerfile").is_file():
        raise InputError(f"{ROOT}: images are built from a git checkout of cellsignal; clone it and run this there")
    return ROOT, commit
