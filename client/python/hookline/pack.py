"""Packs documents into a token dataset that a server reads: `hookline-server --dataset NAME=OUT`.

    python -m hookline.pack --tokenizer checkpoints/llama --packing saelens --context-size 1024 \\
        --begin-batch-token bos --out pile.npy documents.jsonl

writes `pile.npy` and beside it `pile.npy.json`, which records the tokenizer and the options. A run that was killed
continues if it is started again in the same way. Needs `pip install hookline[pack]`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from hookline._documents import paths_of, read_documents
from hookline._packings import Packing, PadOrTruncate, Plain, SaeLens, Sparsify
from hookline._tokenizer import LocalTokenizer

PACKINGS = ("plain", "saelens", "sparsify", "dictionary_learning")
# The size of the tasks that processes are given: large enough that handing a task over costs little.
_TASK_CHARACTERS = 1 << 18
_TASK_DOCUMENTS = 1024
# The tasks per process that are being encoded or wait; this bounds the memory.
_TASKS_PER_PROCESS = 3
# The tasks between two notes of the run's progress. A run that is killed repeats at most these.
_TASKS_PER_NOTE = 32
# The size of NumPy's header here. It is fixed, so that the header can be rewritten with the final shape.
_HEADER_BYTES = 128
_COPY_BYTES = 1 << 20

_worker_tokenizer: LocalTokenizer | None = None


def _start_worker(path: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes, not threads, share the work
    _worker_tokenizer = LocalTokenizer(path)


def _encode(texts: list[str]) -> list[Any]:
    assert _worker_tokenizer is not None
    return _worker_tokenizer.encode(texts)


class _Encoders:
    """Encodes tasks in several processes and returns them in order, with a bounded number in progress."""

    def __init__(self, path: pathlib.Path, processes: int) -> None:
        self._processes = processes
        self._pool: Any = None
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = context.Pool(processes, _start_worker, (str(path),))
        else:
            _start_worker(str(path))

    def run(self, tasks: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[Any]]]:
        if self._pool is None:
            for documents, texts in tasks:
                yield documents, _encode(texts)
            return
        waiting: collections.deque[tuple[int, Any]] = collections.deque()
        for documents, texts in tasks:
            waiting.append((documents, self._pool.apply_async(_encode, (texts,))))
            if len(waiting) >= self._processes * _TASKS_PER_PROCESS:
                done, result = waiting.popleft()
                yield done, result.get()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.get()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()


def _tasks(texts: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    task: list[str] = []
    characters = 0
    for text in texts:
        task.append(text)
        characters += len(text)
        if characters >= _TASK_CHARACTERS or len(task) >= _TASK_DOCUMENTS:
            yield len(task), task
            task, characters = [], 0
    if task:
        yield len(task), task


def _joined_tasks(texts: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Makes sparsify's tasks: some documents as one text, each preceded by a separator."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == Sparsify.DOCUMENTS:
            yield len(batch), [separator.join(["", *batch])]
            batch = []
    if batch:
        yield len(batch), [separator.join(["", *batch])]


class _Output:
    """A growing `.npy` file of rows, or of a stream of tokens."""

    def __init__(self, path: pathlib.Path, dtype: Any, row_length: int, tokens: int) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.row_length = row_length
        self.tokens = tokens
        self._file = open(path, "r+b" if path.exists() else "w+b")
        self._file.truncate(_HEADER_BYTES + tokens * self.dtype.itemsize)
        self._file.seek(0, os.SEEK_END)

    def write(self, ids: Any) -> None:
        self._file.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> str:
        """Writes the header, and returns the XXH3-128 of the tokens."""
        shape = f"({self.tokens // self.row_length}, {self.row_length})" if self.row_length else f"({self.tokens},)"
        form = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
        start = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(start + form.encode().ljust(_HEADER_BYTES - 11) + b"\n")
        self.sync()
        digest = xxhash.xxh3_128()
        self._file.seek(_HEADER_BYTES)
        while piece := self._file.read(_COPY_BYTES):
            digest.update(piece)
        self.close()
        return digest.hexdigest()

    def close(self) -> None:
        self._file.close()


def _make_packing(
    name: str, options: dict[str, Any], tokenizer: LocalTokenizer
) -> tuple[Packing, list[int], list[int]]:
    """Returns the packing, and the token ids to put before and after each document."""
    token = tokenizer.token_id
    before, after = (tokenizer.before, tokenizer.after) if options["add_special_tokens"] else ([], [])
    size = options["context_size"]
    if name == "plain":
        return Plain(token(options["separator_token"])), before, after
    if size is None or size < 1:
        raise ValueError(f"context_size: {name} needs a row length of 1 or more, not {size}")
    if name == "saelens":
        packing = SaeLens(
            size,
            token(options["begin_batch_token"]),
            token(options["begin_sequence_token"]),
            token(options["separator_token"]),
            not options["disable_concat_sequences"],
        )
        return packing, before, after
    if name == "sparsify":
        return Sparsify(size, before, after), [], []
    pad = options["pad_token"]
    if pad is None:
        pad = next((role for role in ("pad", "eos") if tokenizer.spelling(role) is not None), None)
    if pad is None:
        raise ValueError("pad_token: the tokenizer has neither a pad nor an eos token; give one")
    pad_id = token(pad)
    assert pad_id is not None
    return PadOrTruncate(size, pad_id, before, after), [], []


class _Run:
    """A dataset that is being written, and the note of its progress."""

    def __init__(self, out: pathlib.Path, packing: Packing, identity: str, dtype: Any, masked: bool) -> None:
        self._out = out
        self._packing = packing
        self._identity = identity
        self._note = out.with_name(out.name + ".partial.json")
        state = self._read_note()
        self.documents = int(state["documents"])
        packing.restore(state["packing"])
        self.output = _Output(out.with_name(out.name + ".partial"), dtype, packing.row_length, int(state["tokens"]))
        self._mask: _Output | None = None
        self.mask_name: str | None = None
        if masked:
            self.mask_name = out.name.removesuffix(".npy") + ".mask.npy"
            path = out.with_name(self.mask_name + ".partial")
            self._mask = _Output(path, np.uint8, packing.row_length, int(state["tokens"]))

    def _read_note(self) -> dict[str, Any]:
        if not self._note.exists():
            return {"documents": 0, "tokens": 0, "packing": self._packing.state()}
        state = dict(json.loads(self._note.read_text()))
        if state["identity"] != self._identity:
            raise ValueError(
                f"{self._note}: a run with other options, documents or another tokenizer was started here; start it "
                "again in the same way, or remove this file"
            )
        return state

    def add(self, ids: Any) -> None:
        for row in self._packing.add(ids):
            self.output.write(row)
            if self._mask is not None and isinstance(self._packing, PadOrTruncate):
                self._mask.write((np.arange(len(row)) < self._packing.filled).astype(np.uint8))

    def note(self) -> None:
        """Notes the progress: a run that is killed later continues from here."""
        self.output.sync()
        if self._mask is not None:
            self._mask.sync()
        state = {
            "identity": self._identity,
            "documents": self.documents,
            "tokens": self.output.tokens,
            "packing": self._packing.state(),
        }
        beside = self._note.with_name(self._note.name + ".new")
        beside.write_text(json.dumps(state))
        os.replace(beside, self._note)

    def finish(self, sidecar: dict[str, Any]) -> dict[str, Any]:
        if self.output.tokens == 0:
            raise ValueError(f"{self._out}: the documents fill no row; give more, or a smaller context_size")
        sidecar = {**sidecar, "documents": self.documents, "tokens": self.output.tokens}
        sidecar["checksum"] = self.output.finish()
        if self._mask is not None and self.mask_name is not None:
            sidecar["mask"] = self.mask_name
            sidecar["mask_checksum"] = self._mask.finish()
            os.replace(self._mask.path, self._out.with_name(self.mask_name))
        # The sidecar is put in place first, so that no dataset is without one; a server compares the two.
        described = self._out.with_name(self._out.name + ".json")
        beside = described.with_name(described.name + ".new")
        beside.write_text(json.dumps(sidecar, indent=1) + "\n")
        os.replace(beside, described)
        os.replace(self.output.path, self._out)
        self._note.unlink(missing_ok=True)
        return sidecar

    def close(self) -> None:
        self.output.close()
        if self._mask is not None:
            self._mask.close()


def pack(
    documents: Any,
    tokenizer: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    packing: str = "plain",
    context_size: int | None = None,
    add_special_tokens: bool | None = None,
    begin_batch_token: int | str | None = None,
    begin_sequence_token: int | str | None = None,
    separator_token: int | str | None = None,
    disable_concat_sequences: bool = False,
    pad_token: int | str | None = None,
    field: str = "text",
    processes: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Packs documents into `out`, a `.npy`. Returns the sidecar that is written beside it.

    documents: a `.txt` (one document per line), `.jsonl`, `.parquet` or `.arrow` file, a directory that `datasets` has
        saved, a list of such paths as `pathlib.Path`, or an iterable of texts or of dicts that hold them.
    tokenizer: a model's directory, a `tokenizer.json`, or nanochat's `tokenizer.pkl`.
    packing: "plain": all tokens as a stream, `separator_token` after each document; "saelens": SAELens's
        `concat_and_batch_sequences`; "sparsify": sparsify's `chunk_and_tokenize` with one process;
        "dictionary_learning": one row per document, cut or padded with `pad_token`, and a second dataset `.mask.npy`.
    context_size: the tokens in a row; needed for all packings but "plain".
    add_special_tokens: whether documents (for sparsify and dictionary_learning: rows) get the tokenizer's special
        tokens. None: False for "plain", True for the others.
    begin_batch_token, begin_sequence_token, separator_token, disable_concat_sequences: SAELens's options of these
        names. Tokens are "bos", "eos", a spelling or an id.
    processes: the number of processes that encode; the result does not depend on it.

    The same call continues a run that was killed, if documents come from files or from an iterable that yields the same
    again. ValueError if the arguments are not valid, or a different run was started at `out`.
    """
    if packing not in PACKINGS:
        raise ValueError(f"packing: {packing!r} is not one of {', '.join(PACKINGS)}")
    local = LocalTokenizer(tokenizer)
    options = {
        "context_size": context_size,
        "add_special_tokens": packing != "plain" if add_special_tokens is None else add_special_tokens,
        "begin_batch_token": begin_batch_token,
        "begin_sequence_token": begin_sequence_token,
        "separator_token": separator_token,
        "disable_concat_sequences": disable_concat_sequences,
        "pad_token": pad_token,
        "field": field,
    }
    packer, before, after = _make_packing(packing, options, local)
    paths = paths_of(documents)
    sources = [] if paths is None else [[str(path), path.stat().st_size] for path in paths]
    sidecar = {
        "format": 1,
        "tokenizer": {"fingerprint": local.fingerprint, "file": local.path.name},
        "packing": packing,
        "options": {name: value for name, value in options.items() if value is not None},
    }
    identity = xxhash.xxh3_128_hexdigest(json.dumps([sidecar, sources]).encode())
    dtype = np.uint16 if local.end_id <= 1 << 16 else np.uint32
    out = pathlib.Path(out)
    run = _Run(out, packer, identity, dtype, packing == "dictionary_learning")
    encoders = _Encoders(local.path, processes)
    bar = _bar(run.documents) if progress else None
    try:
        texts = read_documents(documents, field)
        for _ in range(run.documents):
            next(texts, None)
        tasks = (
            _joined_tasks(texts, local.spelling("eos") or "<|endoftext|>") if packing == "sparsify" else _tasks(texts)
        )
        around = (np.array(before, np.uint32), np.array(after, np.uint32))
        for number, (count, encoded) in enumerate(encoders.run(tasks), start=1):
            for ids in encoded:
                run.add(np.concatenate([around[0], ids, around[1]]) if before or after else ids)
            run.documents += count
            if number % _TASKS_PER_NOTE == 0:
                run.note()
            if bar is not None:
                bar.update(count)
        return run.finish(sidecar)
    finally:
        encoders.close()
        run.close()
        if bar is not None:
            bar.close()


