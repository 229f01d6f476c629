"""Planes of OME-Zarr images (NGFF 0.4 and 0.5; Zarr v2 and v3), read through ScreenSource and decoded by zarr.

An image is a folder: a group whose first dataset is the array at full resolution, of the axes (t, c, z, y, x) or some of them.
Its planes are the (t, c, z) in C order. A chunk without a file holds the fill value, as Zarr defines it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from imagecodecs import deflate_adler32, deflate_crc32

from components.core.screen.plane_header import PIXEL_TYPES, BadImageError, Pixels, PlaneHeader
from components.core.screen.screen_source import ScreenSource, UnreadableError
from components.core.screen.wells import Plane

if TYPE_CHECKING:
    from zarr import Array

_ZARR = re.compile(r"\.zarr(?:/|$)|(?:^|/)[A-Z]{1,2}/\d{1,2}/\w+$", re.IGNORECASE)
_MICROMETRES = {"micrometer": 1.0, "micron": 1.0, "nanometer": 1e-3, "millimeter": 1e3}


@dataclass(frozen=True, slots=True)
class ZarrImage:
    """The metadata of an image."""

    folder: str  # of its full-resolution array, relative to the screen
    document: str  # name of the array's metadata, by the version of Zarr
    metadata: bytes  # of the array
    pixel_size: float | None  # micrometres, along x
    axes: tuple[str, ...]  # before y and x

    def array(self, files: Mapping[str, bytes]) -> Array[Any]:
        """The array of some chunks; raises anything for damaged metadata."""
        from zarr import open_array
        from zarr.core.buffer import default_buffer_prototype
        from zarr.storage import MemoryStore

        data = {self.document: self.metadata, **files}
        buffer = default_buffer_prototype().buffer
        return open_array(MemoryStore({key: buffer.from_bytes(part) for key, part in data.items()}), mode="r")


ABSENT_CHUNKS = "{} of {} chunks of images do not exist and are read as black: were all of them copied?"
"""Zarr allows this of chunks that hold nothing but the fill value; of raw images they are more often lost."""


@dataclass(frozen=True, slots=True)
class ZarrPlane:
    """The bytes that one plane of an image is decoded from."""

    image: ZarrImage
    files: Mapping[str, bytes]  # the chunks that hold the plane and exist, by their key in the array
    chunks: int = 0  # how many hold the plane; those that do not exist are read as the fill value

    @property
    def absent(self) -> int:
        """How many of the chunks do not exist."""
        return max(0, self.chunks - len(self.files))


def is_zarr(path: str) -> bool:
    """Whether a plane's path is that of an OME-Zarr image: in a folder `.zarr`, or of a plate of another name, ROW/COLUMN/IMAGE."""
    return _ZARR.search(path) is not None


def read_zarr_planes(source: ScreenSource, planes: Iterable[Plane | tuple[str, int]]) -> list[ZarrPlane]:
    """The bytes of planes, given as path of the image and index, read together.

    Raises:
        UnreadableError: metadata or chunks cannot be read, or are not those of an image.
    """
    pairs = [(path, index) for path, index, *_ in planes]
    images = {path: open_image(source, path) for path in dict.fromkeys(path for path, _ in pairs)}
    keys = [_chunk_keys(path, images[path], index) for path, index in pairs]
    wanted = [f"{images[path].folder}/{key}" for (path, _), some in zip(pairs, keys, strict=True) for key in some]
    found = _read_present(source, list(dict.fromkeys(wanted)))
    return [
        ZarrPlane(
            image, {key: found[f"{image.folder}/{key}"] for key in some if f"{image.folder}/{key}" in found}, len(some)
        )
        for image, some in zip((images[path] for path, _ in pairs), keys, strict=True)
    ]


def count_chunks(contents: Iterable[object]) -> tuple[int, int]:
    """How many chunks of the OME-Zarr planes among some contents do not exist, of how many."""
    planes = [content for content in contents if isinstance(content, ZarrPlane)]
    return sum(plane.absent for plane in planes), sum(plane.chunks for plane in planes)


