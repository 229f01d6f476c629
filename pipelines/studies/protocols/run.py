"""Packs a screen once, then trains and scores every repeat of the protocols on its own split of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.learning.step_settings import library_versions
from components.core.progress import EVENTS_VARIABLE
from components.core.storage.digests import code_digest, digest_text
from components.core.storage.manifest import Manifest
from components.core.storage.opening import whole_address
from pipelines.dag import training_graph
from pipelines.studies.executor import TaskFolder, run_tasks, study_folder
from pipelines.studies.protocols.display import StudyDisplay
from pipelines.studies.protocols.results import ProtocolResults, ProtocolScores, held_out_accuracy
from pipelines.studies.protocols.splits import (
    PROTOCOLS,
    Protocol,
    check_repeats,
    held_out_experiments,
    held_out_types,
    held_out_wells,
    protocol_config,
    split_screen,
)
from pipelines.studies.shared_tasks import SharedTasks, StudyOutput, StudyTask

RESULTS = "protocols.json"


@dataclass
class _Repeat:
    """One deal of a protocol: its split, and where the logits of the held-out wells will be.

    Attributes:
        config: with the repeat's number as seed of its folds.
        manifest: of the split.
        screen: its file.
        nobody: file of a manifest without held-out experiments.
        fold: the one that is held out.
        logits: by cell type.
        missing: digests of the tasks that still have to make them.
    """

    config: RunConfig
    protocol: Protocol
    manifest: Manifest
    screen: Path
    nobody: Path
    fold: int
    logits: dict[str, StudyOutput] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{self.protocol} {self.config.folds.seed}"


def measure(
    config: RunConfig,
    protocols: Sequence[Protocol],
    repeats: int,
    backbones: int,
    screen: str | None,
    out: Path,
    workers: int,
    lineage: Mapping[str, Any],
    console: Console,
) -> ProtocolResults:
    """Trains and scores; what is finished below `out`, or in the object store, is not done again.

    Args:
        config: of the networks and their training; what a protocol sets itself is left out of account.
        protocols: which.
        repeats: deals of each; the first has the seed 1.
        backbones: how many of the configured networks predict together.
        screen: directory of a screen or its address in a bucket; None simulates the configured one.
        out: folder of protocols.json and the work.
        workers: processes side by side.
        lineage: code version and the like, for protocols.json.
        console: where progress is shown.

    Raises:
        InputError: bad input, or a folder of another configuration or screen.
        StepError: a task failed; finished tasks are kept.
    """
    check_repeats(repeats)
    basic = protocol_config(config, "batch", 0, backbones)
    described = {"config": json.loads(basic.model_dump_json()), "screen": whole_address(screen) if screen else None}
    code = code_digest("components") + library_versions()
    with study_folder(out, described) as work:
        work = work.resolve()
        events = work / "events.jsonl"
        events.write_text("", encoding="utf-8")
        os.environ[EVENTS_VARIABLE] = str(events)  # the workers inherit it
        folder = TaskFolder(work)
        whole = _packed(basic, screen, folder, events, console)
        facts = {**lineage, "code": digest_text(code), "screen": whole.digest(), "config": described["config"]}
        earlier = _known(out / RESULTS, facts)
        measured = {
            p: ProtocolScores() if p in protocols else earlier[p] for p in PROTOCOLS if p in (*protocols, *earlier)
        }
        results = ProtocolResults(basic.screen.cell_types, measured)
        shared, display = SharedTasks(code), StudyDisplay(console, events, results.table)
        splits = [
            _split(protocol_config(config, protocol, number, backbones), protocol, whole, work)
            for number in range(1, repeats + 1)
            for protocol in protocols
        ]
        for split in splits:
            _add_tasks(shared, split, display)

        def finished(task: StudyTask, seconds: float, before: bool) -> None:
            display.finished(task, seconds, before)
            for split in splits:
                if task.digest in split.missing:
                    split.missing.remove(task.digest)
                    if not split.missing:
                        _score(split, folder, results, display)
                        results.write(out / RESULTS, facts)

        with display.shown():
            run_tasks(shared.tasks.values(), folder, workers, finished, display.started)
    return results


def _packed(config: RunConfig, screen: str | None, folder: TaskFolder, events: Path, console: Console) -> Manifest:
    """The manifest of the whole screen, simulated first where none is given."""
    shared = SharedTasks(code_digest("components"))
    source = StudyOutput(shared.simulate(config), "out/screen") if screen is None else whole_address(screen)
    made = shared.add_graph(config, training_graph(config), source, lambda task: task.step == "normalize")
    (packed,) = made.values()
    # Only the step itself can tell whether its images are still the same, and in the store.
    folder.forget(packed)
    display = StudyDisplay(console, events, None)
    for task in shared.tasks.values():
        display.expect(task, {"simulate": "simulating the screen", "normalize": "packing the screen"}[task.step])
    with display.shown():
        run_tasks(shared.tasks.values(), folder, 1, display.finished, display.started)
    return Manifest.read(folder.path(StudyOutput(packed, "screen")))


def _known(path: Path, facts: Mapping[str, Any]) -> dict[Protocol, ProtocolScores]:
    """What an earlier run of the same code measured on the same screen."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # it is written anew
    if any(content.get(key) != facts[key] for key in ("code", "screen", "config")):
        return {}
    return {
        protocol: ProtocolScores.read(content, protocol) for protocol in PROTOCOLS if protocol in content["protocols"]
    }


