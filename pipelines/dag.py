"""The DAG of a run, described once: its steps, what each reads, fan-out and fan-in. Pure: imports neither kfp nor torch.

training:    normalize -> [fold: pretrain x backbones -> (cell type: finetune -> pseudo_label)]
                       -> (cell type: ensemble -> assign) -> report
new plates:  normalize -> (cell type: [fold: infer] -> ensemble -> assign) -> report

Without pseudo-labels, `infer` follows finetune; without a mean teacher, it follows pretrain.

A node inside of a loop stands for one task a fold. It reads the outputs of its own fold alone; a node after the loop reads
those of all folds. So no fold can reach another one's labels before `ensemble`. The KFP pipeline (kfp_pipeline), task counts,
studies, the plan and the Kubernetes Jobs are derived from these nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from components.assign.config import AssignConfig
from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.core.storage.run_records import task_name
from components.normalize.config import NormalizeConfig

GPU_STEPS = ("pretrain", "finetune", "pseudo_label", "infer")
"""Steps that run networks; the others need CPUs alone."""
STEPS = ("normalize", *GPU_STEPS, "ensemble", "assign", "report")
"""In the order of the DAG."""
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


@dataclass(frozen=True, eq=False)
class FoldLoop:
    """Nodes that share a loop run once for each of its folds."""

    folds: tuple[int, ...]


@dataclass(frozen=True)
class NodeOutput:
    """An output of a node."""

    node: DagNode
    name: str


@dataclass(frozen=True, eq=False)
class DagNode:
    """A step for one cell type or backbone, for all folds of its loop.

    Attributes:
        step: the step's name.
        inputs: by parameter of the step's `main`; a tuple is a list of one output each.
        loop: the folds that it runs for; None if it runs once.
        cell_type: None if it handles all cell types.
        backbone: None if it handles all backbones.
    """

    step: str
    inputs: Mapping[str, NodeOutput | tuple[NodeOutput, ...]]
    loop: FoldLoop | None = None
    cell_type: str | None = None
    backbone: str | None = None

    def output(self, name: str) -> NodeOutput:
        """One of its outputs."""
        assert name in OUTPUTS[self.step], f"{self.step} has no output {name}"
        return NodeOutput(self, name)


@dataclass(frozen=True)
class TaskOutput:
    """An output of a task."""

    task: DagTask
    name: str


@dataclass(frozen=True, eq=False)
class DagTask:
    """One call of a step.

    Attributes:
        number: its position in the graph; a task reads only tasks with smaller numbers.
        step: the step's name.
        fold: None if it handles all folds.
        cell_type: None if it handles all cell types.
        backbone: None if it handles all backbones.
        inputs: as of its node; what all folds of a loop wrote is a tuple.
    """

    number: int
    step: str
    fold: int | None = None
    cell_type: str | None = None
    backbone: str | None = None
    inputs: Mapping[str, TaskOutput | tuple[TaskOutput, ...]] = field(default_factory=dict)

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


@dataclass(frozen=True, eq=False)
class TaskGraph:
    """The nodes of a run, each after what it reads; those of a loop are neighbours."""

    nodes: tuple[DagNode, ...]

    @cached_property
    def tasks(self) -> tuple[DagTask, ...]:
        """The tasks of all folds, each after what it reads."""
        made: dict[tuple[DagNode, int | None], DagTask] = {}

        def outputs(node: DagNode, fold: int | None, value: NodeOutput) -> TaskOutput | tuple[TaskOutput, ...]:
            loop = value.node.loop
            if loop is None or loop is node.loop:
                return TaskOutput(made[value.node, fold if loop else None], value.name)
            return tuple(TaskOutput(made[value.node, each], value.name) for each in loop.folds)

        for node, fold in _expanded(self.nodes):
            inputs: dict[str, TaskOutput | tuple[TaskOutput, ...]] = {}
            for name, value in node.inputs.items():
                if isinstance(value, NodeOutput):
                    inputs[name] = outputs(node, fold, value)
                else:
                    single = [outputs(node, fold, each) for each in value]
                    inputs[name] = tuple(each for each in single if isinstance(each, TaskOutput))
            made[node, fold] = DagTask(len(made), node.step, fold, node.cell_type, node.backbone, inputs)
        return tuple(made.values())

    def counts(self) -> dict[str, int]:
        """Number of tasks by step, in the order of the DAG; steps without tasks are left out."""
        found = Counter(task.step for task in self.tasks)
        return {step: found[step] for step in STEPS if found[step]}


def _expanded(nodes: Sequence[DagNode]) -> Iterator[tuple[DagNode, int | None]]:
    """Nodes with their folds, fold by fold within a loop."""
    done: set[FoldLoop] = set()
    for node in nodes:
        if node.loop is None:
            yield node, None
        elif node.loop not in done:
            done.add(node.loop)
            for fold in node.loop.folds:
                yield from ((each, fold) for each in nodes if each.loop is node.loop)


def training_graph(config: RunConfig) -> TaskGraph:
    """The DAG of a training run."""
    packed = DagNode("normalize", {})
    screen, holdout = packed.output("screen"), packed.output("holdout")
    loop = FoldLoop(config.folds.trained)
    nodes = [DagNode("pretrain", {"screen": screen}, loop, backbone=each.name) for each in config.backbones]
    pretrained = tuple(node.output("weights") for node in nodes)
    nodes.insert(0, packed)
    last: dict[str, DagNode] = {}
    for cell_type in config.screen.cell_types:
        networks = pretrained
        if config.mean_teacher.enabled:
            nodes.append(DagNode("finetune", {"screen": screen, "bases": pretrained}, loop, cell_type))
            networks = (nodes[-1].output("weights"),)
        manifests = {"screen": screen, "holdout": holdout}
        if config.has_pseudo_labels:
            last[cell_type] = DagNode("pseudo_label", {**manifests, "base": networks[0]}, loop, cell_type)
        else:
            last[cell_type] = DagNode("infer", {**manifests, "bases": networks}, loop, cell_type)
        nodes.append(last[cell_type])
    predictions = []
    for cell_type, node in last.items():
        nodes += _prediction_nodes(packed, node, cell_type)
        predictions.append(nodes[-1].output("predictions"))
    return TaskGraph((*nodes, _report(packed, predictions)))


def prediction_graph(folds: Mapping[str, Sequence[int]]) -> TaskGraph:
    """The DAG that predicts new plates with a published model.

    Args:
        folds: the model's folds that predict, by cell type of the new plates. A model of a partial run may have different ones,
            so that each cell type has its own loop.
    """
    packed = DagNode("normalize", {})
    nodes, predictions = [packed], []
    manifests = {"screen": packed.output("screen"), "holdout": packed.output("holdout")}
    for cell_type, numbers in folds.items():
        nodes.append(DagNode("infer", manifests, FoldLoop(tuple(numbers)), cell_type))
        nodes += _prediction_nodes(packed, nodes[-1], cell_type)
        predictions.append(nodes[-1].output("predictions"))
    return TaskGraph((*nodes, _report(packed, predictions)))


def _prediction_nodes(packed: DagNode, last: DagNode, cell_type: str) -> list[DagNode]:
    """The nodes from the folds' logits of a cell type to the predictions of its wells."""
    screen, holdout = packed.output("screen"), packed.output("holdout")
    mean = DagNode("ensemble", {"screen": screen, "logits": last.output("logits")}, cell_type=cell_type)
    read = {"screen": screen, "holdout": holdout, "logits": mean.output("averaged")}
    return [mean, DagNode("assign", read, cell_type=cell_type)]


def _report(packed: DagNode, predictions: Sequence[NodeOutput]) -> DagNode:
    return DagNode(
        "report", {**{name: packed.output(name) for name in OUTPUTS["normalize"]}, "uris": tuple(predictions)}
    )


def step_configs(config: RunConfig) -> dict[str, str]:
    """Each step's part of the configuration as its component takes it, JSON by step.

    A change of one section makes only the steps that read it run again.
    """
    return {
        "normalize": config.section(NormalizeConfig).model_dump_json(),
        "pretrain": config.section(PretrainSettings).model_dump_json(),
        "finetune": config.section(MeanTeacherSettings).model_dump_json(),
        "pseudo_label": config.section(MeanTeacherSettings).model_dump_json(),
        "infer": config.section(InferSettings).model_dump_json(),
        "assign": config.section(AssignConfig).model_dump_json(),
        "report": config.model_dump_json(),
    }
