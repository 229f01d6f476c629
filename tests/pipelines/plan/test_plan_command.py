"""`cellsignal plan` as a user starts it: what it prints, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan.output import WIDTH
from tests.pipelines.tiny_run import Cellsignal
from tests.tiny_screen import TinyScreen

RECORDED = Path(__file__).with_name("recorded_demo")


def planned(cellsignal: Cellsignal, *arguments: object) -> dict[str, Any]:
    done = cellsignal("plan", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_plan_of_rxrx1(cellsignal: Cellsignal):
    plan = planned(cellsignal, "--config", "rxrx1", "--gpu", "h200")
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
    assert shortest <= wall[plan["enough_gpus"]] <= 1.01 * shortest
    assert wall[1] >= plan["gpu_hours"] >= wall[1] / 1.1
    cost = plan["cost"]
    assert cost["total"] == pytest.approx(cost["gpu"] + cost["cpu"] + cost["storage_month"])


def test_tables_fit_into_a_hundred_columns(cellsignal: Cellsignal):
    done = cellsignal("plan", "--config", "rxrx1", "--gpu", "l4")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
    assert "…" not in done.stdout, "no number may be cut off"
    text = " ".join(done.stdout.split())
    assert "GB of GPU memory (estimated from its layers), l4 has 24: set compute.accumulate to" in text
    assert "no rate was measured on l4" in text


def test_the_tables_of_a_screen_are_counted(cellsignal: Cellsignal, config_file: Path, tables: TinyScreen):
    plan = planned(cellsignal, "--config", config_file, "--screen", tables.root, "--gpus", "3,1")
    assert plan["screen"] == {
        "source": f"the tables in {tables.root}",
        "experiments": 3, "plates": 6, "wells": 30, "sites": 60, "packed_bytes": round(60 * 6 * 16 * 16 * 0.44),
    }  # fmt: skip
    assert [row["gpus"] for row in plan["wall"]] == [1, 3]


def test_a_finished_run_is_planned_by_its_own_rates(cellsignal: Cellsignal):
    plan = planned(cellsignal, "--config", "demo", "--measured", RECORDED)
    assert plan["basis"] == "measured"
    taken: dict[str, float] = {}
    for task in json.loads((RECORDED / "lineage.json").read_text())["steps"]:
        taken[task["step"]] = taken.get(task["step"], 0.0) + task["seconds"]
    for step in ("pretrain", "finetune", "pseudo_label"):
        seconds = sum(task["computing_seconds"] for task in plan["tasks"] if task["step"] == step)
        assert seconds == pytest.approx(taken[step], rel=0.15), step


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--gpus", "0"], "--gpus 0: expected whole numbers from 1"),
        (["--gpus", "1,-2"], "--gpus -2"),
        (["--gpus", "8,2", "--set", "compute.processes=4"], "--gpus 2: a task takes 4 GPUs (compute.processes)"),
        (["--gpu", "tpu"], "--gpu tpu: unknown; known are l4"),
        (["--throughput", "nowhere.yaml"], "--throughput nowhere.yaml: no such file"),
        (["--measured", "nowhere"], "--measured nowhere: not the --out folder of a finished run"),
        (["--screen", "nowhere"], "--screen nowhere: no such folder"),
        (["--screen", "s3://bucket/screen"], "--screen s3://bucket/screen: a local folder is expected"),
        (["--set", "folds.count=40"], "folds.count is 40"),
        (["--set", "simulate.labelled={HUVEC: 2}"], "screen.holdout_experiments"),
        (["--set", "backbones=[{name: net, kind: timm, model: no_such_model}]"], "backbones.net.model"),
    ],
)
def test_bad_input_is_one_line(cellsignal: Cellsignal, arguments: list[str], problem: str):
    assert problem in cellsignal.refused("plan", "--config", "demo", *arguments)
