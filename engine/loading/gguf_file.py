"""The GGUF container: metadata by key, and tensors that stay in the file until they are read.

Parsed here rather than by the gguf package's reader, which takes seconds for a vocabulary, in every worker process.
Layout: the GGUF specification, versions 2 and 3, little-endian.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from engine.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Value types of the specification, by number.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# What parsing garbage can raise: sizes past the end, unknown types, bytes that are no UTF-8.
DAMAGE = (ValueError, KeyError, EOFError, OSError, OverflowError, struct.error)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file. `shape` is that of torch (GGUF lists the fastest dimension first)."""

    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    data: np.ndarray[Any, np.dtype[np.uint8]]

    def read(self) -> Tensor:
        """The values, float32. Raises NotImplementedError for a quantization that the gguf package cannot undo."""
        row_bytes = self.data.size // math.prod(self.shape[:-1])
        values = dequantize(self.data.reshape(*self.shape[:-1], row_bytes), self.quantization)
        # Float32 comes back as a read-only view of the file, which torch does not take.
        return torch.from_numpy(np.require(values, np.float32, ["C", "W"]))


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, opened: metadata by key, tensors by llama.cpp's names."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def open_gguf(path: Path) -> GgufFile:
    """Parse the header and check that the file is long enough for every tensor. Raises ModelError naming the file."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _parse(path, data)
    except DAMAGE as error:
        raise ModelError(f"{path} is truncated, damaged or no GGUF file ({error}); fetch it again") from error


def _parse(path: Path, data: mmap.mmap) -> GgufFile:
    header = _Header(data)
    if header.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := header.scalar("I")) not in VERSIONS:
        raise ValueError(f"its version {version} is not one of {VERSIONS}")
    num_tensors, num_keys = header.scalar("Q"), header.scalar("Q")
    metadata = {header.string(): header.value(header.scalar("I")) for _ in range(num_keys)}
    infos = [header.tensor_info() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"its general.alignment is {alignment!r}")
    start = -(-header.position // alignment) * alignment
    bytes_ = np.frombuffer(data, np.uint8)
    return GgufFile(path, metadata, {name: _tensor(bytes_, start, *info) for name, info in infos})


def _tensor(
    file: np.ndarray[Any, np.dtype[np.uint8]], start: int, shape: tuple[int, ...], type_number: int, offset: int
) -> StoredTensor:
    quantization = GGMLQuantizationType(type_number)
    block_values, block_bytes = GGML_QUANT_SIZES[quantization]
    if not shape or 0 in shape or shape[-1] % block_values:
        raise ValueError(f"a tensor of shape {list(shape)} is stored in blocks of {block_values}")
    begin, size = start + offset, math.prod(shape) // block_values * block_bytes
    if begin + size > file.size:
        raise EOFError(f"it has {file.size} bytes and a tensor up to byte {begin + size}")
    return StoredTensor(shape, quantization, file[begin : begin + size])


class _Header:
    """Reads the header's values one after another; running past the end of the file is an EOFError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise EOFError("it ends within its header")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def value(self, type_number: int) -> Any:
        if type_number == STRING:
            return self.string()
        if type_number in SCALARS:
            return self.scalar(SCALARS[type_number])
        if type_number != ARRAY:
            raise ValueError(f"it has a value of unknown type {type_number}")
        item_type, count = self.scalar("I"), self.scalar("Q")
        if item_type in SCALARS:
            code = SCALARS[item_type]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
        return [self.value(item_type) for _ in range(count)]

    def tensor_info(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        """Name; shape in torch's order, type number, offset from the start of the data."""
        name, num_dims = self.string(), self.scalar("I")
        shape = tuple(self.scalar("Q") for _ in range(num_dims))[::-1]
        return name, (shape, self.scalar("I"), self.scalar("Q"))
