"""The files of a packed plate: an OME-Zarr 0.5 HCS plate on Zarr v3, one chunk a site. Pure templates and the codec.

    <plate>/zarr.json               plate: rows, columns, wells
    <plate>/B/zarr.json             row: a plain group
    <plate>/B/03/zarr.json          well: its fields; beside them what the screen's tables say of it
    <plate>/B/03/0/zarr.json        field: axes, scale, channels
    <plate>/B/03/0/0/zarr.json      array: shape (C, H, W), one chunk, bytes -> blosc
    <plate>/B/03/0/0/c.0.0.0        the chunk

C channels, H and W pixels. A chunk is one Blosc frame of the C-ordered, little-endian array (C, H, W), uint8 or uint16.

Source: https://ngff.openmicroscopy.org/0.5/ and the Zarr v3 core specification with its blosc codec.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numcodecs import blosc

from components.core.config import PackConfig
from components.core.screen.plane_header import ImageForm, Pixels
from components.core.screen.wells import COLUMNS, ROWS, split_well

VERSION = "0.5"
_COLOURS = ("0000FF", "00FF00", "FF0000", "00FFFF", "FF00FF", "FFFF00")
"""Display colours of channels in turn, as the RxRx1 organisers show their six stains; a single channel is white."""

Window = tuple[int, int]
"""Grey values that a viewer shows as black and as full colour."""


def chunk_key(well: str, field: int) -> str:
    """Key of a field's only chunk, relative to the plate; fields of a well count from 0.

    Dots join its indices, not slashes: four directories a site fewer in a store that is a folder.
    """
    return f"{_field_path(well, field)}/0/c.0.0.0"


def plate_documents(
    name: str,
    fields_by_well: Sequence[tuple[str, Sequence[int]]],
    form: ImageForm,
    pack: PackConfig,
    windows: Sequence[Window],
) -> Iterator[tuple[str, bytes]]:
    """All metadata of a plate but those of wells.

    Args:
        name: the plate's display name.
        fields_by_well: wells in row-major order, each with the site numbers of its fields in field order.
        form: of the images.
        pack: the codec that the chunks were written with.
        windows: display ranges of the channels.

    Yields:
        Key relative to the plate, and the JSON document's bytes. The plate's own comes last.
    """
    array = _encode(_array(form, pack))
    for row in dict.fromkeys(split_well(well)[0] for well, _ in fields_by_well):
        yield f"{row}/zarr.json", _encode(_group({}))
    for well, sites in fields_by_well:
        for field, site in enumerate(sites):
            path = _field_path(well, field)
            yield f"{path}/0/zarr.json", array
            yield f"{path}/zarr.json", _encode(_group(_image(f"{well} site {site}", form, windows)))
    yield "zarr.json", _encode(_group(_plate(name, fields_by_well)))


def well_document(well: str, fields: int, facts: Mapping[str, str | None]) -> tuple[str, bytes]:
    """Key relative to the plate, and bytes, of a well's metadata.

    Args:
        well: the well.
        fields: number of its fields.
        facts: what the tables say of it, such as its perturbation, under a key of this program's beside that of OME-Zarr.
    """
    images = [{"path": str(field), "acquisition": 0} for field in range(fields)]
    group = _group({"well": {"images": images}})
    group["attributes"]["cellsignal"] = dict(facts)
    return f"{'/'.join(split_well(well))}/zarr.json", _encode(group)


def _field_path(well: str, field: int) -> str:
    return f"{'/'.join(split_well(well))}/{field}"


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _group(ome: dict[str, Any]) -> dict[str, Any]:
    attributes = {"ome": {"version": VERSION, **ome}} if ome else {}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _plate(name: str, fields_by_well: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Any]:
    fields = max(len(sites) for _, sites in fields_by_well)
    # Unused outer rows and columns would be blank space in a viewer's mosaic.
    places = [split_well(well) for well, _ in fields_by_well]
    rows = _span(ROWS, [row for row, _ in places])
    columns = _span(COLUMNS, [column for _, column in places])
    return {
        "plate": {
            "version": VERSION,
            "name": name,
            "field_count": fields,
            "acquisitions": [{"id": 0, "maximumfieldcount": fields}],
            "rows": [{"name": row} for row in rows],
            "columns": [{"name": column} for column in columns],
            "wells": [
                {"path": f"{row}/{column}", "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
                for row, column in places
            ],
        }
    }


def _span(names: Sequence[str], used: Sequence[str]) -> list[str]:
    """From the first to the last used name, gaps included."""
    indices = [names.index(name) for name in used]
    return list(names[min(indices) : max(indices) + 1])


def _image(name: str, form: ImageForm, windows: Sequence[Window]) -> dict[str, Any]:
    known = {"unit": "micrometer"} if form.pixel_size else {}
    side = form.pixel_size or 1.0
    colours = _COLOURS if len(form.channels) > 1 else ("FFFFFF",)
    return {
        "multiscales": [
            {
                "name": name,
                "axes": [
                    {"name": "c", "type": "channel"},
                    {"name": "y", "type": "space", **known},
                    {"name": "x", "type": "space", **known},
                ],
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, side, side]}]}
                ],
            }
        ],
        "omero": {
            "channels": [
                {
                    "label": label,
                    "color": colours[k % len(colours)],
                    "active": True,
                    "window": {"min": 0, "max": int(np.iinfo(form.dtype).max), "start": start, "end": end},
                }
                for k, (label, (start, end)) in enumerate(zip(form.channels, windows, strict=True))
            ]
        },
    }


def _array(form: ImageForm, pack: PackConfig) -> dict[str, Any]:
    shape, bytes_each = list(form.site_shape), np.dtype(form.dtype).itemsize
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": form.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}} if bytes_each > 1 else {"name": "bytes"},
            {
                "name": "blosc",
                "configuration": {
                    "cname": pack.codec,
                    "clevel": pack.level,
                    "shuffle": pack.shuffle,
                    "typesize": bytes_each,
                    "blocksize": 0,
                },
            },
        ],
        "attributes": {},
        "dimension_names": ["c", "y", "x"],
    }


# Threads encode and decode sites in parallel; Blosc's own global threads would serialise them.
blosc.use_threads = False

_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_HEADER = 16
"""Bytes of a Blosc frame's header: two versions, flags, type size, then three little-endian 32-bit sizes."""


