"""The training DAG on one screen. Imports kfp, never torch.

normalize -> [fold: pretrain x backbones -> (cell type: finetune -> pseudo_label)] -> (cell type: ensemble -> assign) -> report

Without pseudo-labels `infer` takes the place of pseudo_label, and without a mean teacher that of both.

One ParallelFor over the folds; cell types and backbones are unrolled, and one Collected per cell type feeds ensemble, so
that a fold never waits for another before the ensemble.
"""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.assign.component import assign
from components.core.config import RunConfig
from components.ensemble.component import ensemble
from components.finetune.component import finetune
from components.infer.component import infer
from components.normalize.component import normalize
from components.pretrain.component import pretrain
from components.pseudo_label.component import pseudo_label
from components.report.component import report
from components.sections import sections


def build_training(config: RunConfig) -> BaseComponent:
    """The pipeline of a configuration.

    The DAG's shape (folds, cell types, backbones) and each step's part of the configuration are fixed here; where the
    screen lies, the truth and the lineage are parameters of a run.

    Args:
        config: the run's configuration.

    Returns:
        A pipeline with the parameters source, truth and lineage.
    """
    part = sections(config)
    folds: list[dict[str, Any]] = [{"fold": fold} for fold in config.folds.trained]
    cell_types = config.screen.cell_types
    first, *others = [backbone.name for backbone in config.backbones]

    @dsl.pipeline(name=f"cellsignal-{config.name.lower().replace('_', '-').replace('.', '-')}")
    def training(source: str, truth: str = "", lineage: str = "{}", jobs: list[dict] = folds):
        packed = normalize(config=part["normalize"], source=source, whole_config=part["report"], lineage=lineage)
        # Only the step itself can tell whether the images under the same name are still the same.
        packed.set_caching_options(enable_caching=False)
        screen, holdout = packed.outputs["screen"], packed.outputs["holdout"]
        final = {}
        with dsl.ParallelFor(jobs, parallelism=config.local.parallel_folds) as job:
            base = pretrain(config=part["pretrain"], screen=screen, fold=job.fold, backbone=first)
            second = {}
            for name in others:
                other = pretrain(config=part["pretrain"], screen=screen, fold=job.fold, backbone=name)
                second["second_base"] = other.outputs["weights"]
            for cell_type in cell_types:
                where = {"fold": job.fold, "cell_type": cell_type}
                weights: dict[str, Any] = {"base": base.outputs["weights"], **second}
                if config.mean_teacher.enabled:
                    tuned = finetune(config=part["finetune"], screen=screen, **weights, **where)
                    weights = {"base": tuned.outputs["weights"]}
                last, its_part = (
                    (pseudo_label, part["pseudo_label"]) if config.has_pseudo_labels else (infer, part["infer"])
                )
                final[cell_type] = last(config=its_part, screen=screen, holdout=holdout, **weights, **where)
        named = []
        for cell_type in cell_types:
            averaged = ensemble(logits=dsl.Collected(final[cell_type].outputs["logits"]))
            answer = assign(config=part["assign"], screen=screen, holdout=holdout, logits=averaged.outputs["averaged"])
            named.append(answer.outputs["Output"])
        final_report = report(
            config=part["report"],
            screen=screen,
            holdout=holdout,
            holdout_labels=packed.outputs["holdout_labels"],
            truth=truth,
            uris=named,
            lineage=lineage,
        )
        final_report.set_caching_options(enable_caching=False)

    return training
