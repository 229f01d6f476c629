"""report as KFP components, of a run and of new plates: a signature and a call each. Imports kfp only."""

from typing import List  # noqa: UP035 - KFP reads parameter types by their typing names

from kfp import dsl

from components.image import CPU


@dsl.component(**CPU)
def report(
    config: str,
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    holdout_labels: dsl.Input[dsl.Dataset],
    truth: str,
    uris: List[str],  # noqa: UP006
    lineage: str,
    results: dsl.Output[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    from components.report.publish import publish
    from components.report.step import main

    main(
        config=config,
        screen=screen.path,
        holdout=holdout.path,
        holdout_labels=holdout_labels.path,
        truth=truth,
        uris=uris,
        lineage=lineage,
        out=results.path,
    )
    publish(results.path, page.path, metrics.log_metric)


@dsl.component(**CPU)
def report_new_plates(
    config: str,
    reference: dsl.Input[dsl.Dataset],
    plates: dsl.Input[dsl.Dataset],
    truth: str,
    uris: List[str],  # noqa: UP006
    lineage: str,
    results: dsl.Output[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    from components.report.new_plates import main
    from components.report.publish import publish

    main(
        config=config,
        reference=reference.path,
        plates=plates.path,
        truth=truth,
        uris=uris,
        lineage=lineage,
        out=results.path,
    )
    publish(results.path, page.path, metrics.log_metric)
