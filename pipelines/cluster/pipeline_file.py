"""The compiled pipeline of a configuration, as a file to upload. Imports kfp when it compiles."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

from components.core.config import RunConfig
from pipelines.image_record import ImageRecord


def compile_to(config: RunConfig, path: Path, images: ImageRecord | None) -> None:
    """Writes the compiled pipeline; what submit uploads is what this makes.

    Args:
        config: the run.
        path: of the YAML file.
        images: the images by digest; None for the tags of this version.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from kfp import compiler

        from pipelines.training import build_training

        compiler.Compiler().compile(build_training(config), str(path))
