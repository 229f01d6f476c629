"""Sphering of embeddings on control wells (typical variation normalisation, TVN). Pure NumPy and SciPy.

Wells of one control differ by chance and by batch alone. Plates are centred on their controls, and what is left of the controls'
variation becomes the unit of length in every direction.
W wells, N control wells, E embedding, G plates and control perturbations.

Source: Ando, McLean & Berndl 2017, bioRxiv 161422, without its alignment of each batch's covariance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from components.core.config import BackboneConfig, EmbeddingsConfig
from components.core.errors import InputError, shortened
from components.core.screen.wells import Plate
from components.core.storage.arrays import EmbeddedWells

_FIELD = "embeddings.sphering"


def sphered(embedded: EmbeddedWells, shrinkage: float = 0.0) -> EmbeddedWells:
    """The wells with embeddings in which the controls' covariance is the identity, and the negative controls' mean is 0.

    An effect of each plate and of each control perturbation is fitted to the controls by least squares, so that plates need not
    have the same controls; with one perturbation a plate's effect is the mean of its controls. Plates' effects are
    subtracted. The covariance of what is left of the controls is whitened by its symmetric inverse root (ZCA); directions in
    which no control varies become 0. Distances of the results do not change with an invertible linear map of the
    embeddings. No label of a treatment well is read.

    Args:
        embedded: wells of one network, controls among them.
        shrinkage: share of the covariance that is replaced by its mean variance in all directions (Ledoit & Wolf 2004,
            doi:10.1016/S0047-259X(03)00096-4).

    Raises:
        InputError: a plate without controls, or too few controls.
    """
    wells, embedding_WE = embedded.wells, embedded.embedding_WE.astype(np.float64)
    is_control_W = (wells["role"] != "treatment").to_numpy()
    controls = wells[is_control_W]
    plates, plate_W = np.unique(wells["experiment"] + " plate " + wells["plate"], return_inverse=True)
    # Of new plates no label is read, so that all controls of a role count as one.
    names = controls["perturbation"].fillna(controls["role"]).astype(str).tolist()
    design_NG, freedom = _design(plates.tolist(), plate_W[is_control_W], names)
    _check_freedom(freedom, len(controls), embedding_WE.shape[1], shrinkage)
    control_NE = embedding_WE[is_control_W]
    effect_GE = np.linalg.lstsq((design_NG.T @ design_NG).toarray(), design_NG.T @ control_NE, rcond=None)[0]
    negative_N = (controls["role"] == "negative_control").to_numpy()
    of_name_NE = design_NG[:, len(plates) :] @ effect_GE[len(plates) :]
    origin_E = of_name_NE[negative_N if negative_N.any() else slice(None)].mean(0)
    residual_NE = control_NE - design_NG @ effect_GE
    whitening_EE = _whitening(residual_NE.T @ residual_NE / freedom, shrinkage)
    centred_WE = embedding_WE - effect_GE[plate_W] - origin_E
    return EmbeddedWells(wells, (centred_WE @ whitening_EE).astype(np.float32))


def _design(plates: Sequence[str], plate_N: NDArray[np.intp], names: Sequence[str]) -> tuple[sparse.csr_array, int]:
    """The plate and the perturbation of each control as 0 and 1, (N, G), and the degrees of freedom that their effects leave."""
    bare = [plates[p] for p in np.setdiff1d(np.arange(len(plates)), plate_N)]
    if bare:
        raise InputError(
            f"no control wells on {shortened(bare)}, which {_FIELD} controls needs: mark them in the screen's tables, or set "
            f"{_FIELD} to none"
        )
    rows = np.tile(np.arange(len(names)), 2)
    columns = np.concatenate([plate_N, len(plates) + np.unique(names, return_inverse=True)[1]])
    design_NG = sparse.csr_array((np.ones(len(rows)), (rows, columns)))
    rank = int(np.linalg.matrix_rank((design_NG.T @ design_NG).toarray(), hermitian=True))
    return design_NG, len(names) - rank


def _check_freedom(freedom: int, controls: int, embedding: int | None, shrinkage: float, where: str = "") -> None:
    if freedom < 1 or (embedding is not None and shrinkage == 0 and freedom < embedding):
        needed = "none is left to measure their variation" if freedom < 1 else f"the embedding has {embedding} numbers"
        instead = (
            f"set {_FIELD} to none" if freedom < 1 else "raise embeddings.shrinkage above 0, as to 0.1, or mark more"
        )
        raise InputError(
            f"{where}too few controls for {_FIELD} controls: {controls} control wells leave {freedom} degrees of freedom besides "
            f"the means of plates and controls, and {needed}; {instead}"
        )


def _whitening(covariance_EE: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """The symmetric inverse root of a shrunk covariance, zero in directions without variation."""
    size = len(covariance_EE)
    mean = np.trace(covariance_EE) / size
    variance_E, axes_EE = np.linalg.eigh((1.0 - shrinkage) * covariance_EE + shrinkage * mean * np.eye(size))
    varies_E = variance_E > variance_E[-1] * size * np.finfo(np.float64).eps
    scale_E = np.where(varies_E, 1.0, 0.0) / np.sqrt(np.where(varies_E, variance_E, 1.0))
    return np.asarray((axes_EE * scale_E) @ axes_EE.T)


def check_sphering(plates: Iterable[Plate], config: EmbeddingsConfig, backbones: Sequence[BackboneConfig]) -> None:
    """Checks, before anything is trained, that a screen's tables have the controls that `sphered` needs.

    Raises:
        InputError: as `sphered`, with the cell type; or a timm model without shrinkage.
    """
    if not config.enabled or config.sphering == "none":
        return
    timm = [backbone.name for backbone in backbones if backbone.kind == "timm"]
    if timm and config.shrinkage == 0:
        raise InputError(
            f"embeddings.shrinkage is 0, for which {_FIELD} controls needs more control wells than the embedding has numbers, and "
            f"those of {timm[0]}, a timm model, are not known before it is trained; raise it, as to 0.1"
        )
    of_type: dict[str, list[Plate]] = {}
    for plate in plates:
        of_type.setdefault(plate.cell_type, []).append(plate)
    sizes = [b.stages[-1][-1] if b.kind == "plain" else b.exit[-1] for b in backbones if b.kind != "timm"]
    widest = max(sizes, default=None)
    for cell_type, own in of_type.items():
        wells = [(p, well) for p, plate in enumerate(own) for well in plate.wells if well.role != "treatment"]
        plate_N = np.array([p for p, _ in wells], dtype=np.intp)
        names = [well.perturbation or well.role for _, well in wells]
        _, freedom = _design([plate.name for plate in own], plate_N, names)
        _check_freedom(freedom, len(names), widest, config.shrinkage, f"{cell_type}: ")