def _split(config: RunConfig, protocol: Protocol, whole: Manifest, work: Path) -> _Repeat:
    """Deals the folds of a repeat, and writes its manifests for the steps."""
    manifest, fold = split_screen(whole, config.folds)
    folder = work / "splits"
    folder.mkdir(exist_ok=True)
    path = folder / f"{protocol}-{config.folds.seed}.json"
    path.write_text(manifest.model_dump_json(), encoding="utf-8")
    nobody = folder / "nobody.json"
    nobody.write_text(manifest.model_copy(update={"folds": {}, "plates": ()}).model_dump_json(), encoding="utf-8")
    return _Repeat(config, protocol, manifest, path, nobody, fold)


def _add_tasks(shared: SharedTasks, split: _Repeat, display: StudyDisplay) -> None:
    """Adds the split's training, and the prediction of the wells that it holds out."""
    folds = split.config.folds.model_copy(update={"train": (split.fold,)})
    config = split.config.model_copy(update={"folds": folds})
    cell_types = held_out_types(split.manifest, split.fold)
    made = shared.add_graph(
        config,
        training_graph(config),
        wanted=lambda task: task.step == "pretrain" or (task.step == "infer" and task.cell_type in cell_types),
        files={"screen": str(split.screen), "holdout": str(split.nobody)},
        content=split.manifest.digest(),
    )
    for task, own in made.items():
        if task.step == "pretrain":
            display.expect(own, f"{split.name}: training {task.backbone}")
        else:
            display.expect(own, f"{split.name}: predicting {task.cell_type}")
            split.logits[str(task.cell_type)] = StudyOutput(own, "logits")
            split.missing.add(own.digest)


def _score(split: _Repeat, folder: TaskFolder, results: ProtocolResults, display: StudyDisplay) -> None:
    logits = {cell_type: folder.path(output) for cell_type, output in split.logits.items()}
    accuracy = held_out_accuracy(split.manifest, split.fold, logits)
    measured, number = results.measured[split.protocol], split.config.folds.seed
    measured.held_out[number] = {
        "fold": split.fold,
        "wells": len(held_out_wells(split.manifest, split.fold)),
        "experiments": list(held_out_experiments(split.manifest, split.fold)),
    }
    measured.accuracy[number] = accuracy
    shown = ", ".join(f"{'all' if name == 'overall' else name} {100 * value:.1f}" for name, value in accuracy.items())
    display.say(f"{split.name}: {shown} % of {measured.held_out[number]['wells']:,} wells")
