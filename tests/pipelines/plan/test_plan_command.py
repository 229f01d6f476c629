"""The output of `cellsignal plan`, and one line for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.plan.output import WIDTH, run_plan
from tests.pipelines.tiny_run import Cellsignal

RECORDED = Path(__file__).with_name("recorded_demo")
POD_START = 90


def plan(config: str | Path, *changes: str, as_json: bool = False, **options: Any) -> None:
    usual = {"screen": None, "gpus": (), "gpu": None, "throughput": None, "measured": None}
    run_plan(RunConfig.load(str(config), changes), **{**usual, **options}, as_json=as_json, console=Console())


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def as_json(*arguments: Any, **options: Any) -> dict[str, Any]:
        plan(*arguments, as_json=True, **options)
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    return as_json


def test_the_plan_of_rxrx1(planned: Callable[..., dict[str, Any]]):
    plan = planned("rxrx1", gpu="h200", gpus=["20,1"])
    assert plan["gpu_hours"] == pytest.approx(98.1, abs=0.1), "docs/performance.md cites it"
    assert plan["basis"] == "measured"
    assert plan["screen"]["wells"] == 62_832
    steps = [task["step"] for task in plan["tasks"]]
    assert {step: steps.count(step) for step in steps} == {
        "normalize": 1, "pretrain": 10, "finetune": 20, "pseudo_label": 20, "ensemble": 4, "assign": 4, "report": 1,
    }  # fmt: skip
    on_gpu = sum(t["seconds"] for t in plan["tasks"] if t["step"] in ("pretrain", "finetune", "pseudo_label"))
    assert plan["gpu_hours"] == pytest.approx(on_gpu / 3600)
    wall = {row["gpus"]: row["hours"] for row in plan["wall"]}
    shortest = sum(task["hours"] for task in plan["critical_path"])
    assert list(wall) == [1, 20]
    assert plan["enough_gpus"] <= 20
    assert shortest <= wall[20] <= 1.01 * shortest
    assert wall[1] >= plan["gpu_hours"] >= wall[1] / 1.1
    cost = plan["cost"]
    assert cost["total"] == pytest.approx(cost["gpu"] + cost["cpu"] + cost["storage_month"])


def test_tables_fit_into_a_hundred_columns(capsys: pytest.CaptureFixture[str]):
    plan("rxrx1", gpu="l4")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "…" not in shown, "no number may be cut off"
    assert "l4 has 24: set compute.accumulate to" in " ".join(shown.split())


def test_a_finished_run_is_planned_by_its_own_rates(planned: Callable[..., dict[str, Any]]):
    plan = planned(str(RECORDED / "config.yaml"), measured=RECORDED)
    assert plan["basis"] == "measured"
    taken: dict[str, float] = {}
    for task in json.loads((RECORDED / "lineage.json").read_text())["steps"]:
        taken[task["step"]] = taken.get(task["step"], 0.0) + task["seconds"]
    for step in ("pretrain", "finetune", "pseudo_label"):
        seconds = sum(task["seconds"] - POD_START for task in plan["tasks"] if task["step"] == step)
        assert seconds == pytest.approx(taken[step], rel=0.15), step


@pytest.mark.parametrize(
    ("changes", "options", "problem"),
    [
        ([], {"gpus": ["0"]}, "--gpus 0"),
        (["compute.processes=4"], {"gpus": ["8", "2"]}, "--gpus 2: a task takes 4 GPUs (compute.processes)"),
        ([], {"gpu": "tpu"}, "--gpu tpu: unknown; known are l4"),
        ([], {"throughput": Path("nowhere.yaml")}, "--throughput nowhere.yaml: no such file"),
        ([], {"measured": Path("nowhere")}, "--measured nowhere: not the --out folder of a finished run"),
        ([], {"screen": Path("nowhere")}, "--screen nowhere: no such folder"),
        (["folds.count=40"], {}, "folds.count is 40"),
        (["simulate.labelled={HUVEC: 2}"], {}, "screen.holdout_experiments"),
        (["backbones=[{name: net, kind: timm, model: no_such_model}]"], {}, "backbones.net.model"),
    ],
)
def test_bad_input_is_one_line(changes: list[str], options: dict[str, Any], problem: str):
    with pytest.raises(InputError) as caught:
        plan("demo", *changes, **options)
    assert problem in str(caught.value)
    assert "Error" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_passes_its_options_on(cellsignal: Cellsignal):
    assert "--gpu tpu: unknown" in cellsignal.refused("plan", "--config", "demo", "--gpus", "1,4", "--gpu", "tpu")
