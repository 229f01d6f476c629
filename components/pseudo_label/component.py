"""pseudo_label as a KFP component: a signature and a call. No task reads its networks, which the store keeps. Imports kfp only."""

from kfp import dsl


def pseudo_label(
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    fold: int,
    cell_type: str,
    logits: dsl.Output[dsl.Dataset],
    embeddings: dsl.Output[dsl.Dataset],
):
    from tempfile import TemporaryDirectory

    from components.pseudo_label.step import main

    with TemporaryDirectory() as folder:
        main(
            screen=screen.path,
            holdout=holdout.path,
            base=base.path,
            fold=int(fold),
            cell_type=cell_type,
            weights=f"{folder}/weights",
            logits=logits.path,
            embeddings=embeddings.path,
        )
