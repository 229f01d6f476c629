"""A plain CNN without this project's training code: what its CPU preset must reach in equal CPU time.

`python -m tests.bench.plain_cnn DIR [EPOCHS] [SEED]` trains on all labelled wells of a screen that `cellsignal simulate` wrote, as
the literature's plain recipe does: pixels standardised by plate, five 3x3 convolutions with pooling, ArcFace, AdamW, a one-cycle
learning rate. It prints the raw top-1 on the unlabelled wells and the CPU seconds, reading images included; one thread.
B batch, C channel, H and W pixels, S sites, K classes.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def sites_of(screen: Path) -> pd.DataFrame:
    """A row a site: well, plate, label (NaN if unknown), and whether it is a treatment."""
    wells = []
    for part in ("train", "test"):
        treatments = pd.read_csv(screen / f"{part}.csv", dtype=str)
        controls = pd.read_csv(screen / f"{part}_controls.csv", dtype=str)
        for table, treated in ((treatments, True), (controls, False)):
            wells.append(table.reindex(columns=["id_code", "experiment", "plate", "well", "sirna"]))
            wells[-1] = wells[-1].assign(part=part, treated=treated)
    table = pd.concat(wells, ignore_index=True)
    both = pd.concat([table.assign(site=site) for site in (1, 2)], ignore_index=True)
    folder = both["part"] + "/" + both["experiment"] + "/Plate" + both["plate"]
    both["path"] = [f"{screen}/{f}/{w}_s{s}" for f, w, s in zip(folder, both["well"], both["site"], strict=True)]
    return both[[Path(f"{path}_w1.png").is_file() for path in both["path"]]].reset_index(drop=True)


def standardised(sites: pd.DataFrame, channels: int = 6) -> Tensor:
    """All images, float32 (S, C, H, W), with mean 0 and deviation 1 of each channel of a plate."""
    planes = [
        [cv2.imread(f"{p}_w{c}.png", cv2.IMREAD_GRAYSCALE) for c in range(1, channels + 1)] for p in sites["path"]
    ]
    x_SCHW = np.asarray(planes, dtype=np.float32)
    for rows in sites.groupby(["experiment", "plate"]).indices.values():
        mean, std = (f(x_SCHW[rows], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
        x_SCHW[rows] = (x_SCHW[rows] - mean) / std
    return torch.from_numpy(x_SCHW)


def dihedral(x_BCHW: Tensor, view: int) -> Tensor:
    """One of the eight symmetries of the square."""
    turned = torch.rot90(x_BCHW, view % 4, (2, 3))
    return turned.flip(3) if view >= 4 else turned


def train_and_score(folder: Path, epochs: int, seed: int) -> float:
    """Raw top-1 on the unlabelled treatment wells."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    sites = sites_of(folder / "screen")
    x_SCHW = standardised(sites)
    classes = sorted(sites["sirna"].dropna().unique())
    target_S = torch.tensor([classes.index(label) if isinstance(label, str) else -1 for label in sites["sirna"]])
    labelled = sites[sites["sirna"].notna()].groupby("id_code").indices
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
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    unknown = np.flatnonzero(sites["sirna"].isna())
    with torch.inference_mode():
        logits = torch.cat(
            [_all_views(network, x_SCHW[part]) for part in np.array_split(unknown, math.ceil(len(unknown) / 64))]
        )
    treatments = sorted(sites.loc[sites["treated"], "sirna"].dropna().unique())
    columns = [classes.index(label) for label in treatments]
    table = pd.DataFrame(logits[:, columns].numpy(), index=sites["id_code"].to_numpy()[unknown]).groupby(level=0).mean()
    truth = pd.read_csv(folder / "truth.csv", dtype=str).set_index("id_code").iloc[:, 0]
    predicted = np.array(treatments)[table.to_numpy().argmax(axis=1)]
    return float((predicted == truth[table.index].to_numpy()).mean())


def _all_views(network: PlainCnn, x_BCHW: Tensor) -> Tensor:
    return torch.stack([network(dihedral(x_BCHW, view)) for view in range(8)]).mean(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = [*sys.argv[1:], *("", "30", "0")[len(sys.argv[1:]) :]]
    begun = time.process_time()
    accuracy = train_and_score(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    sys.stdout.write(f"raw top-1 {accuracy:.3f} in {time.process_time() - begun:.0f} CPU-s\n")
