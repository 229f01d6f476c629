"""What can be wrong with what `cellsignal submit` is given, found before anything is uploaded. Lists images, reads tables alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.artifacts import local_file
from components.core.storage.endpoint import has_keys
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import is_bucket, open_screen, open_store
from pipelines.cluster.data_fingerprint import fingerprint
from pipelines.cluster_checks import check_cluster
from pipelines.input_checks import check_screen, check_start
from pipelines.resources import REQUIRED_KEYS


@dataclass(frozen=True)
class Checked:
    """What is known of a run's input.

    Attributes:
        store: the run's object store.
        fingerprint: of the screen's files.
        remarks: what should be looked at, a sentence each.
    """

    store: ObjectStorage
    fingerprint: str
    remarks: tuple[str, ...]


def check_submission(
    config: RunConfig, screen: str | None, truth: str | None, environment: Mapping[str, str] = os.environ
) -> Checked:
    """Checks a run's input.

    Args:
        config: the run.
        screen: what --screen gives.
        truth: what --truth gives.
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
    remarks = check_cluster(config)
    if not has_keys(environment):
        whose = f"secret {config.cluster.store_secret}" if config.cluster.store_secret else "their service account"
        missing = next(name for name in REQUIRED_KEYS if not environment.get(name))
        raise InputError(
            f"{missing} is not set, so that the screen's files cannot be looked through for their fingerprint; set "
            f"{' and '.join(REQUIRED_KEYS)}, or AWS_PROFILE, and AWS_ENDPOINT_URL unless it is Amazon S3 (the pods have their own, "
            f"from {whose})"
        )
    store = open_store(config.store.bucket, config.store.prefix, environment)
    store.check()
    place = open_screen(screen)
    try:
        with local_file(truth) as labels:
            found = check_screen(config, place, labels)
    except InputError as error:
        raise InputError(str(error).replace("--truth /", "--truth: a copy at /")) from None
    check_start(config, environment)
    return Checked(store, fingerprint(place, found, config.screen.sites), tuple(remarks))


def _check_address(option: str, address: str) -> None:
    if is_bucket(address):
        return
    here = "is on this machine, which pods cannot read" if Path(address).exists() else "is not an address in a bucket"
    advice = f"copy it there (for example `aws s3 sync {address} s3://BUCKET/screen`) and give s3://BUCKET/..."
    raise InputError(f"{option} {address}: {here}; {advice if '://' not in address else 'write s3://BUCKET/PREFIX'}")
