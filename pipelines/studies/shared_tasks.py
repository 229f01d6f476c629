"""The tasks of many related configurations, equal ones once, derived from the DAG. Pure.

A task's digest identifies what it computes: its step, the settings that decide its result, and the digests of what it reads.
So configurations that agree in a part of the DAG share its tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.core.screen.simulation.plate_design import SimulationSettings
from components.normalize.config import NormalizeConfig
from pipelines.dag import OUTPUTS, DagTask, TaskGraph, TaskOutput, step_configs, task_name, training_graph

FILES = {"screen": "screen.json", "holdout": "holdout.json", "holdout_labels": "holdout_labels.csv"}
"""Outputs whose file has another name than the parameter."""


@dataclass(frozen=True)
class StudyOutput:
    """An output of a task: a file or folder below the task's own; `name/below` is a part of the output `name`."""

    task: StudyTask
    name: str


StudyInput = StudyOutput | tuple[StudyOutput, ...]


@dataclass(frozen=True, eq=False)
class StudyTask:
    """One call of a step's `main`.

    Attributes:
        step: the step's name; its module is components.STEP.step.
        labels: fold, cell type and backbone, as far as it has them.
        values: arguments that are values.
        inputs: arguments that are outputs of other tasks; a tuple becomes a list of paths.
        outputs: arguments that are paths to write, with their names below the task's folder.
        digest: identifies its result.
    """

    step: str
    labels: Mapping[str, int | str]
    values: Mapping[str, Any]
    inputs: Mapping[str, StudyInput]
    outputs: Mapping[str, str]
    digest: str

    @property
    def name(self) -> str:
        """For people: `finetune fold 0 HUVEC`."""
        return task_name(self.step, *(self.labels.get(name) for name in ("fold", "cell_type", "backbone")))

    @property
    def needs(self) -> tuple[StudyTask, ...]:
        """The tasks whose outputs it reads."""
        return tuple(output.task for value in self.inputs.values() for output in _tuple(value))


@dataclass
class SharedTasks:
    """Tasks in an order in which each comes after what it needs.

    Attributes:
        code: what else decides results: digest of the code, versions of libraries.
        tasks: by digest.
    """

    code: str
    tasks: dict[str, StudyTask] = field(default_factory=dict)

    def add(
        self,
        step: str,
        decisive: str,
        labels: Mapping[str, int | str],
        values: Mapping[str, Any],
        inputs: Mapping[str, StudyInput],
        outputs: Mapping[str, str],
    ) -> StudyTask:
        """Adds a task unless an equal one is there already; returns either.

        Args:
            step: the step's name.
            decisive: the part of its settings that decides its result.
            labels: fold, cell type and backbone.
            values: arguments; all but `config` count.
            inputs: arguments that other tasks write.
            outputs: file names of what it writes.
        """
        read = {name: [[o.task.digest, o.name] for o in _tuple(value)] for name, value in inputs.items()}
        plain = {name: value for name, value in values.items() if name != "config"}
        content = json.dumps([self.code, step, decisive, dict(labels), plain, read], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self.tasks.setdefault(digest, StudyTask(step, labels, values, inputs, outputs, digest))

    def simulate(self, config: RunConfig) -> StudyTask:
        """Adds the simulation of a configuration's screen: out/screen and out/truth.csv."""
        settings = config.section(SimulationSettings).model_dump_json()
        return self.add("simulate", settings, {}, {"config": settings}, {}, {"out": "simulated"})

    def add_graph(
        self,
        config: RunConfig,
        graph: TaskGraph,
        source: StudyOutput | str = "",
        wanted: Callable[[DagTask], bool] = lambda task: task.step != "report",
        files: Mapping[str, str] | None = None,
        content: str = "",
    ) -> dict[DagTask, StudyTask]:
        """Adds tasks of a configuration's DAG.

        Args:
            config: the configuration.
            graph: its DAG.
            source: the screen that normalize reads.
            wanted: which tasks to add; the others' outputs are `files`.
            files: paths by output name, in place of tasks that are not added.
            content: digest of those files.
        """
        configs = step_configs(config)
        made: dict[DagTask, StudyTask] = {}
        for task in filter(wanted, graph.tasks):
            values: dict[str, Any] = {"config": configs[task.step]} if task.step in configs else {}
            inputs: dict[str, StudyInput] = {}
            labels = task.labels
            if task.on_gpu:
                values |= labels
            if task.step == "normalize":
                if isinstance(source, StudyOutput):
                    inputs["source"] = source
                else:
                    values["source"] = source
            for name, value in task.inputs.items():
                if isinstance(value, TaskOutput) and value.task not in made:
                    values[name] = (files or {})[value.name]
                else:
                    outputs = tuple(StudyOutput(made[each.task], each.name) for each in _dag_tuple(value))
                    inputs[name] = outputs[0] if isinstance(value, TaskOutput) else outputs
            written = {name: FILES.get(name, name) for name in OUTPUTS[task.step]}
            made[task] = self.add(task.step, decisive(config, task) + content, labels, values, inputs, written)
        return made


@dataclass(frozen=True)
class StudyRun:
    """Where the results of one configuration will be.

    Attributes:
        truth: truth.csv of the simulated screen.
        predictions: output of assign by cell type.
        tasks: all tasks of the run, shared ones included.
    """

    truth: StudyOutput
    predictions: Mapping[str, StudyOutput]
    tasks: tuple[StudyTask, ...]


def add_training(shared: SharedTasks, config: RunConfig) -> StudyRun:
    """Adds a configuration's DAG on its own simulated screen, up to the predictions."""
    simulated = shared.simulate(config)
    made = shared.add_graph(config, training_graph(config), StudyOutput(simulated, "out/screen"))
    predictions = {
        str(task.cell_type): StudyOutput(own, "predictions") for task, own in made.items() if task.step == "assign"
    }
    return StudyRun(StudyOutput(simulated, "out/truth.csv"), predictions, (simulated, *made.values()))


def decisive(config: RunConfig, task: DagTask) -> str:
    """The part of the configuration that decides a task's result, as text."""
    match task.step:
        case "normalize":
            return config.section(NormalizeConfig).model_dump_json(exclude={"folds": {"train"}})
        case "pretrain":
            own = config.section(PretrainSettings).fingerprint_of(str(task.backbone))
            return f"{own}{config.init_from or ''}"
        case "finetune":
            return config.section(MeanTeacherSettings).finetune_fingerprint()
        case "pseudo_label":
            return f"{config.section(MeanTeacherSettings).fingerprint()} {config.mean_teacher.fused_labels}"
        case "infer":
            return config.section(InferSettings).fingerprint()
        case _:
            return step_configs(config).get(task.step, "")


def _tuple(value: StudyInput) -> tuple[StudyOutput, ...]:
    return value if isinstance(value, tuple) else (value,)


def _dag_tuple(value: TaskOutput | tuple[TaskOutput, ...]) -> tuple[TaskOutput, ...]:
    return value if isinstance(value, tuple) else (value,)
