"""Tests the program `hookline` against the program `hookline-server`, on the trained demo model."""

import os
import signal

import numpy as np
import pytest
from conftest import DEMO, MLP, PATIENCE, RESID, Server, capture, read_safetensors, run, start


@pytest.fixture(scope="module")
def reference():
    return read_safetensors(os.path.join(DEMO, "reference.safetensors"))[1]


def assert_close(rows, expected):
    error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() <= 1e-4


@pytest.mark.parametrize("form", ["text", "npy", "bytes", "standard input"])
def test_rows_are_the_models_in_whatever_form_the_tokens_come(server, reference, tmp_path, form):
    ids = reference["tokens_1"]
    assert ids[0] == 256
    text = " ".join(map(str, ids)) + "\n"
    path, more = str(tmp_path / "tokens"), []
    if form == "text":
        (tmp_path / "tokens").write_text(text)
    elif form == "npy":
        path += ".npy"
        np.save(path, ids[None].astype(np.uint16))
    elif form == "bytes":
        (tmp_path / "tokens").write_bytes(bytes(int(id) for id in ids[1:]))
        more = ["--token-format", "bytes", "--bos", "256"]
    else:
        path = "-"
    out = str(tmp_path / "rows")
    came = capture(
        server, "--hook-points", f"{RESID},{MLP}", "--tokens", path, "--out", out, *more,
        input=text if path == "-" else "",
    )  # fmt: skip
    assert [point["hook_point"] for point in came["hook_points"]] == [RESID, MLP]
    for point in came["hook_points"]:
        name = point["hook_point"]
        metadata, tensors = read_safetensors(point["path"])
        assert metadata["hook_point"] == name
        assert metadata["fingerprint"] == came["fingerprint"]
        assert_close(tensors[name], reference[f"{name}/1"])
        norms = np.linalg.norm(tensors[name].astype(np.float64), axis=1)
        assert point["mean_row_norm"] == pytest.approx(norms.mean(), rel=1e-5)
        assert point["rms"] == pytest.approx(np.sqrt((tensors[name].astype(np.float64) ** 2).mean()), rel=1e-5)


def test_budgets_are_exact_and_provenance_names_each_row(server, tmp_path):
    out = str(tmp_path / "rows")
    came = capture(
        server, "--hook-points", f"{RESID},{MLP}", "--dataset", "text", "--sequence-length", "100",
        "--max-activations", "1001", "--max-activations-for", f"{MLP}=7", "--skip-first", "3", "--provenance",
        "--dtype", "bfloat16", "--out", out,
    )  # fmt: skip
    assert came["stop_reason"] == "budget"
    tokens = np.load(os.path.join(DEMO, "tokens.npy"))
    for point, rows in zip(came["hook_points"], (1001, 7)):
        assert point["rows"] == rows
        tensors = read_safetensors(point["path"])[1]
        assert tensors[point["hook_point"]].shape == (rows, 128)
        row = np.arange(rows)
        sequence, position = row // 97, row % 97 + 3
        np.testing.assert_array_equal(tensors["provenance/sequence"], sequence)
        np.testing.assert_array_equal(tensors["provenance/position"], position)
        np.testing.assert_array_equal(tensors["provenance/token_id"], tokens[100 * sequence + position])


def test_a_server_that_is_killed_and_comes_back_costs_no_row(server, tmp_path):
    # The capture takes so long that even a fast machine has not finished it when the server is killed.
    arguments = [
        "--hook-points", RESID, "--tokens", os.path.join(DEMO, "tokens.npy"), "--max-activations", "180000",
        "--deterministic", "--provenance",
    ]  # fmt: skip
    (undisturbed,) = capture(server, *arguments, "--out", str(tmp_path / "undisturbed"))["hook_points"]
    first = Server()
    process = start(first, "capture", *arguments, "--out", str(tmp_path / "disturbed"))
    assert "rows" in process.stderr.readline()  # some rows have arrived
    first.kill()
    assert "continuing in" in next(line for line in process.stderr if "attempt" in line)
    second = Server(first.port)
    errors = process.communicate(timeout=PATIENCE)[1]
    second.kill()
    assert process.returncode == 0, errors
    name = os.path.basename(undisturbed["path"])
    expected = (tmp_path / "undisturbed" / name).read_bytes()
    assert (tmp_path / "disturbed" / name).read_bytes() == expected


def test_an_interrupt_leaves_no_file(server, tmp_path):
    process = start(
        server, "capture", "--hook-points", "*", "--dataset", "text", "--sequence-length", "256",
        "--out", str(tmp_path / "rows"),
    )  # fmt: skip
    assert "rows" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert errors.endswith("hookline: interrupted; nothing was kept\n")
    assert os.listdir(tmp_path / "rows") == []


@pytest.mark.parametrize(
    "tokens, arguments, code, message",
    [
        ("1 2", ["--hook-points", "blocks.9.hook_resid_post"], 2, "nearest: blocks.0.hook_resid_post"),
        ("1 2\n3 999", ["--hook-points", RESID], 2, "token id 999"),
        ("1 2", ["--hook-points", RESID, "--max-activations-for", f"{MLP}=1"], 2, MLP),
        ("1 2", ["--hook-points", RESID, "--max-activations", "0"], 2, "max_activations"),
        ("1 2", ["--hook-points", RESID, "--model", "other"], 1, "demo"),
    ],
)
def test_what_the_server_objects_to_is_said_in_one_line(server, tokens, arguments, code, message):
    status, _, errors = run(server, "capture", "--quiet", "--tokens", "-", *arguments, input=tokens)
    assert status == code
    assert errors.startswith("hookline: ") and errors.count("\n") == 1
    assert message in errors


