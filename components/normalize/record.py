"""The record of the run that normalize is the first step of. Pure; core.storage.runs writes it."""

from __future__ import annotations

import datetime
import json

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.run_records import RECIPE, RunRecord, cluster_run_key, predicting_name


def record_of(
    config: RunConfig | None, lineage: str, source: str, fingerprint: str, predicts: bool = False
) -> RunRecord | None:
    """The run's record; None if lineage names no run, or the configuration is not known.

    Args:
        config: the whole run's.
        lineage: its lineage as JSON, with its key as `run` or, on a cluster, the recipe of the key.
        source: address of the screen.
        fingerprint: digest of the screen's files.
        predicts: whether it is a prediction; the caller adds the model.

    Raises:
        InputError: lineage is something else.
    """
    try:
        known = dict(json.loads(lineage))
        if config is None or not {"run", RECIPE} & known.keys():
            return None
        if "run" not in known:  # on a cluster source and fingerprint are not known earlier
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
    """Whether a process on another machine may wait for the run, which learns of failures through the store alone.

    A run on this machine reports them as events, so that a refused input leaves nothing in the store.
    """
    return record is not None and RECIPE in record.lineage
