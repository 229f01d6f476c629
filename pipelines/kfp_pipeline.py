"""The DAG as a KFP pipeline, for this machine and for a cluster. Imports kfp, never torch.

The tasks of all folds become one ParallelFor over the folds, cell types and backbones are unrolled, and one Collected per cell
type feeds ensemble: kfp.local and clusters both run this shape. A group of the DAG's tasks may be one task of KFP.
KFP reads the annotations of the pipelines below, so this module must not use `from __future__ import annotations`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.assign.component import assign
from components.core.config import RunConfig
from components.core.storage.run_records import task_name
from components.ensemble.component import ensemble
from components.finetune.component import finetune
from components.groups import ensemble_assign, finetune_predict, pretrain_all
from components.image import CPU, GPU
from components.infer.component import infer
from components.normalize.component import normalize
from components.pretrain.component import pretrain
from components.pseudo_label.component import pseudo_label
from components.report.component import report
from pipelines.cluster.pod_settings import apply_pod_settings, pipeline_name, resources_of
from pipelines.dag import GPU_STEPS, DagTask, TaskGraph, TaskOutput

Group = tuple[DagTask, ...]
"""Tasks of the DAG that are one task of KFP."""
FUNCTIONS: Mapping[tuple[str, ...], Callable[..., Any]] = {
    ("normalize",): normalize,
    ("pretrain",): pretrain,
    ("finetune",): finetune,
    ("pseudo_label",): pseudo_label,
    ("infer",): infer,
    ("ensemble",): ensemble,
    ("assign",): assign,
    ("report",): report,
    ("pretrain", "pretrain"): pretrain_all,
    ("finetune", "pseudo_label"): finetune_predict,
    ("finetune", "infer"): finetune_predict,
    ("ensemble", "assign"): ensemble_assign,
}
"""By the steps of a group."""
COMPONENTS: Mapping[tuple[str, ...], Callable[..., dsl.PipelineTask]] = {
    steps: dsl.component(
        function,
        base_image=GPU if steps[0] in GPU_STEPS else CPU,
        packages_to_install=[],
        install_kfp_package=False,
    )
    for steps, function in FUNCTIONS.items()
}
TaskSettings = Callable[[dsl.PipelineTask, Group], object]
"""Applies the settings of the machine or cluster to a task of KFP."""


def local_pipeline(config: RunConfig, graph: TaskGraph, containers: bool = False) -> BaseComponent:
    """The pipeline of a run's DAG for this machine.

    As processes, a group of tasks is one, since each start costs seconds and kfp.local runs them one after another anyway.
    Containers run single tasks, each within the limits of its own step.

    Its parameters are source, fingerprint, truth and lineage; with model, experiments and any_cell_type if it predicts new plates.
    """

    def uncached(made: dsl.PipelineTask, group: Group) -> None:
        # Only the step itself can check whether images under the same name have changed.
        if group[0].step in ("normalize", "report"):
            made.set_caching_options(enable_caching=False)

    groups = [(task,) for task in graph.tasks] if containers else graph.groups()
    return _pipeline(config, graph, groups, "{}", config.model_dump_json(), config.local.parallel_folds, uncached)


def cluster_pipeline(config: RunConfig, graph: TaskGraph, images: Mapping[str, str], lineage: str) -> BaseComponent:
    """The pipeline for a cluster: images, resources and secrets on every task.

    Args:
        config: the run's configuration.
        graph: its DAG.
        images: references with digests, by target; empty keeps the tags, and KFP then caches nothing, since a tag may be moved.
        lineage: JSON, the default of the parameter `lineage`.

    Returns:
        A pipeline with the parameters of `local_pipeline`. KFP skips normalize unless `fingerprint` changes, as it must if images
        or tables change.
    """

    def settings(made: dsl.PipelineTask, group: Group) -> None:
        task, steps = group[0], [each.step for each in group]
        image = images.get("gpu" if task.on_gpu else "cpu")
        apply_pod_settings(made, resources_of(config, *steps), config.cluster, image)
        # The truth that report reads may change under its address.
        cached = config.cluster.caching and image is not None and task.step != "report"
        made.set_caching_options(enable_caching=cached)
        backbone = task.backbone if len(group) == 1 else None
        made.set_display_name(task_name(" and ".join(dict.fromkeys(steps)), None, task.cell_type, backbone))

    groups = graph.groups() if config.cluster.group == "fold" else [(task,) for task in graph.tasks]
    # Pods may request more, as after a lack of memory, without another manifest, which Kubeflow's cache would not know.
    read = config.model_dump_json(exclude={"cluster", "local"})
    return _pipeline(config, graph, groups, lineage, read, config.cluster.parallel_folds, settings)


def _pipeline(
    config: RunConfig,
    graph: TaskGraph,
    groups: Sequence[Group],
    known: str,
    read: str,
    parallel: int,
    settings: TaskSettings,
) -> BaseComponent:
    """The pipeline of a training or a prediction.

    normalize writes `read`, the configuration that steps read, into the manifests, from which all steps but report take it.
    """
    shown = config.model_dump_json()

    if not graph.trains:

        @dsl.pipeline(name=pipeline_name(config, graph))
        def prediction(
            source: str,
            fingerprint: str,
            model: str,
            experiments: str = "[]",
            any_cell_type: bool = False,
            truth: str = "",
            lineage: str = known,
        ):
            given: dict[str, Any] = {"config": read, "source": source, "fingerprint": fingerprint, "lineage": lineage}
            given |= {"model": model, "experiments": experiments, "any_cell_type": any_cell_type}
            arguments = {"normalize": given, "report": {"config": shown, "truth": truth}}
            _add_tasks(groups, arguments, None, parallel, settings)

        return prediction

    folds = [{"fold": fold} for fold in config.folds.trained]

    @dsl.pipeline(name=pipeline_name(config, graph))
    def training(
        source: str,
        fingerprint: str,
        truth: str = "",
        lineage: str = known,
        jobs: list[dict] = folds,
    ):
        given = {"config": read, "source": source, "fingerprint": fingerprint, "lineage": lineage}
        arguments = {"normalize": given, "report": {"config": shown, "truth": truth}}
        _add_tasks(groups, arguments, jobs, parallel, settings)

    return training


def _add_tasks(
    groups: Sequence[Group],
    arguments: Mapping[str, Mapping[str, Any]],
    jobs: Any,
    parallel: int,
    settings: TaskSettings,
) -> None:
    """Adds groups of tasks to the pipeline that is being defined.

    `arguments` are those of steps besides inputs and labels; `jobs` is the pipeline parameter with the folds of the only loop, or
    None for the folds in the graph.
    """
    made: dict[DagTask, dsl.PipelineTask] = {}

    def add(group: Group, fold: Any = None) -> None:
        first, steps = group[0], tuple(task.step for task in group)
        labels = {**first.labels, "fold": fold} if first.on_gpu else {}
        if len(group) > 1 and first.backbone:
            steps = steps[:2]  # a configuration has two backbones at most
            labels["backbones"] = [task.backbone for task in group]
            del labels["backbone"]
        elif first.step == "finetune" and len(group) > 1:
            labels["pseudo_labels"] = group[-1].step == "pseudo_label"
        inputs = {name: value for task in group for name, value in _inputs(task, made).items()}
        added = COMPONENTS[steps](**labels, **inputs, **arguments.get(first.step, {}))
        made.update(dict.fromkeys(group, added))
        settings(added, group)

    for of_folds, found in groupby(groups, key=lambda group: group[0].fold is not None):
        if not of_folds:
            for group in found:
                add(group)
            continue
        by_fold = {fold: [*each] for fold, each in groupby(found, key=lambda group: group[0].fold)}
        items = jobs if jobs is not None else [{"fold": fold} for fold in by_fold]
        with dsl.ParallelFor(items, parallelism=parallel) as job:
            for group in next(iter(by_fold.values())):
                add(group, job.fold)


def _inputs(task: DagTask, made: Mapping[DagTask, dsl.PipelineTask]) -> dict[str, Any]:
    """A task's inputs as its component takes them; in `made`, the tasks of the first fold stand for a loop's.

    What comes from its own group, which is not made yet, is no input. KFP has no list of artifacts from unrolled tasks: networks of
    two backbones are two arguments, and the predictions of all cell types are a list of addresses, which assign returns.
    """
    found: dict[str, Any] = {}
    for name, value in task.inputs.items():
        first = value if isinstance(value, TaskOutput) else value[0]
        if first.task not in made:
            continue
        output = made[first.task].outputs[first.name] if name != "uris" else None
        if isinstance(value, TaskOutput):
            found[name] = output
        elif name == "bases":
            networks = dict.fromkeys(made[each.task] for each in value)  # a group's are one folder
            for argument, each in zip(("base", "second_base"), networks, strict=False):
                found[argument] = each.outputs[first.name]
        elif name == "logits":
            found[name] = dsl.Collected(output)
        else:
            found[name] = [made[each.task].outputs["Output"] for each in value]
    return found
