"""cellsignal growth: the object store around `python -m pipelines.studies.growth`. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from pipelines.images.code_version import code_version
from pipelines.run.child import run_child
from pipelines.run.local import storage


def run_growth(
    config: str, changes: Sequence[str], seeds: str, out: Path, store_dir: Path | None, console: Console
) -> int:
    """Runs the rungs with the user's object store, or the embedded one; returns the exit code.

    Raises:
        InputError: a wrong configuration, or an object store that cannot be used.
    """
    settings = RunConfig.load(config, changes)
    command = ["-m", "pipelines.studies.growth", "--config", config, "--out", str(out), "--seeds", seeds]
    command += ["--code-version", code_version()]
    for change in changes:
        command += ["--set", change]
    with storage(settings.store, store_dir, console) as environment:
        return run_child(command, environment)
