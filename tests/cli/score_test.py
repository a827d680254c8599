"""Tests `hookline score` against the server, on the trained demo model."""

import json
import os
import re

import numpy as np
from conftest import DEMO, MLP, RESID, read_safetensors, run


def tokens_file(tmp_path):
    """Writes sequence 1 of the reference to a file. Returns the path and the ids."""
    ids = read_safetensors(os.path.join(DEMO, "reference.safetensors"))[1]["tokens_1"]
    path = tmp_path / "ids.txt"
    path.write_text(" ".join(map(str, ids)) + "\n7 8 9\n")
    return str(path), ids


def reference_losses(ids):
    logits = read_safetensors(os.path.join(DEMO, "reference.safetensors"))[1]["logits/1"].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_p[np.arange(len(ids) - 1), ids[1:]]


def test_the_table_has_each_tokens_loss_and_what_zeroing_makes_of_it(server, tmp_path):
    path, ids = tokens_file(tmp_path)
    code, output, errors = run(server, "score", "--tokens", path, "--zero", RESID, "--zero", MLP, "--top", "2")
    assert code == 0, errors
    lines = output.splitlines()
    assert lines[0] == "sequence 0"
    assert lines[1].split()[:3] == ["position", "token", "loss"] and f"zero {RESID}" in lines[1] and "next" in lines[1]
    losses = [float(re.search(r" (\d+\.\d{4})\b", line).group(1)) for line in lines[3 : 2 + len(ids)]]
    np.testing.assert_allclose(losses, reference_losses(ids), rtol=1e-4, atol=1e-4)
    summary = output[output.index("mean loss") :].splitlines()[1:]
    assert [line.split("  ")[0] for line in summary] == ["(clean)", f"zero {RESID}", f"zero {MLP}"]


def test_json_is_what_the_server_answers(server, tmp_path):
    path, ids = tokens_file(tmp_path)
    code, output, errors = run(server, "score", "--tokens", path, "--json", "--zero", MLP)
    assert code == 0, errors
    messages = [json.loads(line) for line in output.splitlines()]
    assert list(messages[0]) == ["started"] and messages[0]["started"]["variants"] == ["", f"zero {MLP}"]
    clean = next(message["score"] for message in messages if "score" in message)
    np.testing.assert_allclose(clean["tokenLoss"], reference_losses(ids), rtol=1e-4, atol=1e-4)
    assert [variant["name"] for variant in messages[-1]["summary"]["variants"]] == ["", f"zero {MLP}"]


def test_a_dataset_is_scored_and_errors_name_the_flag_or_the_place(server, tmp_path):
    code, output, _ = run(server, "score", "--dataset", "text", "--sequence-length", "64", "--sequence-count", "2")
    assert code == 0 and "sequence 1" in output and "126" in output
    code, _, errors = run(server, "score", "--dataset", "text", "--sequence-length", "64", "--zero", "blocks.1.hook")
    assert code == 2 and "interventions[0].hook_point" in errors
    path = tmp_path / "ids.txt"
    path.write_text("1 2\n3 99999\n")
    code, _, errors = run(server, "score", "--tokens", str(path))
    assert code == 2 and "line 2" in errors


def test_the_table_of_a_text_shows_its_tokens_and_those_that_are_expected(server):
    code, output, errors = run(server, "score", "--text", "The cat sat", "--top", "2")
    assert code == 0, errors
    lines = output.splitlines()
    rows = [line.split(maxsplit=1) for line in lines[2:13]]
    assert [row[0] for row in rows] == [str(i) for i in range(11)]
    assert [row[1][:3] for row in rows] == [f"'{character}'" for character in "The cat sat"]
    assert all(row[1].count("%") == 2 and row[1].count("'") >= 6 for row in rows)


def test_a_text_scores_as_its_tokens(server, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text(" ".join(map(str, b"The cat sat")))
    answers = []
    for source in (["--text", "The cat sat"], ["--tokens", str(path)]):
        code, output, errors = run(server, "score", *source, "--json")
        assert code == 0, errors
        answers.append([json.loads(line) for line in output.splitlines()])
    by_text, by_tokens = (answer[1]["score"]["tokenLoss"] for answer in answers)
    assert len(by_text) == 10
    np.testing.assert_allclose(by_text, by_tokens, rtol=1e-5)
