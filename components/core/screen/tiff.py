"""Planes of the bytes of a TIFF file: 8 or 16 bit, one or several pages, grey or a sample of a colour picture. Pure.

tifffile reads the directory, libtiff decodes: it takes half of tifffile's time for LZW, and is strict where tifffile fills what
is missing with zeros. tifffile decodes the compressions that libtiff lacks. Where a file says that it has a strip without
bytes both would accept it, so sizes are checked first.
"""

from __future__ import annotations

import html
import io
import logging
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from imagecodecs import TiffError, tiff_decode
from numpy.typing import NDArray

from components.core.screen.plane_header import (
    COPY_AGAIN,
    OTHER_PALETTE,
    PIXEL_TYPES,
    BadImageError,
    Pixels,
    PlaneHeader,
    brightest_sample,
)

if TYPE_CHECKING:  # a screen of PNGs does without it
    from tifffile import TiffFile, TiffPage

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_REDUCED = 1
"""Bit of a page's subfile type: a smaller version of another page."""
_SEPARATE = 2
"""Planar configuration in which each sample has strips of its own."""
_WHITE_IS_ZERO, _PALETTE = 0, 3
"""Photometric interpretations."""
_LIBTIFF = {1, 5, 8, 32773, 32946}
"""Compressions that libtiff decodes: none, LZW, deflate, PackBits, deflate of old."""

_CALIBRATIONS = (
    (r'PhysicalSizeX="([0-9.eE+-]+)"', r'PhysicalSizeXUnit="([^"]+)"'),
    (r'id="spatial-calibration-x"[^>]*value="([0-9.eE+-]+)"', r'id="spatial-calibration-units"[^>]*value="([^"]+)"'),
)
"""Where OME-XML and MetaXpress write the size of a pixel, and its unit."""
_MICROMETRES = {"µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00B5m": 1.0, "nm": 1e-3, "mm": 1e3}

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is refused here, or no fault


def tiff_header(content: bytes) -> PlaneHeader:
    """The form of the planes.

    Raises:
        BadImageError: no directory can be read, or pixels are not 8 or 16 bit unsigned.
    """
    with _opened(content) as file:
        return _header(file)


def decode_tiff(content: bytes, index: int, out_HW: Pixels, contents: str = "") -> None:
    """Decodes a plane into an array of its form; see decode_plane.

    Raises:
        BadImageError: another form, no such plane, or a strip or tile that is missing, cut or broken.
    """
    with _opened(content) as file:
        header = _header(file)
        height, width = out_HW.shape
        header.check((height, width), PIXEL_TYPES[out_HW.dtype], index, contents)
        samples = _first(file).samplesperpixel
        number, sample = divmod(index, samples)
        pages = [0] if len(file.pages) == 1 else _planes(file)
        page = _page(file, pages[number])
        _page_header(page).check(header.shape, header.dtype, sample)
        _check_segments(page, len(content))
        try:
            if samples == 1 and page.compression in _LIBTIFF and page.dtype == out_HW.dtype:
                tiff_decode(content, index=pages[number], out=out_HW)
            else:
                found_HW = _sampled(page, sample)
                if found_HW.dtype == np.int16 and (least := int(found_HW.min())) < 0:
                    raise BadImageError(
                        f"pixels below zero, {least} is the least; export the channel as 16-bit unsigned"
                    )
                out_HW[:] = found_HW
        except BadImageError:
            raise
        except (TiffError, ValueError, RuntimeError, IndexError) as error:
            reason = str(error) or "a strip or tile is cut"
            raise BadImageError(f"the image data cannot be decoded ({reason}); copy or export the file again") from None


class TiffAxes(NamedTuple):
    """What the pages of a TIFF are by its own description."""

    lengths: dict[str, int]  # of c, z and t
    channels: tuple[str, ...]  # their names; empty without
    places: tuple[dict[str, int], ...]  # of each plane, in order of the planes, its place along the axes, from 0


def tiff_axes(content: bytes) -> TiffAxes | None:
    """The axes that OME-XML or ImageJ give grey pages; None if they do not say, or not of all pages of this file."""
    with _opened(content) as file:
        try:
            if not (file.is_ome or file.is_imagej) or len(file.series) != 1 or _first(file).samplesperpixel != 1:
                return None
            series, pages = file.series[0], _planes(file)
            axes, shape = series.axes.lower()[:-2], series.shape[:-2]
            order = [page.index if page is not None else -1 for page in series.pages]
            if not series.axes.endswith("YX") or not set(axes) <= set("czt") or sorted(order) != pages:
                return None
            place_of = {
                number: dict(zip(axes, map(int, np.unravel_index(n, shape)), strict=True)) if axes else {}
                for n, number in enumerate(order)
            }
            lengths = dict(zip(axes, shape, strict=True))
            names = re.findall(r"<(?:\w+:)?Channel\b[^>]*?\bName=\"([^\"]*)\"", file.ome_metadata or "")
            labels = (file.imagej_metadata or {}).get("Labels", []) if set(axes) == {"c"} else []
        except BadImageError:
            raise
        except Exception:  # of many kinds, by what a description lacks
            return None
    names = [html.unescape(name) for name in names] or [str(label) for label in labels]
    known = len(names) == len(set(names)) == lengths.get("c", 1) and all(names)
    return TiffAxes(lengths, tuple(names) if known else (), tuple(place_of[number] for number in pages))


