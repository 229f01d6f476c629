"""The organisers' protocols: packs a screen once, then trains and scores every repeat on its own split of it.

Writes protocols.json, and shows the figures beside the organisers' published ones.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from components.core.config import RunConfig
from components.core.errors import StepError
from components.core.evaluation.metrics import top1_by_cell_type
from components.core.files import write_atomically
from components.core.storage.arrays import read_logits
from components.core.storage.digests import digest_text
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import whole_address
from pipelines.checks import check_input
from pipelines.images.code_version import code_version
from pipelines.options import console_of_terminal
from pipelines.studies.splits import (
    Protocol,
    check_experiments,
    held_out_experiments,
    held_out_types,
    held_out_wells,
    protocol_config,
    split_screen,
)
from pipelines.studies.study import Scores, Study, StudyCase, StudyTask, opened_study, summary

RESULTS = "protocols.json"
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
class ProtocolResults:
    """The scores of protocols: `overall` and cell types; a repeat that holds out no well of a cell type lacks its score."""

    cell_types: Sequence[str]  # in the order of the rows
    protocols: Sequence[Protocol]  # those that are measured
    scores: Scores = field(default_factory=Scores)  # by protocol and repeat
    # by protocol and repeat: fold, number of wells, and the experiments if whole ones are held out
    held_out: dict[Protocol, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def add(self, protocol: Protocol, repeat: int, scores: Mapping[str, float], held_out: dict[str, Any]) -> None:
        """Adds a repeat."""
        self.scores.row(protocol, repeat).update(scores)
        self.held_out.setdefault(protocol, {})[repeat] = held_out

    def as_json(self, lineage: Mapping[str, Any], earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The content of protocols.json; of an earlier content, the protocols that are not measured again are kept."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            **{name: {**(earlier or {}).get(name, {})} for name in ("protocols", "held_out")},
            "organisers": {"source": SOURCE},
            **lineage,
        }
        for protocol, published in ORGANISERS.items():
            content["organisers"][protocol] = {name: {"mean": m, "sd": sd} for name, (m, sd) in published.items()}
        for protocol in self.protocols:
            rows = {name: self.scores.of(protocol, name) for name in ("overall", *self.cell_types)}
            content["protocols"][protocol] = {name: summary(row, "repeat") for name, row in rows.items() if row}
            held_out = sorted(self.held_out.get(protocol, {}).items())
            content["held_out"][protocol] = {str(repeat): held for repeat, held in held_out}
        return content

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
        for protocol in self.protocols:
            repeats = len(self.held_out.get(protocol, {}))
            table.add_column(f"{protocol}\n{repeats} repeat{'s' * (repeats != 1)}", justify="right", style="bold")
            table.add_column(f"{protocol},\npublished", justify="right", style="dim")
        for name in ("overall", *self.cell_types):
            cells = []
            for protocol in self.protocols:
                own = summary(self.scores.of(protocol, name), "repeat")
                cells.append(_percent(own["mean"], own["sd"], "n/a"))
                cells.append(_percent(*ORGANISERS[protocol].get(name, (None, None))))
            table.add_row("All" if name == "overall" else name, *cells, end_section=name == "overall")
        return table


@dataclass
class ProtocolSplit:
    """One repeat of a protocol, whose number is the seed of its folds: the split screen, and the fold that is held out.

    `predicting` are the tasks that predict the held-out wells, by cell type.
    """

    protocol: Protocol
    config: RunConfig
    manifest: Manifest
    fold: int
    predicting: Mapping[str, StudyTask]

    @property
    def repeat(self) -> int:
        """Number of the repeat."""
        return self.config.folds.seed


def run_protocols(
    config: RunConfig, screen: str | None, protocols: Sequence[Protocol], repeats: int, backbones: int, out: Path
) -> None:
    """Trains and scores repeats of the protocols, and prints the scores; finished results are reused.

    Args:
        config: the networks and their training.
        screen: directory of a screen or its address in a bucket; None simulates the configured one.
        protocols: the protocols to measure.
        repeats: repeats of each; the first has the seed 1.
        backbones: number of configured networks in the ensemble.
        out: folder of protocols.json and the work.

    Raises:
        InputError: bad input, a folder of another configuration or screen, or an object store that cannot be used.
        StepError: a task failed; finished tasks are kept.
    """
    deals = [(each, protocol_config(config, each, n + 1, backbones)) for n in range(repeats) for each in protocols]
    for _, dealt in deals:
        if found := check_input(dealt, screen, None):
            check_experiments(dealt.folds, len({plate.experiment for plate in found.training_plates}))
    ObjectStore(config.store.address).check()
    console, config = console_of_terminal(), protocol_config(config, "batch", 0, backbones)
    # A second process would only share the GPU.
    workers = 1 if any(Path("/dev").glob("nvidia[0-9]*")) else os.cpu_count() or 1
    described = {"config": json.loads(config.model_dump_json()), "screen": whole_address(screen) if screen else None}
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with opened_study(out, described, workers, console) as study:
        whole = _packed(study, config, screen)
        lineage = {"code_version": code_version(), "started": started, "code": digest_text(study.code)}
        lineage |= {"screen": whole.digest(), "config": described["config"]}
        earlier, results = _earlier(out / RESULTS, lineage), ProtocolResults(config.screen.cell_types, protocols)

        def scored(split: ProtocolSplit) -> None:
            _score(split, results, console)
            write_atomically(out / RESULTS, json.dumps(results.as_json(lineage, earlier), indent=1) + "\n")

        splits = [_add_split(study, dealt, protocol, whole) for protocol, dealt in deals]
        cases = [StudyCase(split.predicting.values(), partial(scored, split)) for split in splits]
        study.run(config, cases, results.table)
    console.print(results.table())
    console.print(f"results: {(out / RESULTS).resolve()}", soft_wrap=True, highlight=False)


def _packed(study: Study, config: RunConfig, screen: str | None) -> Manifest:
    """The manifest of the whole screen, which is simulated first if `screen` is None."""
    source = study.simulate(config) if screen is None else whole_address(screen)
    (packed,) = study.add_training(config, source, included=lambda task: task.step == "normalize").values()
    packed.forget()  # only the step itself can tell whether its images are unchanged, and in the store
    study.run(config)
    return Manifest.read(packed.path("screen"))


def _earlier(path: Path, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The results of an earlier run of the same code on the same screen; empty if there are none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if all(content.get(key) == lineage[key] for key in ("code", "screen", "config")) else {}


def _add_split(study: Study, config: RunConfig, protocol: Protocol, whole: Manifest) -> ProtocolSplit:
    """Deals the folds of a repeat, writes its manifests, and adds its training and the prediction of its held-out wells."""
    manifest, fold = split_screen(whole, config.folds)
    config = config.model_copy(update={"folds": config.folds.model_copy(update={"train": (fold,)})})
    cell_types = held_out_types(manifest, fold)
    no_holdout = manifest.model_copy(update={"folds": {}, "plates": ()})
    name, files = f"{protocol} {config.folds.seed}", {}
    for output, content in (("screen", manifest), ("holdout", no_holdout)):
        files[output] = study.folder / "splits" / name / f"{output}.json"
        files[output].parent.mkdir(parents=True, exist_ok=True)
        files[output].write_text(content.model_dump_json(), encoding="utf-8")
    made = study.add_training(
        config,
        label=f"{name}: ",
        included=lambda task: task.step == "pretrain" or (task.step == "infer" and task.cell_type in cell_types),
        files=files,
        content=manifest.digest(),
    )
    predicting = {str(task.cell_type): own for task, own in made.items() if task.step == "infer"}
    return ProtocolSplit(protocol, config, manifest, fold, predicting)


def _score(split: ProtocolSplit, results: ProtocolResults, console: Console) -> None:
    logits = {cell_type: task.path("logits") for cell_type, task in split.predicting.items()}
    accuracy = held_out_accuracy(split.manifest, split.fold, logits)
    wells = len(held_out_wells(split.manifest, split.fold))
    experiments = list(held_out_experiments(split.manifest, split.fold))
    held_out = {"fold": split.fold, "wells": wells, "experiments": experiments}
    results.add(split.protocol, split.repeat, accuracy, held_out)
    shown = ", ".join(f"{'all' if name == 'overall' else name} {100 * value:.1f}" for name, value in accuracy.items())
    text = f"{split.protocol} {split.repeat}: {shown} % of {wells:,} wells"
    console.print(text, style="bold", highlight=False, soft_wrap=True)


def held_out_accuracy(manifest: Manifest, fold: int, logits: Mapping[str, Path]) -> dict[str, float]:
    """Well top-1 of the fold's wells, over all of them (`overall`) and by cell type.

    Args:
        manifest: the split screen, with the perturbations of its wells.
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
    truth_W = np.array([index[perturbation] for _, _, perturbation in wells], dtype=np.intp)
    return top1_by_cell_type(predicted_W, truth_W, [cell_type for cell_type, _, _ in wells])


def _percent(mean: float | None, deviation: float | None, missing: str = "") -> str:
    """`44.1 ± 5.7`; `missing` stands for a deviation that is None."""
    if mean is None:
        return "–"
    spread = missing if deviation is None else f"{100 * deviation:.1f}"
    return f"{100 * mean:.1f}" + (f" ± {spread}" if spread else "")
