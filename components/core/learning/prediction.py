"""What a fold's networks say about wells: logits where they never saw the labels, embeddings of all. torch only.

W wells, K class, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from components.core import progress
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.fold_data import FoldWells, open_images
from components.core.learning.inference import Images, well_outputs
from components.core.learning.mean_teacher import Pair
from components.core.learning.network import Classifier
from components.core.learning.step_settings import LearningSettings, PredictingSettings
from components.core.learning.team import Team
from components.core.screen.site_table import TREATMENT, WELL_TYPES
from components.core.storage.embeddings import EmbeddedWells, Role, write_embeddings
from components.core.storage.interface import ObjectReader
from components.core.storage.logits import LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest

_SHOWN = {"oof": "out-of-fold", "unlabelled": "unlabelled", "holdout": "held-out"}
"""How progress names the wells of a role."""

_PIECE = 4096
"""Wells that are predicted between two looks at the clock; 8 views of them take a GPU half a minute."""


class Pieces:
    """Arrays that are computed one after the other, and not again after a kill.

    Args:
        checkpoints: where they are saved by time.
        base: what else is needed to go on, saved with them.
        found: what an earlier attempt had, by name.
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
        """What `compute` says of the wells, in their order; a piece of them at a time."""
        pieces = []
        for k, start in enumerate(range(0, len(wells), _PIECE)):
            key = f"{name} {k}"
            if key not in self._known:
                self._known[key] = torch.from_numpy(compute(wells[start : start + _PIECE]))
                self._checkpoints.save_if_due(lambda: {**self._base(), "pieces": self._known})
            pieces.append(self._known[key].numpy())
        return np.concatenate(pieces)


@dataclass(frozen=True)
class FoldPrediction:
    """What the networks of one fold and cell type say.

    Attributes:
        logits: mean over sites, views and backbones, by role: oof, unlabelled, holdout.
        embeddings: of all wells of the cell type, by backbone; empty where the configuration wants none.
        screen: digest of the screen's manifest.
    """

    logits: Mapping[str, WellLogits]
    embeddings: Mapping[str, EmbeddedWells]
    screen: str

    def write(
        self, logits: Path, embeddings: Path, meta: Mapping[str, Any], settings: PredictingSettings, weights: str
    ) -> None:
        """Writes both folders.

        Args:
            logits: folder for logits.npz and meta.json.
            embeddings: folder for Parquet files, see core.storage.embeddings; left empty where there are none.
            meta: content of meta.json, see fold_meta.
            settings: views.
            weights: whose weights predicted: student, teacher or pretrained.

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
                views=settings.embeddings.views,
                weights=weights,
                screen=self.screen,
            )


def predicting(pairs: Sequence[Pair], settings: LearningSettings) -> dict[str, Classifier]:
    """The network of each pair that predicts, student or teacher as configured, by backbone."""
    return {pair.name: pair.student if settings.predict.weights == "student" else pair.teacher for pair in pairs}


def held_out_images(
    holdout: Manifest,
    screen: Manifest,
    cell_type: str,
    store: ObjectReader,
    settings: LearningSettings,
    device: torch.device,
    team: Team | None = None,
) -> Images | None:
    """Images of the held-out experiments, standardised as the training screen's; None without any of the cell type."""
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
    settings: PredictingSettings,
    pieces: Pieces | None = None,
) -> FoldPrediction:
    """Logits of a fold's wells by role, averaged over sites, views and backbones, and embeddings of all wells.

    Args:
        networks: one of each backbone by name, on the images' device.
        screen: the manifest; held-out experiments have its vocabulary.
        images: the training screen's.
        wells: of the fold and cell type.
        held_out: the held-out experiments' images; read here for the first time in a run.
        cell_type: whose wells.
        settings: views and batch size.
        pieces: remembers what is computed; None for what cannot be killed.
    """
    pieces = pieces or Pieces()
    asked = {"oof": wells.validation, "unlabelled": wells.unlabelled}
    predicted, embedded = _say(networks, images, cell_type, asked, _roles(images, wells), screen, settings, pieces)
    if held_out is None:
        predicted["holdout"] = WellLogits((), np.empty((0, len(screen.vocabulary.classes)), dtype=np.float32))
        return FoldPrediction(predicted, embedded, screen.digest())
    images.cache.release()  # two screens in memory at once would take twice loader.cache_gib
    more = predict_held_out(networks, screen, held_out, cell_type, settings, pieces)
    joined = {name: embedded[name].followed_by(more.embeddings[name]) for name in embedded}
    return FoldPrediction({**predicted, "holdout": more.logits["holdout"]}, joined, screen.digest())


