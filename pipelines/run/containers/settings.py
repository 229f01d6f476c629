"""What the process that runs the pipeline must know about its containers, as part of its job; no variable's value is in it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.core.config import RunConfig
from pipelines.run.containers.limits import limits_of
from pipelines.run.containers.mounts import environment_of, mounts_of

SCRATCH = "scratch"
"""Folder for the tasks' temporary files in the run's working folder: a checkpoint should not lie in memory, as /tmp does."""


@contextlib.contextmanager
def scratch(work: Path) -> Iterator[None]:
    """An empty folder for temporary files, without what killed tasks of an earlier run left."""
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    (work / SCRATCH).mkdir()
    try:
        yield
    finally:
        shutil.rmtree(work / SCRATCH, ignore_errors=True)


def container_settings(
    config: RunConfig,
    work: Path,
    source: str,
    truth: Path | None,
    environment: Mapping[str, str],
    models: Sequence[str] = (),
) -> dict[str, Any]:
    """Mounts and limits of a run's containers.

    Args:
        config: the run.
        work: its working folder.
        source: address of the screen.
        truth: labels of the unlabelled wells.
        environment: of the process that runs the pipeline.
        models: addresses of published models that are read.
    """
    if config.loader.node_cache:
        with contextlib.suppress(OSError):  # then the steps go on without it, and say so
            Path(config.loader.node_cache).mkdir(parents=True, exist_ok=True)
    return {
        "work": str(work),
        "scratch": str(work / SCRATCH),
        "folder": str(Path.cwd()),
        "mounts": mounts_of(config, work, source, str(truth or ""), environment_of(environment), models),
        "limits": limits_of(config),
    }
