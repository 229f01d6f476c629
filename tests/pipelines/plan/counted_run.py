"""Runs training steps for real on a screen of a few images, counting every image that a network or the loader sees. For tests."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from components.core.config import RunConfig
from components.core.learning.loader import SiteCache
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.core.learning.xception import Xception
from components.core.screen.packed import SiteReader
from components.core.storage.manifest import Manifest
from components.finetune.step import run as finetune
from components.infer.step import run as infer
from components.normalize.config import NormalizeConfig
from components.normalize.step import run as normalize
from components.pretrain.step import run as pretrain
from components.pseudo_label.step import run as pseudo_label
from tests.tiny_screen import MemoryStore, TinyScreen

EXPERIMENTS = ("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04", "RPE-01")


@dataclass
class Counts:
    """What a step did.

    Attributes:
        student: images by width of the embedding, with gradients.
        forward: images by width of the embedding, without.
        sites: images that the loader handed out.
        fetched: images that it had to fetch for that.
    """

    student: Counter[int] = field(default_factory=Counter)
    forward: Counter[int] = field(default_factory=Counter)
    sites: int = 0
    fetched: int = 0


class CountedScreen:
    """A packed screen, and the steps on it."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.config, self.store = folder, config, MemoryStore()
        self.tables = folder / "screen"
        TinyScreen(self.tables, more=("HUVEC-04",), imaged=EXPERIMENTS)
        paths = [folder / name for name in ("screen.json", "holdout.json", "labels.csv")]
        self.packing = normalize(config.section(NormalizeConfig), self.tables, self.store, *paths)
        self.screen, self.holdout = Manifest.read(paths[0]), Manifest.read(paths[1])

    def pretrain(self, fold: int, backbone: str) -> Path:
        out = self.folder / f"{backbone}-{fold}"
        out.mkdir()
        pretrain(self.config.section(PretrainSettings), self.store, self.screen, fold, backbone, out)
        return out

    def finetune(self, fold: int, cell_type: str, bases: list[Path]) -> Path:
        out = self.folder / f"finetune-{fold}-{cell_type}"
        finetune(self.config.section(MeanTeacherSettings), self.store, self.screen, bases, fold, cell_type, out)
        return out

    def pseudo_label(self, fold: int, cell_type: str, base: Path) -> Path:
        out = self.folder / f"pseudo-label-{fold}-{cell_type}"
        settings = self.config.section(MeanTeacherSettings)
        outputs = [out / name for name in ("weights", "logits", "embeddings")]
        pseudo_label(settings, self.store, self.screen, self.holdout, base, fold, cell_type, *outputs)
        return out

    def infer(self, fold: int, cell_type: str, bases: list[Path]) -> None:
        out = self.folder / f"infer-{fold}-{cell_type}"
        settings = self.config.section(InferSettings)
        outputs = [out / name for name in ("logits", "embeddings")]
        infer(settings, self.store, self.screen, self.holdout, bases, fold, cell_type, *outputs)


def counted(patch: pytest.MonkeyPatch) -> Counts:
    """Fills up from now on, until the patch is undone."""
    counts = Counts()
    forward, batches, read_into = Xception.forward, SiteCache.batches, SiteReader.read_into
    lock = threading.Lock()

    def counting(network: Xception, images: torch.Tensor) -> torch.Tensor:
        (counts.student if torch.is_grad_enabled() else counts.forward)[network.embedding_size] += len(images)
        return forward(network, images)

    def handing_out(cache: SiteCache, orders: Sequence[NDArray[np.intp]]) -> Iterator[torch.Tensor]:
        counts.sites += sum(len(sites) for sites in orders)
        return batches(cache, orders)

    def fetching(reader: SiteReader, sites: NDArray[np.intp], out: Sequence[NDArray[np.uint8]]) -> None:
        with lock:
            counts.fetched += len(sites)
        read_into(reader, sites, out)

    patch.setattr(Xception, "forward", counting)
    patch.setattr(SiteCache, "batches", handing_out)
    patch.setattr(SiteReader, "read_into", fetching)
    return counts


def refreshes_of(folder: Path) -> int:
    """How often pseudo_label made its labels."""
    return len(json.loads((folder / "weights" / "meta.json").read_text())["refreshes"])
