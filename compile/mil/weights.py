"""Weight files of ML programs: a header of 64 bytes, then for each array a metadata record of 64 bytes and its data.

Source: the storage format of Core ML's MIL (`MILBlob`), version 2. All integers are little-endian.

    header:   uint32 count, uint32 version, 56 bytes reserved
    metadata: uint32 0xDEADBEEF, uint32 dtype, uint64 bytes, uint64 offset of the data, uint64 bits of padding, reserved

Elements of fewer than 8 bits are packed from the least significant bit on, across bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError

VERSION = 2
SENTINEL = 0xDEADBEEF
RECORD = 64
DTYPES = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
PACKED = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "int4": 4}  # bits an element


class WeightFile:
    """A weights file mapped into memory; nothing is read until it is used.

    Raises: InputError if the file is no weights file of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size < RECORD:
            raise self._damaged(f"{path.stat().st_size} bytes, expected at least {RECORD}")
        # "c": a private copy on write, so that nothing done to an array reaches the file.
        self.content = np.memmap(path, dtype=np.uint8, mode="c")
        version = struct.unpack("<II", self.content[:8].tobytes())[1]
        if version != VERSION:
            raise self._damaged(f"version {version}, expected {VERSION}")

    def array(self, offset: int, dtype: str, count: int) -> NDArray[np.generic]:
        """The `count` elements whose metadata lies at `offset`, one dimension; packed ones as uint8 or int8.

        Raises: InputError if no metadata is there, it tells another dtype or size, or the file ends before the data.
        """
        if offset + RECORD > self.content.size:
            raise self._damaged(f"metadata at byte {offset} of {self.content.size}")
        sentinel, code, size, start = struct.unpack("<IIQQ", self.content[offset : offset + 24].tobytes())
        if sentinel != SENTINEL:
            raise self._damaged(f"no metadata at byte {offset}")
        if DTYPES.get(code) != dtype:
            found = DTYPES.get(code, f"dtype code {code}")
            raise self._damaged(f"{found} at byte {offset}, the program declares {dtype}")
        expected = bytes_of(dtype, count)
        if size != expected:
            raise self._damaged(f"{size} bytes of {dtype} at byte {offset}, the program declares {expected}")
        if start + size > self.content.size:
            raise self._damaged(f"truncated: data at byte {start} to {start + size} of {self.content.size}")
        return decode(self.content[start : start + size], dtype, count)

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged weights file ({what}); export the package again")


def bytes_of(dtype: str, count: int) -> int:
    """Bytes that `count` elements take in a file."""
    if dtype in PACKED:
        return -(-count * PACKED[dtype] // 8)
    return count * np.dtype(dtype).itemsize


def decode(content: NDArray[np.uint8], dtype: str, count: int) -> NDArray[np.generic]:
    """Bytes as elements, one dimension: a view, or for packed dtypes unpacked uint8 (int4: int8)."""
    if dtype not in PACKED:
        return content.view(np.ndarray).view(np.dtype(dtype))
    values = unpack(content, PACKED[dtype], count)
    if dtype == "int4":
        return ((values ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)  # the fourth bit is the sign
    return values


def unpack(content: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """`count` elements of `bits` bits from bytes, least significant bit first."""
    planes = np.unpackbits(content.view(np.ndarray), bitorder="little")[: count * bits].reshape(count, bits)
    values = np.zeros(count, np.uint8)
    for bit in range(bits):
        values |= planes[:, bit] << np.uint8(bit)
    return values
