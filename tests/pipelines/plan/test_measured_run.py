"""Rates from a finished run: a recorded demo, planned against what it took, and against another configuration's tasks.

recorded_demo/ is what a run of the demo left on two cores of an AMD EPYC: its configuration, seconds and throughput.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.plan.comparison import compare
from pipelines.plan.dag import planned_tasks
from pipelines.plan.estimate import make_plan
from pipelines.plan.machines import read_machines
from pipelines.plan.measured_run import read_measured_run
from pipelines.plan.screens import screen_wells
from pipelines.plan.speeds import network_costs

RECORDED = Path(__file__).with_name("recorded_demo")
MACHINES = read_machines()


def changed(folder: Path, name: str, **fields: Any) -> Path:
    """A copy of the recorded run with other fields in one of its files."""
    run = folder / "run"
    shutil.copytree(RECORDED, run, dirs_exist_ok=True)
    data = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**data, **fields}))
    return run


def steps() -> list[dict[str, Any]]:
    return json.loads((RECORDED / "lineage.json").read_text())["steps"]


def test_each_step_of_the_run_is_planned_within_a_quarter_of_what_it_took():
    found = {step.step: step for step in compare(read_measured_run(RECORDED), MACHINES)}
    assert {name: step.tasks for name, step in found.items()} == {"pretrain": 4, "finetune": 8, "pseudo_label": 8}
    for step in found.values():
        assert step.planned == pytest.approx(step.taken, rel=0.10), step
        assert 0.7 <= step.least <= step.most <= 1.25, step


def test_rates_of_one_fold_tell_what_the_other_takes(tmp_path: Path):
    run = read_measured_run(changed(tmp_path, "lineage.json", steps=[s for s in steps() if s.get("fold") != 1]))
    costs = network_costs(run.config, MACHINES, run.wells.classes)
    plan = make_plan(run.config, run.wells, MACHINES, run)
    assert plan.costs == costs
    taken, planned = {}, {}
    for step in steps():
        if step.get("fold") == 1:
            taken[step["step"]] = taken.get(step["step"], 0.0) + step["seconds"]
    for estimate in plan.tasks:
        if estimate.task.fold == 1:
            work = estimate.seconds - MACHINES.pods.start_s
            planned[estimate.task.step] = planned.get(estimate.task.step, 0.0) + work
            assert estimate.compute.basis == "measured"
    assert planned == pytest.approx(taken, rel=0.25)


def test_tasks_of_another_configuration_are_planned_within_a_quarter():
    # Medians of three seeds of the growth chart's last rung on the same machine, 48-pixel images, fold 1.
    taken = {
        "pretrain fold 1 xception_small": 105,
        "pretrain fold 1 xception_slim": 91,
        "finetune fold 1 HUVEC": 17,
        "finetune fold 1 RPE": 17,
        "pseudo_label fold 1 HUVEC": 62,
        "pseudo_label fold 1 RPE": 61,
    }
    config = RunConfig.load("growth")
    plan = make_plan(config, screen_wells(config, None), MACHINES, read_measured_run(RECORDED))
    planned = {e.task.name: e.seconds - MACHINES.pods.start_s for e in plan.tasks if e.task.fold == 1}
    assert planned == pytest.approx(taken, rel=0.25)
    assert plan.basis == "scaled"
    assert plan.factor == MACHINES.assumed.factor


def test_tasks_that_were_fetched_do_not_count(tmp_path: Path):
    usual = read_measured_run(RECORDED)
    costs = network_costs(usual.config, MACHINES, usual.wells.classes)
    fetched = [{**s, "seconds": 0.8} if s.get("cell_type") == "U2OS" or s.get("fold") == 1 else s for s in steps()]
    resumed = read_measured_run(changed(tmp_path, "lineage.json", steps=fetched))
    before, after = (run.speed(MACHINES, costs, run.config) for run in (usual, resumed))
    assert after.training_s_per_mac == before.training_s_per_mac
    assert after.forward_s_per_mac == pytest.approx(before.forward_s_per_mac, rel=0.25)


def test_other_figures_beside_the_rates_change_nothing(tmp_path: Path):
    told = json.loads((RECORDED / "metrics.json").read_text())["throughput"]
    more = {**told, "pretrain_data_wait": 0.1, "pretrain_peak_memory_gib": 1.5}
    assert read_measured_run(changed(tmp_path, "metrics.json", throughput=more)).throughput == {
        name.removesuffix("_sites_per_s"): rate for name, rate in told.items()
    }


def test_a_run_in_which_everything_was_fetched_tells_nothing(tmp_path: Path):
    run = read_measured_run(changed(tmp_path, "lineage.json", steps=[{**s, "seconds": 0.5} for s in steps()]))
    with pytest.raises(InputError, match="no seconds of a GPU step that was computed"):
        compare(run, MACHINES)


def test_inference_is_never_free(tmp_path: Path):
    # Where the longest tasks took the least beside training, a line through them falls: that is noise.
    noisy = [{**s, "seconds": {"finetune": 40, "pseudo_label": 45}.get(s["step"], s["seconds"])} for s in steps()]
    run = read_measured_run(changed(tmp_path, "lineage.json", steps=noisy))
    speed = run.speed(MACHINES, network_costs(run.config, MACHINES, run.wells.classes), run.config)
    assert min(speed.training_s_per_mac.values()) / 5 < speed.forward_s_per_mac
    assert speed.start_s > 0
    # So bad a fit widens the range of the plan.
    plan = make_plan(run.config, run.wells, MACHINES, run)
    worst = max(max(step.planned / step.taken, step.taken / step.planned) for step in plan.compared)
    assert worst > 1.25
    assert plan.factor == pytest.approx(worst)


def test_four_times_the_pixels_take_four_times_as_long():
    run = read_measured_run(RECORDED)
    config = RunConfig.load("demo", ["screen.image_size=128"])
    plans = [make_plan(c, screen_wells(c, None), MACHINES, run) for c in (run.config, config)]
    small, large = (next(e for e in plan.tasks if e.task.step == "pretrain") for plan in plans)
    assert large.compute.value / small.compute.value == pytest.approx(4, rel=0.15)
    assert (small.compute.basis, large.compute.basis) == ("measured", "scaled")


def test_a_run_of_two_processes_has_rates_of_one(tmp_path: Path):
    folder = changed(tmp_path, "metrics.json")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(f"{text}compute: {{processes: 2}}\n")
    usual, shared = read_measured_run(RECORDED), read_measured_run(folder)
    # It took as long with two as the other with one, so that each process is half as fast.
    plans = [make_plan(run.config, run.wells, MACHINES, run) for run in (usual, shared)]
    for one, two in zip(*(plan.tasks for plan in plans), strict=True):
        assert two.seconds == pytest.approx(one.seconds, rel=0.02)
    assert compare(shared, MACHINES)[0].planned == pytest.approx(compare(usual, MACHINES)[0].planned, rel=0.02)


def test_planned_tasks_have_the_names_of_the_runs():
    run = read_measured_run(RECORDED)
    assert all(run.seconds_of(t) is not None for t in planned_tasks(run.config) if t.step not in ("ensemble", "assign"))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("lineage.json", {"steps": None}, "lacks the seconds of steps"),
        ("metrics.json", {"throughput": {}}, "no throughput of a training step"),
        ("lineage.json", {"steps": [{"step": "normalize", "seconds": 3.0}]}, "its screen simulated is not there"),
    ],
)
def test_a_run_that_tells_too_little(tmp_path: Path, name: str, fields: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        compare(read_measured_run(changed(tmp_path, name, **fields)), MACHINES)


def test_folders_that_are_no_finished_run(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere: no such run folder"):
        read_measured_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.yaml; give the --out folder of a finished run"):
        read_measured_run(tmp_path)
    run = changed(tmp_path, "metrics.json")
    (run / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json is not valid JSON"):
        read_measured_run(run)
