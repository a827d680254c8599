"""Whole numbers in the forms in which people write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# The largest number that the protocol holds.
_LARGEST = (1 << 63) - 1


def count(name: str, value: Any, least: int | None = None) -> int:
    """The whole number that `value` plainly is: an int, one of numpy's or torch's, or a float without a fraction, such
    as 1e6. TypeError or ValueError naming the argument otherwise, and where it is below `least`."""
    number = value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar or array of numpy's or torch's
        number = value.item()
    if isinstance(number, bool) or not isinstance(number, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {_shown(value)} is not a whole number")
    if isinstance(number, (float, np.floating)) and not float(number).is_integer():
        raise ValueError(f"{name}: {number} is not a whole number")
    number = int(number)
    if least is not None and number < least:
        raise ValueError(f"{name}: {number} is below {least}")
    if not -_LARGEST <= number <= _LARGEST:
        raise ValueError(f"{name}: {number} does not fit into 64 bits")
    return number


def counts(name: str, values: Any, least: int | None = None) -> tuple[int, ...]:
    """The whole numbers of a list, set, array or tensor of one dimension; one number stands for itself."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if hasattr(values, "tolist"):
        if getattr(values, "ndim", 1) > 1:
            raise TypeError(f"{name}: has {values.ndim} dimensions; expected one")
        values = values.tolist()
    if isinstance(values, (str, bytes)) or values is None or not isinstance(values, Iterable):
        return (count(name, values, least),)
    return tuple(count(f"{name}[{index}]", value, least) for index, value in enumerate(values))


def _shown(value: Any) -> str:
    text = repr(value)
    kind = type(value).__name__
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({kind})"
