"""What can be wrong with what `cellsignal submit` is given, found before anything is uploaded. Reads tables, never images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.artifacts import local_file
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import is_bucket, is_folder, open_screen, open_store
from pipelines.input_checks import check_screen, check_start, local_files

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class Checked:
    """What is known of a run's input.

    Attributes:
        store: the run's object store; None where this machine has no credentials of it.
        tables: names, sizes and ETags of the files beside the screen's tables; empty without credentials.
    """

    store: ObjectStorage | None
    tables: tuple[tuple[str, int, str], ...] = ()


def check_submission(
    config: RunConfig,
    screen: str | None,
    truth: str | None,
    *,
    waits: bool,
    environment: Mapping[str, str] = os.environ,
) -> Checked:
    """Checks a run's input as far as this machine can.

    Args:
        config: the run.
        screen: what --screen gives.
        truth: what --truth gives.
        waits: whether results will be fetched.
        environment: whose credentials are used.

    Raises:
        InputError: names the option, file, row or field, and what to do.
    """
    if screen is None:
        raise InputError(
            "--screen is missing, and a cluster does not simulate: give its s3:// address; for a simulated one run "
            f"`cellsignal simulate --config {config.name} --out DIR` and copy DIR/screen into the bucket"
        )
    _check_address("--screen", screen)
    if truth is not None:
        _check_address("--truth", truth)
    if is_folder(config.store.bucket):
        raise InputError(
            f"store.bucket {config.store.bucket} is a folder, which the cluster's pods do not mount; "
            "give a bucket with --set store.bucket=NAME"
        )
    for field, path in local_files(config).items():
        raise InputError(
            f"{field}: {path} lies on this machine, out of the pods' reach; copy it into the bucket, give s3://..."
        )
    if config.init_from and "/" in config.init_from and "://" not in config.init_from:
        raise InputError(
            f"init_from: {config.init_from} is a folder of this machine; give the run's key or s3://BUCKET/runs/KEY"
        )
    missing = [name for name in CREDENTIALS if not environment.get(name)]
    if missing:
        if waits:
            raise InputError(
                f"--wait fetches the results from s3://{config.store.bucket}, but {missing[0]} is not set; set "
                f"{' and '.join(CREDENTIALS)} (and AWS_ENDPOINT_URL unless it is Amazon S3), or leave --wait out"
            )
        return Checked(None)
    store = open_store(config.store.bucket, config.store.prefix, environment)
    store.check()
    place = open_screen(screen)
    try:
        with local_file(truth) as labels:
            check_screen(config, place, labels)
        tables = tuple(sorted((facts.name, facts.size, facts.version) for facts in place.list_files()))
    except InputError as error:
        raise InputError(str(error).replace("--truth /", "--truth: a copy at /")) from None
    check_start(config, environment)
    return Checked(store, tables)


def _check_address(option: str, address: str) -> None:
    if is_bucket(address):
        return
    here = "is on this machine, which pods cannot read" if Path(address).exists() else "is not an address in a bucket"
    advice = f"copy it there (for example `aws s3 sync {address} s3://BUCKET/screen`) and give s3://BUCKET/..."
    raise InputError(f"{option} {address}: {here}; {advice if '://' not in address else 'write s3://BUCKET/PREFIX'}")
