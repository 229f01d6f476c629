"""Tasks that configurations share."""

from __future__ import annotations

from components.core.config import RunConfig
from pipelines.studies.shared_tasks import SharedTasks, StudyRun, add_training


def digests(run: StudyRun, *steps: str) -> set[str]:
    return {task.digest for task in run.tasks if task.step in steps}


def test_equal_tasks_of_two_configurations_are_one():
    shared = SharedTasks("code")
    one = add_training(shared, RunConfig.load("growth"))
    two = add_training(shared, RunConfig.load("growth", ["predict.views=1"]))
    # Views matter to the step that predicts, and to what reads it.
    same = ("simulate", "normalize", "pretrain", "finetune")
    assert digests(one, *same) == digests(two, *same)
    for step in ("pseudo_label", "ensemble", "assign"):
        assert not digests(one, step) & digests(two, step)
    other = add_training(SharedTasks("other code"), RunConfig.load("growth"))
    assert not {task.digest for task in one.tasks} & {task.digest for task in other.tasks}


def test_folds_to_train_leave_the_tasks_of_each_fold_alone():
    shared = SharedTasks("code")
    both = add_training(shared, RunConfig.load("growth"))
    first = add_training(shared, RunConfig.load("growth", ["folds.train=[0]"]))
    steps = ("normalize", "pretrain", "finetune", "pseudo_label")
    assert digests(first, *steps) < digests(both, *steps)
    assert not digests(first, "ensemble") & digests(both, "ensemble")


def test_every_task_comes_after_what_it_needs():
    shared = SharedTasks("code")
    add_training(shared, RunConfig.load("growth"))
    seen: set[str] = set()
    for digest, task in shared.tasks.items():
        assert {need.digest for need in task.needs} <= seen
        seen.add(digest)
