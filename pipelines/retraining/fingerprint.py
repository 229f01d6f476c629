"""What a retraining goes by: the screen's files, the code, the configuration. Equal fingerprints need no second training.

Data are known by a listing (names, sizes, and ETags or modification times), so that no image is read and a bucket is asked
once for every thousand objects. A screen that was copied counts as another one; its plates are recognised by their pixels. What
the configuration names beside it counts by content: files by their digest, objects by their ETag, and the run that it starts
from by its weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from components.core.config import FrozenModel, RunConfig, differences, result_config
from components.core.errors import InputError
from components.core.screen.layouts import FOLDERS, TABLES
from components.core.screen.screen_source import FileFacts, ScreenSource, UnreadableError
from components.core.screen.wells import natural_key
from components.core.storage.digests import digest_file, digest_text
from components.core.storage.exchange import source_store
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.runs import OPTION, read_source
from pipelines.checks import local_files, stored_files
from pipelines.images.code_version import sources_digest

_SHOWN = 6


class Fingerprint(FrozenModel):
    """What decides a model, in parts, so that a difference can be named."""

    tables: dict[str, str] = Field(description="digest by table of the screen")
    experiments: dict[str, str] = Field(description="digest of an experiment's images by its folder, train/HUVEC-01")
    files: dict[str, str] = Field(
        description="digest by field of the files and of the run that the configuration names"
    )
    sources: str = Field(description="digest of this package's sources")
    images: dict[str, str] = Field(description="of the steps, by target; libraries' versions where they are processes")
    config: dict[str, Any] = Field(description="the configuration, as far as it decides a run")

    @property
    def digest(self) -> str:
        """64 hexadecimal digits."""
        return digest_text(json.dumps(self.model_dump(), sort_keys=True))


def fingerprint_of(
    place: ScreenSource, config: RunConfig, images: Mapping[str, str], store: ObjectStorage
) -> Fingerprint:
    """The fingerprint of this moment.

    Args:
        place: where the screen lies.
        config: of the run.
        images: what the steps run in.
        store: of the run; at its endpoint are the objects that the configuration names.

    Raises:
        InputError: no screen there, or a file, object or run that the configuration names is missing.
        StepError: a store failed.
    """
    place.check()
    try:
        tables = {facts.name: _digest([facts]) for facts in place.list_files() if facts.name in TABLES}
    except UnreadableError as error:
        raise InputError(f"{place.address()}: cannot be listed ({error.reason})") from None
    grouped: dict[str, list[FileFacts]] = {}
    for facts in place.list_trees(FOLDERS):
        if facts.name.endswith(".png"):
            grouped.setdefault("/".join(facts.name.split("/")[:2]), []).append(facts)
    experiments = {folder: _digest(files) for folder, files in grouped.items()}
    if not tables or not experiments:
        raise InputError(
            f"{place.address()}: holds no {'images' if tables else 'tables'} of a screen; give the folder that holds train.csv or "
            "metadata.csv, and the images' folders beside it"
        )
    return Fingerprint(
        tables=tables,
        experiments=experiments,
        files=_named(config, store),
        sources=sources_digest(),
        images=dict(images),
        config=json.loads(result_config(config)),
    )


def changes(earlier: Fingerprint, now: Fingerprint) -> list[str]:
    """What has changed, a clause each; empty where nothing has.

    Args:
        earlier: of the last retraining.
        now: of this one.
    """
    said = []
    before, after = _names(earlier.experiments), _names(now.experiments)
    both = before.keys() & after.keys()
    for names, what in (
        (after.keys() - both, "new"),
        (before.keys() - both, "gone"),
        ({name for name in both if before[name] != after[name]}, "written again"),
    ):
        if names:
            said.append(f"experiments {what}: {_listed(names)}")
    tables = {name for name in {*earlier.tables, *now.tables} if earlier.tables.get(name) != now.tables.get(name)}
    if tables:
        said.append(f"tables: {_listed(tables)}")
    if earlier.sources != now.sources:
        said.append("the code")
    if earlier.images != now.images:
        said.append("what the steps run in (images or libraries)")
    fields = [*differences(earlier.config, now.config), *differences(earlier.files, now.files)]
    if fields:
        said.append(f"configuration: {_listed(set(fields))}")
    return said


def _named(config: RunConfig, store: ObjectStorage) -> dict[str, str]:
    """What the configuration names beside the screen, by field."""
    found = {field: digest_file(path) for field, path in local_files(config).items()}
    for field, address in stored_files(config).items():
        from components.core.storage.object_store import ObjectStore, parse_uri

        bucket, key = parse_uri(address)
        at = store.elsewhere(f"s3://{bucket}") if isinstance(store, ObjectStore) else ObjectStore.connect(bucket)
        try:
            found[field] = _digest([FileFacts(*at.facts(key))])
        except MissingObjectError:
            raise InputError(f"{field}: there is no object {address}; correct the address") from None
    if config.init_from:
        source = read_source(*source_store(store, config.init_from))
        places = sorted((*of, record.prefix) for of, record in source.weights.items())
        found[OPTION] = digest_text(json.dumps(places))
    return found


def _digest(files: Iterable[FileFacts]) -> str:
    return digest_text(json.dumps(sorted(files)))


def _names(experiments: Mapping[str, str]) -> dict[str, str]:
    return {folder.rpartition("/")[2]: digest for folder, digest in experiments.items()}


def _listed(names: Iterable[str]) -> str:
    found = sorted(names, key=natural_key)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(found[:_SHOWN])}{more}"
