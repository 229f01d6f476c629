"""The training DAG on one screen. Imports kfp, never torch.

normalize -> [fold: pretrain x backbones -> (cell type: finetune -> pseudo_label)] -> (cell type: ensemble -> assign) -> report

Without pseudo-labels `infer` takes the place of pseudo_label, and without a mean teacher that of both.

One ParallelFor over the folds; cell types and backbones are unrolled, and one Collected per cell type feeds ensemble, so
that a fold never waits for another before the ensemble.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.assign.component import assign
from components.core.config import RunConfig, result_config
from components.ensemble.component import ensemble
from components.finetune.component import finetune
from components.infer.component import infer
from components.normalize.component import normalize
from components.pretrain.component import pretrain
from components.pseudo_label.component import pseudo_label
from components.report.component import report
from components.sections import sections
from pipelines.cluster.pod_settings import apply_pod_settings, resources_of
from pipelines.plan.dag import GPU_STEPS

Finish = Callable[..., dsl.PipelineTask]


def build_training(config: RunConfig) -> BaseComponent:
    """The pipeline of a configuration, to run on this machine.

    The DAG's shape (folds, cell types, backbones) and each step's part of the configuration are fixed here; where the
    screen lies, the truth and the lineage are parameters of a run.

    Args:
        config: the run's configuration.

    Returns:
        A pipeline with the parameters source, truth and lineage.
    """
    folds = _folds(config)

    def uncached(task: dsl.PipelineTask, step: str, *_: str) -> dsl.PipelineTask:
        # Only the step itself can tell whether the images under the same name are still the same.
        return task.set_caching_options(enable_caching=False) if step in ("normalize", "report") else task

    @dsl.pipeline(name=pipeline_name(config.name))
    def training(source: str, truth: str = "", lineage: str = "{}", jobs: list[dict] = folds):
        part = sections(config)
        _dag(config, part, source, "", truth, lineage, part["report"], jobs, config.local.parallel_folds, uncached)

    return training


def build_cluster_training(config: RunConfig, images: dict[str, str], known: str) -> BaseComponent:
    """The same pipeline for a cluster: images, resources, secrets, and a fingerprint of the data.

    Whether normalize may be skipped is decided by `fingerprint`, which therefore has no default: another one where images
    or tables have changed.

    Args:
        config: the run's configuration.
        images: with their digests, by target; empty leaves the tags, and then nothing is cached, for a tag may be moved.
        known: lineage so far as JSON, the default of the parameter `lineage`.

    Returns:
        A pipeline with the parameters source, fingerprint and truth. All others are fixed by their defaults: the folds, what
        is known, and the configurations of steps that have several tasks, so that each is in the pipeline once.
    """
    folds, part = _folds(config), sections(config)
    last = "pseudo_label" if config.has_pseudo_labels else "infer"
    dressed = pod_settings(config, images)

    @dsl.pipeline(name=pipeline_name(config.name))
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
        given = {"pretrain": pretrain_config, "finetune": finetune_config, last: final_config, "assign": assign_config}
        whole, parallel = result_config(config), config.cluster.parallel_folds
        _dag(config, {**part, **given}, source, fingerprint, truth, lineage, whole, jobs, parallel, dressed)

    return training


def pod_settings(config: RunConfig, images: Mapping[str, str]) -> Finish:
    """What puts on each task of a cluster's pipeline its image, resources and secrets, its name, and whether it is cached.

    Args:
        config: of the run.
        images: with their digests, by target; empty leaves the tags.
    """

    def dressed(task: dsl.PipelineTask, step: str, *labels: str) -> dsl.PipelineTask:
        image = images.get("gpu" if step in GPU_STEPS else "cpu")
        apply_pod_settings(task, resources_of(config, step), config.cluster, image)
        # The truth that the report reads may change under its name.
        cached = config.cluster.caching and image is not None and step != "report"
        return task.set_caching_options(enable_caching=cached).set_display_name(" ".join((step, *labels)))

    return dressed


def pipeline_name(name: str) -> str:
    """What KFP calls the pipeline of a configuration's name."""
    return f"cellsignal-{name.lower().replace('_', '-').replace('.', '-')}"


def _folds(config: RunConfig) -> list[dict[str, Any]]:
    return [{"fold": fold} for fold in config.folds.trained]


def _dag(
    config: RunConfig,
    part: Mapping[str, Any],
    source: Any,
    fingerprint: Any,
    truth: Any,
    lineage: Any,
    whole_config: str,
    jobs: Any,
    parallel_folds: int,
    finish: Finish,
) -> None:
    """The tasks of the DAG.

    `part` is each step's configuration; `finish` gets each task with its step and what tells it apart, and puts on it what it
    needs.
    """
    cell_types = config.screen.cell_types
    first, *others = [backbone.name for backbone in config.backbones]
    packed = normalize(
        config=part["normalize"], source=source, whole_config=whole_config, lineage=lineage, fingerprint=fingerprint
    )
    finish(packed, "normalize")
    screen, holdout = packed.outputs["screen"], packed.outputs["holdout"]
    final = {}
    with dsl.ParallelFor(jobs, parallelism=parallel_folds) as job:
        base = finish(
            pretrain(config=part["pretrain"], screen=screen, fold=job.fold, backbone=first), "pretrain", first
        )
        second = {}
        for name in others:
            other = pretrain(config=part["pretrain"], screen=screen, fold=job.fold, backbone=name)
            second["second_base"] = finish(other, "pretrain", name).outputs["weights"]
        for cell_type in cell_types:
            where = {"fold": job.fold, "cell_type": cell_type}
            weights: dict[str, Any] = {"base": base.outputs["weights"], **second}
            if config.mean_teacher.enabled:
                tuned = finetune(config=part["finetune"], screen=screen, **weights, **where)
                weights = {"base": finish(tuned, "finetune", cell_type).outputs["weights"]}
            last, step = (pseudo_label, "pseudo_label") if config.has_pseudo_labels else (infer, "infer")
            ended = last(config=part[step], screen=screen, holdout=holdout, **weights, **where)
            final[cell_type] = finish(ended, step, cell_type)
    named = []
    for cell_type in cell_types:
        averaged = ensemble(screen=screen, logits=dsl.Collected(final[cell_type].outputs["logits"]))
        finish(averaged, "ensemble", cell_type)
        answer = assign(config=part["assign"], screen=screen, holdout=holdout, logits=averaged.outputs["averaged"])
        named.append(finish(answer, "assign", cell_type).outputs["Output"])
    final_report = report(
        config=part["report"],
        screen=screen,
        holdout=holdout,
        holdout_labels=packed.outputs["holdout_labels"],
        truth=truth,
        uris=named,
        lineage=lineage,
    )
    finish(final_report, "report")
