"""Pixel counts by channel and grey value in records: an array in use, compressed text in JSON. Pure.

C channels, G grey values: 256 of 8-bit pixels, 65,536 of 16-bit ones.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Counts:
    """Counts (C, G), int64, which never change; NumPy takes them as an array, and equal ones are equal and hash alike.

    As text CxG:BASE64, where the base64 is that of the zlib-compressed bytes of all numbers, first the lowest byte of each, then
    the next: 16-bit plates take a hundred kB instead of three MB. They are decompressed at each use, so that the records of many
    plates stay small.
    """

    __slots__ = ("_text",)

    def __init__(self, counts: ArrayLike | str) -> None:
        """From the array, or from its text.

        Raises:
            ValueError: neither (C, G) numbers nor their text.
        """
        if isinstance(counts, str):
            self._text = counts
            _size(counts)
            return
        array = np.asarray(counts, np.int64)
        array = array.reshape(0, 0) if array.size == 0 else array
        if array.ndim != 2:
            raise ValueError(f"counts by channel and grey value are expected, got {array.ndim} axes")
        numbers = np.ascontiguousarray(array.astype("<i8")).reshape(-1, 1).view(np.uint8)
        packed = zlib.compress(np.ascontiguousarray(numbers.T).tobytes(), 1)
        self._text = f"{array.shape[0]}x{array.shape[1]}:{base64.b64encode(packed).decode()}"

    @property
    def shape(self) -> tuple[int, int]:
        """C and G."""
        return _size(self._text)

    @property
    def array(self) -> NDArray[np.int64]:
        """The numbers, decompressed now."""
        try:
            numbers = zlib.decompress(base64.b64decode(self._text.partition(":")[2], validate=True))
            each = np.ascontiguousarray(np.frombuffer(numbers, np.uint8).reshape(8, -1).T)
            return each.view("<i8").astype(np.int64, copy=False).reshape(self.shape)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise ValueError(f"damaged counts ({error})") from None

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array if dtype is None else self.array.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Counts({self.shape[0]} channels, {self.shape[1]} grey values)"

    def __str__(self) -> str:
        return self._text

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )


def _size(text: str) -> tuple[int, int]:
    size, separator, _ = text.partition(":")
    channels, _, values = size.partition("x")
    if not (separator and channels.isdecimal() and values.isdecimal()):
        raise ValueError("counts are written CxG:BASE64")
    return int(channels), int(values)


NO_COUNTS = Counts(np.empty((0, 0), np.int64))
"""Those of no pixels."""
