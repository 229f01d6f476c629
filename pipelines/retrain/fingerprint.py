"""The fingerprint of a retraining: the screen's files, the code, the configuration. Equal fingerprints need no second training.

Data are fingerprinted by a listing (names, sizes, and ETags or modification times): no image is read, and a bucket needs one
request per thousand objects. A copied screen counts as another one. Files in the configuration count by content: local files by
digest, objects by ETag, and the run to start from by its weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from components.core.config import FrozenModel, RunConfig, differences, result_config
from components.core.errors import InputError, MissingObjectError, shortened
from components.core.screen.images import plate_files, table_facts
from components.core.screen.layouts import read_screen
from components.core.screen.screen_source import FileFacts, ScreenSource
from components.core.screen.wells import natural_key
from components.core.storage.digests import digest_file, digest_text
from components.core.storage.object_store import ObjectStore, parse_uri
from components.core.storage.run_records import OPTION
from components.core.storage.runs import read_source
from pipelines.checks import local_files, stored_files
from pipelines.images.code_version import sources_digest

_SHOWN = 6


class Fingerprint(FrozenModel):
    """Everything that determines a model, in parts, so that messages can name a difference."""

    tables: dict[str, str] = Field(description="digest by table of the screen")
    experiments: dict[str, str] = Field(description="digest of an experiment's images by its name")
    files: dict[str, str] = Field(
        description="digest of the files and of the run that the configuration names, by field"
    )
    sources: str = Field(description="digest of this package's sources")
    images: dict[str, str] = Field(description="container images by target, or the libraries' versions")
    config: dict[str, Any] = Field(description="the part of the configuration that affects results")

    @property
    def digest(self) -> str:
        """64 hexadecimal digits."""
        return digest_text(json.dumps(self.model_dump(), sort_keys=True))


def fingerprint_of(
    source: ScreenSource, config: RunConfig, images: Mapping[str, str], store: ObjectStore
) -> Fingerprint:
    """The present fingerprint; `images` are container images by target, or the libraries' versions.

    InputError if the screen cannot be read, or a file, object or run that the configuration names is missing.
    """
    screen = read_screen(source, config.screen)
    grouped: dict[str, list[FileFacts]] = {}
    for plate in screen.plates:
        files = plate_files(source, plate)
        folder = f"{files.folder}/" if files.folder else ""
        grouped.setdefault(plate.experiment, []).extend(f._replace(name=folder + f.name) for f in files.facts)
    return Fingerprint(
        tables={facts.name: _digest([facts]) for facts in table_facts(source, screen)},
        experiments={experiment: _digest(files) for experiment, files in grouped.items()},
        files=_files(config, store),
        sources=sources_digest(),
        images=dict(images),
        config=json.loads(result_config(config)),
    )


def changes(earlier: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """The differences of two fingerprints, a clause each; empty if they are equal."""
    clauses = []
    before, after = (
        {folder.rpartition("/")[2]: digest for folder, digest in each.experiments.items()} for each in (earlier, now)
    )
    both = before.keys() & after.keys()
    for names, what in (
        (after.keys() - both, "new"),
        (before.keys() - both, "gone"),
        ({name for name in both if before[name] != after[name]}, "rewritten"),
    ):
        if names:
            clauses.append(f"experiments {what}: {_listed(names)}")
    if tables := differences(earlier.tables, now.tables):
        clauses.append(f"tables: {_listed(tables)}")
    if earlier.sources != now.sources:
        clauses.append("the code")
    if earlier.images != now.images:
        clauses.append("images or libraries")
    fields = {*differences(earlier.config, now.config), *differences(earlier.files, now.files)}
    if fields:
        clauses.append(f"configuration: {_listed(fields)}")
    return tuple(clauses)


def _files(config: RunConfig, store: ObjectStore) -> dict[str, str]:
    """Digest of the files and of the run that the configuration names, by field."""
    found = {field: digest_file(path) for field, path in local_files(config).items()}
    for field, address in stored_files(config).items():
        bucket, key = parse_uri(address)
        try:
            there = ObjectStore(f"s3://{bucket}").head(key)
        except MissingObjectError:
            raise InputError(f"{field}: there is no object {address}; correct the address") from None
        found[field] = _digest([FileFacts(key, there.size, there.version)])
    if config.init_from:
        _, source = read_source(store, config.init_from)
        weights = sorted((*network, record.prefix) for network, record in source.weights.items())
        found[OPTION] = digest_text(json.dumps(weights))
    return found


def _digest(files: Iterable[FileFacts]) -> str:
    return digest_text(json.dumps(sorted(files)))


def _listed(names: Iterable[str]) -> str:
    return shortened(sorted(names, key=natural_key), _SHOWN)
