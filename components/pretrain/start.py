"""Finds, checks and fetches the weights of an earlier run that pretraining starts from. The rules are core.learning.warm_start."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.core import progress
from components.core.errors import InputError
from components.core.learning.step_settings import PretrainSettings
from components.core.learning.warm_start import AT_RANDOM, check_labels, check_networks, scored_by
from components.core.storage.digests import digest_file, digest_text
from components.core.storage.finished import fetch_finished
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import OPTION, Learned
from components.core.storage.runs import read_source, read_source_screen


@dataclass(frozen=True)
class Start:
    """An earlier run's weights of the same fold and backbone."""

    run: str  # the run's key
    label: str  # name of the weights in messages
    file: Path  # weights.safetensors
    classes: tuple[str, ...]  # labels of the run's classes, in class order
    learned: Learned  # experiments or wells whose labels the weights have learned

    def digest(self) -> str:
        """Digest of the weights and their classes, wherever they are stored."""
        return f"{digest_file(self.file)} {digest_text(json.dumps(self.classes))}"


@contextmanager
def open_start(
    settings: PretrainSettings, own: ObjectStore, screen: Manifest, fold: int, backbone: str
) -> Iterator[Start | None]:
    """The weights that the configuration starts from, as a local file while the context is open; None if it has none.

    Raises:
        InputError: they are missing, have another architecture, or have learned labels that will score this fold.
    """
    if not settings.init_from:
        yield None
        return
    store, source = read_source(own, settings.init_from)
    check_networks(source, [settings.backbone(backbone)], settings.head, [fold], settings.screen.cell_types)
    theirs = read_source_screen(store, source)
    scored = scored_by(screen, settings.screen.holdout_experiments)
    for remark in check_labels(source, theirs, scored, [fold], [backbone]):
        progress.warn(remark)
    record = source.weights[fold, backbone]
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        label = f"fold {fold} of run {source.key}"
        try:
            fetch_finished(store, record.prefix, {"weights": Path(folder) / "weights"})
        except InputError:
            raise InputError(
                f"{OPTION}: {store.uri(record.prefix)}: {backbone} of {label} is gone or damaged; repeat that run, or {AT_RANDOM}"
            ) from None
        file = Path(folder) / "weights" / "weights.safetensors"
        yield Start(source.key, label, file, theirs.vocabulary.classes, record.learned)
