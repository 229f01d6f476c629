"""Models that consist of a manifest alone, for tests that read no weights."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from components.core.config import CHANNELS, RunConfig
from components.core.registry.model_manifest import ModelManifest
from components.core.storage.digests import digest_text
from components.core.storage.manifest import Vocabulary
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import Learned

VOCABULARY = Vocabulary(treatments=("a", "b"), positives=("c",), negatives=("EMPTY",))


def small_model(number: int, **changes: Any) -> ModelManifest:
    """A model; each number has its own fingerprint."""
    fields = {
        "fingerprint": digest_text(str(number)),
        "attempt": f"{number:032x}",
        "name": "tiny",
        "created": datetime(2026, 11, 1 + number % 28, tzinfo=UTC),
        "run": f"tiny-{number}",
        "store": "s3://x",
        "code_version": "0.1.0",
        "lineage": {},
        "config": RunConfig().model_dump(mode="json"),
        "screen": digest_text("screen"),
        "channels": CHANNELS,
        "image_shape": (16, 16),
        "dtype": "uint8",
        "cell_types": ("HUVEC", "RPE"),
        "folds": {"HUVEC": (0,), "RPE": (0,)},
        "backbones": ("xception",),
        "predicted_by": "student",
        "vocabulary": VOCABULARY,
        "design": None,
        "temperatures": {},
        "experiment_folds": {},
        "taught": Learned(),
        "unlabelled": (),
        "held_out": (),
        "partial": False,
        "scores": {},
        "files": (),
        "networks": (),
    }
    return ModelManifest(**{**fields, **changes})


def put_model(store: ObjectStore, number: int, **changes: Any) -> str:
    """Publishes one, with an object beside the manifest; returns its fingerprint."""
    model = small_model(number, **changes)
    store.put(model.key("card.md"), b"card of %d" % number)
    store.put(f"models/{model.fingerprint}/manifest.json", model.model_dump_json().encode())
    return model.fingerprint
