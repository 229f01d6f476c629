"""An ablation: what changes of one configuration do to accuracy and cost, on several kinds of screen and several seeds.

A study file lists the screens and the rows, each as changes of the configuration. Equal tasks run once. The truth of a simulated
screen is read in this module and in no step.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field
from rich.table import Table

from components.core.command import list_items
from components.core.config import FrozenModel, RunConfig, find_config, parse
from components.core.config.file import read_config, read_yaml
from components.core.errors import InputError
from components.core.files import scheme_of, write_atomically
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import whole_address
from pipelines.images.code_version import code_version
from pipelines.options import console_of_terminal, with_store
from pipelines.studies.growth import accuracy
from pipelines.studies.study import Scores, Study, StudyCase, StudyTask, opened_study, study_seeds, summary

SHIPPED = Path(__file__).with_name("ablation.yaml")
SCHEMA = 1


class AblationScreen(FrozenModel):
    """A kind of screen: a simulated one, whose unlabelled wells are scored, or a folder, whose out-of-fold wells are.

    `{NAME}` in a text stands for the folder that `--path NAME=DIR` gives.
    """

    screen: str | None = Field(None, description="folder or address of a screen; null simulates one")
    set: tuple[str, ...] = Field((), description="KEY=VALUE changes of the configuration")
    without: tuple[str, ...] = Field((), description="rows that ask for what the screen does not have")


class AblationStudy(FrozenModel):
    """The content of a study file."""

    config: str = Field(
        description="file beside the study's, shipped configuration, or file in the working folder, from which every row starts"
    )
    set: tuple[str, ...] = Field((), description="KEY=VALUE changes for all rows and screens")
    screens: dict[str, AblationScreen] = Field(min_length=1, description="the kinds of screen by name")
    rows: dict[str, tuple[str, ...]] = Field(min_length=1, description="KEY=VALUE changes by name of the row")


@dataclass(frozen=True)
class AblationCase:
    """One row on one screen with one seed: its tasks, those of the simulation and packing aside, and what scores it."""

    row: str
    screen: str
    seed: int
    simulated: StudyTask | None
    packed: StudyTask
    tasks: Sequence[StudyTask]
    predictions: Mapping[str, Path]


def read_study(file: Path, paths: Sequence[str], screens: Sequence[str], rows: Sequence[str]) -> AblationStudy:
    """The screens and rows to measure; of all screens, those whose folders are given.

    Args:
        file: the study file.
        paths: NAME=DIR of --path.
        screens: values of --screens; none: all whose folders are given.
        rows: values of --rows; none: all.

    Raises:
        InputError: a mistake in the file, an unknown name, or a screen whose folder is not given or does not exist.
    """
    study = parse(AblationStudy, read_yaml(file), str(file))
    for what, named in (("row", study.rows), ("screen", study.screens)):
        if unusable := [name for name in named if "," in name]:
            raise InputError(
                f"{file}: {what} {unusable[0]!r}: --{what}s takes commas as separators; choose another name"
            )
    for name, screen in study.screens.items():
        if unknown := [row for row in screen.without if row not in study.rows]:
            raise InputError(f"{file}: screen {name!r}: without: there is no row {unknown[0]!r}; correct or remove it")
    for each in paths:
        if not all(each.partition("=")):
            raise InputError(f"--path {each!r}: expected NAME=DIR")
    folders = dict(each.split("=", 1) for each in paths)
    for name, folder in folders.items():
        if not scheme_of(folder) and not Path(folder).is_dir():
            raise InputError(f"--path {name}={folder}: no such folder")
    screens, rows = (list_items(f"--{name}", items) for name, items in (("screens", screens), ("rows", rows)))
    for option, wanted, known in (("--screens", screens, study.screens), ("--rows", rows, study.rows)):
        if unknown := [name for name in wanted if name not in known]:
            raise InputError(f"{option}: {file.name} has no {', '.join(unknown)}; known are {', '.join(known)}")
    placeholders = {name: _placeholders(screen) for name, screen in study.screens.items()}
    if unknown := sorted(set(folders).difference(*placeholders.values())):
        names = ", ".join(sorted(set().union(*placeholders.values()))) or "none"
        raise InputError(f"--path: {file.name} has no folder {', '.join(unknown)}; known are {names}")
    missing = {name: own - set(folders) for name, own in placeholders.items()}
    chosen = screens or [name for name in study.screens if not missing[name]]
    if lacking := {name for screen in chosen for name in missing[screen]}:
        raise InputError(f"{', '.join(chosen)}: give {' '.join(_options(lacking))}")
    if not chosen:
        raise InputError(f"{file.name}: every screen needs a folder; give --path NAME=DIR")
    left = [f"{name} ({' '.join(_options(missing[name]))})" for name in study.screens if name not in chosen]
    if left and not screens:
        console_of_terminal().print(f"left out for lack of a folder: {', '.join(left)}", highlight=False)
    filled = {
        name: AblationScreen.model_validate(_filled(study.screens[name].model_dump(), folders)) for name in chosen
    }
    chosen_rows = {name: study.rows[name] for name in rows or study.rows}
    config = find_config(study.config, file).resolve()
    return study.model_copy(update={"config": str(config), "screens": filled, "rows": chosen_rows})


def _options(names: Iterable[str]) -> list[str]:
    return [f"--path {name}=DIR" for name in sorted(names)]


def _placeholders(screen: AblationScreen) -> set[str]:
    return {name for text in (screen.screen or "", *screen.set) for name in re.findall(r"\{(\w+)\}", text)}


def _filled(value: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, paths) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, paths) for each in value]
    # Only names of folders: braces are also YAML's.
    return re.sub(r"\{(\w+)\}", lambda found: paths.get(found[1], found[0]), value) if isinstance(value, str) else value


def _load(file: Path, study: AblationStudy, row: str, screen: str, changes: Sequence[str]) -> RunConfig:
    """The configuration of a row on a screen, which has the wells that are scored; `changes` come after the study's.

    Raises:
        InputError: a mistake, with the study file, row and screen.
    """
    kind, place = study.screens[screen], f"{file}: row {row!r}, screen {screen!r}: "
    own = [*study.set, *kind.set, *study.rows[row]]
    try:
        config = RunConfig.load(study.config, [*own, *changes])
    except InputError as error:
        RunConfig.load(study.config)  # a mistake in that file is its own
        sources = "|".join(re.escape(str(path)) for path, _ in read_config(study.config))
        message = str(error)
        for change in own:  # they are the file's, not of a --set
            message = re.sub(rf"((?:{sources}) with )?--set {re.escape(change)}: ", "", message)
            message = message.replace(f"--set {change!r}", repr(change))
        raise InputError(place + re.sub(f"(?:{sources}): ", "", message)) from None
    if kind.screen is None and not config.simulate.unlabelled:
        raise InputError(f"{place}its unlabelled wells are scored; set simulate.unlabelled to at least one")
    if kind.screen is not None and config.folds.count == 1 and config.folds.validation is None:
        raise InputError(f"{place}its out-of-fold wells are scored; set folds.count to 2 or more")
    return config


def run_ablation(
    file: Path, study: AblationStudy, seeds: Sequence[str], changes: Sequence[str], store: str | None, out: Path
) -> None:
    """Trains and scores every row on every screen for every seed, and prints the table; finished tasks below `out` are reused.

    The table keeps the scores of earlier calls with the same folder.

    Args:
        file: the study file, for messages.
        study: screens and rows.
        seeds: values of --seeds; each changes the simulated screen and the training.
        changes: KEY=VALUE of --set, after those of the study.
        store: address of the object store; None: as configured.
        out: folder of ablation.json, ablation.md and the work.

    Raises:
        InputError: a wrong change, another folder's results, or no object store.
        StepError: a task failed; finished tasks are kept.
    """
    numbers, console = study_seeds(seeds), console_of_terminal()
    configs = {
        (row, screen, seed): with_store(_load(file, study, row, screen, [f"seed={seed}", *changes]), store)
        for seed in numbers
        for screen, kind in study.screens.items()
        for row in study.rows
        if row not in kind.without
    }
    if not configs:
        raise InputError(f"{file}: all screens chosen go without the rows chosen; choose others by --screens or --rows")
    any_config = next(iter(configs.values()))
    ObjectStore(any_config.store.address).check()

    def scored(case: AblationCase) -> None:
        scores[case.screen].row(case.row, case.seed).update(_score(case))
        found = scores[case.screen].row(case.row, case.seed)
        console.print(
            f"seed {case.seed}  {case.screen}, {case.row}: {found['overall']:.3f} in {found['cpu_seconds']:.0f} CPU-s",
            highlight=False,
        )
        _write(whole, changes, scores, out)

    with opened_study(out, {"ablation": Path(study.config).stem}, os.cpu_count() or 1, console) as work:
        whole, scores = _with_earlier(study, changes, out)
        cases = [add_case(work, study, *key, config) for key, config in configs.items()]
        scoring = [StudyCase(_all_tasks(case), partial(scored, case)) for case in cases]
        work.run(any_config, scoring, lambda: _table(whole, scores))
    console.print(_table(whole, scores))
    console.print(f"results: {(out / 'ablation.json').resolve()}", soft_wrap=True, highlight=False)


def _all_tasks(case: AblationCase) -> list[StudyTask]:
    return [*([case.simulated] if case.simulated else []), case.packed, *case.tasks]


def add_case(work: Study, study: AblationStudy, row: str, screen: str, seed: int, config: RunConfig) -> AblationCase:
    """Adds the tasks of a row on a screen with a seed to a study's."""
    address, label = study.screens[screen].screen, f"{screen} {seed}, {row}: "
    simulated = work.simulate(config, label) if address is None else None
    made = work.add_training(config, simulated or whole_address(str(address)), label)
    packed = next(task for dag_task, task in made.items() if dag_task.step == "normalize")
    predictions = {str(t.cell_type): own.path("predictions") for t, own in made.items() if t.step == "assign"}
    tasks = [task for task in made.values() if task is not packed]
    return AblationCase(row, screen, seed, simulated, packed, tasks, predictions)


