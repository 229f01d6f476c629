"""Groups of the DAG's tasks as one task of KFP (cluster.group: fold)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from components.core.config import RunConfig
from components.core.progress import EVENTS_VARIABLE, parse_events
from pipelines.cluster.compile import compiled
from pipelines.cluster.pod_settings import resources_of
from pipelines.dag import training_graph
from pipelines.studies.study import Study
from tests.pipelines.cluster.test_jobs import RECORD
from tests.pipelines.tiny_run import CONFIG, only_huvec
from tests.tiny_screen import TinyScreen

LOCAL = """
import sys
from kfp import local
from components.core.config import RunConfig
from pipelines.dag import training_graph
from pipelines.kfp_pipeline import local_pipeline

config, out = RunConfig.load(sys.argv[1]), sys.argv[2]
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=out, enable_caching=False)
pipeline = local_pipeline(config, training_graph(config))
pipeline(source=sys.argv[3], fingerprint="", lineage='{"run": "grouped"}')
"""
SMALL = "{name: other, stem: 4, second_stride: 2, entry: [4, 6], middle_blocks: 0, exit: [6, 8, 8]}"


def grouped(*changes: str) -> tuple[Any, dict[str, Any]]:
    """RxRx1 compiled in groups: the specification, and the settings of pods by task of a loop."""
    config = RunConfig.load("rxrx1", ("cluster.group=fold", *changes))
    spec, _ = yaml.load_all(compiled(config, training_graph(config), RECORD.references, {})[0], yaml.CSafeLoader)
    return spec, spec["components"]["comp-for-loop-1"]["dag"]["tasks"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((), {"pretrain-all": 1, "finetune-predict": 4}),
        (("backbones=[xception]",), {"pretrain": 1, "finetune-predict": 4}),
        (("mean_teacher.pseudo_labels=none",), {"pretrain-all": 1, "finetune-predict": 4}),
        (("mean_teacher.enabled=false",), {"pretrain-all": 1, "infer": 4}),
    ],
)
def test_tasks_of_a_fold_and_cell_type_are_one(changes: tuple[str, ...], expected: dict[str, int]):
    spec, loop = grouped(*changes)
    assert Counter(task["componentRef"]["name"].removeprefix("comp-") for task in loop.values()) == expected
    first = next(name for name in loop if name.startswith("pretrain"))
    for name, task in loop.items():
        bases = {
            key: value["taskOutputArtifact"] for key, value in task["inputs"]["artifacts"].items() if "base" in key
        }
        whole = {} if name == first else {"base": {"outputArtifactKey": "weights", "producerTask": first}}
        assert bases == whole
    outside = [task["componentRef"]["name"] for task in spec["root"]["dag"]["tasks"].values()]
    assert Counter(outside) == {
        "comp-normalize": 1,
        "comp-for-loop-1": 1,
        "comp-ensemble-assign": 4,
        "comp-report": 1,
    }


def test_a_pod_can_run_each_of_its_steps_one_after_another():
    config = RunConfig.load("rxrx1", ["cluster.steps.pseudo_label.memory_gib=64", "cluster.steps.finetune.cpu=12"])
    both, one, other = (
        resources_of(config, *steps).own for steps in (("finetune", "pseudo_label"), ("finetune",), ("pseudo_label",))
    )
    assert (both.cpu, both.memory_gib, both.gpus) == (12, 64, 1)
    assert both.timeout_hours == one.timeout_hours + other.timeout_hours


@pytest.mark.slow
def test_groups_predict_what_single_tasks_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = CONFIG.replace("backbones: [", f"backbones: [{SMALL}, ")
    screen = only_huvec(TinyScreen(tmp_path / "screen")).root
    (tmp_path / "grouped.yaml").write_text(f"{text}store: {{bucket: '{(tmp_path / 'store').as_uri()}'}}\n")
    (tmp_path / "store").mkdir()
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    arguments = [str(tmp_path / "grouped.yaml"), str(tmp_path / "artifacts"), str(screen)]
    subprocess.run([sys.executable, "-c", LOCAL, *arguments], check=True, cwd=tmp_path)
    monkeypatch.delenv(EVENTS_VARIABLE)
    config = RunConfig.load(str(tmp_path / "grouped.yaml"))
    done = Counter(
        event["step"] for event in parse_events(events.read_text().splitlines()) if event["event"] == "finish"
    )
    assert done == training_graph(config).counts(), "each step reports its own task"

    (tmp_path / "study").mkdir()
    apart = config.model_copy(
        update={"store": config.store.model_copy(update={"bucket": (tmp_path / "study" / "store").as_uri()})}
    )
    study = Study(tmp_path / "study", 1, Console(file=io.StringIO()))
    tasks = study.add_training(apart, str(screen), included=lambda _: True)
    (report,) = (task for task in tasks.values() if task.step == "report")
    report.arguments.update(truth="")
    study.run(apart)
    (results,) = (path.parent for path in (tmp_path / "artifacts").rglob("metrics.json"))
    for name in ("predictions.csv", "predictions_oof.csv"):
        assert (results / name).read_bytes() == (report.path("results") / name).read_bytes()
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (results, report.path("results"))]
    assert scores[0]["out_of_fold"] == scores[1]["out_of_fold"]
