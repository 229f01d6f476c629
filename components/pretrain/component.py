"""pretrain as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl


def pretrain(screen: dsl.Input[dsl.Dataset], fold: int, backbone: str, weights: dsl.Output[dsl.Model]):
    from components.pretrain.step import main

    main(screen=screen.path, fold=int(fold), backbone=backbone, weights=weights.path)
