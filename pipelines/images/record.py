"""The built images by digest: what `images push` records and `compile` pins. Imports pydantic only.

{"schema": 1, "version": "0.1.0", "commit": "1a2b3c…", "images": {"cpu": {"reference": "registry/cellsignal-cpu@sha256:…", …}}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import InputError
from components.core.files import write_atomically

Target = Literal["cpu", "gpu"]
RECORD = Path("images.json")
"""Where `images push` writes and `compile` looks, unless told another file."""


class Image(FrozenModel):
    """One image as a registry holds it."""

    reference: Annotated[str, Field(pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")] = Field(
        ..., description="REGISTRY/NAME@sha256:DIGEST, which no later push changes"
    )
    tag: str = Field(..., description="the tag that was pushed: the git commit")


class ImageRecord(FrozenModel):
    """Both images of one build."""

    schema_: Literal[1] = Field(1, alias="schema")
    version: str = Field(..., description="of the package")
    commit: str = Field(..., description="git commit; +changes where the tree had changes that are not committed")
    images: dict[Target, Image] = Field(..., description="by target")


def read_images(path: Path) -> ImageRecord:
    """Reads a record.

    Raises:
        InputError: no such file, or not a record of both images.
    """
    try:
        record = ImageRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); `cellsignal images push` writes it") from None
    except (ValidationError, ValueError):
        raise InputError(f"{path}: not a record of images; `cellsignal images push` writes it anew") from None
    missing = {"cpu", "gpu"} - record.images.keys()
    if missing:
        raise InputError(f"{path}: without the {sorted(missing)[0]} image; `cellsignal images push` writes it anew")
    return record


def write_images(record: ImageRecord, path: Path) -> None:
    """Writes a record, whole or not at all."""
    write_atomically(path, record.model_dump_json(by_alias=True, indent=2) + "\n")