class BadChunkError(ValueError):
    """The bytes are not a chunk of the expected size; the caller adds the site's name."""


def encode_chunk(pixels_CHW: Pixels, pack: PackConfig) -> bytes:
    """Compresses a site, C order."""
    return bytes(blosc.compress(pixels_CHW, pack.codec.encode(), pack.level, _SHUFFLES[pack.shuffle]))


def decode_chunk(data: bytes | memoryview, out_CHW: Pixels) -> None:
    """Decompresses a site, which `encode_chunk` returned, into an array of its type, C-contiguous.

    Raises:
        BadChunkError: the bytes are truncated, damaged or of another size.
    """
    # The decompressor trusts the sizes in the header, so they are checked before it runs.
    if len(data) < _HEADER:
        raise BadChunkError(f"truncated, {len(data)} bytes")
    raw_bytes, _, frame_bytes = struct.unpack_from("<III", data, 4)
    if frame_bytes != len(data):
        raise BadChunkError(f"truncated or damaged, {len(data)} bytes, but its header gives {frame_bytes}")
    if raw_bytes != out_CHW.nbytes:
        raise BadChunkError(f"holds {raw_bytes} bytes of pixels, expected {out_CHW.nbytes}")
    try:
        blosc.decompress(data, out_CHW)
    except (RuntimeError, ValueError) as error:
        raise BadChunkError(f"damaged ({error})") from None