@pytest.fixture(scope="module")
def recording_server(tmp_path_factory):
    running = Server(recordings=tmp_path_factory.mktemp("recordings"))
    yield running
    running.kill()


@pytest.mark.parametrize("command", ["capture", "persist"])
def test_a_bad_token_is_named_by_its_place_in_the_file(recording_server, tmp_path, command):
    sequences = [[1, 2, 3]] * 9000
    sequences[8500] = [1, 999, 3]
    array = np.array(sequences, np.uint16)
    lines = [" ".join(map(str, ids)) for ids in sequences]
    (tmp_path / "ids.txt").write_text("\n" + "\n".join(lines))
    np.save(tmp_path / "rows.npy", array)
    np.save(tmp_path / "flat.npy", array.reshape(-1))
    array.tofile(tmp_path / "ids.bin")
    cases = [
        (["ids.txt"], "line 8502 of "),
        (["rows.npy"], "row 8500 of "),
        (["flat.npy", "--sequence-length", "3"], "tokens 25500 to 25502 of "),
        (["ids.bin", "--token-format", "uint16", "--sequence-length", "3"], "tokens 25500 to 25502 of "),
    ]
    for (name, *more), place in cases:
        arguments = ["bad"] if command == "persist" else []
        status, _, errors = run(
            recording_server,
            command,
            *arguments,
            "--quiet",
            "--hook-points",
            RESID,
            "--tokens",
            str(tmp_path / name),
            *more,
        )
        assert status == 2
        assert (
            errors.startswith(f"hookline: {place}") and f"{name}: token id 999 in sequence 8500 at position 1" in errors
        )


def test_tells_the_model_and_its_hook_points(server):
    code, output, _ = run(server, "models")
    assert code == 0 and "950,402" in output
    code, output, _ = run(server, "hooks")
    assert code == 0 and RESID in output


def test_stats_prints_a_table_and_draws_it(server, reference):
    arguments = ["--hook-points", "blocks.*.hook_resid_post", "--dataset", "text", "--sequence-length", "100"]
    status, text, errors = run(server, "stats", "--quiet", "--max-activations", "500", *arguments)
    assert status == 0, errors
    lines = text.splitlines()
    assert lines[0].split()[:5] == ["hook", "point", "rows", "mean", "norm"]
    drawn = [line for line in lines if line.startswith("blocks.") and "|" in line]
    assert len(drawn) == len([line for line in lines if line.startswith("blocks.") and " 500 " in line]) > 1
    told = capture(server, *arguments, "--max-activations", "500", command="stats")["hook_points"]
    for point in told:
        assert point["rows"] == 500 and len(point["mean_vector"]) == 128
        assert 0 < point["row_norm_p1"] <= point["row_norm_p50"] <= point["row_norm_p99"]
        assert point["nan_count"] == point["infinity_count"] == 0


def test_rows_with_top_k_and_scales_are_written_as_the_metadata_says(server, tmp_path):
    out = str(tmp_path / "rows")
    arguments = ["--hook-points", MLP, "--dataset", "text", "--sequence-length", "50", "--max-activations", "90"]
    (point,) = capture(server, *arguments, "--top-k", "3", "--dtype", "int8", "--out", out)["hook_points"]
    assert 0 < point["conversion_error"] < 0.05
    metadata, tensors = read_safetensors(point["path"])
    assert (metadata["dtype"], metadata["top_k"]) == ("int8", "3")
    rows = tensors[MLP].view([("scale", "<f4"), ("index", "<u4", 3), ("number", "i1", 3)])[:, 0]
    whole = str(tmp_path / "whole")
    capture(server, *arguments, "--out", whole)
    expected = read_safetensors(os.path.join(whole, os.path.basename(point["path"])))[1][MLP]
    found = rows["scale"][:, None] * rows["number"]
    at_index = np.take_along_axis(expected, rows["index"].astype(np.int64), axis=1)
    np.testing.assert_allclose(found, at_index, atol=np.abs(expected).max() / 100)
    largest = np.abs(expected).max(axis=1)
    np.testing.assert_allclose(np.abs(found[:, 0]), largest, atol=np.abs(expected).max() / 100)


def test_a_shuffled_dataset_brings_every_sequence_once_an_epoch(server, tmp_path):
    out = str(tmp_path / "rows")
    (point,) = capture(
        server, "--hook-points", RESID, "--dataset", "text", "--sequence-length", "50", "--sequence-count", "9",
        "--shuffle-seed", "4", "--epochs", "2", "--last-only", "--position-end", "-1", "--provenance", "--out", out,
    )["hook_points"]  # fmt: skip
    tensors = read_safetensors(point["path"])[1]
    sequences = tensors["provenance/sequence"].tolist()
    assert sorted(sequences[:9]) == sorted(sequences[9:]) == list(range(9))
    assert sequences[:9] != sequences[9:]
    assert set(tensors["provenance/position"].tolist()) == {48}
