"""report as a KFP component: a signature and a call. Imports kfp only."""

from typing import List  # noqa: UP035 - KFP reads parameter types by their typing names

from kfp import dsl


def report(
    config: str,
    screen: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    holdout_labels: dsl.Input[dsl.Dataset],
    truth: str,
    uris: List[str],  # noqa: UP006
    results: dsl.Output[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    from components.report.step import main, publish

    main(
        config=config,
        screen=screen.path,
        holdout=holdout.path,
        holdout_labels=holdout_labels.path,
        truth=truth,
        uris=uris,
        results=results.path,
    )
    publish(results.path, page.path, metrics.log_metric)
