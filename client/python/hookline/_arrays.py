"""Batch memory: allocated once, written by the receiver, and returned as tensors or arrays without a copy."""

from __future__ import annotations

from typing import Any, Callable, Protocol

import numpy as np

RAW_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "uint8": np.dtype("u1"),  # rows that have more parts than their values (_rows.py)
}
_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3", "int8")


def dtype_name(dtype: Any) -> str:
    """Returns the name, one of `_DTYPES`, of a dtype given by name or as a dtype of torch, numpy or ml_dtypes."""
    name = dtype if isinstance(dtype, str) else str(dtype)
    name = name[len("torch.") :] if name.startswith("torch.") else name
    if name not in _DTYPES and name != "float8_e4m3fn":
        try:
            name = np.dtype(dtype).name
        except TypeError:
            pass
    name = "float8_e4m3" if name == "float8_e4m3fn" else name  # torch's and ml_dtypes' name of OCP's E4M3
    if name not in _DTYPES:
        raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(_DTYPES)}")
    return name


class Block:
    """Memory for rows of one hook point, C-contiguous (rows, width).

    Between two batches the processor's caches hold rows, not the interpreter, so every step here runs with cold caches.
    """

    __slots__ = ("handle", "rows", "address", "_make_raw", "_raw")

    def __init__(self, handle: Any, rows: int, address: int, make_raw: Callable[[Any], np.ndarray[Any, Any]]) -> None:
        self.handle = handle  # as the user gets it
        self.rows = rows
        self.address = address
        self._make_raw = make_raw
        self._raw: np.ndarray[Any, Any] | None = None

    @property
    def raw(self) -> np.ndarray[Any, Any]:
        """The same memory as an array of the dtype's raw form."""
        if self._raw is None:
            self._raw = self._make_raw(self.handle)
        return self._raw

    def first(self, rows: int) -> Any:
        """Returns the first rows as the user gets them."""
        return self.handle if rows == self.rows else self.handle[:rows]


class Allocator(Protocol):
    """Makes the memory that batches are received into."""

    def allocate(self, hook_point: int, first_row: int, rows: int, width: int) -> Block:
        """Allocates `rows` rows, from row `first_row` of the capture on, of the hook point with this index."""

    def column(self, column: np.ndarray[Any, Any]) -> Any:
        """Converts a provenance column to what the user gets."""


def array_block(raw: np.ndarray[Any, Any], handle: Any) -> Block:
    """Makes a block of an array in the dtype's raw form, which the user gets as `handle`."""
    return Block(handle, len(raw), raw.ctypes.data, lambda _: raw)


def numpy_view(dtype: str) -> np.dtype[Any] | None:
    """Returns the ml_dtypes type for a dtype that numpy lacks; None if numpy has the dtype."""
    if dtype != "bfloat16":
        return None
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError(
            "dtype: numpy has no bfloat16; install ml_dtypes or torch, or ask for float32 or float16"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


class NumpyArrays:
    """Allocates numpy arrays; bfloat16 needs ml_dtypes."""

    def __init__(self, dtype: str) -> None:
        self._raw_dtype = RAW_DTYPES[dtype]
        self._view = numpy_view(dtype)

    def allocate(self, hook_point: int, first_row: int, rows: int, width: int) -> Block:
        raw = np.empty((rows, width), self._raw_dtype)
        return array_block(raw, raw if self._view is None else raw.view(self._view))

    def column(self, column: np.ndarray[Any, Any]) -> Any:
        return column


class TorchArrays:
    """Allocates torch tensors in host memory, page-locked with `pin_memory`."""

    def __init__(self, dtype: str, pin_memory: bool) -> None:
        import torch

        self._torch = torch
        self._dtype = getattr(torch, dtype)
        self._pin_memory = pin_memory

    def allocate(self, hook_point: int, first_row: int, rows: int, width: int) -> Block:
        tensor = self._torch.empty((rows, width), dtype=self._dtype, pin_memory=self._pin_memory)
        return Block(tensor, rows, tensor.data_ptr(), self._raw)

    def _raw(self, tensor: Any) -> np.ndarray[Any, Any]:
        raw: np.ndarray[Any, Any]
        if self._dtype == self._torch.bfloat16:
            raw = tensor.view(self._torch.int16).numpy().view(RAW_DTYPES["bfloat16"])
        else:
            raw = tensor.numpy()
        return raw

    def column(self, column: np.ndarray[Any, Any]) -> Any:
        return self._torch.from_numpy(column.astype(np.int64) if column.dtype == np.uint32 else column)


def have_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def make_allocator(output: str, dtype: str, pin_memory: bool) -> Allocator:
    """Returns the allocator for `output` "torch", "numpy", or "auto", which means torch if it is installed."""
    if output not in ("auto", "torch", "numpy"):
        raise ValueError(f"output: {output!r} is not one of auto, torch, numpy")
    if output == "torch" or (output == "auto" and have_torch()):
        return TorchArrays(dtype, pin_memory)
    if pin_memory:
        raise ValueError("pin_memory: only torch allocates page-locked memory; output is numpy")
    return NumpyArrays(dtype)