def open_image(source: ScreenSource, path: str) -> ZarrImage:
    """Reads an image's metadata. Raises as `read_zarr_planes`."""
    attributes, document = _attributes(source, path)
    try:
        multiscale = attributes["multiscales"][0]
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale["axes"]]
        dataset = multiscale["datasets"][0]
        folder, names = f"{path}/{dataset['path']}", [str(axis["name"]) for axis in axes]
    except (KeyError, IndexError, TypeError):
        raise UnreadableError(path, "its metadata describe no image: `multiscales` lacks axes or datasets") from None
    if names[-2:] != ["y", "x"]:
        raise UnreadableError(path, f"expected axes that end in y and x, found {', '.join(names)}")
    document = ".zarray" if document == ".zattrs" else document
    metadata = source.read_many([f"{folder}/{document}"])[0]
    image = ZarrImage(folder, document, metadata, _pixel_size(dataset, axes[-1]), tuple(names[:-2]))
    try:
        dimensions = image.array({}).ndim
    except Exception as error:  # of many kinds
        raise UnreadableError(f"{folder}/{document}", f"no metadata of an array ({error})") from None
    if dimensions != len(names):
        raise UnreadableError(path, f"its array has {dimensions} axes, its metadata have {len(names)}")
    return image


def zarr_header(image: ZarrImage) -> PlaneHeader:
    """The form of an image's planes; BadImageError if pixels are not 8 or 16 bit unsigned."""
    array = image.array({})
    found = PIXEL_TYPES.get(array.dtype.newbyteorder("="))
    if found is None:
        raise BadImageError(f"expected 8- or 16-bit unsigned pixels, found {array.dtype}")
    *others, height, width = array.shape
    axes = ", ".join(f"{axis} {length}" for axis, length in zip(image.axes, others, strict=True))
    return PlaneHeader((height, width), found, math.prod(others), axes=f"planes of axes {axes}" if axes else "")


def zarr_checksums(plane: ZarrPlane) -> str:
    """As planes.checksums."""
    # With the metadata: other bytes of a type, a fill value or a codec make other pixels of the same chunks.
    files = {plane.image.document: plane.image.metadata, "axes": repr(plane.image.axes).encode(), **plane.files}
    content = b"".join(part for key in sorted(files) for part in (key.encode(), files[key]))
    return f"{deflate_crc32(content):08x}{deflate_adler32(content):08x}"


def decode_zarr(plane: ZarrPlane, index: int, out_HW: Pixels, contents: str = "") -> None:
    """Decodes a plane into an array of its form; BadImageError if a chunk is damaged or the form is another."""
    height, width = out_HW.shape
    zarr_header(plane.image).check((height, width), PIXEL_TYPES[out_HW.dtype], index, contents)
    try:
        array = plane.image.array(plane.files)
        out_HW[:] = array[tuple(map(int, np.unravel_index(index, array.shape[:-2])))]
    except Exception as error:  # of many kinds, by codec
        raise BadImageError(f"a chunk of it cannot be decoded ({error}); copy or export the image again") from None


def _attributes(source: ScreenSource, path: str) -> tuple[dict[str, Any], str]:
    """An image's NGFF metadata, and the name of the document that holds them."""
    for name in ("zarr.json", ".zattrs"):
        try:
            content = json.loads(source.read_many([f"{path}/{name}"])[0])
            if name == ".zattrs":
                return dict(content), name
            return dict(content["attributes"]["ome"]), name
        except UnreadableError:
            continue
        except (ValueError, TypeError, KeyError) as error:
            raise UnreadableError(f"{path}/{name}", f"no metadata of an OME-Zarr image ({error!r})") from None
    raise UnreadableError(path, "no OME-Zarr image: it has neither zarr.json nor .zattrs")


def _pixel_size(dataset: Mapping[str, Any], x: Mapping[str, Any]) -> float | None:
    """Micrometres of a pixel along x; None if the metadata do not say."""
    unit = _MICROMETRES.get(str(x.get("unit")))
    for transformation in dataset.get("coordinateTransformations", []):
        if unit and transformation.get("type") == "scale":
            return float(transformation["scale"][-1]) * unit
    return None


def _chunk_keys(path: str, image: ZarrImage, index: int) -> list[str]:
    """Keys of the chunks, or shards, that hold a plane, relative to the array."""
    array = image.array({})
    *others, height, width = array.shape
    if not 0 <= index < math.prod(others):
        raise UnreadableError(path, f"there is no plane {index}, it has {math.prod(others)} (from 0)")
    *sizes, rows, columns = array.shards or array.chunks
    place = [int(at) // size for at, size in zip(np.unravel_index(index, others), sizes, strict=True)] if others else []
    parts = product(range(math.ceil(height / rows)), range(math.ceil(width / columns)))
    return [array.metadata.encode_chunk_key((*place, *part)) for part in parts]


def _read_present(source: ScreenSource, paths: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the files that exist."""
    try:
        return dict(zip(paths, source.read_many(paths), strict=True))
    except UnreadableError:
        pass
    found = {}
    for path in paths:
        try:
            found[path] = source.read_many([path])[0]
        except UnreadableError as error:
            if not error.missing:
                raise
    return found
