"""The recorded runs of a store in a few words each, for `cellsignal store runs`. Reads run.json; the rest is in Claims."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components.core.storage.claims import Claims, RunClaim, get_present
from components.core.storage.garbage import Contents
from components.core.storage.inventory import ObjectInventory
from components.core.storage.run_record import RUNS


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        key: of the run.
        model: fingerprint of the model that predicts; empty for a training.
        name: in its configuration; empty where its record is not whole.
        started: as its lineage says; may be empty.
        screen: likewise.
        init_from: the run whose weights it started from; empty for none.
        folds: folds of a cell type that have their logits.
        of_folds: how many it trains, or how many of the model predict; 0 where that is not known.
        active: when its record last changed.
        plates: that it needs.
        outputs: finished outputs that it needs.
        alone: bytes that no other run needs; None where nobody counted them.
        problem: why it is not known what it needs; empty where it is.
    """

    key: str
    model: str
    name: str
    started: str
    screen: str
    init_from: str
    folds: int
    of_folds: int
    active: datetime
    plates: int
    outputs: int
    alone: int | None
    problem: str


def summarise_runs(store: ObjectInventory, claims: Claims, contents: Contents | None = None) -> list[RunSummary]:
    """The runs of a store, the one that was active last at the end.

    Args:
        store: where their records are.
        claims: refreshed.
        contents: from take_stock, for the bytes that each run alone needs; None leaves those out.
    """
    keys = {run: f"{RUNS}/{run}/run.json" for run in claims.runs}
    content = get_present(store, list(keys.values()))
    alone = _alone(list(claims.runs.values()), contents) if contents is not None else {}
    runs = sorted(claims.runs.values(), key=lambda run: (run.active, run.key))
    return [_summary(run, _json(content.get(keys[run.key], b"{}")), alone.get(run.key)) for run in runs]


def _summary(run: RunClaim, record: Mapping[str, Any], alone: int | None) -> RunSummary:
    config, lineage = _part(record, "config"), _part(record, "lineage")
    folds, cell_types = _part(config, "folds"), _part(config, "screen").get("cell_types") or ()
    trained = folds.get("train")
    per_type = len(trained) if isinstance(trained, list) else int(folds.get("count") or 0)
    prediction = _part(record, "prediction")
    predicting = sum(len(numbers) for numbers in _part(prediction, "folds").values())
    return RunSummary(
        key=run.key,
        model=str(prediction.get("model") or ""),
        name=str(config.get("name") or ""),
        started=str(lineage.get("started") or ""),
        screen=str(lineage.get("screen") or ""),
        init_from=str(config.get("init_from") or ""),
        folds=sum(key.startswith(f"{RUNS}/{run.key}/folds/") for key in run.objects),
        of_folds=predicting if prediction else per_type * len(cell_types),
        active=run.active,
        plates=len(run.plates),
        outputs=len(run.finished),
        alone=alone,
        problem=run.problem,
    )


def _alone(runs: Sequence[RunClaim], contents: Contents) -> dict[str, int]:
    """Bytes that each run, and no other, keeps in the store."""
    piles = {**contents.plates, **contents.finished}
    users = Counter(place for run in runs for place in run.plates | run.finished)
    return {
        run.key: sum(piles[p].size for p in run.plates | run.finished if users[p] == 1 and p in piles) for run in runs
    }


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}
