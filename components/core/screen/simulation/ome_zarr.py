"""OME-Zarr HCS plates as converters of other labs write them: 0.4 (Zarr v2) or 0.5 (Zarr v3), axes t, c, z, y, x, a chunk a plane.

Unlike packed plates (core.screen.ome_zarr), which have one chunk a site. Source: https://ngff.openmicroscopy.org
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

Version = Literal["0.4", "0.5"]
CHUNKS: Mapping[Version, str] = {"0.4": "/0/0/{channel}/0/0/0", "0.5": "/0/c/0/{channel}/0/0/0"}
"""Pattern of a channel's chunk below its image."""
_CODEC = {"cname": "lz4", "clevel": 5, "shuffle": 1}
_AXES = [("t", "time"), ("c", "channel"), ("z", "space"), ("y", "space"), ("x", "space")]


def encode_plane(image_HW: NDArray[np.integer]) -> bytes:
    """The chunk of one plane."""
    return bytes(Blosc(**_CODEC).encode(np.ascontiguousarray(image_HW)))


def write_plate(
    folder: Path,
    version: Version,
    wells: Sequence[tuple[str, str, Sequence[int]]],
    channels: Sequence[str],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
) -> None:
    """Writes all metadata of a plate.

    Args:
        folder: the plate's.
        version: of OME-Zarr.
        wells: each well's row, column and the numbers of its fields, from 0, which are the names of its images.
        channels: names.
        shape: height and width of all images, pixels.
        dtype: of all images.
    """
    rows = list(dict.fromkeys(row for row, _, _ in wells))
    columns = sorted({column for _, column, _ in wells})
    _write_group(folder, version, {"plate": _plate(folder.stem, rows, columns, wells)})
    for row in rows:
        _write_group(folder / row, version, {})
    for row, column, fields in wells:
        images = [{"path": str(field), "acquisition": 0} for field in fields]
        _write_group(folder / row / column, version, {"well": {"images": images}})
        for field in fields:
            path = folder / row / column / str(field)
            _write_group(path, version, _image(f"{row}{column} field {field}", channels, version))
            _write_array(path / "0", version, (1, len(channels), 1, *shape), dtype)


def _plate(
    name: str, rows: list[str], columns: list[str], wells: Sequence[tuple[str, str, Sequence[int]]]
) -> dict[str, Any]:
    return {
        "name": name,
        "field_count": max(len(fields) for _, _, fields in wells),
        "acquisitions": [{"id": 0}],
        "rows": [{"name": row} for row in rows],
        "columns": [{"name": column} for column in columns],
        "wells": [
            {"path": f"{row}/{column}", "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
            for row, column, _ in wells
        ],
    }


def _image(name: str, channels: Sequence[str], version: Version) -> dict[str, Any]:
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0, 0.65, 0.65]}]
    axes = [{"name": axis, "type": kind} | ({"unit": "micrometer"} if kind == "space" else {}) for axis, kind in _AXES]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    window = {"min": 0, "max": 65535, "start": 0, "end": 65535}
    omero = [{"label": channel, "color": "FFFFFF", "active": True, "window": window} for channel in channels]
    multiscale = {"name": name, "axes": axes, "datasets": datasets}
    return {
        "multiscales": [{"version": version, **multiscale} if version == "0.4" else multiscale],
        "omero": {"channels": omero},
    }


def _write_group(folder: Path, version: Version, ome: dict[str, Any]) -> None:
    if version == "0.5":
        attributes = {"ome": {"version": version, **ome}} if ome else {}
        _write(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
        return
    _write(folder / ".zgroup", {"zarr_format": 2})
    if ome:
        # Before 0.5 plate and well carry the version themselves, as the multiscales do.
        attributes = {
            key: {"version": version, **value} if key in ("plate", "well") else value for key, value in ome.items()
        }
        _write(folder / ".zattrs", attributes)


def _write_array(folder: Path, version: Version, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    chunk, document = [1, 1, 1, *shape[3:]], folder / (".zarray" if version == "0.4" else "zarr.json")
    array: dict[str, Any] = {"shape": shape, "fill_value": 0}
    if version == "0.4":
        codec = {"id": "blosc", "blocksize": 0, **_CODEC}
        array |= {"zarr_format": 2, "dtype": dtype.newbyteorder("<").str, "order": "C", "filters": None}
        _write(document, {**array, "chunks": chunk, "compressor": codec, "dimension_separator": "/"})
        return
    blosc = {**_CODEC, "shuffle": "shuffle", "typesize": dtype.itemsize, "blocksize": 0}
    array |= {"zarr_format": 3, "node_type": "array", "data_type": dtype.name, "attributes": {}}
    array["dimension_names"] = [axis for axis, _ in _AXES]
    array["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    array["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
    array["codecs"] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": blosc},
    ]
    _write(document, array)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
