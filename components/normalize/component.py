"""normalize as KFP components, of a screen and of new plates: a signature and a call each. Imports kfp only."""

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
):
    from components.normalize.step import main

    main(
        config=config,
        source=source,
        screen=screen.path,
        holdout=holdout.path,
        holdout_labels=holdout_labels.path,
        whole_config=whole_config,
        lineage=lineage,
        fingerprint=fingerprint,
    )


@dsl.component(**CPU)
def normalize_new_plates(
    config: str,
    source: str,
    model: str,
    experiments: str,
    any_cell_type: bool,
    whole_config: str,
    lineage: str,
    fingerprint: str,
    reference: dsl.Output[dsl.Dataset],
    plates: dsl.Output[dsl.Dataset],
):
    from components.normalize.new_plates import main

    main(
        config=config,
        source=source,
        model=model,
        experiments=experiments,
        any_cell_type=any_cell_type,
        reference=reference.path,
        plates=plates.path,
        whole_config=whole_config,
        lineage=lineage,
        fingerprint=fingerprint,
    )
