"""The tasks of many related configurations, equal ones once, derived from the DAG. Pure.

A task's digest identifies its result: its step, the settings that decide it, and the digests of its inputs. So configurations
that agree in a part of the DAG share its tasks.
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
from pipelines.dag import OUTPUTS, DagTask, TaskGraph, step_configs

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
        name: the task's name in messages.
        values: arguments that are values.
        inputs: arguments that are outputs of other tasks; a tuple becomes a list of paths.
        outputs: arguments that are paths to write, with their names below the task's folder.
        digest: identifies its result.
    """

    step: str
    name: str
    values: Mapping[str, Any]
    inputs: Mapping[str, StudyInput]
    outputs: Mapping[str, str]
    digest: str

    @property
    def needs(self) -> tuple[StudyTask, ...]:
        """The tasks whose outputs it reads."""
        return tuple(output.task for value in self.inputs.values() for output in _tuple(value))


@dataclass
class SharedTasks:
    """Tasks, each after those that it needs.

    Attributes:
        code: decides all results: digest of the code, versions of libraries.
        tasks: by digest.
    """

    code: str
    tasks: dict[str, StudyTask] = field(default_factory=dict)

    def add(
        self,
        step: str,
        name: str,
        decisive: str,
        values: Mapping[str, Any],
        inputs: Mapping[str, StudyInput],
        outputs: Mapping[str, str],
    ) -> StudyTask:
        """Adds a task; returns it, or an equal one that was added before.

        Args:
            step: the step's name.
            name: the task's name in messages.
            decisive: the settings and labels that decide its result.
            values: arguments; all but `config` decide its result, too.
            inputs: arguments that other tasks write.
            outputs: names of the files that it writes.
        """
        read = {name: [[o.task.digest, o.name] for o in _tuple(value)] for name, value in inputs.items()}
        plain = {name: value for name, value in values.items() if name != "config"}
        content = json.dumps([self.code, step, decisive, plain, read], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self.tasks.setdefault(digest, StudyTask(step, name, values, inputs, outputs, digest))

    def simulate(self, config: RunConfig, label: str = "") -> StudyTask:
        """Adds the simulation of a configuration's screen: out/screen and out/truth.csv."""
        settings = config.section(SimulationSettings).model_dump_json()
        return self.add("simulate", f"{label}simulate", settings, {"config": settings}, {}, {"out": "simulated"})

    def add_graph(
        self,
        config: RunConfig,
        graph: TaskGraph,
        label: str = "",
        source: StudyOutput | str = "",
        included: Callable[[DagTask], bool] = lambda task: task.step != "report",
        files: Mapping[str, str] | None = None,
        content: str = "",
    ) -> dict[DagTask, StudyTask]:
        """Adds tasks of a configuration's DAG.

        Args:
            config: the configuration.
            graph: its DAG.
            label: put before the names of the tasks.
            source: the screen that normalize reads.
            included: which tasks to add; `files` replace the outputs of the others.
            files: paths by output name.
            content: digest of those files.
        """
        configs, made = step_configs(config), dict[DagTask, StudyTask]()
        for task in filter(included, graph.tasks):
            values: dict[str, Any] = {"config": configs[task.step]} if task.step in configs else {}
            inputs: dict[str, StudyInput] = {}
            if task.on_gpu:
                values |= task.labels
            if task.step == "normalize" and isinstance(source, StudyOutput):
                inputs["source"] = source
            elif task.step == "normalize":
                values["source"] = source
            for name, value in task.inputs.items():
                if isinstance(value, tuple):
                    inputs[name] = tuple(StudyOutput(made[each.task], each.name) for each in value)
                elif value.task in made:
                    inputs[name] = StudyOutput(made[value.task], value.name)
                else:
                    values[name] = (files or {})[value.name]
            outputs = {name: FILES.get(name, name) for name in OUTPUTS[task.step]}
            decisive = json.dumps([_decisive(config, task), content, task.labels])
            made[task] = self.add(task.step, f"{label}{task.name}", decisive, values, inputs, outputs)
        return made


def _decisive(config: RunConfig, task: DagTask) -> str:
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