def tiff_pixel_size(content: bytes) -> float | None:
    """Micrometres of a pixel along x by the description of OME, MetaXpress or ImageJ; None if there is none."""
    with _opened(content) as file:
        page = _first(file)
        text = page.description
        for pattern, units in _CALIBRATIONS:
            size, unit = re.search(pattern, text), re.search(units, text)
            scale = _MICROMETRES.get(unit[1] if unit else "µm")
            if size and scale:
                return float(size[1]) * scale or None
        unit = re.search(r"^unit=(\S+)", text, re.MULTILINE)
        scale = _MICROMETRES.get(unit[1]) if unit and text.startswith("ImageJ") else None
        resolution = page.tags.get("XResolution")
        if scale and resolution and resolution.value[0]:
            return float(scale * resolution.value[1] / resolution.value[0])
    return None


def _opened(content: bytes) -> TiffFile:
    from tifffile import TiffFile

    try:
        return TiffFile(io.BytesIO(content))
    except Exception as error:  # of many kinds, by what is damaged
        raise BadImageError(f"the file is damaged (its directory cannot be read: {error}); {COPY_AGAIN}") from None


def _first(file: TiffFile) -> TiffPage:
    if not len(file.pages):
        raise BadImageError(f"the file is truncated; {COPY_AGAIN}")
    return _page(file, 0)


def _page(file: TiffFile, number: int) -> TiffPage:
    from tifffile import TiffPage

    try:
        page = file.pages[number]
        page = page if isinstance(page, TiffPage) else page.aspage()
    except Exception as error:
        raise BadImageError(
            f"the file is damaged (its page {number + 1} cannot be read: {error}); {COPY_AGAIN}"
        ) from None
    assert isinstance(page, TiffPage)
    return page


def _page_header(page: TiffPage) -> PlaneHeader:
    """The form of a page, whose planes are its samples."""
    found = PIXEL_TYPES.get(page.dtype) if page.dtype is not None else None
    if (
        page.dtype == np.int16
    ):  # as some microscopes write unsigned pixels; a negative one is refused when it is decoded
        found = "uint16"
    if found is None:
        raise BadImageError(
            f"expected 8- or 16-bit unsigned pixels, found {page.dtype or f'{page.bitspersample} bits'}; export the channel so"
        )
    if page.imagedepth != 1 or not page.imagelength or not page.imagewidth:
        raise BadImageError("expected pages of height and width, found another form; export each plane as a page")
    if (
        page.photometric == _WHITE_IS_ZERO and "PhotometricInterpretation" in page.tags
    ):  # some writers mean inverted pixels, others an inverted display
        raise BadImageError(
            "white is zero in it, so what is bright is not known; export the channel with black as zero"
        )
    if page.photometric == _PALETTE and (page.colormap is None or brightest_sample(page.colormap.T >> 8) is None):
        raise BadImageError(OTHER_PALETTE)
    return PlaneHeader((page.imagelength, page.imagewidth), found, page.samplesperpixel, page.samplesperpixel)


def _header(file: TiffFile) -> PlaneHeader:
    """The form of the first page, and how many planes all of them have."""
    first = _page_header(_first(file))
    pages = 1 if len(file.pages) == 1 else len(_planes(file))
    return replace(first, planes=pages * first.planes)


def _planes(file: TiffFile) -> list[int]:
    """Numbers of the pages that are no smaller versions of others."""
    return [n for n in range(len(file.pages)) if not _page(file, n).subfiletype & _REDUCED]


def _check_segments(page: TiffPage, size: int) -> None:
    """Checks that each strip or tile lies in the file, and is there."""
    kind = "tile" if page.is_tiled else "strip"
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    expected = math.prod(page.chunked)
    if len(segments) < expected or len(page.dataoffsets) != len(page.databytecounts):
        raise BadImageError(f"the file is damaged ({len(segments)} of {expected} {kind}s are listed); {COPY_AGAIN}")
    for number, (offset, count) in enumerate(segments, start=1):
        if offset <= 0 or count <= 0:
            raise BadImageError(f"the file is damaged ({kind} {number} of {len(segments)} is empty); {COPY_AGAIN}")
        if offset + count > size:
            raise BadImageError(
                f"the file is truncated ({kind} {number} of {len(segments)} ends behind it); {COPY_AGAIN}"
            )
    if page.compression == 1 and not page.is_tiled and sum(count for _, count in segments) < page.nbytes:
        raise BadImageError(f"the file is damaged (its {kind}s hold too few bytes); {COPY_AGAIN}")


def _sampled(page: TiffPage, sample: int) -> NDArray[np.generic]:
    """A sample's pixels, (H, W), by tifffile."""
    pixels: NDArray[np.generic] = page.asarray(maxworkers=1)
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if page.planarconfig != _SEPARATE:
        pixels = np.moveaxis(pixels.reshape(height, width, samples), -1, 0)
    return np.reshape(pixels, (samples, height, width))[sample, :, :]
