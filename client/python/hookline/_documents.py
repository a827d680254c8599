"""Reads documents for `hookline.pack`, from files or from any iterable."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

# The endings of Arrow files, which are memory-mapped and read batch by batch.
_ARROW_ENDINGS = (".arrow", ".feather")


def _pyarrow(path: pathlib.Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ImportError(f"{path}: pip install pyarrow to read Parquet and Arrow files") from None
    return pyarrow


def _text_of(value: Any, field: str, where: str) -> str:
    if isinstance(value, dict):
        if field not in value:
            raise ValueError(f"{where}: has no field {field!r}; it has {', '.join(map(repr, list(value)[:20]))}")
        value = value[field]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field!r} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
        raise ValueError(f"{where}: {field!r} is not Unicode text: {error}") from None
    return value


def _lines(path: pathlib.Path) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            text = line.rstrip("\r\n")
            if text:
                yield text


def _json_lines(path: pathlib.Path, field: str) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: is not JSON: {error}") from None
            if not isinstance(value, dict):
                raise ValueError(f"{where}: is {type(value).__name__}, not an object")
            yield _text_of(value, field, where)


def _column(batch: Any, field: str, path: pathlib.Path) -> Iterator[str]:
    if field not in batch.schema.names:
        raise ValueError(f"{path}: has no column {field!r}; it has {', '.join(batch.schema.names)}")
    for value in batch.column(batch.schema.get_field_index(field)).to_pylist():
        yield _text_of(value, field, str(path))


def _parquet(path: pathlib.Path, field: str) -> Iterator[str]:
    _pyarrow(path)
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
        yield from _column(batch, field, path)


def _arrow(path: pathlib.Path, field: str) -> Iterator[str]:
    arrow = _pyarrow(path)
    with arrow.memory_map(str(path)) as source:
        try:
            batches: Iterable[Any] = arrow.ipc.open_stream(source)
        except arrow.ArrowInvalid:
            file = arrow.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        for batch in batches:
            yield from _column(batch, field, path)


def _dataset_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that `datasets.Dataset.save_to_disk` wrote to a folder, in order."""
    state = folder / "state.json"
    if not state.exists():
        splits = folder / "dataset_dict.json"
        what = f"give one of its splits, such as {folder}/train" if splits.exists() else "it has no state.json"
        raise ValueError(f"{folder}: is not a dataset that `datasets` has saved; {what}")
    listed = json.loads(state.read_text())
    if listed.get("_indices_files"):
        raise ValueError(f"{folder}: its rows are selected by an index; call flatten_indices() and save it again")
    return [folder / file["filename"] for file in listed["_data_files"]]


def _of_path(path: pathlib.Path, field: str) -> Iterator[str]:
    if path.is_dir():
        for file in _dataset_files(path):
            yield from _arrow(file, field)
    elif path.suffix == ".txt":
        yield from _lines(path)
    elif path.suffix in (".jsonl", ".json"):
        yield from _json_lines(path, field)
    elif path.suffix == ".parquet":
        yield from _parquet(path, field)
    elif path.suffix in _ARROW_ENDINGS:
        yield from _arrow(path, field)
    else:
        raise ValueError(f"{path}: give .txt, .jsonl, .parquet, .arrow, or a directory that `datasets` has saved")


def is_path(documents: Any) -> bool:
    return isinstance(documents, (str, pathlib.Path))


def paths_of(documents: Any) -> list[pathlib.Path] | None:
    """Returns the files that documents come from; None if they come from an iterable."""
    listed = [documents] if is_path(documents) else documents
    if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(one, pathlib.Path) for one in listed):
        if not is_path(documents):
            return None
    paths = [pathlib.Path(one) for one in listed]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory")
    return paths


def read_documents(documents: Any, field: str) -> Iterator[str]:
    """Yields the texts of a path, of several (`pathlib.Path`s in a list), or of an iterable of texts or dicts
    with texts."""
    paths = paths_of(documents)
    if paths is not None:
        for path in paths:
            yield from _of_path(path, field)
        return
    for index, value in enumerate(documents):
        yield _text_of(value, field, f"document {index}")
