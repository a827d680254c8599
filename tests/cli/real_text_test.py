"""Tests texts on the command line, on the trained demo model, whose tokens are bytes."""

import json

import numpy as np
from conftest import RESID, capture, read_safetensors, run


def rows_of(server, tmp_path, name, *flags, **more):
    out = tmp_path / name
    came = capture(server, "--hook-points", RESID, "--out", str(out), *flags, **more)
    return read_safetensors(came["hook_points"][0]["path"])[1][RESID]


def test_texts_bring_the_rows_of_their_tokens_in_whatever_form_they_come(server, tmp_path):
    texts = ["The cat sat", "Grüße"]
    ids = "".join(" ".join(map(str, text.encode())) + "\n" for text in texts)
    (tmp_path / "ids").write_text(ids)
    expected = rows_of(server, tmp_path, "expected", "--tokens", str(tmp_path / "ids"))
    given = [flag for text in texts for flag in ("--text", text)]
    np.testing.assert_array_equal(rows_of(server, tmp_path, "flags", *given), expected)
    (tmp_path / "lines").write_text("\ufeff" + "\r\n\n".join(texts))
    lines = ("--tokens", str(tmp_path / "lines"), "--token-format", "utf8")
    np.testing.assert_array_equal(rows_of(server, tmp_path, "utf8", *lines), expected)
    documents = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    jsonl = ("--tokens", "-", "--token-format", "jsonl:body")
    np.testing.assert_array_equal(rows_of(server, tmp_path, "jsonl", *jsonl, input=documents), expected)


def test_special_tokens_and_long_texts_are_as_the_flags_say(server, tmp_path):
    flags = ("--text", "ab", "--add-special-tokens", "yes")
    (tmp_path / "ids").write_text("256 97 98\n")
    expected = rows_of(server, tmp_path, "ids_", "--tokens", str(tmp_path / "ids"))
    np.testing.assert_array_equal(rows_of(server, tmp_path, "special", *flags), expected)
    long = ("--text", "a" * 3000, "--long-texts")
    assert len(rows_of(server, tmp_path, "split", *long, "split")) == 3000
    assert len(rows_of(server, tmp_path, "cut", *long, "truncate")) < 3000
    code, _, errors = run(server, "capture", "--hook-points", RESID, *long, "refuse")
    assert code == 2 and "text.texts[0]" in errors


def test_long_lines_of_a_file_become_what_long_texts_do(server, tmp_path):
    text = "abcdefg" * 500
    (tmp_path / "lines").write_text(f"xy\n{text}\n")
    lines = ("--tokens", str(tmp_path / "lines"), "--token-format", "utf8")
    for name, more in (("split", ()), ("truncate", ()), ("split", ("--add-special-tokens", "yes"))):
        flags = ("--long-texts", name, *more)
        expected = rows_of(server, tmp_path, f"expected-{len(more)}-{name}", "--text", "xy", "--text", text, *flags)
        rows = rows_of(server, tmp_path, f"lines-{len(more)}-{name}", *lines, *flags)
        np.testing.assert_array_equal(rows, expected)
    code, _, errors = run(server, "capture", "--hook-points", RESID, *lines)
    assert code == 2 and "line 2 of " in errors
    code, _, errors = run(server, "capture", "--hook-points", RESID, "--dataset", "text", "--long-texts", "split")
    assert code == 2 and "--long-texts" in errors


def test_a_line_that_cannot_be_used_is_named(server, tmp_path):
    (tmp_path / "bad").write_text('{"text": "a"}\n{"other": 1}\n')
    flags = ("--tokens", str(tmp_path / "bad"), "--token-format", "jsonl:text")
    code, _, errors = run(server, "capture", "--hook-points", RESID, *flags)
    assert code == 2
    assert "bad, line 2: is not a JSON object whose `text` is a string" in errors
    (tmp_path / "bad").write_text('{"text": "\\ud800"}\n')
    code, _, errors = run(server, "capture", "--hook-points", RESID, *flags)
    assert code == 2 and "bad, line 1: is not a JSON object" in errors
    code, _, errors = run(server, "capture", "--hook-points", RESID, "--text", "a", "--dataset", "text")
    assert code == 2 and "--dataset" in errors


def test_tokenize_shows_tokens_and_decodes_ids(server):
    code, output, errors = run(server, "tokenize", "a b", "--add-special-tokens", "yes")
    assert code == 0, errors
    rows = [line.split() for line in output.splitlines()[1:]]
    assert [row[1] for row in rows] == ["256", "97", "32", "98"]
    assert rows[0][-1] == "yes"
    assert run(server, "tokenize", "--ids", "ab", "c")[1] == "97 98\n99\n"
    assert run(server, "tokenize", "--decode", "256 97,98")[1] == "ab\n"
    assert json.loads(run(server, "tokenize", "--json", "a")[1])["sequences"][0]["ids"] == [97]
    assert run(server, "tokenize", "--decode", "nine")[0] == 2


def test_hooks_lists_the_names_of_other_tools(server):
    lines = run(server, "hooks", "--aliases")[1].splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith(RESID))
    assert "  = model.layers.2" in lines[place + 1 :][:40]
    assert not any(line.startswith("  = ") for line in run(server, "hooks")[1].splitlines())
