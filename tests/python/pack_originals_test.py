"""Tests that the rows of `hookline.pack` are those of the originals of its packings, which
fixtures/packings/make_packings.py has recorded."""

import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Python's own tokenizers, which deploy/install-dependencies puts into .venv.
sys.path.extend(str(path) for path in sorted((ROOT / ".venv/lib").glob("python3.*/site-packages")))

from hookline import _packings, pack  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures"
EXPECTED = json.loads((FIXTURES / "packings" / "expected.json").read_text())
TEXTS = EXPECTED["texts"]


@pytest.mark.parametrize("case", EXPECTED["saelens"], ids=lambda case: str(list(case["options"].values())))
def test_saelens_rows_are_those_of_concat_and_batch_sequences(case):
    options = case["options"]
    packing = _packings.SaeLens(
        options["context_size"],
        options.get("begin_batch_token_id"),
        options.get("begin_sequence_token_id"),
        options.get("sequence_separator_token_id"),
        not options["disable_concat_sequences"],
    )
    rows = []
    for document in EXPECTED["documents"]:
        rows += [row.tolist() for row in packing.add(np.array(document, np.uint32))]
        again = packing.state()  # from which a restart continues
        packing.restore(json.loads(json.dumps(again)))
    assert rows == case["rows"]


@pytest.mark.parametrize("case", EXPECTED["sparsify"], ids=lambda case: case["tokenizer"])
def test_sparsify_rows_are_those_of_chunk_and_tokenize(case, tmp_path):
    out = tmp_path / "out.npy"
    tokenizer = FIXTURES / "tokenizers" / case["tokenizer"]
    pack.pack(TEXTS * case["repeat"], tokenizer, out, packing="sparsify", context_size=case["context_size"])
    assert np.load(out).tolist() == case["rows"]


@pytest.mark.parametrize("case", EXPECTED["dictionary_learning"], ids=lambda case: case["tokenizer"])
def test_padded_rows_are_those_of_dictionary_learning(case, tmp_path):
    out = tmp_path / "out.npy"
    tokenizer = FIXTURES / "tokenizers" / case["tokenizer"]
    sidecar = pack.pack(TEXTS, tokenizer, out, packing="dictionary_learning", context_size=case["context_size"])
    # The original pads to the longest text of a batch; here all rows are as long as the context.
    longest = len(case["rows"][0])
    rows, masks = np.load(out), np.load(tmp_path / sidecar["mask"])
    assert rows[:, :longest].tolist() == case["rows"]
    assert masks[:, :longest].tolist() == case["masks"]
    assert not masks[:, longest:].any()
