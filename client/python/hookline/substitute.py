"""Scores with rows that this program computes while the model's forward pass waits for them.

For example:

    scores = client.substitute(token_ids, "blocks.2.hook_resid_post", sae, kl=True)
    print(scores.wait().variants["substituted"].mean_kl)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hookline import _protocol
from hookline._arguments import SubstituteArguments
from hookline._arrays import have_torch
from hookline._counts import flag, string, strings
from hookline._two_way_call import TwoWayCall
from hookline.scores import Intervention, ScoreOptions, Scores, SequenceScore, score_options

# The arguments of `substitute` that say where rows are replaced.
_WHERE = ("positions", "ignore_token_ids", "head")


@dataclass(frozen=True)
class RowsPlace:
    """Says which tokens' rows a function is given; each array has one entry per row."""

    hook_point: str
    sequence: np.ndarray[Any, np.dtype[np.int64]]  # its index in the source, or in the dataset
    position: np.ndarray[Any, np.dtype[np.int64]]
    token_id: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Substitution:
    """The request of a `substitute` with checked arguments, and the function for each hook point."""

    options: ScoreOptions
    request: bytes
    functions: Mapping[str, Any]
    places: bool
    numpy: bool


def substitution(
    source: Any,
    hook_point: str | Sequence[str],
    replace: Any,
    variants: Mapping[str, Sequence[Intervention]] | None,
    arguments: SubstituteArguments,
) -> Substitution:
    """Checks the arguments of a `substitute` method. TypeError and ValueError for what no server accepts."""
    rest: dict[str, Any] = dict(arguments)
    where = {name: rest.pop(name) for name in _WHERE if name in rest}
    variant = string("variant", rest.pop("variant", "substituted"))
    places = flag("places", rest.pop("places", False))
    output = rest.pop("output", "auto")
    if output not in ("auto", "torch", "numpy"):
        raise ValueError(f"output: {output!r} is not one of auto, torch, numpy")
    names = strings("hook_point", hook_point)
    functions = dict(replace) if isinstance(replace, Mapping) else {name: replace for name in names}
    if sorted(functions) != sorted(names):
        raise ValueError(f"replace: it has functions for {sorted(functions)}, but the hook points are {sorted(names)}")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"replace: {type(function).__name__} for {name} is not a function from rows to rows")
    if variant in (variants or {}):
        raise ValueError(f"variants: {variant!r} is the name of the variant whose rows are computed here")
    mine = {variant: [Intervention(name, "client", **where) for name in names]}
    options = score_options(source, {**(variants or {}), **mine}, rest)  # type: ignore[arg-type]
    request = _protocol.SubstituteRequest()
    request.request.ParseFromString(options.request)
    in_numpy = output == "numpy" or (output == "auto" and not have_torch())
    return Substitution(options, request.SerializeToString(), functions, places, in_numpy)


class Replacer:
    """Gathers the rows of a forward pass, and makes answers from what the functions return."""

    def __init__(self, settled: Substitution) -> None:
        self._settled = settled
        self._asked: dict[str, list[Any]] = {}  # messages by hook point

    def add(self, message: Any) -> bool:
        """Takes an `asked` message. Returns whether it is time to answer."""
        self._asked.setdefault(message.hook_point, []).append(message)
        return bool(message.last)

    def calls(self) -> list[tuple[Any, tuple[Any, ...]]]:
        """Returns the functions to call, with their arguments: one call for each hook point."""
        return [
            (self._settled.functions[name], self._arguments(name, messages)) for name, messages in self._asked.items()
        ]

    def _arguments(self, name: str, messages: list[Any]) -> tuple[Any, ...]:
        rows: Any = np.concatenate([_rows_of(message) for message in messages])
        if not self._settled.numpy:
            import torch

            function = self._settled.functions[name]
            rows = torch.from_numpy(rows)
            parameter = next(iter(function.parameters()), None) if isinstance(function, torch.nn.Module) else None
            if parameter is not None:
                rows = rows.to(parameter.device, parameter.dtype)
        return (rows, self._place(name, messages)) if self._settled.places else (rows,)

    def _place(self, name: str, messages: list[Any]) -> RowsPlace:
        return RowsPlace(
            name,
            np.concatenate([np.full(message.rows, message.sequence, dtype=np.int64) for message in messages]),
            np.concatenate([message.first_position + np.arange(message.rows, dtype=np.int64) for message in messages]),
            np.concatenate([np.asarray(message.token_ids, dtype=np.int64) for message in messages]),
        )

    def answers(self, results: Sequence[Any]) -> list[bytes]:
        """Makes the messages with the functions' results, which are in the order of `calls`."""
        made = []
        for (name, messages), result in zip(self._asked.items(), results):
            count = sum(message.rows for message in messages)
            rows, mask = _checked(name, result, count, messages[0].width)
            first = 0
            for message in messages:
                end = first + message.rows
                made.append(_answer(message, None if rows is None else rows[first:end], mask[first:end]))
                first = end
        self._asked = {}
        return made


