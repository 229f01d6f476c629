"""Tasks that configurations share."""

from __future__ import annotations

from components.core.config import RunConfig
from pipelines.dag import training_graph
from pipelines.studies.tasks import SharedTasks, StudyOutput


def digests(shared: SharedTasks, *changes: str) -> dict[str, set[str]]:
    """Digests by step of a configuration's tasks, which are added."""
    config = RunConfig.load("growth", changes)
    simulated = shared.simulate(config)
    made = shared.add_graph(config, training_graph(config), source=StudyOutput(simulated, "out/screen"))
    found: dict[str, set[str]] = {}
    for task in (simulated, *made.values()):
        found.setdefault(task.step, set()).add(task.digest)
    return found


def test_equal_tasks_of_two_configurations_are_one():
    shared = SharedTasks("code")
    one, two = digests(shared), digests(shared, "predict.views=1")
    # Only the step that predicts reads the number of views; later steps read its output.
    for step in ("simulate", "normalize", "pretrain", "finetune"):
        assert one[step] == two[step]
    for step in ("pseudo_label", "ensemble", "assign"):
        assert not one[step] & two[step]
    other = digests(SharedTasks("other code"))
    assert not any(one[step] & other[step] for step in one)


def test_the_folds_to_train_do_not_change_the_tasks_of_a_fold():
    shared = SharedTasks("code")
    both, first = digests(shared), digests(shared, "folds.train=[0]")
    assert first["normalize"] == both["normalize"]
    for step in ("pretrain", "finetune", "pseudo_label"):
        assert first[step] < both[step]
    assert not first["ensemble"] & both["ensemble"]


def test_every_task_comes_after_those_that_it_needs():
    shared = SharedTasks("code")
    digests(shared)
    seen: set[str] = set()
    for digest, task in shared.tasks.items():
        assert {need.digest for need in task.needs} <= seen
        seen.add(digest)
