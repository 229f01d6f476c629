"""One plane of an image's bytes: PNG, TIFF or JPEG, told by content, or OME-Zarr. Pure; the caller names the file in errors.

A plane is a page of a TIFF, a sample (red, green, blue) of a colour picture, counted page by page, or a (t, c, z) of an
OME-Zarr image.
"""

from __future__ import annotations

import struct

from imagecodecs import Jpeg8Error, deflate_adler32, deflate_crc32, jpeg8_decode

from components.core.screen.plane_header import COPY_AGAIN, PIXEL_TYPES, BadImageError, Pixels, PlaneHeader
from components.core.screen.png import SIGNATURE as PNG
from components.core.screen.png import check_png, decode_png, png_header
from components.core.screen.tiff import SIGNATURES as TIFF
from components.core.screen.tiff import decode_tiff, tiff_header, tiff_pixel_size
from components.core.screen.zarr_images import ZarrPlane, decode_zarr, zarr_checksums, zarr_header

_JPEG = b"\xff\xd8\xff"
_OTHERS = {
    b"BM": "a BMP",
    b"GIF8": "a GIF",
    b"\x89HDF": "an HDF5 file",
    b"\xd0\xcf\x11\xe0": "a Zeiss or Olympus file (ZVI, OIB)",
    b"\xda\xce\xbe\x0a": "a Nikon ND2 file",
    b"ZISRAWFILE": "a Zeiss CZI file",
    b"\x70\0\0\0": "a Leica LIF file",
    b"\0\0\0\x0cjP": "a JPEG 2000",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself",
    b"PK\x03\x04": "a ZIP archive",
    b"<": "text, XML or HTML",
}

Content = bytes | ZarrPlane
"""What a plane is decoded from: the bytes of its file, or those of its chunks."""


def plane_header(content: Content) -> PlaneHeader:
    """The form of an image's planes, from its header: later damage is noticed when a plane is decoded.

    Raises:
        BadImageError: not one of the formats, a damaged header, or pixels of another type than 8 or 16 bit unsigned.
    """
    if isinstance(content, ZarrPlane):
        return zarr_header(content.image)
    if content.startswith(PNG):
        return png_header(content)
    if content.startswith(TIFF):
        return tiff_header(content)
    if content.startswith(_JPEG):
        return _jpeg_header(content)
    raise _unknown(content)


def checksums(content: Content) -> str:
    """Checksums in hexadecimal; files of the same size and checksums count as the same. A digest would cost a tenth of packing.

    Raises:
        BadImageError: a PNG, whose own checksums are used, is damaged.
    """
    if isinstance(content, ZarrPlane):
        return zarr_checksums(content)
    if content.startswith(PNG):
        return check_png(content).hex()
    return f"{deflate_crc32(content):08x}{deflate_adler32(content):08x}"


def decode_plane(content: Content, index: int, out_HW: Pixels, contents: str = "") -> None:
    """Decodes a plane of a file that `checksums` accepted into an array, C-contiguous, whose form the plane must have.

    Args:
        content: of the file.
        index: the plane's.
        out_HW: receives the pixels.
        contents: what planes the file must hold, `Plane.file`; empty for any.

    Raises:
        BadImageError: another format, size or bit depth, no such plane, other planes, or the file is truncated or damaged.
    """
    if isinstance(content, ZarrPlane):
        decode_zarr(content, index, out_HW, contents)
    elif content.startswith(PNG):
        decode_png(content, index, out_HW, contents)
    elif content.startswith(TIFF):
        decode_tiff(content, index, out_HW, contents)
    elif content.startswith(_JPEG):
        _decode_jpeg(content, index, out_HW, contents)
    else:
        raise _unknown(content)


def _unknown(content: bytes) -> BadImageError:
    if not content:
        return BadImageError(f"the file is empty; {COPY_AGAIN}")
    if any(signature.startswith(content) for signature in (PNG, *TIFF, _JPEG)):
        return BadImageError(f"the file is truncated; {COPY_AGAIN}")
    found = next((name for start, name in _OTHERS.items() if content.startswith(start)), None)
    return BadImageError(f"expected a PNG, TIFF or JPEG, found {found or f'a file that begins with {content[:8]!r}'}")


def _jpeg_header(content: bytes) -> PlaneHeader:
    """From the frame's header, which follows segments of any length (ISO/IEC 10918-1, B.2)."""
    position = 2
    try:
        while True:
            marker, kind, length = struct.unpack_from(">BBH", content, position)
            if marker != 0xFF:
                raise BadImageError(f"the file is damaged (its header is broken); {COPY_AGAIN}")
            if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                depth, height, width, samples = struct.unpack_from(">BHHB", content, position + 4)
                break
            position += 1 if kind == 0xFF else 2 + length
    except struct.error:
        raise BadImageError(f"the file is truncated; {COPY_AGAIN}") from None
    if depth != 8 or samples not in (1, 3):
        raise BadImageError(f"expected an 8-bit grey or RGB JPEG, found {samples} samples of {depth} bits")
    return PlaneHeader((height, width), "uint8", samples, samples)


def _decode_jpeg(content: bytes, index: int, out_HW: Pixels, contents: str) -> None:
    header = _jpeg_header(content)
    height, width = out_HW.shape
    header.check((height, width), PIXEL_TYPES[out_HW.dtype], index, contents)
    if not content.rstrip(b"\0").endswith(b"\xff\xd9"):  # libjpeg would fill what is missing with grey
        raise BadImageError(f"the file is truncated; {COPY_AGAIN}")
    try:
        found = jpeg8_decode(content)
    except (Jpeg8Error, ValueError) as error:
        raise BadImageError(f"the image data cannot be decoded ({error}); copy or export the file again") from None
    out_HW[:] = found if header.planes == 1 else found[..., index]


def pixel_size(content: Content) -> float | None:
    """Micrometres of a pixel along x, if the file says so: OME-XML, ImageJ or MetaXpress in a TIFF, or OME-Zarr."""
    if isinstance(content, ZarrPlane):
        return content.image.pixel_size
    return tiff_pixel_size(content) if content.startswith(TIFF) else None
