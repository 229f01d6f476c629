"""The tiny screen in the rxrx.ai release's layout: the same wells and images as in the Kaggle one. For tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.tiny_screen import LABELLED, UNLABELLED, site_table, write_screen

IDS = {"sirna_7": 7, "sirna_30": 30, "sirna_2": 2, "sirna_100": 100, "sirna_11": 11, "sirna_9": 9}
CONTROL_IDS = {"UNTREATED": 1138, "sirna_5": 1108}


def write_rxrx(root: Path, imaged: Sequence[str], labelled: Sequence[str] = LABELLED) -> Path:
    """Writes the screen below `root`, which it returns, with the images of some experiments.

    Treatments of unlabelled wells have a label too, as in the release: 7777, which no labelled well has.
    """
    table = site_table(labelled, UNLABELLED)
    label = table["perturbation"].map({**IDS, **CONTROL_IDS})
    hidden = ~table["labelled"] & (table["role"] == "treatment")
    write_screen(root, table.assign(perturbation=label.mask(hidden, 7777).astype(str)), "rxrx", imaged)
    return root
