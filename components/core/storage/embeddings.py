"""Well embeddings as Parquet files, which pandas, polars, DuckDB and R read. pyarrow only; values come from core.learning.

W wells, E embedding.

FOLDER/<backbone>/<cell type>/fold_<number>.parquet, one row a well. The folders of a backbone are one table, whose
embeddings have one length. Their names are not hive's `key=value`: every file says its cell type, fold and backbone in
columns of its own, and readers that make a second column of a folder's name refuse the file's (pandas, pyarrow).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.core.errors import InputError
from components.image import VERSION

SCHEMA = 1
ROW_GROUP = 4096
"""Rows of a row group: 32 MiB at 2,048 numbers a well, so that a reader need not hold a whole file."""

Role = Literal["training", "out_of_fold", "unlabelled", "holdout", "control"]
"""What the networks of a fold know of a well: trained on its label, validate on it, saw its images alone, or nothing.
Controls are a role of their own, wherever they stand."""


@dataclass(frozen=True)
class EmbeddedWells:
    """Embeddings of wells by one network, and what a table needs to say of each.

    Attributes:
        id_code_W: EXPERIMENT_PLATE_WELL, all different.
        experiment_W: names.
        plate_W: numbers, int32.
        well_W: row letter and column, B03.
        well_type_W: treatment, positive_control or negative_control.
        sirna_W: labels in the input's encoding; None where the manifest does not know them.
        role_W: see Role.
        embedding_WE: float32, (W, E).
    """

    id_code_W: Sequence[str]
    experiment_W: Sequence[str]
    plate_W: NDArray[np.int32]
    well_W: Sequence[str]
    well_type_W: Sequence[str]
    sirna_W: Sequence[str | None]
    role_W: Sequence[Role]
    embedding_WE: NDArray[np.float32]

    def followed_by(self, other: EmbeddedWells) -> EmbeddedWells:
        """These wells, then the other's, embedded by the same network."""
        return EmbeddedWells(
            [*self.id_code_W, *other.id_code_W],
            [*self.experiment_W, *other.experiment_W],
            np.concatenate([self.plate_W, other.plate_W]),
            [*self.well_W, *other.well_W],
            [*self.well_type_W, *other.well_type_W],
            [*self.sirna_W, *other.sirna_W],
            [*self.role_W, *other.role_W],
            np.concatenate([self.embedding_WE, other.embedding_WE]),
        )


def embeddings_path(folder: Path, backbone: str, cell_type: str, fold: int) -> Path:
    """Where the file of a backbone, cell type and fold lies."""
    return folder / backbone / cell_type / f"fold_{fold}.parquet"


def write_embeddings(
    folder: Path,
    wells: EmbeddedWells,
    backbone: str,
    cell_type: str,
    fold: int,
    *,
    views: int,
    weights: str,
    screen: str,
) -> Path:
    """Writes one file; the same wells and values give the same bytes.

    Args:
        folder: root of all files, see embeddings_path; made when missing. Whoever calls makes it appear whole.
        wells: one row each, in this order.
        backbone: name of the network.
        cell_type: of all wells.
        fold: whose network it is.
        views: dihedral views averaged, for the file's metadata.
        weights: whose weights embedded: student, teacher or pretrained; for the file's metadata.
        screen: digest of the screen's manifest; for the file's metadata.

    Returns:
        The file.

    Raises:
        InputError: a value is not finite.
    """
    bad_W = ~np.isfinite(wells.embedding_WE).all(axis=1)
    if bad_W.any():
        raise InputError(
            f"backbone {backbone}, fold {fold}: the embedding of well {wells.id_code_W[int(bad_W.argmax())]} is not "
            "finite; training diverged, lower its learning rate"
        )
    count, width = wells.embedding_WE.shape
    flat = pa.array(np.ascontiguousarray(wells.embedding_WE, dtype=np.float32).reshape(-1))
    columns = {
        "id_code": pa.array(wells.id_code_W, pa.string()),
        "experiment": pa.array(wells.experiment_W, pa.string()),
        "plate": pa.array(wells.plate_W, pa.int32()),
        "well": pa.array(wells.well_W, pa.string()),
        "cell_type": pa.array([cell_type] * count, pa.string()),
        "well_type": pa.array(wells.well_type_W, pa.string()),
        "sirna": pa.array(wells.sirna_W, pa.string()),
        "role": pa.array(wells.role_W, pa.string()),
        "fold": pa.array([fold] * count, pa.int32()),
        "backbone": pa.array([backbone] * count, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
    }
    metadata = {
        "cellsignal.schema": str(SCHEMA),
        "cellsignal.version": VERSION,
        "cellsignal.views": str(views),
        "cellsignal.weights": weights,
        "cellsignal.screen": screen,
    }
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=metadata)
    path = embeddings_path(folder, backbone, cell_type, fold)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(columns, schema=schema),
        path,
        compression="zstd",
        row_group_size=ROW_GROUP,
        # Words repeat, embeddings never do.
        use_dictionary=[name for name in columns if name != "embedding"],
    )
    return path
