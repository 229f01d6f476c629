"""What a submitted run is called, so that the same content is recognised: KFP's runs have no labels, only names. Pure.

key      NAME-FINGERPRINT: of the run in the object store, and the beginning of its name in KFP
version  PIPELINE-COMMIT-FILE: of the uploaded pipeline, by the digest of the compiled file
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from components.core.config import RunConfig
from components.core.storage.digests import digest_text
from pipelines.image_record import ImageRecord


@dataclass(frozen=True)
class Identity:
    """The names of a run.

    Attributes:
        key: in the object store.
        pipeline: in KFP.
        version: of the pipeline.
        run: in KFP; a further attempt has the same.
    """

    key: str
    pipeline: str
    version: str
    run: str


def run_key(
    config: RunConfig, images: ImageRecord | None, code: str, screen: str, tables: Sequence[object], truth: str | None
) -> str:
    """The key of a run: the same as long as it would compute the same.

    Where pods start and how many folds go side by side changes no result, so that more memory or another queue finds the
    finished steps of the earlier try under the same key.

    Args:
        config: the run.
        images: the images by digest; None where tags are used.
        code: digest of this checkout's sources, which the images hold where none are given.
        screen: address of the screen.
        tables: names, sizes and ETags of the screen's tables, as far as they are known.
        truth: address of the labels of unlabelled wells.
    """
    computed = config.model_dump(mode="json", exclude={"cluster", "local"})
    made_by = {target: image.reference for target, image in images.images.items()} if images else code
    fingerprint = digest_text(json.dumps([computed, made_by, screen, list(tables), truth or ""], sort_keys=True))
    return f"{config.name}-{fingerprint[:12]}"


def identify(config: RunConfig, key: str, commit: str, compiled: str) -> Identity:
    """The names of a run.

    Args:
        config: the run.
        key: of the run.
        commit: of the code; may be empty, or end in +changes.
        compiled: content of the compiled pipeline.
    """
    pipeline = f"cellsignal-{_label(config.name)}"
    # KFP may keep versions as Kubernetes objects, whose names are letters, digits, dots and hyphens.
    told = _label(commit.replace("+", "-")) or "no-commit"
    return Identity(key, pipeline, f"{pipeline}-{told}-{digest_text(compiled)[:12]}", f"{key} {commit or 'no commit'}")


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
