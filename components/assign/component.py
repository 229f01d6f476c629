"""assign as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl


def assign(
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    logits: dsl.Input[dsl.Dataset],
    predictions: dsl.Output[dsl.Dataset],
) -> str:
    from components.assign.step import main

    main(screen=screen.path, holdout=holdout.path, logits=logits.path, predictions=predictions.path)
    return predictions.uri
