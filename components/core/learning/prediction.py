"""Predictions of a fold's networks: logits of wells whose labels they never saw, embeddings of all wells. torch only.

W wells, K class, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from components.core import progress
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.fold_data import FoldWells
from components.core.learning.images import Images, open_images
from components.core.learning.inference import well_outputs
from components.core.learning.mean_teacher import Pair
from components.core.learning.network import Classifier
from components.core.learning.sphering import sphered
from components.core.learning.step_settings import InferSettings, LearningSettings
from components.core.learning.team import ALONE, Team
from components.core.screen.packed import ROLES, TREATMENT, SiteTable
from components.core.storage.arrays import (
    EmbeddedWells,
    LogitsDirectory,
    WellLogits,
    change_embeddings,
    write_embeddings,
    write_logits,
)
from components.core.storage.finished import Sphering
from components.core.storage.manifest import Manifest

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

_USE_NAMES = {"oof": "out-of-fold", "unlabelled": "unlabelled", "holdout": "held-out"}
"""Roles of wells in progress messages."""

_PIECE = 4096
"""Wells predicted between two opportunities for a checkpoint; 8 views of them take half a minute on a GPU."""


class Pieces:
    """Arrays computed piece by piece; a step that resumes reuses the pieces that a checkpoint holds.

    Args:
        checkpoints: where the pieces are saved by time.
        base: returns the other state to save with them.
        found: pieces of an earlier attempt, by name.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None = None,
        base: Callable[[], Mapping[str, Any]] = dict,
        found: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._checkpoints = checkpoints or Checkpoints()
        self._base = base
        self._known = dict(found or {})

    def of_wells(
        self, name: str, wells: NDArray[np.intp], compute: Callable[[NDArray[np.intp]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """The rows that `compute` returns for the wells, in their order."""
        pieces = []
        for k, start in enumerate(range(0, len(wells), _PIECE)):
            key = f"{name} {k}"
            if key not in self._known:
                self._known[key] = torch.from_numpy(compute(wells[start : start + _PIECE]))
                self._checkpoints.save_if_due(lambda: {**self._base(), "pieces": self._known})
            pieces.append(self._known[key].numpy())
            progress.advance(f"wells ({name})", min(start + _PIECE, len(wells)), len(wells))
        return np.concatenate(pieces)


@dataclass(frozen=True)
class FoldPrediction:
    """The predictions of one fold and cell type."""

    logits: Mapping[str, WellLogits]  # means over sites, views and backbones, by use: oof, unlabelled, holdout
    # embeddings of all wells of the cell type, by backbone; empty if they are disabled
    embeddings: Mapping[str, EmbeddedWells]
    screen: str  # digest of the screen's manifest

    def write(
        self, logits: Path, embeddings: Path, meta: Mapping[str, Any], settings: InferSettings, weights: str
    ) -> None:
        """Writes logits.npz and meta.json into one folder, Parquet files of the embeddings, if any, into the other.

        Args:
            logits: the folder of logits.
            embeddings: the folder of embeddings.
            meta: content of meta.json, see fold_meta.
            settings: number of views.
            weights: the weights that predicted: student, teacher or pretrained.

        Raises:
            InputError: an embedding is not finite.
        """
        logits.mkdir(parents=True, exist_ok=True)
        embeddings.mkdir(parents=True, exist_ok=True)
        write_logits(logits, LogitsDirectory(self.logits, meta))
        for backbone, wells in self.embeddings.items():
            write_embeddings(
                embeddings,
                wells,
                backbone,
                meta["cell_type"],
                meta["fold"],
                label=settings.screen.label_column,
                views=settings.embeddings.views,
                weights=weights,
                screen=self.screen,
            )


def sphering(settings: InferSettings) -> Sphering | None:
    """The sphering of finished embeddings; None without.

    Its work raises InputError if there are too few controls.
    """
    config = settings.embeddings
    if not config.enabled or config.sphering == "none":
        return None

    def sphere(embeddings: Path, out: Path) -> None:
        change = partial(sphered, shrinkage=config.shrinkage)
        change_embeddings(embeddings, out, change, settings.screen.label_column, sphering=config.sphering)

    return Sphering({"sphering": config.model_dump_json(include={"sphering", "shrinkage"})}, sphere)


def predicting_networks(pairs: Sequence[Pair], settings: LearningSettings) -> dict[str, Classifier]:
    """The network of each pair that predicts, by backbone: student or teacher, as configured."""
    return {pair.name: pair.student if settings.predict.weights == "student" else pair.teacher for pair in pairs}


def held_out_images(
    holdout: Manifest,
    screen: Manifest,
    cell_type: str,
    store: ObjectStore,
    settings: LearningSettings,
    device: torch.device,
    team: Team = ALONE,
) -> Images | None:
    """Images of the held-out experiments, standardised as the training screen's; None if none is of the cell type."""
    if all(plate.cell_type != cell_type for plate in holdout.plates):
        return None
    return open_images(settings, holdout, store, device, team, screen)


def predict_fold(
    networks: Mapping[str, Classifier],
    screen: Manifest,
    images: Images,
    wells: FoldWells,
    held_out: Images | None,
    cell_type: str,
    settings: InferSettings,
    pieces: Pieces | None = None,
) -> FoldPrediction:
    """Logits of a fold's wells by use, averaged over sites, views and backbones, and embeddings of all wells.

    Args:
        networks: the networks by backbone, on the images' device.
        screen: the manifest; held-out experiments have its vocabulary.
        images: images of the training screen.
        wells: wells of the fold and cell type.
        held_out: images of the held-out experiments, which a run reads here for the first time; None for none.
        cell_type: the cell type to predict.
        settings: views and batch size.
        pieces: saves what is computed; None saves nothing.
    """
    pieces = pieces or Pieces()
    requested = {"oof": wells.validation, "unlabelled": wells.unlabelled}
    found = _predict(networks, images, cell_type, requested, _uses(images, wells), screen, settings, pieces)
    if held_out is None:
        return replace(found, logits={**found.logits, "holdout": _no_logits(screen)})
    images.loader.release()  # two screens in memory would take twice loader.cache_gib
    more = predict_held_out(networks, screen, held_out, cell_type, settings, pieces)
    joined = {name: own.followed_by(more.embeddings[name]) for name, own in found.embeddings.items()}
    return replace(found, logits={**found.logits, "holdout": more.logits["holdout"]}, embeddings=joined)


def predict_held_out(
    networks: Mapping[str, Classifier],
    screen: Manifest,
    held_out: Images,
    cell_type: str,
    settings: InferSettings,
    pieces: Pieces | None = None,
) -> FoldPrediction:
    """Logits and embeddings of wells that training has not seen: held-out experiments, or new plates.

    The arguments are those of predict_fold; the manifest may be a model's reference for its training screen.
    """
    treatment_W = held_out.table.role_W == TREATMENT
    requested = {"holdout": np.flatnonzero(_of_type(held_out.table, cell_type) & treatment_W)}
    uses = np.where(treatment_W, "holdout", "control")
    found = _predict(networks, held_out, cell_type, requested, uses, screen, settings, pieces or Pieces())
    none = _no_logits(screen)
    return replace(found, logits={"oof": none, "unlabelled": none, **found.logits})


def _no_logits(screen: Manifest) -> WellLogits:
    return WellLogits((), np.empty((0, len(screen.vocabulary.classes)), dtype=np.float32))


def fold_meta(cell_type: str, fold: int, validated: bool, history: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of a fold's meta.json."""
    folds = [{"fold": fold, "validated": validated}]
    return {"cell_type": cell_type, "fold": fold, "folds": folds, "history": history}


def _predict(
    networks: Mapping[str, Classifier],
    images: Images,
    cell_type: str,
    requested: Mapping[str, NDArray[np.intp]],
    use_W: NDArray[Any],
    screen: Manifest,
    settings: InferSettings,
    pieces: Pieces,
) -> FoldPrediction:
    """Mean logits of the requested wells and embeddings of all wells; a requested well passes through a backbone once."""
    predict, table, classes = settings.predict, images.table, screen.vocabulary.classes
    views = settings.embeddings.views if settings.embeddings.enabled else 0
    use_names = {**_USE_NAMES, **({"holdout": "new"} if screen.model else {})}
    wells = np.flatnonzero(_of_type(table, cell_type))
    others = np.setdiff1d(wells, np.concatenate(list(requested.values())))
    total = {use: np.zeros((len(of), len(classes)), dtype=np.float64) for use, of in requested.items()}
    embedded = {}
    for name, network in networks.items():

        def compute(logit_views: int, piece: NDArray[np.intp], network: Classifier = network) -> NDArray[np.float32]:
            both = well_outputs(network, images, piece, logit_views, views, predict.batch_size, len(classes))
            return np.concatenate(both, 1)

        embedding_WE = np.empty((table.wells, network.embedding_size if views else 0), dtype=np.float32)
        for use, of in requested.items():
            progress.note(f"predicting {len(of)} {use_names[use]} wells by {name}")
            if len(of):
                both = pieces.of_wells(f"{use} by {name}", of, partial(compute, predict.views))
                total[use] += both[:, : len(classes)]
                embedding_WE[of] = both[:, len(classes) :]
        if not views:
            continue
        progress.note(f"embedding {len(others)} more wells by {name}")
        if len(others):
            uses = " and ".join(requested)
            embedding_WE[others] = pieces.of_wells(f"besides {uses} by {name}", others, partial(compute, 0))
        columns = {
            "id_code": table.id_code_W[wells],
            "experiment": [table.experiments[e] for e in table.experiment_W[wells]],
            "plate": table.plate_name_P[table.plate_W[wells]],
            "well": table.well_W[wells],
            "role": [ROLES[t] for t in table.role_W[wells]],
            "perturbation": [None if k < 0 else classes[k] for k in table.class_W[wells]],
            "use": use_W[wells],
        }
        columns |= {name: [table.extra_W[w][n] for w in wells] for n, name in enumerate(table.own_columns)}
        embedded[name] = EmbeddedWells(pd.DataFrame(columns), embedding_WE[wells])
    ids = {use: tuple(str(id_code) for id_code in table.id_code_W[of]) for use, of in requested.items()}
    logits = {use: WellLogits(ids[use], (total[use] / len(networks)).astype(np.float32)) for use in requested}
    return FoldPrediction(logits, embedded, screen.digest())


def _of_type(table: SiteTable, cell_type: str) -> NDArray[np.bool_]:
    """Whether each well is of a cell type, (W,)."""
    return np.asarray(table.cell_type_W == table.cell_types.index(cell_type))


def _uses(images: Images, wells: FoldWells) -> NDArray[np.object_]:
    """Use of every well of the fold's screen, (W,)."""
    use_W: NDArray[np.object_] = np.full(images.table.wells, "training", dtype=object)
    use_W[wells.validation] = "out_of_fold"
    use_W[wells.unlabelled] = "unlabelled"
    use_W[images.table.role_W != TREATMENT] = "control"
    return use_W
