import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from components.core.errors import InputError
from components.core.storage.arrays import ROW_GROUP, EmbeddedWells, write_embeddings
from components.image import VERSION

NAMES = ("id_code", "experiment", "plate", "well", "cell_type", "role", "sirna", "use", "fold", "backbone")
COLUMNS = {name: pa.int32() if name == "fold" else pa.string() for name in NAMES}
HOW = {"label": "sirna", "views": 4, "weights": "teacher", "screen": "5f0c"}


def wells(count: int = 3, width: int = 4, seed: int = 0) -> EmbeddedWells:
    rng = np.random.default_rng(seed)
    rows = {
        "id_code": [f"HUVEC-01_1_{k}" for k in range(count)],
        "experiment": "HUVEC-01",
        "plate": "1",
        "well": [f"B{k:02d}" for k in range(count)],
        "role": "treatment",
        "perturbation": [None if k % 3 == 1 else f"sirna_{k}" for k in range(count)],
        "use": "training",
    }
    return EmbeddedWells(pd.DataFrame(rows), rng.standard_normal((count, width)).astype(np.float32))


def test_every_value_is_read_back_from_its_column(tmp_path):
    given = wells()
    path = write_embeddings(tmp_path / "new", given, "slim", "HUVEC", 1, **HOW)
    assert path.relative_to(tmp_path / "new").as_posix() == "slim/HUVEC/fold_1.parquet"
    table = pq.read_table(path)
    assert {f.name: f.type for f in table.schema} == {**COLUMNS, "embedding": pa.list_(pa.float32(), 4)}
    rows = table.to_pylist()
    assert [row["id_code"] for row in rows] == given.wells["id_code"].tolist()
    assert [row["well"] for row in rows] == given.wells["well"].tolist()
    assert [row["sirna"] for row in rows] == ["sirna_0", None, "sirna_2"]
    for row in rows:
        expected = {"experiment": "HUVEC-01", "plate": "1", "cell_type": "HUVEC", "fold": 1, "backbone": "slim"}
        assert row.items() >= {**expected, "role": "treatment", "use": "training"}.items()
    assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), given.embedding_WE)
    metadata = {"schema": "2", "version": VERSION, "views": "4", "weights": "teacher", "screen": "5f0c"}
    assert table.schema.metadata == {f"cellsignal.{key}".encode(): value.encode() for key, value in metadata.items()}


def test_the_same_wells_give_the_same_bytes_in_compressed_row_groups(tmp_path):
    count = ROW_GROUP + 5
    path, again = (write_embeddings(tmp_path / name, wells(count, 2), "slim", "RPE", 0, **HOW) for name in ("a", "b"))
    assert path.read_bytes() == again.read_bytes()
    described = pq.ParquetFile(path).metadata
    assert [described.row_group(k).num_rows for k in range(described.num_row_groups)] == [ROW_GROUP, 5]
    group = described.row_group(0)
    assert {group.column(k).compression for k in range(group.num_columns)} == {"ZSTD"}
    assert pq.read_table(path, columns=["id_code"])["id_code"].to_pylist() == wells(count).wells["id_code"].tolist()


def test_the_screens_own_columns_and_word_are_in_the_file(tmp_path):
    given = wells()
    own = EmbeddedWells(given.wells.assign(dose=["10", "", "1e-3"]), given.embedding_WE)
    table = pq.read_table(write_embeddings(tmp_path, own, "slim", "HUVEC", 1, **{**HOW, "label": "compound"}))
    assert table.schema.names == [name.replace("sirna", "compound") for name in NAMES] + ["dose", "embedding"]
    assert table["dose"].to_pylist() == ["10", "", "1e-3"]


def test_the_files_of_a_backbone_are_one_table_for_every_reader(tmp_path):
    for fold in (0, 1):
        for cell_type in ("HUVEC", "RPE"):
            write_embeddings(tmp_path, wells(), "slim", cell_type, fold, **HOW)
            write_embeddings(tmp_path, wells(width=6), "small", cell_type, fold, **HOW)
    for table in (
        pq.read_table(tmp_path / "slim"),  # as pandas.read_parquet does
        pa.dataset.dataset(tmp_path / "slim").to_table(),
        pa.dataset.dataset(tmp_path / "slim", partitioning="hive").to_table(),
    ):
        assert table.num_rows == 12
        assert table.schema.names == [*COLUMNS, "embedding"]
    only = pa.dataset.dataset(tmp_path / "small").to_table(filter=pa.dataset.field("cell_type") == "RPE")
    assert set(only["cell_type"].to_pylist()) == {"RPE"}
    assert only.num_rows == 6


def test_rejects_an_embedding_that_is_not_finite(tmp_path):
    bad = wells()
    bad.embedding_WE[1, 2] = np.inf
    with pytest.raises(InputError, match=r"backbone slim, fold 0: the embedding of well HUVEC-01_1_1 is not finite"):
        write_embeddings(tmp_path / "new", bad, "slim", "HUVEC", 0, **HOW)
    assert not (tmp_path / "new").exists()
