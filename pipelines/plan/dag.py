"""The tasks of a run and what each waits for. From pipelines.studies.in_process.tasks, the one description beside KFP's own."""

from __future__ import annotations

from dataclasses import dataclass

from components.core.config import RunConfig
from pipelines.studies.in_process.tasks import Plan, add_training

GPU_STEPS = ("pretrain", "finetune", "pseudo_label", "infer")
"""Steps that run networks; the others need CPUs alone."""

STEPS = ("normalize", *GPU_STEPS, "ensemble", "assign", "report")
"""In the order of the DAG."""


@dataclass(frozen=True)
class PlannedTask:
    """One task of the DAG.

    Attributes:
        number: its place in the plan.
        step: the step's name.
        fold: None where it is of all folds.
        cell_type: None where it is of all cell types.
        backbone: None where it is of all backbones.
        needs: numbers of the tasks that it waits for, all smaller.
    """

    number: int
    step: str
    fold: int | None = None
    cell_type: str | None = None
    backbone: str | None = None
    needs: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For people: its step and what tells it apart."""
        parts = [self.step, "" if self.fold is None else f"fold {self.fold}", self.cell_type or "", self.backbone or ""]
        return " ".join(part for part in parts if part)

    @property
    def on_gpu(self) -> bool:
        """Whether it takes a GPU."""
        return self.step in GPU_STEPS


def planned_tasks(config: RunConfig) -> list[PlannedTask]:
    """The tasks of a run on a screen that is there already, each after what it needs; report comes last."""
    run = add_training(Plan(""), config)
    number: dict[str, int] = {}
    tasks: list[PlannedTask] = []
    cell_type_of: dict[str, str] = {}
    for cell_type, output in run.named.items():
        # ensemble and assign are told their cell type by what they read.
        cell_type_of[output.task.digest] = cell_type
        cell_type_of.update({need.digest: cell_type for need in output.task.needs if need.step == "ensemble"})
    for task in run.tasks:
        if task.step == "simulate":
            continue
        number[task.digest] = len(tasks)
        tasks.append(
            PlannedTask(
                number=len(tasks),
                step=task.step,
                fold=task.literals.get("fold"),
                cell_type=task.literals.get("cell_type") or cell_type_of.get(task.digest),
                backbone=task.literals.get("backbone"),
                needs=tuple(sorted({number[need.digest] for need in task.needs if need.digest in number})),
            )
        )
    named = tuple(number[output.task.digest] for output in run.named.values())
    # Only the DAG of KFP ends with the report; it reads every named table, and normalize's manifests.
    packed = next(task.number for task in tasks if task.step == "normalize")
    return [*tasks, PlannedTask(len(tasks), "report", needs=tuple(sorted({packed, *named})))]
