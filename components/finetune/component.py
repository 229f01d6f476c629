"""finetune as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl


def finetune(
    screen: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    fold: int,
    cell_type: str,
    weights: dsl.Output[dsl.Model],
    second_base: dsl.Input[dsl.Model] = None,
):
    from components.finetune.step import main

    bases = [model.path for model in (base, second_base) if model is not None]
    main(screen=screen.path, bases=bases, fold=int(fold), cell_type=cell_type, weights=weights.path)
