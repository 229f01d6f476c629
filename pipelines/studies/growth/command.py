"""cellsignal growth: the object store around `python -m pipelines.studies.growth`. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.core.config import RunConfig
from components.core.storage.opening import choose_store, open_store, store_changes
from pipelines.images.code_version import code_version
from pipelines.run.child import run_child


def run_growth(config: str, changes: Sequence[str], seeds: str, out: Path, store: str | None) -> int:
    """Runs the rungs; returns the exit code.

    Raises:
        InputError: a wrong configuration, or an object store that cannot be used.
    """
    chosen = choose_store(RunConfig.load(config, changes).store, store)
    open_store(chosen.bucket, chosen.prefix).check()
    command = ["-m", "pipelines.studies.growth", "--config", config, "--out", str(out), "--seeds", seeds]
    command += ["--code-version", code_version()]
    for change in [*changes, *store_changes(chosen)]:
        command += ["--set", change]
    return run_child(command)