def _score(case: AblationCase) -> dict[str, float]:
    """Raw top-1 overall and by cell type, `balanced` over labels, and the CPU seconds of the tasks after packing."""
    if case.simulated is not None:
        truth = pd.read_csv(case.simulated.path("out") / "truth.csv", dtype=str).set_index("id_code").iloc[:, 0]
    else:
        plates = Manifest.read(case.packed.path("screen")).plates
        truth = pd.Series({well.id_code: well.perturbation for plate in plates for well in plate.wells})
    table = "oof.csv" if case.simulated is None else "unlabelled.csv"
    scores = accuracy(case.predictions, truth, "raw_perturbation", table)
    return {**scores, "cpu_seconds": math.fsum(spent.cpu_seconds for task in case.tasks if (spent := task.spent()))}


def _with_earlier(study: AblationStudy, changes: Sequence[str], out: Path) -> tuple[AblationStudy, dict[str, Scores]]:
    """The study with the screens and rows of earlier calls with the same folder, and the scores so far by screen.

    Raises:
        InputError: a row, a screen or the changes of all had another definition, or ablation.json is damaged.
    """
    file, scores = out / "ablation.json", {screen: Scores() for screen in study.screens}
    if not file.is_file():
        return study, scores
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        earlier = AblationStudy.model_validate(content["study"])
        for screen, rows in content["scores"].items():
            for row, by_seed in rows.items():
                for seed, found in by_seed.items():
                    scores.setdefault(screen, Scores()).row(row, int(seed)).update(found)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--out {out}: {file.name} is damaged; use a new folder") from None
    before, now = _definitions(earlier, content.get("set", changes)), _definitions(study, changes)
    for name, definition in now.items():
        if before.get(name, definition) != definition:
            raise InputError(f"--out {out}: {name} had another definition in an earlier call; choose another --out")
    screens, rows = earlier.screens | study.screens, earlier.rows | study.rows
    return study.model_copy(update={"screens": screens, "rows": rows}), scores


