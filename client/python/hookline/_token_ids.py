"""Converts token ids from the forms in which users hold them to sequences.

A form that can be read in two ways, such as two one-dimensional tensors that can be two sequences or a sequence and
its targets, is refused, and the error says how to write each of them: a trainer must not get rows that the user did
not mean.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from itertools import islice
from typing import Any, Callable, NamedTuple, Union

import numpy as np

from hookline.types import LARGEST_ID

Ids = Union[list[int], "np.ndarray[Any, Any]"]

# The names under which a dict can hold its ids; the first that is there counts.
_ID_KEYS = ("input_ids", "idx", "tokens")
_MASK_KEY = "attention_mask"
# The least number of ids to compare with targets: fewer can match by chance.
_LEAST_COMPARED = 8

_log = logging.getLogger("hookline")
_told_lock = threading.Lock()
_told: set[str] = set()  # the names that were logged; guarded by _told_lock


class TokenBatch(NamedTuple):
    """Sequences, and a function that says where in the source a sequence is: `place(index)`."""

    sequences: list[Ids]
    place: Callable[[int], str]


class Sequences(list[Ids]):
    """The sequences of a batch. `rows` is each sequence's row in the batch; None if no row was left out."""

    rows: list[int] | None = None

    def row(self, index: int) -> int:
        return index if self.rows is None else self.rows[index]


def _tell_once(message: str, names: Sequence[str]) -> None:
    """Logs a warning with those of the names that were not logged before in this process."""
    with _told_lock:
        new = [name for name in names if name not in _told]
        _told.update(new)
    if new:
        _log.warning(message, ", ".join(new))


def _tell_left_out(names: Sequence[str]) -> None:
    """Logs that these parts of a batch are not used."""
    _tell_once("hookline uses the token ids and the attention_mask of a batch; left out: %s", names)


def tell_without_bos(what: str) -> None:
    """Logs that sequences do not begin with BOS, although models are usually trained on sequences that do."""
    _tell_once(
        "%s: the sequences do not all begin with the same token, as they would with BOS, and the first positions of "
        "sequences without BOS have unusual activations; put BOS first (prepend_token_id of a Dataset), or leave these "
        "positions out (Selection.skip_first)",
        [what],
    )


def as_array(value: Any, where: str) -> Any:
    """Converts torch tensors, and whatever numpy reads, to a numpy array, and nested tensors to a list. Returns other
    values as they are."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        if getattr(value, "is_nested", False):
            return [row.detach().cpu().numpy() for row in value.unbind()]
        layout = str(getattr(value, "layout", "torch.strided"))
        if layout != "torch.strided":
            raise TypeError(f"{where}: token ids in a tensor of layout {layout}; give tensor.to_dense()")
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            raise TypeError(f"{where}: token ids are integers, not {value.dtype}")
        return value.numpy()
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{where}: a masked array; give its data as input_ids and ~mask as attention_mask of a dict")
    if not isinstance(value, np.ndarray):
        if hasattr(value, "__array__") and not np.isscalar(value):
            value = np.asarray(value)
        else:
            return value
    if value.dtype != object:
        return value
    if value.ndim > 1 and value.size and not _is_id(value.flat[0]):
        raise TypeError(
            f"{where}: a table of {value.shape[1]} columns; give the column of the ids, or a dict of columns"
        )
    return value.tolist()


def _checked_array(array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    if array.dtype.kind not in "iu":
        raise TypeError(f"{where}: token ids are integers, not {array.dtype}")
    wrong = (array < 0) | (array > LARGEST_ID) if array.dtype.itemsize > 4 or array.dtype.kind == "i" else None
    if wrong is not None and wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{where}{list(place)}: {array[place]} is not a token id (0 to {LARGEST_ID})")
    if array.shape == (0,) or (array.ndim == 2 and array.shape[0] > 0 and array.shape[1] == 0):
        raise ValueError(
            f"{where}: has shape {array.shape}, but a sequence has at least one token; leave out empty ones"
        )
    return array


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) or (getattr(value, "ndim", None) == 0 and hasattr(value, "item"))


def _checked_ids(sequence: Any, where: str) -> Ids:
    value = as_array(sequence, where)
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise TypeError(f"{where}: a sequence has one dimension, not {value.ndim}")
        return _checked_array(value, where)
    if isinstance(value, str):
        raise TypeError(f"{where}: text, not token ids; tokenize it first")
    if not isinstance(value, (list, tuple, range)):
        raise TypeError(f"{where}: {type(sequence).__name__} is not a sequence of token ids")
    if len(value) == 0:
        raise ValueError(f"{where}: is empty, but a sequence has at least one token; leave out empty ones")
    ids: list[int] = []
    for position, token in enumerate(value):
        token = token.item() if not isinstance(token, (int, np.integer)) and _is_id(token) else token
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool):
            raise TypeError(f"{where}[{position}]: token ids are integers, not {type(token).__name__}")
        if not 0 <= token <= LARGEST_ID:
            raise ValueError(f"{where}[{position}]: {token} is not a token id (0 to {LARGEST_ID})")
        ids.append(int(token))
    return ids


def is_table(value: Any) -> bool:
    """Returns whether a value is a tensor or array of two dimensions, with one sequence per row."""
    return getattr(value, "ndim", 0) == 2 and not getattr(value, "is_nested", False)


def is_dict(value: Any) -> bool:
    """Returns whether a value has named parts: a dict or the like, a named tuple, or an Arrow table."""
    if hasattr(value, "keys"):
        return hasattr(value, "__getitem__") and not hasattr(value, "tolist")
    return hasattr(value, "to_pydict") or any(key in getattr(value, "_fields", ()) for key in _ID_KEYS)


def _by_name(value: Any) -> Any:
    """Converts a value for which `is_dict` is true to a dict or the like."""
    if hasattr(value, "keys"):
        return value
    return value.to_pydict() if hasattr(value, "to_pydict") else value._asdict()


def _is_line(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 1


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")


def _holds_lists(value: Any) -> bool:
    """Returns whether a list's first member is itself a sequence, as in [[1, 2], [3]]."""
    return isinstance(value, (list, tuple)) and bool(value) and not _is_id(value[0]) and not isinstance(value[0], str)


