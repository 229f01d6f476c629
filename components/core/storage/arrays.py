"""Arrays between steps: the logits of a fold's wells, and embeddings as Parquet. Files only, no store.

W wells, K all classes of the vocabulary, E embedding.

A logits folder has `logits.npz`, which holds for each use the wells' id_codes and their logits, (W, K), and `meta.json` with
the cell type, folds and training history. An embeddings folder has <backbone>/<cell type>/fold_<number>.parquet, one row a well,
for pandas, polars, DuckDB and R. The files of a backbone are one table, whose embeddings have one length. Folder names are not
hive's `key=value`: cell type, fold and backbone are columns of each file, and readers that derive a second column from a folder's
name refuse the file's (pandas, pyarrow).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError
from components.image import VERSION

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

USES = ("oof", "unlabelled", "holdout")
LOGITS_FILE, META_FILE = "logits.npz", "meta.json"
EMBEDDINGS_SCHEMA = 2
ROW_GROUP = 4096
"""Rows of a row group: 32 MiB at 2,048 numbers a well, so a reader can read a file in parts."""

Use = Literal["training", "out_of_fold", "unlabelled", "holdout", "control"]
"""How the networks of a fold know a well: trained on its label, validate on it, saw its images alone, or not at all.
Controls are a use of their own, wherever they are."""


@dataclass(frozen=True)
class WellLogits:
    """Logits of treatment wells of one use."""

    ids_W: tuple[str, ...]  # id_codes, all different
    logits_WK: NDArray[np.float32]  # over all classes of the vocabulary

    def take(self, ids: tuple[str, ...]) -> NDArray[np.float32]:
        """The logits in the order of `ids`; a well without logits is a bug."""
        row = {id_code: w for w, id_code in enumerate(self.ids_W)}
        return self.logits_WK[[row[id_code] for id_code in ids]]


@dataclass(frozen=True)
class LogitsDirectory:
    """The content of a logits folder."""

    wells: Mapping[str, WellLogits]  # by use: oof, unlabelled, holdout
    meta: Mapping[str, Any]  # cell_type, folds, history, and fold if it is one fold's

    @property
    def cell_type(self) -> str:
        """The cell type of all its wells."""
        return str(self.meta["cell_type"])

    @property
    def classes(self) -> int:
        """K."""
        return int(self.wells["oof"].logits_WK.shape[1])


def write_logits(directory: Path, content: LogitsDirectory) -> None:
    """Writes both files into an existing folder; not atomic, which is left to the caller."""
    arrays: dict[str, Any] = {}
    for use in USES:
        arrays[f"{use}_ids"] = np.array(content.wells[use].ids_W, dtype=np.str_)
        arrays[f"{use}_logits"] = content.wells[use].logits_WK.astype(np.float32)
    np.savez(directory / LOGITS_FILE, **arrays)
    (directory / META_FILE).write_text(json.dumps(content.meta, indent=1) + "\n", encoding="utf-8")


def read_logits(directory: Path) -> LogitsDirectory:
    """Reads a logits folder; InputError if a file is missing, damaged or incomplete, or a value is not finite."""
    try:
        meta = json.loads((directory / META_FILE).read_text(encoding="utf-8"))
        with np.load(directory / LOGITS_FILE, allow_pickle=False) as archive:
            arrays = {use: (archive[f"{use}_ids"], archive[f"{use}_logits"]) for use in USES}
        _ = [meta[name] for name in ("cell_type", "folds", "history")]
        shapes = [(len(ids_W), logits_WK.shape) for ids_W, logits_WK in arrays.values()]
        if any(shape != (wells, shapes[0][1][-1]) for wells, shape in shapes):
            raise ValueError(f"number of ids and shape of logits by use: {shapes}")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{directory}: damaged, or of another version ({error}); run the step that wrote it again"
        ) from None
    wells = {}
    for use, (ids_W, logits_WK) in arrays.items():
        ids, bad_W = tuple(map(str, ids_W)), ~np.isfinite(logits_WK).all(axis=1)
        if bad_W.any():
            raise InputError(
                f"{directory / LOGITS_FILE}: {use} well {ids[int(bad_W.argmax())]} has a logit that is not finite; training "
                "diverged, lower its learning rate"
            )
        wells[use] = WellLogits(ids, logits_WK.astype(np.float32))
    return LogitsDirectory(wells, meta)


@dataclass(frozen=True)
class EmbeddedWells:
    """Embeddings of wells by one network."""

    # a row a well: id_code (EXPERIMENT_PLATE_WELL, unique), experiment, plate, well (B03), role (treatment,
    # positive_control or negative_control), perturbation (label in the input's encoding; None if hidden), use (see
    # Use); then the screen's own columns, as text
    wells: pd.DataFrame
    embedding_WE: NDArray[np.float32]  # float32, (W, E), in the order of the rows

    def followed_by(self, other: EmbeddedWells) -> EmbeddedWells:
        """These wells, then the other's, embedded by the same network."""
        import pandas as pd  # half a second that ensemble, which reads logits alone, need not wait

        return EmbeddedWells(
            pd.concat([self.wells, other.wells], ignore_index=True),
            np.concatenate([self.embedding_WE, other.embedding_WE]),
        )


