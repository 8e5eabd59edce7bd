"""Images in .npy and .npz files. Arrays are memory-mapped, and never unpickled."""

import hashlib
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_lab.data.datasets import IN_MEMORY_BYTES, Source

Layout = Literal["NHWC", "NCHW"]
SHORT = {"images": "x", "labels": "y"}
"""Usual names of arrays, and their short forms"""
MAX_CHANNELS = 16
"""Largest axis that can be the channels unless the layout is stated"""
RANGES = ((0, 1), (-1, 1), (0, 255), (0, 65535))
"""Usual ranges of values"""
CHUNK = 2**26
"""Bytes of values that are converted at a time"""
READERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """Description of an array in a file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int | None
    """Position of the values in the file; None if they are compressed"""

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(file: Path) -> dict[str, Header]:
    """Return the arrays of an .npz by name, or that of a .npy as "".

    Raises ValueError unless it is such a file.
    """
    try:
        with file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                stream.seek(0)
                return {"": _read_header(stream)}
            headers = {}
            with zipfile.ZipFile(stream) as archive:
                for member in archive.infolist():
                    with archive.open(member) as content:
                        header = _read_header(content)
                    offset = None
                    if header.offset is not None and member.compress_type == zipfile.ZIP_STORED:
                        stream.seek(member.header_offset + 26)  # lengths of the name and the rest
                        lengths = np.frombuffer(stream.read(4), "<u2").astype(int)
                        offset = member.header_offset + 30 + lengths.sum() + header.offset
                    name = member.filename.removesuffix(".npy")
                    headers[name] = header._replace(offset=offset)
            return headers
    except Exception as error:  # numpy and zipfile raise many types for broken files
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"it is not a complete .npy or .npz file ({reason})") from error


def _read_header(stream: BinaryIO | Any) -> Header:
    shape, fortran, dtype = READERS[np.lib.format.read_magic(stream)](stream)
    return Header(shape, fortran, dtype, stream.tell())


def load_array(file: Path, name: str) -> np.ndarray:
    """Return an array, memory-mapped unless it is compressed. Raises ValueError."""
    header = read_headers(file)[name]
    if header.dtype.hasobject:
        raise ValueError("it has Python objects, which are not loaded; save numbers")
    if not header.size:
        raise ValueError(f"it is empty, of shape {header.shape}")
    if header.offset is None:
        if header.size > IN_MEMORY_BYTES:
            raise ValueError(
                f"it is compressed, and too large for memory ({header.size / 2**30:.1f} GiB); "
                "save it with numpy.savez or numpy.save"
            )
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[name]
    if (size := file.stat().st_size) < header.offset + header.size:
        raise ValueError(
            f"it is truncated: {size} bytes instead of {header.offset + header.size} for "
            f"{header.shape} {header.dtype}"
        )
    order: Any = "F" if header.fortran else "C"
    return np.memmap(file, header.dtype, "r", header.offset, header.shape, order)


def find_array(
    headers: Mapping[str, Header], kind: Literal["images", "labels"], parts: Sequence[str]
) -> str | None:
    """Return the name of the images or labels of the first of `parts` that exists, or None.

    Those of part "" are called "images" or "x", those of "train" "train_images" or "x_train".
    Images can also have another name if they are the only array of at least 3 dimensions. The array
    of a .npy are images.
    """
    if "" in headers:  # a .npy
        return "" if kind == "images" else None
    names = [name for part in parts for name in _names(kind, part)]
    by_name = {name.lower(): name for name in headers}
    if match := next((by_name[name] for name in names if name in by_name), None):
        return match
    arrays = [name for name, header in headers.items() if len(header.shape) >= 3]
    return arrays[0] if kind == "images" and "" in parts and len(arrays) == 1 else None


def _names(kind: str, part: str) -> list[str]:
    return [f"{part}_{kind}", f"{SHORT[kind]}_{part}"] if part else [kind, SHORT[kind]]


class ArrayImages(Source):
    """The images of the array `name` in `file`, rounded to 8 bits from `value_range` [low, high].

    `value_range` None is that of uint8. `layout` None: the smaller of the second and the last axis
    are the channels. Raises ValueError.
    """

    def __init__(
        self, file: Path, name: str, layout: Layout | None, value_range: Sequence[float] | None
    ) -> None:
        self.arguments = file, name, layout, value_range
        self.file, self.array = file, load_array(file, name)
        if self.array.dtype.kind not in "uifb":
            raise ValueError(f"its values are {self.array.dtype}, expected numbers")
        if value_range is None and self.array.dtype != np.uint8:
            raise ValueError(_describe_values(self.array))
        low, high = value_range or (0, 255)
        self.low: float = low
        self.high: float = high
        self.layout = _layout(self.array.shape, layout)
        self.shape: tuple[int, ...] = self._to_nchw(self.array[:1]).shape[1:]

    def __str__(self) -> str:
        _, name, *_ = self.arguments
        return f"{self.file} {name}".rstrip()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return ArrayImages, self.arguments  # a memory map would be pickled with its content

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        return self.read(torch.tensor([index]), self.shape)[0]

    def read(self, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        pixels = torch.empty(len(indices), *shape, dtype=torch.uint8)
        size = max(1, CHUNK // (8 * math.prod(shape)))
        for part, index in zip(pixels.split(size), indices.split(size), strict=True):
            values = self._to_bytes(self.array[index.numpy()], index)
            part.copy_(torch.from_numpy(np.ascontiguousarray(self._to_nchw(values))))
        return pixels

    def digest(self) -> str:
        """Return the SHA-256 of the arguments, and of the file's size and modification time."""
        status = self.file.stat()
        facts = (self.arguments[1:], self.array.shape, status.st_size, status.st_mtime_ns)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _to_nchw(self, values: np.ndarray) -> np.ndarray:
        if values.ndim == 3:
            return values[:, None]
        return values if self.layout == "NCHW" else values.transpose(0, 3, 1, 2)

    def _to_bytes(self, values: np.ndarray, indices: Tensor) -> np.ndarray:
        """Return the values of the images at `indices` as uint8. Raises ValueError."""
        low, high = self.low, self.high
        if values.dtype == np.uint8 and (low, high) == (0, 255):
            return values
        inside = (values >= low) & (values <= high)  # not NaN
        if not inside.all():
            place = np.argwhere(~inside)[0].tolist()
            position = ", ".join(map(str, (int(indices[place[0]]), *place[1:])))
            raise ValueError(
                f"{self}[{position}] is {values[tuple(place)]:g}, outside "
                f"data.range=[{low:g},{high:g}]; correct it, or try another data.range"
            )
        return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _describe_values(array: np.ndarray) -> str:
    first = np.asarray(array[: max(1, CHUNK // array[0].nbytes)])
    low, high = np.nanmin(first).item(), np.nanmax(first).item()
    usual = next(([*ends] for ends in RANGES if ends[0] <= low and high <= ends[1]), [low, high])
    return (
        f"its values are {array.dtype}, {low:g} to {high:g}; state the range that becomes 0..255: "
        f"try data.range=[{usual[0]:g},{usual[1]:g}]"
    )


def _layout(shape: tuple[int, ...], layout: Layout | None) -> Layout | None:
    """Return the order of the axes, None for (N, H, W). Raises ValueError if it is ambiguous."""
    if len(shape) == 3 and layout is None:
        return None
    if len(shape) != 4:
        expected = "4" if layout else "(N, H, W), (N, H, W, C) or (N, C, H, W)"
        raise ValueError(f"its shape is {shape}, expected {expected}{' axes' * bool(layout)}")
    second, last = shape[1], shape[3]
    if layout is None and (second == last or min(second, last) > MAX_CHANNELS):
        raise ValueError(f"its shape is {shape}; try data.layout=NHWC, or NCHW")
    return layout or ("NCHW" if second < last else "NHWC")
