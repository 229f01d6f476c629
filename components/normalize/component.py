"""normalize as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl


def normalize(
    config: str,
    source: str,
    lineage: str,
    fingerprint: str,
    screen: dsl.Output[dsl.Dataset],
    holdout: dsl.Output[dsl.Dataset],
    holdout_labels: dsl.Output[dsl.Dataset],
    model: str = "",
    experiments: str = "[]",
    any_cell_type: bool = False,
):
    from components.normalize.step import main

    main(
        config=config,
        source=source,
        screen=screen.path,
        holdout=holdout.path,
        holdout_labels=holdout_labels.path,
        model=model,
        experiments=experiments,
        any_cell_type=any_cell_type,
        lineage=lineage,
        fingerprint=fingerprint,
    )