def write_embeddings(
    folder: Path,
    embedded: EmbeddedWells,
    backbone: str,
    cell_type: str,
    fold: int,
    *,
    label: str,
    views: int,
    weights: str,
    screen: str,
) -> Path:
    """Writes the file of a backbone, cell type and fold; returns its path. The same wells and values give the same bytes.

    Not atomic, which is left to the caller. `label` names the column of labels. The file's metadata holds the dihedral views
    averaged, the weights (student, teacher or pretrained) and the digest of the screen's manifest.
    InputError if a value is not finite.
    """
    import pyarrow as pa

    bad_W = ~np.isfinite(embedded.embedding_WE).all(axis=1)
    if bad_W.any():
        raise InputError(
            f"backbone {backbone}, fold {fold}: the embedding of well {embedded.wells['id_code'].iloc[int(bad_W.argmax())]} is "
            "not finite; training diverged, lower its learning rate"
        )
    table = embedded.wells.assign(cell_type=cell_type, fold=fold, backbone=backbone).rename(
        columns={"perturbation": label}
    )
    first = ("id_code", "experiment", "plate", "well", "cell_type", "role", label, "use", "fold", "backbone")
    columns = (*first, *(name for name in table.columns if name not in first))
    schema = pa.schema([(name, pa.int32() if name == "fold" else pa.string()) for name in columns])
    metadata = {
        "cellsignal.schema": str(EMBEDDINGS_SCHEMA),
        "cellsignal.version": VERSION,
        "cellsignal.views": str(views),
        "cellsignal.weights": weights,
        "cellsignal.screen": screen,
    }
    path = folder / backbone / cell_type / f"fold_{fold}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_table(
        pa.Table.from_pandas(table, schema=schema, preserve_index=False), embedded.embedding_WE, metadata, path
    )
    return path


def change_embeddings(
    folder: Path, out: Path, change: Callable[[EmbeddedWells], EmbeddedWells], label: str, **metadata: str
) -> None:
    """Writes the files of a folder of embeddings to another one, with the embeddings that `change` makes of them.

    `label` is the column of labels; `metadata` are texts that are added to the files' metadata.
    """
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path)
        embedding_WE = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        table = table.drop_columns(["embedding"])
        wells = table.to_pandas().rename(columns={label: "perturbation"})
        known = {
            **{key.decode(): value.decode() for key, value in table.schema.metadata.items()},
            **{f"cellsignal.{name}": text for name, text in metadata.items()},
        }
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_table(table, change(EmbeddedWells(wells, embedding_WE)).embedding_WE, known, target)


def _write_table(table: pa.Table, embedding_WE: NDArray[np.float32], metadata: Mapping[str, str], path: Path) -> None:
    """Writes a file of wells with their embeddings as last column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(np.ascontiguousarray(embedding_WE, dtype=np.float32).reshape(-1))
    pq.write_table(
        table.append_column(
            "embedding", pa.FixedSizeListArray.from_arrays(flat, embedding_WE.shape[1])
        ).replace_schema_metadata(metadata),
        path,
        compression="zstd",
        row_group_size=ROW_GROUP,
        use_dictionary=table.column_names,  # words repeat, embeddings never do
    )
