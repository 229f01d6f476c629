"""What the store records about a run, below runs/KEY. Pure data (pydantic); core.storage.runs reads and writes it.

run.json                                       configuration, lineage, the plates it reads; of a prediction, its model
screen.json, holdout.json, holdout_labels.csv  normalize's outputs; of a prediction, the reference manifest of the model's
                                               screen, the new plates, and no labels
tasks/STEP/FOLD[/CELL_TYPE][/BACKBONE].json    a finished task: where the store keeps its outputs
status/TASK/ATTEMPT.json                       what each attempt at a task reports, see task_status
results/FILE                                   the report's files: pods keep nothing, and KFP's outputs need its credentials

Records only point to finished outputs, so a task costs one request and nothing is stored twice. `cellsignal store gc` keeps the
plates and outputs that records point to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from components.core.config import BackboneConfig, FrozenModel, HeadConfig
from components.core.storage.digests import digest_text
from components.core.storage.finished import EMBEDDINGS
from components.core.stored_record import StoredRecord

RUNS = "runs"
KEY = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
RUN, MANIFEST, HOLDOUT, HOLDOUT_LABELS = "run.json", "screen.json", "holdout.json", "holdout_labels.csv"
RESULTS, STATUS = "results", "status"
LINEAGE = f"{RESULTS}/lineage.json"
RECIPE = "recipe"
"""In the lineage of a compiled pipeline: digest of everything that decides a run except its screen; see cluster_run_key."""
OPTION = "init_from"
PREDICTING_STEPS = ("infer", "pseudo_label")
"""The steps whose outputs are logits; a run has tasks of one of them."""
_IF_DAMAGED = "run again, or forget the run (`cellsignal store forget`) if an earlier version of cellsignal wrote it"


class PredictionRecord(FrozenModel):
    """What makes a run a prediction: trained networks classify new plates."""

    model: str = Field(description="fingerprint of the model that predicts")
    folds: dict[str, tuple[int, ...]] = Field(
        description="the model's folds that predict, by cell type of the new plates"
    )


class RunRecord(StoredRecord):
    """One run: a training, or a prediction."""

    KIND, IF_DAMAGED = "run's record", _IF_DAMAGED

    key: str = Field(pattern=f"^{KEY}$", description="name of the run's folder in the store")
    config: dict[str, Any] = Field(description="the whole configuration")
    lineage: dict[str, Any] = Field(description="code version, seeds, start")
    plates: tuple[str, ...] = Field((), description="prefixes of the packed plates that the run reads")
    prediction: PredictionRecord | None = Field(None, description="None for a training")


class Learned(FrozenModel):
    """The treatment labels that weights have learned, including labels of the runs that they started from."""

    experiments: tuple[str, ...] = Field((), description="whole experiments")
    wells: dict[str, tuple[str, ...]] = Field(
        {}, description="id_codes of single wells by experiment, if folds hold out wells"
    )

    def __or__(self, other: Learned) -> Learned:
        """What either has learned."""
        return Learned(
            experiments=tuple(sorted({*self.experiments, *other.experiments})),
            wells={
                name: tuple(sorted({*self.wells.get(name, ()), *other.wells.get(name, ())}))
                for name in sorted({*self.wells, *other.wells})
            },
        )


class TaskRecord(StoredRecord):
    """A finished task of a step."""

    KIND, IF_DAMAGED = "task's record", _IF_DAMAGED

    schema_version: int = Field(2, ge=1)
    step: str
    fold: int
    cell_type: str | None = None
    backbone: str | None = None
    screen: str = Field(description="digest of the manifest that its networks were trained with")
    holdout: str | None = Field(
        None, description="digest of the predicted held-out plates' manifest; None without logits"
    )
    prefix: str = Field(pattern=r"^finished/", description="key prefix of its outputs, see prefix_of")
    sphered: str | None = Field(
        None,
        pattern=r"^finished/",
        exclude_if=lambda prefix: prefix is None,  # so that earlier versions read the other records
        description="key prefix of the sphered embeddings; None without",
    )
    learned: Learned = Field(Learned(), description="by pretrain's weights, for runs that start from them")

    def prefix_of(self, output: str) -> str:
        """Key prefix of an output, for fetch_finished."""
        return self.sphered if self.sphered and output == EMBEDDINGS else self.prefix

    def key(self, run: str) -> str:
        """Its key in the store."""
        parts = ("tasks", self.step, str(self.fold), self.cell_type, self.backbone)
        return f"{run_file(run, '/'.join(part for part in parts if part))}.json"


@dataclass(frozen=True)
class SourceRun:
    """A recorded run whose pretrained weights may start another one; no weight has been fetched."""

    key: str
    backbones: Mapping[str, BackboneConfig]  # by name
    head: HeadConfig
    weights: Mapping[tuple[int, str], TaskRecord]  # by fold and backbone
    cell_types: tuple[str, ...] = ()


def task_name(step: str, fold: object = None, cell_type: object = None, backbone: object = None) -> str:
    """A task's name for people: `finetune fold 0 HUVEC`."""
    parts = [step, "" if fold is None else f"fold {fold}", cell_type or "", backbone or ""]
    return " ".join(str(part) for part in parts if part)


def run_file(run: str, name: str) -> str:
    """The store's key of a file of a run; an empty name gives the prefix of all of them."""
    return f"{RUNS}/{run}/{name}"


def cluster_run_key(name: str, recipe: str, source: str, fingerprint: str) -> str:
    """The key of a run on a cluster: the same whenever the same pipeline is submitted on the same data.

    `recipe` is the digest of configuration, code and images, `source` the screen's address, `fingerprint` its listing's digest.
    """
    return f"{name}-{digest_text(json.dumps([recipe, source.rstrip('/'), fingerprint]))[:12]}"


def predicting_name(name: str) -> str:
    """The name of predictions on a cluster, in keys and in KFP, which distinguishes them from trainings."""
    return f"{name}-predict"
