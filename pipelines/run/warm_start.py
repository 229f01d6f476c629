"""init_from by a run's folder: which address that is. Imports neither torch nor kfp."""

from __future__ import annotations

import os
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.opening import is_folder, join_address
from components.core.storage.run_record import RUNS
from components.core.storage.source_run import OPTION
from pipelines.run.finishing import find_run


def with_address(config: RunConfig, store: Path) -> RunConfig:
    """The configuration with the address of the run that it starts from, where it names the run's folder.

    Args:
        config: of the new run.
        store: data of the embedded object store, where that is used.

    Raises:
        InputError: not a run's folder, or a run in an embedded store that the new one does not start.
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
    there = found.store_dir or store
    if not is_folder(found.store.bucket) and not os.environ.get("AWS_ENDPOINT_URL"):
        if is_folder(config.store.bucket):
            raise InputError(
                f"{OPTION}: {config.init_from} lies in the embedded object store {there}, which a run whose store.bucket is "
                f"a folder does not start; run in that store, with --set store.bucket={found.store.bucket}"
            )
        if there.resolve() != store.resolve():
            raise InputError(
                f"{OPTION}: {config.init_from} lies in the object store {there}, this run in {store}; give --store {there}"
            )
    address = join_address(found.store.bucket, found.store.prefix)
    return config.model_copy(update={"init_from": f"{address}/{RUNS}/{found.key}"})