def run(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Calls a function or a torch module, without gradients."""
    if not have_torch():
        return function(*arguments)
    import torch

    with torch.no_grad():
        return function(*arguments)


def _rows_of(message: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(message.data, dtype="<f4").reshape(message.rows, message.width)


def _answer(message: Any, rows: Any, mask: np.ndarray[Any, Any]) -> bytes:
    request = _protocol.SubstituteRequest()
    answer = request.answer
    answer.sequence, answer.variant, answer.hook_point = message.sequence, message.variant, message.hook_point
    answer.first_position, answer.rows = message.first_position, message.rows
    if not mask.all():
        answer.mask.extend(mask.tolist())
    if rows is not None:
        answer.data = np.ascontiguousarray(rows if mask.all() else rows[mask], dtype="<f4").tobytes()
    return bytes(request.SerializeToString())


def _checked(name: str, result: Any, rows: int, width: int) -> tuple[Any, np.ndarray[Any, Any]]:
    """Converts a function's result to rows (None if all stay as they are) and a mask. Raises TypeError, ValueError."""
    if inspect.isawaitable(result):
        raise TypeError(f"replace: the function of {name} is a coroutine; use hookline.aio for those")
    if result is None:
        return None, np.zeros(rows, dtype=bool)
    made, mask = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    values = _to_numpy(made, name, "rows", np.float32)
    if values.shape != (rows, width):
        raise ValueError(f"replace: the function of {name} returned rows of {values.shape}, not {(rows, width)}")
    chosen = np.ones(rows, dtype=bool) if mask is None else _to_numpy(mask, name, "mask", np.bool_)
    if chosen.shape != (rows,):
        raise ValueError(f"replace: the function of {name} returned a mask of {chosen.shape}, not {(rows,)}")
    if not np.isfinite(values[chosen]).all():
        raise ValueError(f"replace: the function of {name} returned values that are not finite")
    return values, chosen


def _to_numpy(values: Any, name: str, what: str, dtype: Any) -> np.ndarray[Any, Any]:
    if hasattr(values, "detach"):
        values = values.detach().float() if dtype is np.float32 else values.detach()
        values = values.cpu().numpy()
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"replace: {what} of {name} are {type(values).__name__} ({error})") from None


class Substituted(Scores):
    """Yields scores as they come, as `Scores` does. The thread that iterates calls the functions."""

    def __init__(self, call: TwoWayCall, settled: Substitution) -> None:
        self._two_way_call = call
        self._replacer = Replacer(settled)
        super().__init__(call, settled.options)

    def _read(self, data: bytes) -> SequenceScore | None:
        message = _protocol.ScoreResponse.FromString(data)
        if message.WhichOneof("kind") != "asked":
            return self._reader.take(message)
        if self._replacer.add(message.asked):
            try:
                results = [run(function, arguments) for function, arguments in self._replacer.calls()]
                answers = self._replacer.answers(results)
            except BaseException:
                self.close()
                raise
            for answer in answers:
                self._two_way_call.send(answer)
        return None