def holds_sequences(value: Any) -> bool:
    """Returns whether a member of a list is itself a batch, rather than a sequence or a token id."""
    return is_table(value) or is_dict(value) or _holds_lists(value) or bool(getattr(value, "is_nested", False))


def is_one_batch(source: Sequence[Any]) -> bool:
    """Returns whether a list or tuple whose first member is a batch is that batch with its targets and labels, as a
    loader yields it, rather than a list of batches. TypeError if it can be either."""
    first, others = source[0], source[1:]
    if is_dict(first):
        return not all(map(is_dict, others))
    if is_table(first) and others and not any(map(holds_sequences, others)):
        return True
    may_be = isinstance(source, tuple) and len(source) > 1
    if is_table(first) and len(source) in (2, 3):
        may_be = may_be or any(_looks_like_mask(other, first) or _looks_like_targets(other, first) for other in others)
    if may_be:
        raise TypeError(
            f"source: {len(source)} members can be batches, or a batch with its targets and mask. Give iter(source) "
            "for batches, source[0] for the first alone, a dict with input_ids and attention_mask for ids with a mask"
        )
    return False


def _samples(batch: Sequence[Any], where: str) -> Sequences:
    """Returns the sequences of a list of dicts with one sequence each, as loaders yield that do not collate."""
    sequences = Sequences()
    sequences.rows = []
    for index, sample in enumerate(batch):
        one = _dict_sequences(sample, f"{where}[{index}]")
        if len(batch) > 1 and (len(one) > 1 or isinstance(batch, tuple)):
            raise TypeError(
                f"{where}: {len(batch)} dicts with token ids can be samples, or inputs with their targets; give a list "
                "of dicts of one sequence each for samples, the first dict alone for inputs"
            )
        sequences.extend(one)
        sequences.rows.extend(index if len(batch) > 1 else row for row in map(one.row, range(len(one))))
    return sequences