def predict_held_out(
    networks: Mapping[str, Classifier],
    screen: Manifest,
    held_out: Images,
    cell_type: str,
    settings: PredictingSettings,
    pieces: Pieces | None = None,
) -> FoldPrediction:
    """Logits and embeddings of wells of which the networks know nothing: held-out experiments, or new plates.

    Args:
        networks: one of each backbone by name, on the images' device.
        screen: the training screen's manifest, or what stands for it.
        held_out: the images.
        cell_type: whose wells.
        settings: views and batch size.
        pieces: remembers what is computed; None for what cannot be killed.
    """
    treatment_W = held_out.table.well_type_W == TREATMENT
    asked = {"holdout": np.flatnonzero(_of_type(held_out, cell_type) & treatment_W)}
    roles = np.where(treatment_W, "holdout", "control")
    said, embedded = _say(networks, held_out, cell_type, asked, roles, screen, settings, pieces or Pieces())
    nothing = WellLogits((), np.empty((0, len(screen.vocabulary.classes)), dtype=np.float32))
    return FoldPrediction({"oof": nothing, "unlabelled": nothing, **said}, embedded, screen.digest())


def fold_meta(
    cell_type: str, fold: int, validated: bool, history: list[dict[str, Any]]
) -> dict[str, str | int | list[dict[str, Any]]]:
    """The content of a fold's meta.json beside its logits."""
    return {
        "cell_type": cell_type,
        "fold": fold,
        "folds": [{"fold": fold, "validated": validated}],
        "history": history,
    }


def _say(
    networks: Mapping[str, Classifier],
    images: Images,
    cell_type: str,
    asked: Mapping[str, NDArray[np.intp]],
    role_W: NDArray[Any],
    screen: Manifest,
    settings: PredictingSettings,
    pieces: Pieces,
) -> tuple[dict[str, WellLogits], dict[str, EmbeddedWells]]:
    """Mean logits of the wells that are asked for, by role, and embeddings of the cell type's wells, by backbone.

    A well whose logits are asked for passes through a backbone once for both. No embeddings where none are wanted.
    """
    predict, table, classes = settings.predict, images.table, screen.vocabulary.classes
    views = settings.embeddings.views if settings.embeddings.enabled else 0
    wells = np.flatnonzero(_of_type(images, cell_type))
    others = np.setdiff1d(wells, np.concatenate(list(asked.values())))
    total = {role: np.zeros((len(of), len(classes)), dtype=np.float64) for role, of in asked.items()}
    embedded = {}
    for name, network in networks.items():

        def compute(logit_views: int, piece: NDArray[np.intp], network: Classifier = network) -> NDArray[np.float32]:
            both = well_outputs(network, images, piece, logit_views, views, predict.batch_size, len(classes))
            return np.concatenate(both, 1)

        embedding_WE = np.empty((table.wells, network.embedding_size if views else 0), dtype=np.float32)
        for role, of in asked.items():
            progress.note(f"predicting {len(of)} {_SHOWN[role]} wells by {name}")
            if len(of):
                both = pieces.of_wells(f"{role} by {name}", of, partial(compute, predict.views))
                total[role] += both[:, : len(classes)]
                embedding_WE[of] = both[:, len(classes) :]
        if not views:
            continue
        progress.note(f"embedding {len(others)} more wells by {name}")
        if len(others):
            beside = " and ".join(asked)
            embedding_WE[others] = pieces.of_wells(f"beside {beside} by {name}", others, partial(compute, 0))
        embedded[name] = EmbeddedWells(
            id_code_W=table.id_code_W[wells].tolist(),
            experiment_W=[table.experiments[e] for e in table.experiment_W[wells]],
            plate_W=table.plate_number_P[table.plate_W[wells]],
            well_W=table.well_W[wells].tolist(),
            well_type_W=[WELL_TYPES[t] for t in table.well_type_W[wells]],
            sirna_W=[None if k < 0 else classes[k] for k in table.class_W[wells]],
            role_W=cast(list[Role], role_W[wells].tolist()),
            embedding_WE=embedding_WE[wells],
        )
    ids = {role: tuple(str(id_code) for id_code in table.id_code_W[of]) for role, of in asked.items()}
    return {role: WellLogits(ids[role], (total[role] / len(networks)).astype(np.float32)) for role in asked}, embedded


def _of_type(images: Images, cell_type: str) -> NDArray[np.bool_]:
    """Which wells are of a cell type, (W,)."""
    table = images.table
    return np.asarray(table.cell_type_W == table.cell_types.index(cell_type))


def _roles(images: Images, wells: FoldWells) -> NDArray[np.object_]:
    """Role of every well of the fold's screen, (W,)."""
    role_W: NDArray[np.object_] = np.full(images.table.wells, "training", dtype=object)
    role_W[wells.validation] = "out_of_fold"
    role_W[wells.unlabelled] = "unlabelled"
    role_W[images.table.well_type_W != TREATMENT] = "control"
    return role_W
