"""pseudo_label as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl


def pseudo_label(
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    fold: int,
    cell_type: str,
    weights: dsl.Output[dsl.Model],
    logits: dsl.Output[dsl.Dataset],
    embeddings: dsl.Output[dsl.Dataset],
):
    from components.pseudo_label.step import main

    main(
        screen=screen.path,
        holdout=holdout.path,
        base=base.path,
        fold=int(fold),
        cell_type=cell_type,
        weights=weights.path,
        logits=logits.path,
        embeddings=embeddings.path,
    )