def _first_member(batch: Sequence[Any], where: str) -> Sequences:
    """Returns the sequences in the first member of a batch whose other members are, for example, targets."""
    first, others = batch[0], batch[1:]
    sequences = batch_sequences(first, where + "[0]")
    for index, other in enumerate(others, 1):
        are_lists = _holds_lists(other) and not is_table(first)
        if (are_lists and [len(ids) for ids in sequences] != list(map(len, other))) or (
            is_table(first) and is_table(other) and len(other) != len(first)
        ):
            raise ValueError(
                f"{where}[{index}]: cannot hold the targets of {where}[0], whose sequences have other lengths, and is "
                "not read as more sequences; give the batches one by one, or a flat list of sequences"
            )
        if is_table(first) and _looks_like_mask(other, first):
            raise ValueError(
                f"{where}[{index}]: looks like an attention_mask, but a tuple or list does not name its members; give "
                '{"input_ids": ids, "attention_mask": mask}, so that padding is left out'
            )
    if others:
        _tell_left_out([f"member {index} of a {type(batch).__name__}" for index in range(1, len(batch))])
    return sequences


def _looks_like_mask(value: Any, ids: Any) -> bool:
    """Returns whether a tensor beside ids of the same shape holds only 0 and 1, while the ids do not."""
    if not is_table(value) or tuple(value.shape) != tuple(ids.shape):
        return False
    mask, table = as_array(value, "batch"), as_array(ids, "batch")
    return bool((mask == 0).any() and ((mask == 0) | (mask == 1)).all() and (table > 1).any())


def _looks_like_targets(value: Any, ids: Any) -> bool:
    """Returns whether a tensor beside ids holds the same ids, one position ahead."""
    if not is_table(value) or tuple(value.shape) != tuple(ids.shape):
        return False
    following, table = as_array(value, "batch"), as_array(ids, "batch")
    compared = table[:, 1:]
    is_chance = compared.size < _LEAST_COMPARED or bool((following == table).all())
    return not is_chance and bool((following[:, :-1] == compared).all())


def _is_aside(value: Any) -> bool:
    """Returns whether a member beside a sequence cannot itself be a sequence: None, a label or a text."""
    return value is None or isinstance(value, (str, bytes, float)) or _is_id(value)


def _refuse_two_readings(batch: Sequence[Any], where: str) -> None:
    """Raises TypeError if a batch of one-dimensional members can be read in more than one way."""
    if not isinstance(batch, tuple) and not _is_tensor(batch[0]):
        return
    members = [member for member in batch if not _is_aside(member)]
    lengths = list(map(len, members))
    if len(members) < 2:
        return
    is_equal = len(set(lengths)) == 1
    if isinstance(batch, tuple):  # a tuple usually holds the parts of one sample
        may_be = is_equal or len(members) == 2
    else:  # loaders collate tuples to lists, and their members to tensors
        may_be = is_equal and all(_is_line(member) and _is_tensor(member) for member in batch)
    if may_be:
        raise TypeError(
            f"{where}: {len(members)} members of {' and '.join(map(str, sorted(set(lengths))))} ids each can be "
            "sequences, a sequence with its targets, or the transposed lists that torch's default_collate makes of "
            "lists. Give torch.stack(batch) or list(batch) of lists for sequences, torch.stack(batch, dim=1) for "
            "transposed lists (or let the dataset return tensors, set_format('torch')), batch[:1] for the first alone"
        )


def batch_sequences(batch: Any, where: str = "batch") -> Sequences:
    """Returns the token sequences of one batch, as a loader yields it or a model is called with it.

    A tensor or array of two dimensions has one sequence per row, one of one dimension is one sequence, and a nested
    tensor has one sequence in each component. A dict, a named tuple or an Arrow table has them under `input_ids`, `idx`
    or `tokens`; if it has an `attention_mask`, masked tokens are left out. A list or tuple is one of these:

    - a batch whose first member is a tensor of two dimensions or a list of sequences, with further members, such as
      targets, which are left out;
    - a list of sequences, or of dicts with one sequence each;
    - a list of token ids, which is one sequence.

    `where` names the batch in errors.
    """
    if is_dict(batch):
        return _dict_sequences(batch, where)
    if isinstance(batch, str):
        raise TypeError(f"{where}: text, not token ids; tokenize it first")
    value = as_array(batch, where)
    if isinstance(value, np.ndarray):
        if value.ndim not in (1, 2):
            raise TypeError(f"{where}: token ids have one or two dimensions, not {value.ndim}: shape {value.shape}")
        checked = _checked_array(value, where)
        return Sequences([checked] if value.ndim == 1 else checked)
    if hasattr(value, "keys") and hasattr(value, "tolist"):  # a column of a table
        value = value.tolist()
    if not isinstance(value, (list, tuple, range)):
        raise TypeError(f"{where}: {type(batch).__name__} holds no token ids")
    if len(value) == 0:
        return Sequences()
    first = value[0]
    if holds_sequences(first):
        return _samples(value, where) if all(map(_holds_ids, value)) else _first_member(value, where)
    if _is_id(first) or isinstance(first, float):
        return Sequences([_checked_ids(value, where)])
    is_sequence = _is_line(first) or isinstance(first, (list, tuple))
    if is_sequence and len(value) > 1 and all(map(_is_aside, islice(value, 1, None))):
        _tell_left_out([f"member {index} of a batch beside its ids" for index in range(1, len(value))])
        return Sequences([_checked_ids(first, f"{where}[0]")])
    if isinstance(batch, (list, tuple)) and is_sequence:
        _refuse_two_readings(batch, where)
    return list_sequences(value, where)


