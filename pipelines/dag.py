"""The DAG of a run, described once: its steps, what each reads, fan-out and fan-in. Pure: imports neither kfp nor torch.

training:    normalize -> [fold: pretrain x backbones -> (cell type: finetune -> pseudo_label)]
                       -> (cell type: ensemble -> assign) -> report
new plates:  normalize -> (cell type: [fold: infer] -> ensemble -> assign) -> report

Without pseudo-labels, `infer` follows finetune; without a mean teacher, it follows pretrain.

A task of a fold reads the outputs of its own fold alone, and `ensemble` those of all folds. So no fold can reach another one's
labels before `ensemble`. The KFP pipeline (kfp_pipeline), task counts, studies, the plan, `finish` and the Kubernetes Jobs are
derived from these tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from components.core.config import RunConfig
from components.core.storage.run_records import task_name

GPU_STEPS = ("pretrain", "finetune", "pseudo_label", "infer")
"""Steps that run networks; the others need CPUs alone."""
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "normalize": ("screen", "holdout", "holdout_labels"),
    "pretrain": ("weights",),
    "finetune": ("weights",),
    "pseudo_label": ("weights", "logits", "embeddings"),
    "infer": ("logits", "embeddings"),
    "ensemble": ("averaged",),
    "assign": ("predictions",),
    "report": ("results",),
}
"""What each step writes, by the parameters of its `main`."""
STEPS = tuple(OUTPUTS)
"""In the order of the DAG."""


@dataclass(frozen=True)
class TaskOutput:
    """An output of a task."""

    task: DagTask
    name: str


@dataclass(frozen=True, eq=False)
class DagTask:
    """One call of a step."""

    number: int  # its position in the graph; a task reads only tasks with smaller numbers
    step: str
    fold: int | None = None  # None if it handles all folds
    cell_type: str | None = None  # None if it handles all cell types
    backbone: str | None = None  # None if it handles all backbones
    # by parameter of the step's `main`; a tuple is a list of one output each
    inputs: Mapping[str, TaskOutput | tuple[TaskOutput, ...]] = field(default_factory=dict)

    def output(self, name: str) -> TaskOutput:
        """One of its outputs."""
        assert name in OUTPUTS[self.step], f"{self.step} has no output {name}"
        return TaskOutput(self, name)

    @property
    def needs(self) -> tuple[int, ...]:
        """Numbers of the tasks whose outputs it reads, ascending."""
        read = (value if isinstance(value, tuple) else (value,) for value in self.inputs.values())
        return tuple(sorted({output.task.number for outputs in read for output in outputs}))

    @property
    def labels(self) -> dict[str, int | str]:
        """Its fold, cell type and backbone, as far as it has them."""
        own = {"fold": self.fold, "cell_type": self.cell_type, "backbone": self.backbone}
        return {name: value for name, value in own.items() if value is not None}

    @property
    def name(self) -> str:
        """For people: `finetune fold 0 HUVEC`."""
        return task_name(self.step, self.fold, self.cell_type, self.backbone)

    @property
    def on_gpu(self) -> bool:
        """Whether it takes a GPU."""
        return self.step in GPU_STEPS


@dataclass(eq=False)
class TaskGraph:
    """The tasks of a run, each after what it reads. Consecutive tasks with a fold form a loop; all folds have the same tasks."""

    tasks: list[DagTask] = field(default_factory=list)

    def add(
        self,
        step: str,
        inputs: Mapping[str, TaskOutput | tuple[TaskOutput, ...]],
        fold: int | None = None,
        cell_type: str | None = None,
        backbone: str | None = None,
    ) -> DagTask:
        """Adds a task after those that it reads."""
        self.tasks.append(DagTask(len(self.tasks), step, fold, cell_type, backbone, inputs))
        return self.tasks[-1]

    @property
    def trains(self) -> bool:
        """Whether this is a training rather than a prediction of new plates."""
        return any(task.step == "pretrain" for task in self.tasks)

    def groups(self) -> list[tuple[DagTask, ...]]:
        """Consecutive tasks of the same fold and cell type, which may run in one pod."""
        return [tuple(each) for _, each in groupby(self.tasks, key=lambda task: (task.fold, task.cell_type))]

    def counts(self) -> dict[str, int]:
        """Number of tasks by step, in the order of the DAG; steps without tasks are left out."""
        found = Counter(task.step for task in self.tasks)
        return {step: found[step] for step in STEPS if found[step]}


def training_graph(config: RunConfig) -> TaskGraph:
    """The DAG of a training run."""
    graph = TaskGraph()
    packed = graph.add("normalize", {})
    screen = {"screen": packed.output("screen")}
    manifests = {**screen, "holdout": packed.output("holdout")}
    logits: dict[str, list[TaskOutput]] = {cell_type: [] for cell_type in config.screen.cell_types}
    for fold in config.folds.trained:
        networks = [graph.add("pretrain", screen, fold, backbone=each.name) for each in config.backbones]
        pretrained = tuple(network.output("weights") for network in networks)
        for cell_type in config.screen.cell_types:
            bases = pretrained
            if config.mean_teacher.enabled:
                bases = (graph.add("finetune", {**screen, "bases": pretrained}, fold, cell_type).output("weights"),)
            if config.has_pseudo_labels:
                last = graph.add("pseudo_label", {**manifests, "base": bases[0]}, fold, cell_type)
            else:
                last = graph.add("infer", {**manifests, "bases": bases}, fold, cell_type)
            logits[cell_type].append(last.output("logits"))
    _add_report(graph, [_add_prediction(graph, cell_type, tuple(folds)) for cell_type, folds in logits.items()])
    return graph


def prediction_graph(folds: Mapping[str, Sequence[int]]) -> TaskGraph:
    """The DAG that predicts new plates with a published model.

    Args:
        folds: the model's folds that predict, by cell type of the new plates. A model of a partial run may have different ones.
    """
    graph = TaskGraph()
    packed = graph.add("normalize", {})
    manifests = {"screen": packed.output("screen"), "holdout": packed.output("holdout")}
    predictions = []
    for cell_type, numbers in folds.items():
        logits = tuple(graph.add("infer", manifests, fold, cell_type).output("logits") for fold in numbers)
        predictions.append(_add_prediction(graph, cell_type, logits))
    _add_report(graph, predictions)
    return graph


def _add_prediction(graph: TaskGraph, cell_type: str, logits: tuple[TaskOutput, ...]) -> TaskOutput:
    """Adds the tasks from the folds' logits of a cell type to the predictions of its wells."""
    packed = graph.tasks[0]
    screen, holdout = packed.output("screen"), packed.output("holdout")
    mean = graph.add("ensemble", {"screen": screen, "logits": logits}, cell_type=cell_type)
    read = {"screen": screen, "holdout": holdout, "logits": mean.output("averaged")}
    return graph.add("assign", read, cell_type=cell_type).output("predictions")


def _add_report(graph: TaskGraph, predictions: Sequence[TaskOutput]) -> None:
    manifests = {name: graph.tasks[0].output(name) for name in OUTPUTS["normalize"]}
    graph.add("report", {**manifests, "uris": tuple(predictions)})
