"""The three training steps on the tiny screen in a real store, as the pipeline calls them. For tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.core.storage.manifest import Manifest
from components.finetune.step import main as finetune
from components.normalize.step import main as normalize
from components.pretrain.step import main as pretrain
from components.pseudo_label.step import main as pseudo_label
from tests.components.core.learning.tiny_networks import MEAN_TEACHER, PRETRAIN, RUN
from tests.tiny_screen import CONFIG, TinyScreen

BACKBONES = [backbone.name for backbone in PRETRAIN.backbones]


class TrainingRun:
    """Paths and calls of one run; every step writes below `out`, and keeps its outputs in the store at an address."""

    def __init__(self, out: Path, store: str, fold: int = 0, cell_type: str = "HUVEC", seed: int = 3) -> None:
        self.out, self.store, self.fold, self.cell_type = out, store, fold, cell_type
        self.pretrain_json = PRETRAIN.model_copy(update={"seed": seed}).model_dump_json()
        self.mean_teacher_json = MEAN_TEACHER.model_copy(update={"seed": seed}).model_dump_json()
        self.screen, self.holdout = out / "screen.json", out / "holdout.json"
        self.finetuned, self.weights, self.logits = out / "finetuned", out / "weights", out / "logits"
        self.embeddings = out / "embeddings"

    def change(self, **sections: dict[str, Any]) -> None:
        """Other fields in sections of the steps' settings, where they have the section."""
        for name in ("pretrain_json", "mean_teacher_json"):
            settings = json.loads(getattr(self, name))
            changed = {
                section: settings[section] | fields for section, fields in sections.items() if section in settings
            }
            setattr(self, name, json.dumps(settings | changed))

    def normalize(self, source: Path, holdout: Sequence[str] = (), run: str | None = None) -> Manifest:
        config = CONFIG.model_copy(
            update={
                "store": CONFIG.store.model_copy(update={"bucket": self.store}),
                "screen": CONFIG.screen.model_copy(update={"holdout_experiments": tuple(holdout)}),
            }
        )
        labels = str(self.out / "labels.csv")
        record = {"whole_config": RUN.model_dump_json(), "lineage": json.dumps({"run": run})} if run else {}
        normalize(config.model_dump_json(), str(source), str(self.screen), str(self.holdout), labels, **record)
        return Manifest.read(self.screen)

    def base(self, backbone: str) -> Path:
        return self.out / f"pretrained-{backbone}"

    def pretrain(self, backbone: str) -> None:
        pretrain(self.pretrain_json, str(self.screen), self.fold, backbone, str(self.base(backbone)))

    def finetune(self) -> None:
        bases = [str(self.base(name)) for name in BACKBONES]
        finetune(self.mean_teacher_json, str(self.screen), bases, self.fold, self.cell_type, str(self.finetuned))

    def pseudo_label(self) -> None:
        pseudo_label(
            self.mean_teacher_json, str(self.screen), str(self.holdout), str(self.finetuned), self.fold,
            self.cell_type, str(self.weights), str(self.logits), str(self.embeddings),
        )  # fmt: skip

    def train(self) -> None:
        for backbone in BACKBONES:
            self.pretrain(backbone)
        self.finetune()
        self.pseudo_label()


def normalized(folder: Path, store: str, run: str | None = None) -> TrainingRun:
    """The tiny screen in `screen`, normalised, and its run in `run`, without training."""
    TinyScreen(folder / "screen")
    made = TrainingRun(folder / "run", store)
    made.normalize(folder / "screen", run=run)
    return made


def files(folder: Path) -> dict[str, bytes]:
    """Content by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    """The networks alone, without durations and rates."""
    return {name: data for name, data in files(folder).items() if name.endswith(".safetensors")}


def epochs_trained(events: Path) -> int:
    """How many epochs were trained so far, by the events file that EVENTS_VARIABLE names."""
    lines = events.read_text().splitlines() if events.exists() else []
    return sum(json.loads(line)["event"] == "epoch" for line in lines)