def list_sequences(value: Sequence[Any], where: str) -> Sequences:
    """Returns the members of a list, each of which is a sequence."""
    return Sequences(_checked_ids(sequence, f"{where}[{index}]") for index, sequence in enumerate(value))


def _holds_ids(value: Any) -> bool:
    """Returns whether a value is a dict, or the like, with token ids."""
    return is_dict(value) and any(key in _by_name(value) for key in _ID_KEYS)


def _dict_sequences(batch: Any, where: str) -> Sequences:
    batch = _by_name(batch)
    key = next((key for key in _ID_KEYS if key in batch), None)
    names = sorted(map(str, batch.keys()))
    if key is None:
        raise TypeError(f"{where}: a dict holds token ids as {', '.join(_ID_KEYS)}; this one has {names}")
    others = [name for name in names if name not in (key, _MASK_KEY) and batch[name] is not None]
    if others:
        _tell_left_out(others)
    sequences = batch_sequences(batch[key], f"{where}.{key}")
    mask = batch[_MASK_KEY] if _MASK_KEY in batch else None
    return sequences if mask is None else _unmasked(sequences, mask, f"{where}.{_MASK_KEY}")


def _unmasked(sequences: Sequences, mask: Any, where: str) -> Sequences:
    """Returns the sequences without the tokens that the mask marks as padding, and without sequences of
    padding only."""
    rows = as_array(mask, where)
    if isinstance(rows, np.ndarray):
        if rows.ndim not in (1, 2):
            raise ValueError(f"{where}: has shape {rows.shape}; expected the shape of the ids, one entry per token")
        rows = [rows] if rows.ndim == 1 else list(rows)
    elif isinstance(rows, (list, tuple)) and rows and _is_id(rows[0]):
        rows = [rows]
    if not isinstance(rows, (list, tuple)) or len(rows) != len(sequences):
        held = len(rows) if isinstance(rows, (list, tuple)) else type(mask).__name__
        raise ValueError(f"{where}: {held} rows beside {len(sequences)} sequences; expected one entry per token")
    kept = Sequences()
    kept.rows = []
    for index, (ids, row) in enumerate(zip(sequences, rows)):
        first, end = _kept_range(as_array(row, where), len(ids), f"{where}[{index}]")
        if first < end:
            kept.append(ids if end - first == len(ids) else ids[first:end])
            kept.rows.append(index)
    return kept


def _kept_range(row: Any, length: int, where: str) -> tuple[int, int]:
    """Returns the position of the first token that a row of a mask keeps, and the position after the last."""
    entries = np.asarray(row)
    if entries.shape != (length,):
        raise ValueError(f"{where}: has shape {entries.shape} for {length} token ids; expected one entry per token")
    if entries.dtype.kind not in "biuf" or not ((entries == 0) | (entries == 1)).all():
        raise ValueError(
            f"{where}: holds values other than 0 and 1; packed sequences and additive masks are not supported"
        )
    places = np.flatnonzero(entries)
    if len(places) == 0:
        return 0, 0
    first, end = int(places[0]), int(places[-1]) + 1
    if end - first != len(places):
        hole = first + int(np.argmin(entries[first:end]))
        raise ValueError(
            f"{where}: masks position {hole} between tokens that it keeps; padding must be before or after a sequence"
        )
    return first, end
