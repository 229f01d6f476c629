"""pretrain as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl

from components.image import GPU


@dsl.component(**GPU)
def pretrain(config: str, screen: dsl.Input[dsl.Dataset], fold: int, backbone: str, weights: dsl.Output[dsl.Model]):
    from components.pretrain.step import main

    main(config=config, screen=screen.path, fold=int(fold), backbone=backbone, weights=weights.path)
