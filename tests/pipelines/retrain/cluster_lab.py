"""Retraining on a simulated cluster: a screen and a registry in a bucket, and results in place of pods. Nothing is trained.

In place of the compiled pipeline its configuration is uploaded, from which the results of a run are made.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from typer.testing import CliRunner

from components.core.config import RunConfig
from components.core.registry.champion import Champion, promote, read_champion
from components.core.registry.publishing import publish
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import record_results
from pipelines.cli import app
from pipelines.retrain.challenge import RetrainRequest
from pipelines.retrain.retrain import retrain
from tests.components.core.registry.finished_run import CONFIG, KEY, METRICS, RUN, FinishedRun
from tests.pipelines.cluster.conftest import key_of, report_task
from tests.pipelines.cluster.kfp_server import KfpServer
from tests.tiny_screen import TinyScreen

FIRST = ("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04", "RPE-01", "RPE-02")
HELD_OUT, NEW = "HUVEC-04", "HUVEC-05"
BASE: dict[str, Any] = {
    **RUN.model_dump(exclude={"store"}),
    "name": "tiny",
    "screen": {**CONFIG.screen.model_dump(), "holdout_experiments": (HELD_OUT,)},
    "promotion": {"min_plates": 2},
    "embeddings": {"enabled": False},
}


def prepare(folder: Path) -> None:
    """Writes a screen with all experiments, and a store with a champion that learned the labels of the first ones."""
    TinyScreen(folder / "whole", imaged=(*FIRST, NEW), more=("RPE-02", HELD_OUT, NEW))
    screen = folder / "first" / "screen"
    screen.mkdir(parents=True)
    for name, content in tables(folder / "whole", FIRST).items():
        (screen / name).write_bytes(content)
    for path in images(folder / "whole", FIRST):
        target = screen / path.relative_to(folder / "whole")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    (folder / "store").mkdir()
    store = ObjectStore(folder / "store")
    FinishedRun(folder / "first", store, **BASE)
    promote(store, publish(store, KEY).model.fingerprint, "the first")


def tables(screen: Path, experiments: tuple[str, ...]) -> dict[str, bytes]:
    """The screen's tables with the rows of some experiments."""
    found = {}
    for table in screen.glob("*.csv"):
        head, *rows = table.read_text().splitlines(keepends=True)
        found[table.name] = "".join([head, *(row for row in rows if row.split(",")[1] in experiments)]).encode()
    return found


def images(screen: Path, experiments: tuple[str, ...]) -> list[Path]:
    """The files of their images."""
    return [path for path in screen.rglob("*.png") if path.parts[-3] in experiments]


