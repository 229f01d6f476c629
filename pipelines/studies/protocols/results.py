"""What the protocols measured, beside the organisers' published figures: protocols.json and the table at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.table import Table

from components.core.errors import StepError
from components.core.evaluation.metrics import top1_by_cell_type
from components.core.files import write_atomically
from components.core.storage.arrays import read_logits
from components.core.storage.manifest import Manifest
from pipelines.studies.protocols.splits import Protocol, held_out_wells

SCHEMA = 1
ORGANISERS: dict[Protocol, dict[str, tuple[float, float | None]]] = {
    "batch": {
        "overall": (0.441, 0.057),
        "HUVEC": (0.567, 0.084),
        "RPE": (0.312, 0.027),
        "HEPG2": (0.308, 0.040),
        "U2OS": (0.024, 0.010),
    },
    "random": {
        "overall": (0.528, None),
        "HUVEC": (0.689, 0.003),
        "RPE": (0.400, 0.009),
        "HEPG2": (0.397, 0.002),
        "U2OS": (0.220, 0.004),
    },
}
"""Mean and deviation of the baseline that the challenge's organisers published for RxRx1."""
SOURCE = "organisers' baseline on the real RxRx1, 1,108 siRNAs"


@dataclass
class ProtocolScores:
    """One protocol so far."""

    accuracy: dict[int, dict[str, float]] = field(default_factory=dict)
    """top-1 by repeat and row: overall, then cell types; a repeat that holds out no well of a cell type lacks its row"""
    held_out: dict[int, dict[str, Any]] = field(default_factory=dict)
    """by repeat: fold, number of wells, and the experiments where whole ones are held out"""

    @classmethod
    def read(cls, content: Mapping[str, Any], protocol: Protocol) -> ProtocolScores:
        """A protocol's part of a protocols.json."""
        measured = cls(held_out={int(repeat): held for repeat, held in content["held_out"][protocol].items()})
        for name, summary in content["protocols"][protocol].items():
            for repeat, value in summary["per_repeat"].items():
                measured.accuracy.setdefault(int(repeat), {})[name] = value
        return measured

    def row(self, name: str) -> dict[int, float]:
        """A row's values by repeat, ascending."""
        return {
            repeat: self.accuracy[repeat][name] for repeat in sorted(self.accuracy) if name in self.accuracy[repeat]
        }


@dataclass
class ProtocolResults:
    """All protocols of a folder.

    Attributes:
        cell_types: in the order of the rows.
        measured: by protocol.
    """

    cell_types: Sequence[str]
    measured: dict[Protocol, ProtocolScores]

    def as_json(self, lineage: Mapping[str, Any]) -> dict[str, Any]:
        """The content of protocols.json."""
        rows = ("overall", *self.cell_types)
        return {
            "schema": SCHEMA,
            "protocols": {
                protocol: {name: _summary(measured.row(name)) for name in rows if measured.row(name)}
                for protocol, measured in self.measured.items()
            },
            "held_out": {
                protocol: {str(repeat): measured.held_out[repeat] for repeat in sorted(measured.held_out)}
                for protocol, measured in self.measured.items()
            },
            "organisers": {
                "source": SOURCE,
                **{
                    protocol: {name: {"mean": value, "sd": deviation} for name, (value, deviation) in of_rows.items()}
                    for protocol, of_rows in ORGANISERS.items()
                },
            },
            **lineage,
        }

    def write(self, path: Path, lineage: Mapping[str, Any]) -> None:
        """Writes protocols.json whole."""
        write_atomically(path, json.dumps(self.as_json(lineage), indent=1) + "\n")

    def table(self) -> Table:
        """Percent, mean and deviation over the repeats, each protocol beside the organisers' figures."""
        table = Table(
            title="Raw top-1 of held-out wells, %",
            title_justify="left",
            caption="batch holds out whole experiments, random holds out wells. Mean ± sample standard deviation over "
            f"repeats, n/a for one. Published: {SOURCE}.",
            caption_justify="left",
        )
        table.add_column("")
        for protocol, measured in self.measured.items():
            repeats = len(measured.accuracy)
            told = f"{repeats} repeat{'s' if repeats != 1 else ''}"
            table.add_column(f"{protocol}\n{told}", justify="right", style="bold")
            table.add_column(f"{protocol},\npublished", justify="right", style="dim")
        for name in ("overall", *self.cell_types):
            cells = []
            for protocol, measured in self.measured.items():
                cells += [_cell(measured.row(name)), _published(protocol, name)]
            table.add_row("All" if name == "overall" else name, *cells, end_section=name == "overall")
        return table


def held_out_accuracy(manifest: Manifest, fold: int, logits: Mapping[str, Path]) -> dict[str, float]:
    """Well top-1 of the fold's wells, over all of them (`overall`) and by cell type.

    Args:
        manifest: says which wells the fold holds out, and their siRNAs.
        fold: the held-out one.
        logits: output folder of infer by cell type.

    Raises:
        StepError: the logits are not those of exactly the held-out wells.
    """
    treatments = manifest.vocabulary.treatments
    predicted: dict[str, int] = {}
    for folder in logits.values():
        oof = read_logits(folder).wells["oof"]
        best_W = oof.logits_WK[:, : len(treatments)].argmax(axis=1)
        predicted.update(zip(oof.ids_W, best_W.tolist(), strict=True))
    wells = held_out_wells(manifest, fold)
    if predicted.keys() != {id_code for _, id_code, _ in wells}:
        raise StepError(f"infer predicted {len(predicted)} wells, but fold {fold} holds out {len(wells)} others")
    index = manifest.vocabulary.index()
    predicted_W = np.array([predicted[id_code] for _, id_code, _ in wells], dtype=np.intp)
    truth_W = np.array([index[sirna] for _, _, sirna in wells], dtype=np.intp)
    return top1_by_cell_type(predicted_W, truth_W, [cell_type for cell_type, _, _ in wells])


def _summary(row: Mapping[int, float]) -> dict[str, Any]:
    values = list(row.values())
    return {
        "mean": mean(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "per_repeat": {str(repeat): value for repeat, value in row.items()},
    }


def _cell(row: Mapping[int, float]) -> str:
    if not row:
        return "–"
    values = list(row.values())
    deviation = f"{100 * stdev(values):.1f}" if len(values) > 1 else "n/a"
    return f"{100 * mean(values):.1f} ± {deviation}"


def _published(protocol: Protocol, name: str) -> str:
    if name not in ORGANISERS[protocol]:
        return "–"
    value, deviation = ORGANISERS[protocol][name]
    return f"{100 * value:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")
