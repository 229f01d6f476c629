"""The DAG that predicts new plates with a published model. Imports kfp, never torch.

normalize -> (cell type: [fold: infer] -> ensemble -> assign) -> report

A loop over the folds for each cell type, because the cell types of a model that was made of a partial run may have
different ones.
"""

from collections.abc import Mapping, Sequence

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.assign.component import assign
from components.core.config import RunConfig
from components.ensemble.component import ensemble
from components.infer.component import infer_new_plates
from components.normalize.component import normalize_new_plates
from components.report.component import report_new_plates
from components.sections import sections


def build_prediction(config: RunConfig, folds: Mapping[str, Sequence[int]]) -> BaseComponent:
    """The pipeline of a prediction, to run on this machine.

    Args:
        config: the model's, with what a prediction may change.
        folds: the model's folds that predict, by cell type of the new plates.

    Returns:
        A pipeline with the parameters source, model, experiments, any_cell_type, truth and lineage.
    """
    part = sections(config)

    @dsl.pipeline(name="cellsignal-predict")
    def prediction(
        source: str,
        model: str,
        experiments: str = "[]",
        any_cell_type: bool = False,
        truth: str = "",
        lineage: str = "{}",
    ):
        packed = normalize_new_plates(
            config=part["normalize"], source=source, model=model, experiments=experiments, any_cell_type=any_cell_type
        ).set_caching_options(enable_caching=False)
        given = {"reference": packed.outputs["reference"], "plates": packed.outputs["plates"]}
        named = []
        for cell_type, numbers in folds.items():
            jobs = [{"fold": fold} for fold in numbers]
            with dsl.ParallelFor(jobs, parallelism=config.local.parallel_folds) as job:
                said = infer_new_plates(config=part["infer"], fold=job.fold, cell_type=cell_type, **given)
            averaged = ensemble(screen=given["reference"], logits=dsl.Collected(said.outputs["logits"]))
            answer = assign(
                config=part["assign"],
                screen=given["reference"],
                holdout=given["plates"],
                logits=averaged.outputs["averaged"],
            )
            named.append(answer.outputs["Output"])
        report_new_plates(config=part["report"], truth=truth, uris=named, lineage=lineage, **given).set_caching_options(
            enable_caching=False
        )

    return prediction
