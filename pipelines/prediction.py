"""The DAG that predicts new plates with a published model. Imports kfp, never torch.

normalize -> (cell type: [fold: infer] -> ensemble -> assign) -> report

A loop over the folds for each cell type, because the cell types of a model that was made of a partial run may have
different ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.assign.component import assign
from components.core.config import RunConfig, result_config
from components.core.storage.run_record import predicting_name
from components.ensemble.component import ensemble
from components.infer.component import infer_new_plates
from components.normalize.component import normalize_new_plates
from components.report.component import report_new_plates
from components.sections import sections
from pipelines.training import Finish, pipeline_name, pod_settings

Folds = Mapping[str, Sequence[int]]


def build_prediction(config: RunConfig, folds: Folds) -> BaseComponent:
    """The pipeline of a prediction, to run on this machine.

    Args:
        config: the model's, with what a prediction may change.
        folds: the model's folds that predict, by cell type of the new plates.

    Returns:
        A pipeline with the parameters source, model, experiments, any_cell_type, truth and lineage.
    """
    part = sections(config)

    def uncached(task: dsl.PipelineTask, step: str, *_: str) -> dsl.PipelineTask:
        return task.set_caching_options(enable_caching=False) if step in ("normalize", "report") else task

    @dsl.pipeline(name="cellsignal-predict")
    def prediction(
        source: str,
        model: str,
        experiments: str = "[]",
        any_cell_type: bool = False,
        truth: str = "",
        lineage: str = "{}",
    ):
        asked = {"source": source, "model": model, "experiments": experiments, "any_cell_type": any_cell_type}
        whole, parallel = part["report"], config.local.parallel_folds
        _dag(folds, part, asked, "", truth, lineage, whole, parallel, uncached)

    return prediction


def build_cluster_prediction(config: RunConfig, folds: Folds, images: dict[str, str], known: str) -> BaseComponent:
    """The same pipeline for a cluster: images, resources, secrets, and a fingerprint of the plates' files.

    Args:
        config: the model's, with what a prediction may change.
        folds: the model's folds that predict, by cell type of the new plates.
        images: with their digests, by target; empty leaves the tags, and then nothing is cached, for a tag may be moved.
        known: lineage so far as JSON, the default of the parameter `lineage`.

    Returns:
        A pipeline with the parameters source, fingerprint, model, experiments, any_cell_type and truth. All others are fixed
        by their defaults: what is known, and the configurations of steps that have several tasks.
    """
    part, dressed = sections(config), pod_settings(config, images)

    @dsl.pipeline(name=pipeline_name(predicting_name(config.name)))
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
        given = {**part, "infer": infer_config, "assign": assign_config}
        asked = {"source": source, "model": model, "experiments": experiments, "any_cell_type": any_cell_type}
        whole, parallel = result_config(config), config.cluster.parallel_folds
        _dag(folds, given, asked, fingerprint, truth, lineage, whole, parallel, dressed)

    return prediction


def _dag(
    folds: Folds,
    part: Mapping[str, Any],
    asked: Mapping[str, Any],
    fingerprint: Any,
    truth: Any,
    lineage: Any,
    whole_config: str,
    parallel_folds: int,
    finish: Finish,
) -> None:
    """The tasks of the DAG.

    `part` is each step's configuration; `asked` is what normalize is to find: source, model, experiments, any_cell_type;
    `finish` gets each task with its step and what tells it apart, and puts on it what it needs.
    """
    packed = normalize_new_plates(
        config=part["normalize"], whole_config=whole_config, lineage=lineage, fingerprint=fingerprint, **asked
    )
    finish(packed, "normalize")
    given = {"reference": packed.outputs["reference"], "plates": packed.outputs["plates"]}
    named = []
    for cell_type, numbers in folds.items():
        jobs = [{"fold": fold} for fold in numbers]
        with dsl.ParallelFor(jobs, parallelism=parallel_folds) as job:
            said = infer_new_plates(config=part["infer"], fold=job.fold, cell_type=cell_type, **given)
            finish(said, "infer", cell_type)
        averaged = ensemble(screen=given["reference"], logits=dsl.Collected(said.outputs["logits"]))
        finish(averaged, "ensemble", cell_type)
        answer = assign(
            config=part["assign"],
            screen=given["reference"],
            holdout=given["plates"],
            logits=averaged.outputs["averaged"],
        )
        named.append(finish(answer, "assign", cell_type).outputs["Output"])
    final_report = report_new_plates(config=part["report"], truth=truth, uris=named, lineage=lineage, **given)
    finish(final_report, "report")
