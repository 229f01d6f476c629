"""`cellsignal plan` as a user starts it: what it prints and writes, and one line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan.output import WIDTH, bytes_text, count_text, duration_text, span_text
from tests.pipelines.tiny_run import ROOT, Cellsignal
from tests.tiny_screen import TinyScreen

RECORDED = Path(__file__).with_name("recorded_demo")


def test_the_plan_of_rxrx1(cellsignal: Cellsignal):
    done = cellsignal("plan", "--config", "rxrx1", "--json", "plan.json", "--gpu", "h100")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= WIDTH
    text = " ".join(done.stdout.split())
    for told in (
        "51 experiments, 204 plates, 62,832 wells, 125,664 sites of 512 pixels",
        "one h100, assumed from its data sheet, not measured",
        "more do not help",
        "Critical path",
        "nobody's quote",
        "nothing was measured on this GPU",
        "all 5 folds run side by side here; local.parallel_folds (2) is not applied",
    ):
        assert told in text, told
    assert "…" not in done.stdout, "no number may be cut off"
    plan: dict[str, Any] = json.loads((cellsignal.folder / "plan.json").read_text())
    assert {step: found["pods"] for step, found in plan["steps"].items()} == {
        "normalize": 1, "pretrain": 10, "finetune": 20, "pseudo_label": 20, "ensemble": 4, "assign": 4, "report": 1,
    }  # fmt: skip
    path = plan["critical_path"]
    assert [step["task"].split()[0] for step in path] == [*plan["steps"]]
    assert len({step["task"].split()[2] for step in path if "fold" in step["task"]}) == 1
    wall = {row["gpus"]: row for row in plan["wall"]}
    assert {1, 4, 8, 20} <= wall.keys()
    for row in wall.values():
        assert row["hours"] >= row["no_schedule_beats_hours"] - 1e-9
    assert wall[plan["enough_gpus"]]["hours"] <= 1.01 * sum(step["hours"] for step in path)
    assert wall[1]["hours"] >= plan["gpu_hours"] == pytest.approx(sum(s["gpu_hours"] for s in plan["steps"].values()))
    low, high = plan["gpu_hours_range"]
    assert low < plan["gpu_hours"] < high
    assert plan["transfer"]["gets"] == pytest.approx(sum(s["gets"] for s in plan["steps"].values()), abs=10)
    assert plan["cost"]["total"] == pytest.approx(
        sum(plan["cost"][name] for name in ("gpu", "cpu", "storage_month", "requests"))
    )


def test_the_tables_of_a_screen_are_counted(cellsignal: Cellsignal, config_file: Path, tables: TinyScreen):
    done = cellsignal("plan", "--config", config_file, "--screen", tables.root, "--json", "plan.json", "--gpus", "3,1")
    assert done.returncode == 0, done.stderr
    plan = json.loads((cellsignal.folder / "plan.json").read_text())
    assert plan["screen"] == {
        "source": f"the tables in {tables.root}",
        "experiments": 3, "plates": 6, "wells": 30, "sites": 60, "packed_bytes": round(60 * 6 * 16 * 16 * 0.44),
    }  # fmt: skip
    assert [row["gpus"] for row in plan["wall"]] == [1, 3]
    assert [path.name for path in cellsignal.folder.iterdir() if path.name.startswith(".")] == []


def test_rates_of_a_run_are_told_with_how_well_they_fit(cellsignal: Cellsignal):
    done = cellsignal("plan", "--config", "demo", "--measured", RECORDED, "--json", "plan.json")
    assert done.returncode == 0, done.stderr
    assert "The measured run, planned by its own rates" in done.stdout
    plan = json.loads((cellsignal.folder / "plan.json").read_text())
    assert plan["basis"] == "measured"
    assert {step["step"] for step in plan["measured_run"]} == {"pretrain", "finetune", "pseudo_label"}
    other = cellsignal("plan", "--config", "growth", "--measured", RECORDED)
    assert "scaled by multiply-accumulates and pixels" in " ".join(other.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpus", "0"], ["--gpus 0", "from 1"]),
        (["--gpus", "1,-2"], ["--gpus -2"]),
        (["--gpus", "many"], ["--gpus many"]),
        (["--gpus", "8,2", "--set", "compute.processes=4"], ["--gpus 2", "compute.processes"]),
        (["--gpu", "tpu"], ["--gpu tpu", "known are l4"]),
        (["--throughput", "nowhere.yaml"], ["--throughput nowhere.yaml", "no such file"]),
        (["--measured", "nowhere"], ["--measured nowhere", "no such run folder"]),
        (["--screen", "nowhere"], ["--screen nowhere", "no such folder"]),
        (["--screen", "s3://bucket/screen"], ["--screen s3://bucket/screen", "local folder"]),
        (["--json", "nowhere/plan.json"], ["--json nowhere/plan.json", "cannot be written"]),
        (["--set", "folds.count=40"], ["folds.count is 40"]),
        (["--set", "simulate.labelled={HUVEC: 2}"], ["screen.holdout_experiments", "HUVEC-05"]),
        (["--set", "backbones=[{name: resnet, kind: timm, model: resnet50}]"], ["backbones.resnet", "--throughput"]),
    ],
)
def test_bad_input_is_one_line(cellsignal: Cellsignal, arguments: list[str], named: list[str]):
    line = cellsignal.refused("plan", "--config", "demo", *arguments)
    assert all(name in line for name in named), line


@pytest.mark.parametrize("arguments", [["--config", "demo"], ["--help"]])
def test_it_loads_neither_torch_nor_kfp_nor_scipy(arguments: list[str]):
    code = (
        "import sys; from pipelines import cli; sys.argv = ['cellsignal', 'plan', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('loaded:', [m for m in ('torch', 'kfp', 'scipy', 'boto3') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_numbers_for_people():
    assert [duration_text(hours) for hours in (0.001, 0.5, 1.25, 250)] == ["4 s", "30.0 min", "1.2 h", "250 h"]
    assert [span_text(*span) for span in ((1.5, 2.5), (0.5, 2.5), (2.0, 2.01))] == [
        "1.5-2.5 h",
        "30.0 min-2.5 h",
        "2.0 h",
    ]
    assert [bytes_text(size) for size in (0, 12, 1500, 2.5e9, 9996e9)] == ["-", "12 B", "1.5 kB", "2.5 GB", "10 TB"]
    assert [count_text(count) for count in (7, 7100, 12_345_678)] == ["7", "7.1 k", "12.3 M"]
