"""Checks and converts numbers, flags and names in the forms in which users write them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

# The largest number that the protocol holds.
_LARGEST = (1 << 63) - 1


def _scalar(value: Any) -> Any:
    """Converts a numpy or torch scalar to a Python number; returns anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def count(name: str, value: Any, least: int | None = None, most: int = _LARGEST) -> int:
    """Converts a whole number to int: an int, an integer of numpy or torch, or a float without a fraction, such as
    1e6. TypeError or ValueError, which names the argument, for anything else, or if the number is not from `least`
    to `most`."""
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {_shown(value)} is not a whole number")
    if isinstance(number, (float, np.floating)) and not float(number).is_integer():
        raise ValueError(f"{name}: {number} is not a whole number")
    number = int(number)
    if least is not None and number < least:
        raise ValueError(f"{name}: {number} is below {least}")
    if not -_LARGEST <= number <= most:
        limit = "does not fit into 64 bits" if most == _LARGEST else f"is above {most}"
        raise ValueError(f"{name}: {_shown(value)} {limit}")
    return number


def counts(name: str, values: Any, least: int | None = None, most: int = _LARGEST) -> tuple[int, ...]:
    """Converts the whole numbers of a list, set, array or tensor of one dimension, or a single number."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if hasattr(values, "tolist"):
        if getattr(values, "ndim", 1) > 1:
            raise TypeError(f"{name}: has {values.ndim} dimensions; expected one")
        values = values.tolist()
    if isinstance(values, (str, bytes)) or values is None or not isinstance(values, Iterable):
        return (count(name, values, least, most),)
    return tuple(count(f"{name}[{index}]", value, least, most) for index, value in enumerate(values))


def seconds(name: str, value: Any) -> float:
    """Converts a number of seconds to float. TypeError or ValueError, which names the argument, for anything else."""
    number = _scalar(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name}: {_shown(value)} is not a number of seconds")
    if not 0 <= number <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name}: {_shown(value)} is not a number of seconds from 0 to {threading.TIMEOUT_MAX:.0f}")
    return float(number)


def flag(name: str, value: Any) -> bool:
    """Converts True, False, 0 or 1 to bool. TypeError, which names the argument, for anything else, such as the word
    "no", which Python takes for true."""
    truth = _scalar(value)
    if not isinstance(truth, int) or truth not in (0, 1):
        raise TypeError(f"{name}: {_shown(value)} is neither True nor False")
    return bool(truth)


def string(name: str, value: Any) -> str:
    """Returns `value`, which must be a str. TypeError, which names the argument, for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: {_shown(value)} is not a str")
    return value


def strings(name: str, values: Any) -> list[str]:
    """Returns a str, or several in a list or the like, as a list. TypeError for anything else."""
    if isinstance(values, str):
        return [values]
    if not isinstance(values, Iterable):
        raise TypeError(f"{name}: {_shown(values)} is neither a str nor a list of them")
    return [string(f"{name}[{index}]", value) for index, value in enumerate(values)]


def _shown(value: Any) -> str:
    text = repr(value)
    kind = type(value).__name__
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({kind})"
