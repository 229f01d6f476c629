"""The training DAG of a configuration as plain tasks, the same that pipelines/training.py gives KFP. Pure.

A task's digest names what it computes: its step, the settings that decide its result, and the digests of what it reads.
So configurations that agree in a part of the DAG share its tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings
from components.core.screen.simulation.plate_design import SimulationSettings
from components.normalize.config import NormalizeConfig
from components.sections import sections


@dataclass(frozen=True)
class Output:
    """An output of a task: a file or folder below the task's own."""

    task: Task
    name: str


@dataclass(frozen=True, eq=False)
class Task:
    """One call of a step's `main`.

    Attributes:
        step: the step's name; its module is components.STEP.step.
        literals: arguments that are values.
        inputs: arguments that are outputs of other tasks; a sequence becomes a list of paths.
        outputs: arguments that are paths to write, with their names below the task's folder.
        digest: of everything above that decides the result.
    """

    step: str
    literals: Mapping[str, Any]
    inputs: Mapping[str, Output | Sequence[Output]]
    outputs: Mapping[str, str]
    digest: str

    @property
    def needs(self) -> tuple[Task, ...]:
        """The tasks whose outputs it reads."""
        given = [value if isinstance(value, Sequence) else [value] for value in self.inputs.values()]
        return tuple(output.task for outputs in given for output in outputs)

    def output(self, name: str) -> Output:
        """One of its outputs."""
        assert name in self.outputs, f"{self.step} has no output {name}"
        return Output(self, name)


@dataclass
class Plan:
    """Tasks in an order in which each comes after what it needs; equal ones are there once.

    Attributes:
        code: what else decides results: digest of the code, versions of libraries.
        tasks: by digest.
    """

    code: str
    tasks: dict[str, Task] = field(default_factory=dict)

    def add(
        self,
        step: str,
        decisive: str,
        literals: Mapping[str, Any],
        inputs: Mapping[str, Output | Sequence[Output]],
        outputs: Mapping[str, str],
    ) -> Task:
        """A task, or the equal one that is there already.

        Args:
            step: the step's name.
            decisive: what of its settings decides its result.
            literals: arguments; all but `config` count.
            inputs: arguments that other tasks write.
            outputs: names of what it writes.
        """
        read = {
            name: [[o.task.digest, o.name] for o in (value if isinstance(value, Sequence) else [value])]
            for name, value in inputs.items()
        }
        plain = {name: value for name, value in literals.items() if name != "config"}
        content = json.dumps([self.code, step, decisive, plain, read], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self.tasks.setdefault(digest, Task(step, literals, inputs, outputs, digest))


@dataclass(frozen=True)
class TrainingRun:
    """Where the results of one configuration will be.

    Attributes:
        truth: truth.csv of the simulated screen.
        named: output of assign by cell type.
        tasks: all tasks of the run, shared ones included.
    """

    truth: Output
    named: Mapping[str, Output]
    tasks: tuple[Task, ...]


def add_training(plan: Plan, config: RunConfig) -> TrainingRun:
    """Adds a configuration's DAG on its own simulated screen to a plan.

    simulate -> normalize -> [fold: pretrain x backbones -> (cell type: finetune -> pseudo_label | infer)]
    -> (cell type: ensemble -> assign)
    """
    part = sections(config)
    used: dict[str, Task] = {}

    def add(step: str, decisive: str, literals: Mapping[str, Any], inputs: Any, outputs: Mapping[str, str]) -> Task:
        task = plan.add(step, decisive, literals, inputs, outputs)
        used[task.digest] = task
        return task

    simulation = config.section(SimulationSettings).model_dump_json()
    simulated = add("simulate", simulation, {"config": simulation}, {}, {"out": "simulated"})
    packing = config.section(NormalizeConfig).model_dump_json(exclude={"folds": {"train"}})
    packed = add(
        "normalize",
        packing,
        {"config": part["normalize"]},
        {"source": Output(simulated, "out/screen")},
        {"screen": "screen.json", "holdout": "holdout.json", "holdout_labels": "holdout_labels.csv"},
    )
    screen, holdout = packed.output("screen"), packed.output("holdout")
    pretraining = config.section(PretrainSettings)
    tuning = config.section(MeanTeacherSettings)
    inferring = config.section(InferSettings).fingerprint()
    logits: dict[str, list[Output]] = {cell_type: [] for cell_type in config.screen.cell_types}
    for fold in config.folds.trained:
        bases = []
        for backbone in config.backbones:
            base = add(
                "pretrain",
                f"{pretraining.fingerprint_of(backbone.name)}{config.init_from or ''}",
                {"config": part["pretrain"], "fold": fold, "backbone": backbone.name},
                {"screen": screen},
                {"weights": "weights"},
            )
            bases.append(base.output("weights"))
        for cell_type in config.screen.cell_types:
            where = {"fold": fold, "cell_type": cell_type}
            weights = bases
            if config.mean_teacher.enabled:
                tuned = add(
                    "finetune",
                    tuning.finetune_fingerprint(),
                    {"config": part["finetune"], **where},
                    {"screen": screen, "bases": bases},
                    {"weights": "weights"},
                )
                weights = [tuned.output("weights")]
            if config.has_pseudo_labels:
                last = add(
                    "pseudo_label",
                    f"{tuning.fingerprint()} {config.mean_teacher.fused_labels}",
                    {"config": part["pseudo_label"], **where},
                    {"screen": screen, "holdout": holdout, "base": weights[0]},
                    {"weights": "weights", "logits": "logits", "embeddings": "embeddings"},
                )
            else:
                last = add(
                    "infer",
                    inferring,
                    {"config": part["infer"], **where},
                    {"screen": screen, "holdout": holdout, "bases": weights},
                    {"logits": "logits", "embeddings": "embeddings"},
                )
            logits[cell_type].append(last.output("logits"))
    named = {}
    for cell_type, of_folds in logits.items():
        averaged = add("ensemble", "", {}, {"screen": screen, "logits": of_folds}, {"out": "averaged"})
        answer = add(
            "assign",
            part["assign"],
            {"config": part["assign"]},
            {"screen": screen, "holdout": holdout, "logits": averaged.output("out")},
            {"out": "named"},
        )
        named[cell_type] = answer.output("out")
    return TrainingRun(Output(simulated, "out/truth.csv"), named, tuple(used.values()))
