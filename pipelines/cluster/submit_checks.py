"""What can be wrong with what `cellsignal submit` is given, found before anything is uploaded. Lists images, reads tables alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.artifacts import local_file
from components.core.storage.endpoint import has_keys
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import is_bucket, open_screen, open_store
from pipelines.checks import check_screen, check_start
from pipelines.cluster.config_checks import check_cluster
from pipelines.cluster.data_fingerprint import fingerprint
from pipelines.cluster.pod_settings import REQUIRED_KEYS


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
    check_address("--screen", screen)
    if truth is not None:
        check_address("--truth", truth)
    remarks = check_cluster(config)
    store = checked_store(config, "the screen's files cannot be looked through for their fingerprint", environment)
    place = open_screen(screen)
    with of_a_copy(), local_file(truth) as labels:
        found = check_screen(config, place, labels)
    check_start(config, environment)
    return Checked(store, fingerprint(place, found, config.screen.sites), tuple(remarks))


def checked_store(config: RunConfig, so: str, environment: Mapping[str, str] = os.environ) -> ObjectStorage:
    """The store of a run on a cluster, which answers.

    Args:
        config: the run.
        so: what cannot be done without credentials.
        environment: whose credentials are used.

    Raises:
        InputError: no credentials, or ones that are refused; no such bucket.
    """
    whose = f"secret {config.cluster.store_secret}" if config.cluster.store_secret else "their service account"
    check_keys(so, whose, environment)
    store = open_store(config.store.bucket, config.store.prefix, environment)
    store.check()
    return store


@contextlib.contextmanager
def of_a_copy() -> Iterator[None]:
    """Errors of a truth that was fetched say that its path is a copy's."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--truth /", "--truth: a copy at /")) from None


def check_keys(so: str, whose: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses an environment without credentials.

    Args:
        so: what cannot be done without them.
        whose: where the pods have theirs from.
        environment: whose credentials are used.

    Raises:
        InputError: it has none.
    """
    if not has_keys(environment):
        missing = next(name for name in REQUIRED_KEYS if not environment.get(name))
        raise InputError(
            f"{missing} is not set, so that {so}; set {' and '.join(REQUIRED_KEYS)}, or AWS_PROFILE, and AWS_ENDPOINT_URL "
            f"unless it is Amazon S3 (the pods have their own, from {whose})"
        )


def check_address(option: str, address: str) -> None:
    """Refuses what pods cannot read.

    Raises:
        InputError: no address in a bucket.
    """
    if is_bucket(address):
        return
    here = "is on this machine, which pods cannot read" if Path(address).exists() else "is not an address in a bucket"
    advice = f"copy it there (for example `aws s3 sync {address} s3://BUCKET/screen`) and give s3://BUCKET/..."
    raise InputError(f"{option} {address}: {here}; {advice if '://' not in address else 'write s3://BUCKET/PREFIX'}")
