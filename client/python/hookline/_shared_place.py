"""How far a capture over several servers is, and the resume tokens that record it.

A token is JSON: `{"hookline_shared": 1, "capture": digest, "row": r, "place": p, "place_row": q, "check": digest}`. The
capture continues with row r. Sequence p of the source, in the order in which it is taken, begins with row q. `capture`
is a digest of everything that the rows depend on, which excludes the servers and the form in which rows are returned.
`check` is a digest of the rest of the token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import deque
from typing import Any

from hookline._agreement import Agreement
from hookline._request import CaptureOptions
from hookline.errors import InvalidArgumentError
from hookline.types import CaptureStarted, Dataset

VERSION = 1
# This is far more than a token has; anything longer is not a token.
MAX_TOKEN_BYTES = 4096
_NUMBERS = ("row", "place", "place_row")


class SharedPlace:
    """The progress of a capture over several servers. Thread-safe."""

    def __init__(self, options: CaptureOptions, token: bytes) -> None:
        self._options = options
        self._token = _decoded(token) if token else None
        state = self._token or {"row": 0, "place": _first_place(options), "place_row": 0}
        self.row: int = state["row"]  # the first row that is returned
        self.begin: int = state["place"]  # the first sequence that is run
        self.block_row: int = state["place_row"]  # the first row of that sequence
        self._lock = threading.Lock()
        self._marks = deque([(self.block_row, self.begin)])  # rows at which places begin; guarded by _lock

    def resume(self, started: CaptureStarted, agreement: Agreement) -> None:
        """Raises InvalidArgumentError if the token belongs to another capture."""
        if self._token is not None and self._token["capture"] != self._digest(started, agreement):
            raise InvalidArgumentError(
                "resume_token: belongs to another capture: the model, the source, hook points, budgets, dtype, top_k, "
                "selection or deterministic differ",
                field="resume_token",
            )

    def passed(self, place: int, row: int) -> None:
        """Notes that the sequence at this place begins with this row."""
        with self._lock:
            self._marks.append((row, place))

    def token(self, started: CaptureStarted, agreement: Agreement, row: int) -> bytes:
        """Returns the token after `row` rows. Rows must not decrease from call to call, since earlier marks
        are dropped."""
        with self._lock:
            while len(self._marks) > 1 and self._marks[1][0] <= row:
                self._marks.popleft()
            place_row, place = self._marks[0]
        state = {"hookline_shared": VERSION, "capture": self._digest(started, agreement)}
        state.update(row=row, place=place, place_row=place_row)
        return _json({**state, "check": _digest_of(state)})

    def _digest(self, started: CaptureStarted, agreement: Agreement) -> str:
        options = self._options
        source: Any = "tokens"
        if isinstance(options.source, Dataset):
            assert agreement.dataset is not None
            source = {**dataclasses.asdict(options.source), "name": agreement.dataset.fingerprint}
        selection = None if options.selection is None else dataclasses.asdict(options.selection)
        return _digest_of(
            {
                "fingerprint": started.fingerprint,
                "source": source,
                "hook_points": [(point.name, point.width, point.max_activations) for point in started.hook_points],
                "dtype": started.dtype,
                "top_k": started.top_k,
                "selection": selection,
                "deterministic": options.deterministic,
            }
        )


def _first_place(options: CaptureOptions) -> int:
    return options.source.skip_sequences if isinstance(options.source, Dataset) else 0


def _json(state: dict[str, Any]) -> bytes:
    return json.dumps(state, sort_keys=True, separators=(",", ":")).encode()


def _digest_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(_json(state)).hexdigest()[:32]


def _decoded(token: bytes) -> dict[str, Any]:
    def wrong(why: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"resume_token: {why}", field="resume_token")

    if not isinstance(token, bytes):
        raise TypeError(f"resume_token: {type(token).__name__} is not bytes; give the resume_token of a capture")
    try:
        state = json.loads(token) if len(token) <= MAX_TOKEN_BYTES else None
    except ValueError:
        state = None
    if not isinstance(state, dict) or "hookline_shared" not in state:
        raise wrong("is not from a capture over several servers; a single server's token is not accepted here")
    if state["hookline_shared"] != VERSION:
        raise wrong(f"has version {str(state['hookline_shared'])[:20]}; this client reads version {VERSION}")
    check = state.pop("check", None)
    numbers = [state.get(name) for name in _NUMBERS]
    is_whole = all(type(number) is int and number >= 0 for number in numbers)
    if check != _digest_of(state) or not is_whole or state["place_row"] > state["row"]:
        raise wrong("is damaged")
    return state
