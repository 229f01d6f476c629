"""What a submitted run is called, so that the same content is recognised: KFP's runs have no labels, only names. Pure.

key      NAME-FINGERPRINT: of the run in the object store, and the beginning of its name in KFP
version  PIPELINE-COMMIT-FILE: of the uploaded pipeline, by the digest of the compiled file
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from components.core.storage.digests import digest_text


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


def identify(name: str, key: str, commit: str, compiled: str) -> Identity:
    """The names of a run.

    Args:
        name: of the configuration, and what tells a prediction from a training.
        key: of the run.
        commit: of the code; may be empty, or end in +changes.
        compiled: content of the compiled pipeline.
    """
    pipeline = f"cellsignal-{_label(name)}"
    # KFP may keep versions as Kubernetes objects, whose names are letters, digits, dots and hyphens.
    told = _label(commit.replace("+", "-")) or "no-commit"
    return Identity(key, pipeline, f"{pipeline}-{told}-{digest_text(compiled)[:12]}", f"{key} {commit or 'no commit'}")


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
