"""A plain CNN without this project's training code: what its CPU preset must reach in equal CPU time.

`python -m tests.bench.plain_cnn FOLDER [EPOCHS [STORE]]`, FOLDER and STORE being those of a finished `cellsignal ablation`, trains
on the labelled wells of each of its screens, as the literature's plain recipe does: pixels standardised by plate (or image, if the
screen's configuration says so), five 3x3 convolutions with pooling, ArcFace, AdamW, a one-cycle learning rate. It prints the raw
top-1 on the wells that the ablation scores, and the CPU seconds, reading images included; one thread.
B batch, C channel, H and W pixels, S sites, K classes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from components.core.config import RunConfig
from components.core.screen.packed import TREATMENT, SiteReader, SiteTable
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from pipelines.options import with_store
from pipelines.studies.ablation import AblationStudy, add_case
from pipelines.studies.study import Study

WIDTHS = (32, 64, 96, 128, 192)
SCALE, MARGIN = 15.0, 0.1
BATCH = 32


class PlainCnn(nn.Module):
    """Five stages of convolution, BatchNorm, ReLU and max pooling; logits are scaled cosines."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        pairs = zip((channels, *WIDTHS), WIDTHS, strict=False)
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)) for a, b in pairs]
        self.layers = nn.Sequential(*(layer for stage in layers for layer in stage[: 3 if stage is layers[-1] else 4]))
        self.weight = nn.Parameter(torch.randn(classes, WIDTHS[-1]) * 0.1)

    def forward(self, x_BCHW: Tensor, target_B: Tensor | None = None) -> Tensor:
        """Logits, shape (B, K)."""
        cosine_BK = F.linear(F.normalize(self.layers(x_BCHW).mean((2, 3))), F.normalize(self.weight))
        if target_B is not None:
            true_B1 = cosine_BK.gather(1, target_B[:, None]).clamp(-0.999999, 0.999999)
            cosine_BK = cosine_BK.scatter(1, target_B[:, None], torch.cos(torch.acos(true_B1) + MARGIN))
        return SCALE * cosine_BK


def sites_of(manifest: Manifest) -> pd.DataFrame:
    """A row a site, as the manifest numbers them: well, plate, label (None if unknown or of fold 0), treatment or not, truth."""
    table = SiteTable.of(manifest)
    truth_W = np.array([*manifest.vocabulary.classes, None], dtype=object)[table.class_W]
    wells = pd.DataFrame({
        "id_code": table.id_code_W, "plate": table.plate_W, "label": np.where(table.fold_W == 0, None, truth_W),
        "treated": table.role_W == TREATMENT, "truth": truth_W,
    })  # fmt: skip
    return wells.iloc[table.well_S].reset_index(drop=True)


def standardised(manifest: Manifest, plates: pd.Series) -> Tensor:
    """All images, float32 (S, C, H, W), with mean 0 and deviation 1 of each channel of a plate, or of each image."""
    reader = SiteReader(ObjectStore(manifest.store), manifest)
    x_SCHW = reader.read(np.arange(len(plates))).astype(np.float32)
    by_image = manifest.config["standardise"]["domain"] == "image"
    for rows in np.arange(len(plates))[:, None] if by_image else plates.groupby(plates).indices.values():
        mean, std = (f(x_SCHW[rows], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
        x_SCHW[rows] = (x_SCHW[rows] - mean) / std
    return torch.from_numpy(x_SCHW)


def dihedral(x_BCHW: Tensor, view: int) -> Tensor:
    """One of the eight symmetries of the square."""
    turned = torch.rot90(x_BCHW, view % 4, (2, 3))
    return turned.flip(3) if view >= 4 else turned


def train_and_score(manifest: Manifest, epochs: int, seed: int, truth_file: Path | None) -> tuple[float, float]:
    """Raw top-1 and balanced accuracy on the wells of fold 0, or on the unlabelled ones, whose truth a file holds."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    sites = sites_of(manifest)
    x_SCHW = standardised(manifest, sites["plate"])
    classes = sorted(sites["label"].dropna().unique())
    target_S = torch.tensor([classes.index(label) if isinstance(label, str) else -1 for label in sites["label"]])
    labelled = sites[sites["label"].notna()].groupby("id_code").indices
    labelled_rows = [np.flatnonzero(sites["id_code"] == well) for well in labelled]
    network = PlainCnn(x_SCHW.shape[1], len(classes)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    steps = len(labelled_rows) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        chosen = np.array([rng.choice(rows) for rows in labelled_rows])[rng.permutation(len(labelled_rows))]
        for step in range(steps):
            batch = torch.from_numpy(chosen[step * BATCH : (step + 1) * BATCH])
            x_BCHW = torch.stack([dihedral(x[None], int(rng.integers(8)))[0] for x in x_SCHW[batch]])
            loss = F.cross_entropy(
                network(x_BCHW.contiguous(memory_format=torch.channels_last), target_S[batch]), target_S[batch]
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    network.eval()
    unknown = np.flatnonzero(sites["label"].isna() & sites["treated"])
    with torch.inference_mode():
        logits = torch.cat(
            [_all_views(network, x_SCHW[part]) for part in np.array_split(unknown, math.ceil(len(unknown) / 64))]
        )
    treatments = sorted(sites.loc[sites["treated"], "label"].dropna().unique())
    columns = [classes.index(label) for label in treatments]
    table = pd.DataFrame(logits[:, columns].numpy(), index=sites["id_code"].to_numpy()[unknown]).groupby(level=0).mean()
    if truth_file is None:
        truth = sites.groupby("id_code")["truth"].first()[table.index]
    else:
        truth = pd.read_csv(truth_file, dtype=str).set_index("id_code").iloc[:, 0][table.index]
    right = np.array(treatments)[table.to_numpy().argmax(axis=1)] == truth
    return float(right.mean()), float(right.groupby(truth).mean().mean())


def _all_views(network: PlainCnn, x_BCHW: Tensor) -> Tensor:
    return torch.stack([network(dihedral(x_BCHW, view)) for view in range(8)]).mean(0)


def compare(folder: Path, epochs: int, store: str | None) -> None:
    """Prints a line for each screen and seed of an ablation."""
    content = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    study, work = AblationStudy.model_validate(content["study"]), Study(folder / "work", 1, Console())
    for screen, rows in content["scores"].items():
        row_of = {
            int(seed): row for row, by_seed in reversed(rows.items()) for seed in by_seed
        }  # any row has packed it
        for seed, row in sorted(row_of.items()):
            changes = [*study.set, *study.screens[screen].set, *study.rows[row], f"seed={seed}", *content["set"]]
            config = with_store(RunConfig.load(study.config, changes), store)
            case = add_case(work, study, row, screen, seed, config)
            truth_file = case.simulated.path("out") / "truth.csv" if case.simulated else None
            begun = time.process_time()
            top1, balanced = train_and_score(Manifest.read(case.packed.path("screen")), epochs, seed, truth_file)
            seconds = time.process_time() - begun
            sys.stdout.write(
                f"{screen}, seed {seed}: raw top-1 {top1:.3f}, balanced {balanced:.3f} in {seconds:.0f} CPU-s\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, epochs, store = [*sys.argv[1:], *("", "28", None)[len(sys.argv[1:]) :]]
    compare(Path(str(out)), int(str(epochs)), store)
