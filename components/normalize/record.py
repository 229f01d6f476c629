"""The record of the run that normalize is the first step of. Pure; core.storage.run_record writes it."""

from __future__ import annotations

import datetime
import json

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.run_record import RECIPE, RunRecord, cluster_run_key, predicting_name


def record_of(
    config: RunConfig | None, lineage: str, source: str, fingerprint: str, predicts: bool = False
) -> RunRecord | None:
    """The run's record; None where lineage names no run, or the configuration is not known.

    Args:
        config: of the whole run.
        lineage: what is known of it, as JSON: its key as `run`, or on a cluster what that is made of.
        source: address of the screen.
        fingerprint: of its files.
        predicts: whether it is a prediction; by which model is for the caller to add.

    Raises:
        InputError: lineage is something else.
    """
    try:
        known = dict(json.loads(lineage))
        if config is None or not {"run", RECIPE} & known.keys():
            return None
        if "run" not in known:  # on a cluster, where source and fingerprint are known no earlier
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            name = predicting_name(config.name) if predicts else config.name
            found = {"run": cluster_run_key(name, known[RECIPE], source, fingerprint), "screen": source}
            known = {**known, **found, "data_fingerprint": fingerprint, "started": now}
        return RunRecord(key=known["run"], config=json.loads(config.model_dump_json()), lineage=known)
    except (ValueError, TypeError):
        raise InputError(
            f"lineage: JSON is expected, with `run` of letters, digits, dots, dashes and underscores; got {lineage!r}"
        ) from None


def is_waited_for(record: RunRecord | None) -> bool:
    """Whether somebody may wait for the run on another machine, who hears of failures through the store alone.

    A run on this machine tells them by its events, so that what is refused before anything is packed leaves nothing there.
    """
    return record is not None and RECIPE in record.lineage
