"""A tiny screen in the rxrx.ai release's layout: the same wells and images as in the Kaggle one. For tests."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.tiny_screen import TinyScreen

HEADER = "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"
IDS = {"sirna_7": 7, "sirna_30": 30, "sirna_2": 2, "sirna_100": 100, "sirna_11": 11, "sirna_9": 9}
CONTROL_IDS = {"UNTREATED": 1138, "sirna_5": 1108}


def to_rxrx(tiny: TinyScreen) -> Path:
    """Turns the screen's tables and folders into those of the other layout, in place.

    Treatments of unlabelled wells have a label too, as in the release: 7777, which no labelled well has.
    """
    root, rows = tiny.root, [HEADER]
    for split in ("train", "test"):
        for name in (f"{split}.csv", f"{split}_controls.csv"):
            with (root / name).open(newline="") as file:
                for row in csv.DictReader(file):
                    label = {**IDS, **CONTROL_IDS}.get(row.get("sirna", ""), 7777)
                    role = row.get("well_type", "treatment")
                    for site in (1, 2):
                        start = f"{row['id_code']}_{site},{row['id_code']},{row['experiment'].split('-')[0]},{split}"
                        place = f"{row['experiment']},{row['plate']},{row['well']},{site},{role}"
                        rows.append(f"{start},{place},s{label}99,{label}")
            (root / name).unlink()
        for folder in (root / split).glob("*"):
            (root / "images").mkdir(exist_ok=True)
            folder.rename(root / "images" / folder.name)
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root
