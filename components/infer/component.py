"""infer as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl


def infer(
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    fold: int,
    cell_type: str,
    logits: dsl.Output[dsl.Dataset],
    embeddings: dsl.Output[dsl.Dataset],
    base: dsl.Input[dsl.Model] = None,
    second_base: dsl.Input[dsl.Model] = None,
):
    from components.infer.step import main

    bases = [model.path for model in (base, second_base) if model is not None]
    main(
        screen=screen.path,
        holdout=holdout.path,
        bases=bases,
        fold=int(fold),
        cell_type=cell_type,
        logits=logits.path,
        embeddings=embeddings.path,
    )
