"""The DAG as a KFP pipeline, for this machine and for a cluster. Imports kfp, never torch.

The tasks of all folds become one ParallelFor over the folds, cell types and backbones are unrolled, and one Collected per cell
type feeds ensemble: kfp.local and clusters both run this shape. KFP reads the annotations of the pipelines below, so this module
must not use `from __future__ import annotations`.
"""

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.assign.component import assign
from components.core.config import RunConfig, result_config
from components.core.storage.run_records import task_name
from components.ensemble.component import ensemble
from components.finetune.component import finetune
from components.infer.component import infer
from components.normalize.component import normalize
from components.pretrain.component import pretrain
from components.pseudo_label.component import pseudo_label
from components.report.component import report
from pipelines.cluster.pod_settings import apply_pod_settings, pipeline_name, resources_of
from pipelines.dag import DagTask, TaskGraph, TaskOutput, step_configs

COMPONENTS: Mapping[str, Callable[..., dsl.PipelineTask]] = {
    "normalize": normalize,
    "pretrain": pretrain,
    "finetune": finetune,
    "pseudo_label": pseudo_label,
    "infer": infer,
    "ensemble": ensemble,
    "assign": assign,
    "report": report,
}
TaskSettings = Callable[[dsl.PipelineTask, DagTask], object]
"""Applies the settings of the machine or cluster to a task."""


def local_pipeline(config: RunConfig, graph: TaskGraph) -> BaseComponent:
    """The pipeline of a run's DAG for this machine.

    Its parameters are source, fingerprint, truth and lineage; with model, experiments and any_cell_type if it predicts new plates.
    """

    def uncached(made: dsl.PipelineTask, task: DagTask) -> None:
        # Only the step itself can check whether images under the same name have changed.
        if task.step in ("normalize", "report"):
            made.set_caching_options(enable_caching=False)

    whole = step_configs(config)["report"]
    return _pipeline(config, graph, "{}", whole, config.local.parallel_folds, uncached)


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

    def settings(made: dsl.PipelineTask, task: DagTask) -> None:
        image = images.get("gpu" if task.on_gpu else "cpu")
        apply_pod_settings(made, resources_of(config, task.step), config.cluster, image)
        # The truth that report reads may change under its address.
        cached = config.cluster.caching and image is not None and task.step != "report"
        made.set_caching_options(enable_caching=cached)
        made.set_display_name(task_name(task.step, None, task.cell_type, task.backbone))

    return _pipeline(config, graph, lineage, result_config(config), config.cluster.parallel_folds, settings)


def _pipeline(
    config: RunConfig, graph: TaskGraph, known: str, whole: str, parallel: int, settings: TaskSettings
) -> BaseComponent:
    """The pipeline of a training or a prediction.

    Configurations of steps with several tasks are parameters, so each is in the file once; users leave their defaults.
    """
    part = step_configs(config)
    last = "pseudo_label" if config.has_pseudo_labels else "infer"
    folds = [{"fold": fold} for fold in config.folds.trained]

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
            infer_config: str = part["infer"],
            assign_config: str = part["assign"],
        ):
            configs = {**part, "infer": infer_config, "assign": assign_config}
            new = {"model": model, "experiments": experiments, "any_cell_type": any_cell_type}
            read = {"source": source, "fingerprint": fingerprint, "whole_config": whole, "lineage": lineage, **new}
            more: dict[str, dict[str, Any]] = {"normalize": read, "report": {"truth": truth, "lineage": lineage}}
            _add_tasks(graph, configs, more, None, parallel, settings)

        return prediction

    @dsl.pipeline(name=pipeline_name(config, graph))
    def training(
        source: str,
        fingerprint: str,
        truth: str = "",
        lineage: str = known,
        jobs: list[dict] = folds,
        pretrain_config: str = part["pretrain"],
        finetune_config: str = part["finetune"],
        final_config: str = part[last],
        assign_config: str = part["assign"],
    ):
        configs = {**part, "pretrain": pretrain_config, "finetune": finetune_config, last: final_config}
        configs["assign"] = assign_config
        read = {"source": source, "fingerprint": fingerprint, "whole_config": whole, "lineage": lineage}
        more: dict[str, dict[str, Any]] = {"normalize": read, "report": {"truth": truth, "lineage": lineage}}
        _add_tasks(graph, configs, more, jobs, parallel, settings)

    return training


def _add_tasks(
    graph: TaskGraph,
    configs: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]],
    jobs: Any,
    parallel: int,
    settings: TaskSettings,
) -> None:
    """Adds a graph's tasks to the pipeline that is being defined.

    `configs` and `more` are each step's configuration and further arguments; `jobs` is the pipeline parameter with the folds of the
    only loop, or None for the folds in the graph.
    """
    made: dict[DagTask, dsl.PipelineTask] = {}

    def add(task: DagTask, fold: Any = None) -> None:
        arguments = {"config": configs[task.step]} if task.step in configs else {}
        if task.on_gpu:
            arguments |= {**task.labels, "fold": fold}
        made[task] = COMPONENTS[task.step](**arguments, **_inputs(task, made), **more.get(task.step, {}))
        settings(made[task], task)

    for of_folds, tasks in groupby(graph.tasks, key=lambda task: task.fold is not None):
        if not of_folds:
            for task in tasks:
                add(task)
            continue
        by_fold = {fold: [*each] for fold, each in groupby(tasks, key=lambda task: task.fold)}
        items = jobs if jobs is not None else [{"fold": fold} for fold in by_fold]
        with dsl.ParallelFor(items, parallelism=parallel) as job:
            for task in next(iter(by_fold.values())):
                add(task, job.fold)


def _inputs(task: DagTask, made: Mapping[DagTask, dsl.PipelineTask]) -> dict[str, Any]:
    """A task's inputs as its component takes them; in `made`, the tasks of the first fold stand for a loop's.

    KFP has no list of artifacts from unrolled tasks: the networks of two backbones are two arguments, and the predictions of
    all cell types are a list of addresses, which assign returns.
    """
    found: dict[str, Any] = {}
    for name, value in task.inputs.items():
        if isinstance(value, TaskOutput):
            found[name] = made[value.task].outputs[value.name]
        elif name == "bases":
            for argument, each in zip(("base", "second_base"), value, strict=False):
                found[argument] = made[each.task].outputs[each.name]
        elif name == "logits":
            found[name] = dsl.Collected(made[value[0].task].outputs[value[0].name])
        else:
            found[name] = [made[each.task].outputs["Output"] for each in value]
    return found