def _bar(done: int) -> Any:
    with contextlib.suppress(ImportError):
        import tqdm

        return tqdm.tqdm(unit=" documents", initial=done)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m hookline.pack", description="Packs documents into a token dataset.")
    parser.add_argument(
        "documents", nargs="+", type=pathlib.Path, help=".txt, .jsonl, .parquet, .arrow, or a directory"
    )
    parser.add_argument("--tokenizer", required=True, help="a model's directory, a tokenizer.json or a tokenizer.pkl")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the dataset, a .npy")
    parser.add_argument("--packing", choices=PACKINGS, default="plain")
    parser.add_argument("--context-size", type=int, help="tokens in a row")
    special = parser.add_mutually_exclusive_group()
    special.add_argument("--add-special-tokens", dest="add_special_tokens", action="store_true", default=None)
    special.add_argument("--no-special-tokens", dest="add_special_tokens", action="store_false", default=None)
    parser.add_argument("--begin-batch-token", help="at the beginning of each row: bos, eos, a spelling or an id")
    parser.add_argument("--begin-sequence-token", help="at the beginning of each document")
    parser.add_argument("--separator-token", help="between documents; plain: after each")
    parser.add_argument(
        "--disable-concat-sequences", action="store_true", help="make one row per document, without short documents"
    )
    parser.add_argument("--pad-token", help="dictionary_learning: the token that fills short rows [pad, else eos]")
    parser.add_argument("--field", default="text", help="the field or column that holds the text [text]")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    flags = vars(parser.parse_args(arguments))
    quiet = flags.pop("quiet")
    try:
        sidecar = pack(**flags, progress=not quiet)
    except (ValueError, OSError, ImportError) as error:
        print(f"hookline.pack: {error}", file=sys.stderr)
        return 1
    print(f"{flags['out']}: {sidecar['tokens']} tokens of {sidecar['documents']} documents", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
