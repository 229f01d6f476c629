"""init_from by a run's folder: which address that is. Imports neither torch nor kfp."""

from __future__ import annotations

from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.opening import join_address
from components.core.storage.run_record import RUNS
from components.core.storage.source_run import OPTION
from pipelines.run.finishing import find_run


def with_address(config: RunConfig) -> RunConfig:
    """The configuration with the address of the run that it starts from, where it names the run's folder.

    Args:
        config: of the new run.

    Raises:
        InputError: not a run's folder.
    """
    if not config.init_from or "://" in config.init_from:
        return config
    folder = Path(config.init_from)
    if not folder.is_dir() and "/" not in config.init_from:
        return config
    try:
        found = find_run(config.init_from)
    except InputError as error:
        raise InputError(f"{OPTION}: {str(error).removeprefix('--run ')}") from None
    address = join_address(found.store.bucket, found.store.prefix)
    return config.model_copy(update={"init_from": f"{address}/{RUNS}/{found.key}"})
