"""The three training steps on the tiny screen in a real store, as the pipeline calls them. For tests."""

from __future__ import annotations

import copy
import json
import shutil
import uuid
from pathlib import Path

from components.core.config import RunConfig
from components.core.storage.manifest import Manifest
from components.finetune.step import main as finetune
from components.normalize.step import main as normalize
from components.pretrain.step import main as pretrain
from components.pseudo_label.step import main as pseudo_label
from tests.components.core.learning.tiny_networks import RUN, changed

BACKBONES = [backbone.name for backbone in RUN.backbones]


class TrainingRun:
    """A configuration, paths and calls of its steps, which write below `out` and keep their outputs in the store at an address."""

    def __init__(self, out: Path, store: str, config: RunConfig = RUN) -> None:
        self.store, self.fold, self.cell_type = store, 0, "HUVEC"
        self.config = changed(config, store={"bucket": store})
        self._write_below(out)

    def _write_below(self, out: Path) -> None:
        self.out, self.screen, self.holdout = out, out / "screen.json", out / "holdout.json"
        self.finetuned, self.weights, self.logits = out / "finetuned", out / "weights", out / "logits"
        self.embeddings = out / "embeddings"

    def copy_to(self, out: Path) -> TrainingRun:
        """The outputs so far in another folder, of a run with a key of its own in the same store."""
        shutil.copytree(self.out, out)
        other, key = copy.copy(self), f"tiny-{uuid.uuid4().hex[:12]}"
        other._write_below(out)
        for path in (other.screen, other.holdout):
            path.write_text(Manifest.read(path).model_copy(update={"run": key}).model_dump_json())
        return other

    def normalize(self, source: Path, run: str | None = None) -> None:
        """Packs a screen, and records the run if it has a key."""
        record = {"lineage": json.dumps({"run": run})} if run else {}
        outputs = (str(path) for path in (self.screen, self.holdout, self.out / "labels.csv"))
        normalize(self.config.model_dump_json(), str(source), *outputs, **record)

    def base(self, backbone: str) -> Path:
        return self.out / f"pretrained-{backbone}"

    def pretrain(self, backbone: str) -> None:
        pretrain(str(self.screen), self.fold, backbone, str(self.base(backbone)), self.config.model_dump_json())

    def finetune(self) -> None:
        bases, config = [str(self.base(name)) for name in BACKBONES], self.config.model_dump_json()
        finetune(str(self.screen), bases, self.fold, self.cell_type, str(self.finetuned), config)

    def pseudo_label(self) -> None:
        pseudo_label(
            str(self.screen), str(self.holdout), str(self.finetuned), self.fold, self.cell_type, str(self.weights),
            str(self.logits), str(self.embeddings), self.config.model_dump_json(),
        )  # fmt: skip

    def train(self) -> None:
        for backbone in BACKBONES:
            self.pretrain(backbone)
        self.finetune()
        self.pseudo_label()


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
