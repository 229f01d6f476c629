"""The folders and files of this machine that a run's containers see, each at the place where it lies here. Pure.

So every path in a configuration, a screen's address or an artifact means the same inside and outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict
from urllib.parse import unquote, urlsplit

from components.core.config import RunConfig, StoreConfig
from components.core.errors import InputError
from components.core.storage.opening import is_bucket, is_folder, join_address
from pipelines.checks import local_files

CERTIFICATES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name a file of certificates."""


class Mount(TypedDict):
    """A folder or file in a container, at its own path."""

    path: str
    write: bool


def mounts_of(
    config: RunConfig,
    work: Path,
    source: str,
    truth: str,
    environment: Mapping[str, str],
    models: Sequence[str] = (),
) -> list[Mount]:
    """What the containers of a run see of this machine; nothing twice, and folders before what lies in them.

    Args:
        config: the run.
        work: its working folder.
        source: address of the screen.
        truth: file of labels, empty for none.
        environment: variables of the containers.
        models: addresses of published models that are read.
    """
    read = list(_folder(source)) if "://" in source else [Path(source)]
    read += [Path(truth)] if truth else []
    read += [path.resolve() for path in local_files(config).values()]
    read += _folder((config.init_from or "").partition("/runs/")[0])
    read += [path for model in models for path in _folder(model)]
    read += [Path(environment[name]) for name in CERTIFICATES if environment.get(name)]
    write = [work, *_folder(join_address(config.store.bucket, ""))]
    write += [Path(config.loader.node_cache).absolute()] if config.loader.node_cache else []
    found: dict[str, bool] = {}
    for path, writing in (*((path, False) for path in read), *((path, True) for path in write)):
        if path.exists():
            found[str(path)] = found.get(str(path), False) or writing
    return [Mount(path=path, write=found[path]) for path in sorted(found) if not _covered(path, found)]


def _folder(address: str) -> Iterator[Path]:
    if is_folder(address):
        yield Path(unquote(urlsplit(address).path)).absolute()


def _covered(path: str, found: dict[str, bool]) -> bool:
    """Whether a folder above is there already, and as writable."""
    return any(
        found.get(above, False) >= found[path]
        for above in (str(parent) for parent in Path(path).parents)
        if above in found
    )


def check_credentials(store: StoreConfig, variables: Mapping[str, str] = os.environ) -> None:
    """Refuses a bucket whose credentials lie in files, before anything is written.

    Raises:
        InputError: they do.
    """
    from components.core.storage.endpoint import has_keys  # loads boto3

    in_bucket = is_bucket(join_address(store.bucket, store.prefix))
    if in_bucket and has_keys(variables) and not has_keys(environment_of(variables)):
        raise InputError(
            "--runner docker: containers see no files of credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a profile's "
            "are shown by `aws configure export-credentials --format env`)"
        )


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Of this process's variables those that a step needs: the way to the object store, threads, where events go.

    Credentials among them go to the engine with the request, and are in no argument, file or log.
    """
    named = ("AWS_", "CELLSIGNAL_", "OMP_", "MKL_", "NCCL_")
    single = {*CERTIFICATES, "http_proxy", "https_proxy", "no_proxy", "all_proxy", "PYTHONUNBUFFERED", "PYTHONSAFEPATH"}
    # Files of credentials stay here: the store is reached by what the variables themselves say.
    unread = {"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"}
    kept = {
        name: value
        for name, value in variables.items()
        if (name.startswith(named) or name in single or name.lower() in single) and name not in unread
    }
    return {name: os.path.abspath(value) if name in CERTIFICATES and value else value for name, value in kept.items()}  # noqa: PTH100
