"""ensemble as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl


def ensemble(screen: dsl.Input[dsl.Dataset], logits: dsl.Input[list[dsl.Dataset]], averaged: dsl.Output[dsl.Dataset]):
    from components.ensemble.step import main

    main(screen=screen.path, logits=[fold.path for fold in logits], averaged=averaged.path)
