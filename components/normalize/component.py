"""normalize as a KFP component: a signature and a call. Imports kfp only."""

from kfp import dsl

from components.image import CPU


@dsl.component(**CPU)
def normalize(
    config: str,
    source: str,
    whole_config: str,
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
        whole_config=whole_config,
        lineage=lineage,
        fingerprint=fingerprint,
    )