@dataclass
class ClusterLab:
    """The lab: the folder that `prepare` has filled, the test's own, the store of screen and registry, and Kubeflow.

    Of the models, those in `accurate` classify all held-out wells correctly. `after` is called with a run after its results
    have been written.
    """

    prepared: Path
    folder: Path
    store: ObjectStore
    server: KfpServer
    accurate: set[str] = field(default_factory=lambda: {"champion", "challenger"})
    after: Callable[[dict[str, Any]], None] = lambda run: None

    def __post_init__(self) -> None:
        self.experiments: tuple[str, ...] = ()
        self.server.on_end = self.finish
        self.output = io.StringIO()
        self.config = RunConfig.model_validate({**BASE, "store": {"bucket": self.store.uri("")}})

    def add(self, *experiments: str) -> None:
        """Adds experiments to the screen: their images, then the tables of all."""
        self.experiments += experiments
        whole = self.prepared / "whole"
        files = images(whole, experiments)
        self.store.put_many((f"screen/{path.relative_to(whole)}", path.read_bytes()) for path in files)
        for name, content in tables(whole, self.experiments).items():
            self.store.put(f"screen/{name}", content)

    def with_champion(self) -> Champion:
        """Copies the champion into the registry."""
        registry = ObjectStore(self.prepared / "store")
        self.store.put_many((key, registry.get(key)) for key in registry.list("models/"))
        return self.champion

    def __call__(self, config: Mapping[str, Any] | None = None, **more: Any) -> str:
        """Retrains in this process; the output is in `shown`."""
        settings = self.config.model_copy(update=dict(config or {}))
        defaults = {
            "screen": self.store.uri("screen"), "endpoint": self.server.url, "images": "tags", "timeout": 120.0,
            "out": self.folder / "runs",
        }  # fmt: skip
        self.output = io.StringIO()
        return retrain(settings, RetrainRequest(**{**defaults, **more}), Console(file=self.output, width=400))

    def command(self, *more: str) -> int:
        """The exit code of the command in this process."""
        file = self.folder / "tiny.yaml"
        file.write_text(self.config.dump())
        usual = ("--screen", self.store.uri("screen"), "--endpoint", self.server.url, "--images", "tags")
        return CliRunner().invoke(app, ["retrain", "--config", str(file), *usual, *more]).exit_code

    @property
    def shown(self) -> str:
        return self.output.getvalue()

    @property
    def champion(self) -> Champion:
        found = read_champion(self.store)
        assert found is not None
        return found

    def registry(self) -> dict[str, bytes]:
        """All objects of the registry."""
        return {key: self.store.get(key) for key in self.store.list("models/")}

    @property
    def trainings(self) -> list[dict[str, Any]]:
        return [run for run in self.server.runs if not predicts(run)]

    @property
    def predictions(self) -> list[dict[str, Any]]:
        return [run for run in self.server.runs if predicts(run)]

    def config_of(self, run: Mapping[str, Any]) -> RunConfig:
        """The configuration that a run was submitted with."""
        version = run["pipeline_version_reference"]["pipeline_version_id"]
        (name,) = (each["display_name"] for each in self.server.versions if each["pipeline_version_id"] == version)
        return RunConfig.model_validate(yaml.safe_load(self.server.uploaded[name]))

    def finish(self, run: dict[str, Any]) -> None:
        """Writes what the pods of a successful run leave in the bucket."""
        if run["state"] == "SUCCEEDED":
            self._predict(run) if predicts(run) else self._train(run)
            self.after(run)

    def _train(self, run: dict[str, Any]) -> None:
        key, config = key_of(run), self.config_of(run)
        place = self.folder / key
        if not (place / "screen").exists():
            place.mkdir(parents=True, exist_ok=True)
            (place / "screen").symlink_to(self.prepared / ("whole" if NEW in self.experiments else "first/screen"))
        made = FinishedRun(place, self.store, key=key, **config.model_dump(exclude={"store"}))
        lineage = {**self._lineage(run), "manifest_digest": made.screen.digest()}
        names = self._predictions(self.config.screen.holdout_experiments, "challenger" in self.accurate)
        self._results(key, lineage, {**METRICS}, {"predictions_holdout.csv": names})

    def _predict(self, run: dict[str, Any]) -> None:
        experiments = json.loads(run["runtime_config"]["parameters"]["experiments"])
        names = self._predictions(experiments, "champion" in self.accurate)
        self._results(key_of(run), self._lineage(run), {"schema": 1}, {"predictions.csv": names})

    def _results(
        self, key: str, lineage: Mapping[str, Any], metrics: Mapping[str, Any], more: Mapping[str, str]
    ) -> None:
        folder = self.folder / f"report-of-{key}"
        folder.mkdir(exist_ok=True)
        usual = {
            "lineage.json": json.dumps(lineage),
            "metrics.json": json.dumps(metrics),
            "report.html": "<html></html>",
        }
        for name, content in {**usual, **more}.items():
            (folder / name).write_text(content)
        record_results(self.store, key, folder)

    def _predictions(self, experiments: tuple[str, ...], right: bool) -> str:
        """Predictions of treatment wells, as a report writes them; two of them exchanged if they are not to be correct."""
        with (self.prepared / "whole" / "train.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["experiment"] in experiments]
        names = [row["sirna"] for row in rows]
        if not right:
            names[:2] = reversed(names[:2])
        lines = [f"{row['id_code']},{name},{name}\n" for row, name in zip(rows, names, strict=True)]
        return "".join(["id_code,sirna,raw_sirna\n", *lines])

    def _lineage(self, run: Mapping[str, Any]) -> dict[str, Any]:
        return {**json.loads(run["runtime_config"]["parameters"]["lineage"]), "run": key_of(run)}

    def fail(self, run: Mapping[str, Any], kind: str, message: str) -> None:
        """Records the failure of a pod."""
        report_task(self.store, key_of(run), kind=kind, message=message, backbone="slim")


def predicts(run: Mapping[str, Any]) -> bool:
    """Whether it is a prediction."""
    return key_of(run).startswith("tiny-predict-")