def _definitions(study: AblationStudy, changes: Sequence[str]) -> dict[str, Any]:
    """What decides scores, by name; the rows that a screen goes without may grow."""
    return {
        "--set": [*changes],
        "the study's `set`": study.set,
        **{f"screen {name!r}": (kind.screen, kind.set) for name, kind in study.screens.items()},
        **{f"row {name!r}": own for name, own in study.rows.items()},
    }


def _write(study: AblationStudy, changes: Sequence[str], scores: Mapping[str, Scores], out: Path) -> None:
    content = {
        "schema": SCHEMA,
        "code_version": code_version(),
        "study": study.model_dump(mode="json"),
        "set": [*changes],
        "scores": {
            screen: {row: {str(seed): found.row(row, seed) for seed in found.of(row)} for row in study.rows}
            for screen, found in scores.items()
        },
    }
    write_atomically(out / "ablation.json", json.dumps(content, indent=1) + "\n")
    lines = ["| row | " + " | ".join(study.screens) + " |", "|---" * (len(study.screens) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(_cell(scores[s], row) for s in study.screens) + " |" for row in study.rows]
    write_atomically(out / "ablation.md", "\n".join(lines) + "\n")


def _cell(scores: Scores, row: str) -> str:
    """`0.712 ± 0.010 / 158`: mean and deviation over seeds, and mean CPU seconds."""
    found, seconds = (summary(scores.of(row, score), "seed") for score in ("overall", "cpu_seconds"))
    if found["mean"] is None:
        return ""
    spread = "" if found["sd"] is None else f" ± {found['sd']:.3f}"
    return f"{found['mean']:.3f}{spread} / {seconds['mean']:.0f}"


def _table(study: AblationStudy, scores: Mapping[str, Scores]) -> Table:
    """The rows, with a column a screen."""
    seeds = sorted({seed for found in scores.values() for row in study.rows for seed in found.of(row)})
    title = f"Raw top-1 / CPU-seconds of training and prediction, seeds {', '.join(map(str, seeds)) or '(none yet)'}"
    table = Table(title=title, title_justify="left")
    table.add_column("row")
    for screen in study.screens:
        table.add_column(screen, justify="right")
    for row in study.rows:
        table.add_row(row, *(_cell(scores[screen], row) for screen in study.screens))
    return table
