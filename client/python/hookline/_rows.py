"""The layout of rows in messages, and the conversion of rows that are not plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hookline._arrays import RAW_DTYPES

if TYPE_CHECKING:
    from hookline.types import CaptureStarted

_SCALED = ("float8_e4m3", "int8")


def _float8_table() -> np.ndarray[Any, Any]:
    """Returns the value of each of the 256 codes of E4M3."""
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, (codes & 7).astype(np.float64)
    magnitude = np.where(exponent == 0, fraction / 512, np.ldexp(1 + fraction / 8, exponent - 7))
    magnitude[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


@dataclass(frozen=True)
class RowLayout:
    """The parts of a row, in this order: the scale (float32) if the dtype has one, the indices (uint32) with `top_k`,
    and the numbers."""

    dtype: str
    width: int
    top_k: int = 0  # 0: all entries are there

    @property
    def has_scale(self) -> bool:
        return self.dtype in _SCALED

    @property
    def numbers(self) -> int:
        return self.top_k or self.width

    @property
    def numbers_offset(self) -> int:
        return 4 * self.has_scale + 4 * self.top_k

    @property
    def row_bytes(self) -> int:
        value_bytes = 1 if self.has_scale else RAW_DTYPES[self.dtype].itemsize
        return self.numbers_offset + self.numbers * value_bytes

    @property
    def is_plain(self) -> bool:
        """True if a row consists of its values only."""
        return self.numbers_offset == 0


def layouts_of(started: CaptureStarted) -> tuple[RowLayout, ...]:
    return tuple(RowLayout(started.dtype, point.width, started.top_k) for point in started.hook_points)


def memory_dtype(started: CaptureStarted) -> str:
    """The dtype in which rows are received: their own, or bytes if a row has more parts than its values."""
    return started.dtype if started.top_k == 0 and started.dtype not in _SCALED else "uint8"


class TopK:
    """The entries of largest magnitude of each row, the largest first.

    `indices` (rows, k) holds each entry's index in its row of `width` entries, and `values` (rows, k) its value. Both
    are torch tensors or numpy arrays, as the capture's `output` says; indices are int64. Indexing with a slice or an
    array of row numbers selects rows.
    """

    def __init__(self, indices: Any, values: Any, width: int) -> None:
        self.indices = indices
        self.values = values
        self.width = width

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Any) -> TopK:
        return TopK(self.indices[rows], self.values[rows], self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the whole rows: (rows, width)."""
        return len(self.indices), self.width

    def dense(self) -> Any:
        """Returns whole rows, (rows, width), with zeros for the entries that are missing."""
        if isinstance(self.values, np.ndarray):
            whole = np.zeros(self.shape, self.values.dtype)
            np.put_along_axis(whole, self.indices, self.values, axis=1)
            return whole
        return self.values.new_zeros(self.shape).scatter_(1, self.indices, self.values)

    def sparse(self) -> Any:
        """Returns the rows as a torch sparse COO tensor of shape (rows, width)."""
        import torch

        indices, values = torch.as_tensor(self.indices), torch.as_tensor(self.values)
        rows = torch.arange(len(indices), device=indices.device).repeat_interleave(indices.shape[1])
        places = torch.stack([rows, indices.reshape(-1)])
        return torch.sparse_coo_tensor(places, values.reshape(-1), self.shape)

    def __repr__(self) -> str:
        rows, width = self.shape
        return f"<hookline.TopK of {rows} rows, {self.indices.shape[1]} of {width} entries>"


def read_rows(layout: RowLayout, memory: Any, view: Any | None) -> Any:
    """Converts rows received as bytes, (rows, layout.row_bytes), to the user's form: float32 if the dtype has a scale,
    and a TopK with `top_k`. `view`: the numpy type of bfloat16, if the output is numpy."""
    is_numpy = isinstance(memory, np.ndarray)
    scale_bytes, offset = 4 * layout.has_scale, layout.numbers_offset
    numbers = memory[:, offset:]
    values: Any
    if layout.has_scale:
        scale = _as(memory[:, :4], "float32")
        if layout.dtype == "int8":
            values = _as(numbers, "int8")
            values = values.astype(np.float32) if is_numpy else values.float()
        elif is_numpy:
            values = _float8_table()[numbers]
        else:
            import torch

            values = torch.from_numpy(_float8_table())[numbers.long()]
        values = values * scale
    else:
        values = _as(numbers, layout.dtype)
        values = values.view(view) if view is not None else values
    if layout.top_k == 0:
        return values
    indices = _as(memory[:, scale_bytes:offset], "int32")
    return TopK(indices.astype(np.int64) if is_numpy else indices.long(), values, layout.width)


def _as(columns: Any, dtype: str) -> Any:
    """Reinterprets columns of bytes as numbers of a dtype."""
    if isinstance(columns, np.ndarray):
        return np.ascontiguousarray(columns).view(RAW_DTYPES[dtype] if dtype in RAW_DTYPES else np.dtype(dtype))
    import torch

    return columns.contiguous().view(getattr(torch, dtype))
