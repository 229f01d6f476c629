"""Several steps as one component of KFP, here and with `cluster.group: fold`. What one leaves for the next stays in its process."""

from typing import List  # noqa: UP035 - KFP reads parameter types by their typing names

from kfp import dsl


def pretrain_all(
    screen: dsl.Input[dsl.Dataset],
    fold: int,
    backbones: List[str],  # noqa: UP006
    weights: dsl.Output[dsl.Model],
):
    from components.pretrain.step import main

    for backbone in backbones:
        main(screen=screen.path, fold=int(fold), backbone=backbone, weights=f"{weights.path}/{backbone}")


def finetune_predict(
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    fold: int,
    cell_type: str,
    pseudo_labels: bool,
    logits: dsl.Output[dsl.Dataset],
    embeddings: dsl.Output[dsl.Dataset],
):
    from tempfile import TemporaryDirectory

    from components.finetune.step import main as finetune
    from components.infer.step import main as infer
    from components.pseudo_label.step import main as pseudo_label

    task = {"screen": screen.path, "fold": int(fold), "cell_type": cell_type}
    last = {**task, "holdout": holdout.path, "logits": logits.path, "embeddings": embeddings.path}
    with TemporaryDirectory() as folder:
        finetuned = f"{folder}/finetuned"
        finetune(bases=[base.path], weights=finetuned, **task)
        if pseudo_labels:
            pseudo_label(base=finetuned, weights=f"{folder}/weights", **last)
        else:
            infer(bases=[finetuned], **last)


def ensemble_assign(
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    logits: dsl.Input[list[dsl.Dataset]],
    predictions: dsl.Output[dsl.Dataset],
) -> str:
    from tempfile import TemporaryDirectory

    from components.assign.step import main as assign
    from components.ensemble.step import main as ensemble

    with TemporaryDirectory() as folder:
        averaged = f"{folder}/averaged"
        ensemble(screen=screen.path, logits=[fold.path for fold in logits], averaged=averaged)
        assign(screen=screen.path, holdout=holdout.path, logits=averaged, predictions=predictions.path)
    return predictions.uri
