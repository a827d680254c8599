"""Tests `hookline.pack`: rows are the same whatever the processes and interruptions, and a sidecar describes them."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import xxhash

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Python's own tokenizers, which deploy/install-dependencies puts into .venv.
LIBRARIES = [str(path) for path in sorted((ROOT / ".venv/lib").glob("python3.*/site-packages"))]
sys.path.extend(LIBRARIES)

from hookline import pack  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures"
GPT2 = FIXTURES / "tokenizers" / "gpt2"
NANOCHAT = FIXTURES / "tokenizers" / "nanochat"


def ids_of(name):
    """Returns the ids without special tokens by text, as recorded from Python's tokenizers and tiktoken."""
    recorded = json.loads((FIXTURES / "tokenizers" / name / "expected.json").read_text())
    return {one["text"]: one["plain_ids"] for one in recorded}


def test_plain_is_the_tokens_of_all_documents(tmp_path):
    ids = ids_of("nanochat")
    pack.pack(list(ids), NANOCHAT, tmp_path / "out.npy", separator_token="bos")
    bos = np.load(tmp_path / "out.npy")[len(next(iter(ids.values())))]
    expected = [token for document in ids.values() for token in [*document, bos]]
    assert np.load(tmp_path / "out.npy").tolist() == expected


def documents(count):
    texts = [text for text in ids_of("gpt2") if text.strip()]
    return [f"{index} {texts[index % len(texts)]}" for index in range(count)]


def test_the_sidecar_tells_the_tokenizer_the_options_and_a_checksum(tmp_path):
    out = tmp_path / "out.npy"
    sidecar = pack.pack(documents(50), GPT2, out, packing="saelens", context_size=16, begin_batch_token="bos")
    assert json.loads((tmp_path / "out.npy.json").read_text()) == sidecar
    rows = np.load(out)
    assert rows.dtype == np.uint16 and rows.shape[1] == 16 and set(rows[:, 0]) == {rows[0, 0]}
    assert sidecar["tokenizer"]["fingerprint"] == xxhash.xxh3_128_hexdigest((GPT2 / "tokenizer.json").read_bytes())
    assert sidecar["checksum"] == xxhash.xxh3_128_hexdigest(rows.tobytes())
    assert (sidecar["documents"], sidecar["tokens"], sidecar["packing"]) == (50, rows.size, "saelens")
    assert sidecar["options"]["begin_batch_token"] == "bos"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "out.npy.json"]


def test_processes_change_nothing_but_speed(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_TASK_DOCUMENTS", 7)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "client" / "python"), *LIBRARIES]))
    for processes in (1, 2):
        out = tmp_path / f"{processes}.npy"
        pack.pack(documents(100), GPT2, out, packing="saelens", context_size=8, processes=processes)
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


@pytest.mark.parametrize("packing", ["plain", "saelens", "dictionary_learning"])
def test_a_run_that_was_killed_goes_on_where_it_was(packing, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_TASK_DOCUMENTS", 5)
    monkeypatch.setattr(pack, "_TASKS_PER_NOTE", 3)
    texts = documents(100)
    options = {"packing": packing, "context_size": 16}
    pack.pack(texts, GPT2, tmp_path / "whole.npy", **options)

    class Killed(Exception):
        pass

    def killed_after(count):
        yield from texts[:count]
        raise Killed

    out = tmp_path / "out.npy"
    for count in (23, 61, 62):
        with pytest.raises(Killed):
            pack.pack(killed_after(count), GPT2, out, **options)
        assert not out.exists()
    read = iter(texts)
    pack.pack(read, GPT2, out, **options)
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_another_run_at_the_same_place_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "_TASKS_PER_NOTE", 1)
    monkeypatch.setattr(pack, "_TASK_DOCUMENTS", 1)

    def broken():
        yield "abc"
        yield 5

    with pytest.raises(ValueError, match="document 1: 'text' is int, not text"):
        pack.pack(broken(), GPT2, tmp_path / "out.npy")
    with pytest.raises(ValueError, match="other options"):
        pack.pack(["abc"], GPT2, tmp_path / "out.npy", separator_token="eos")


def test_documents_come_from_files_of_each_kind(tmp_path):
    texts = documents(20)
    (tmp_path / "a.txt").write_text("\n".join(text.replace("\n", " ") for text in texts) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    pack.pack(texts, GPT2, tmp_path / "list.npy")
    pack.pack(tmp_path / "a.jsonl", GPT2, tmp_path / "jsonl.npy", field="body")
    assert (tmp_path / "jsonl.npy").read_bytes() == (tmp_path / "list.npy").read_bytes()
    assert pack.pack(tmp_path / "a.txt", GPT2, tmp_path / "txt.npy")["documents"] == 20
    with pytest.raises(ValueError, match="line 1: has no field 'text'; it has 'body'"):
        pack.pack(tmp_path / "a.jsonl", GPT2, tmp_path / "other.npy")


def test_nul_is_text_and_half_a_surrogate_pair_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\u0000b"}\n')
    pack.pack(tmp_path / "a.jsonl", NANOCHAT, tmp_path / "out.npy")
    assert len(np.load(tmp_path / "out.npy")) == 3
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(ValueError, match="b.jsonl, line 2: 'text' is not Unicode text"):
        pack.pack(tmp_path / "b.jsonl", NANOCHAT, tmp_path / "other.npy")


def test_arrow_and_parquet_bring_the_same(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    texts = documents(20)
    table = arrow.table({"text": texts})
    parquet.write_table(table, tmp_path / "a.parquet")
    folder = tmp_path / "saved"
    folder.mkdir()
    with arrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    pack.pack(texts, GPT2, tmp_path / "list.npy")
    for source in (tmp_path / "a.parquet", folder):
        pack.pack(source, GPT2, tmp_path / "out.npy")
        assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "list.npy").read_bytes()


def test_one_command_packs(tmp_path):
    (tmp_path / "a.txt").write_text("The cat sat\non the mat\n")
    done = subprocess.run(
        [sys.executable, "-m", "hookline.pack", "--tokenizer", str(GPT2), "--out", str(tmp_path / "out.npy"),
         "--processes", "1", "--quiet", str(tmp_path / "a.txt")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "client" / "python"), *LIBRARIES])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of 2 documents" in done.stderr
    assert len(np.load(tmp_path / "out.npy")) > 4


def test_a_pickle_that_is_no_encoding_is_not_executed(tmp_path):
    (tmp_path / "tokenizer.pkl").write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "x").encode() + b"'\ntR.")
    with pytest.raises(Exception, match="posix.system"):
        pack.pack(["a"], tmp_path, tmp_path / "out.npy")
    assert not (tmp_path / "x").exists()
