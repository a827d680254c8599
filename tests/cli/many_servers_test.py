"""`hookline capture --server A,B`: the files are those of one server, whichever server dies."""

import os
import signal
import subprocess

import numpy as np
import pytest
from conftest import DEMO, MLP, PATIENCE, RESID, Server, capture, read_safetensors, run, start

POINTS = f"{RESID},{MLP}"
BATCH = [
    "--max-batch-tokens",
    "512",
    "--drain-timeout",
    "1s",
    "--threads",
    "1",
]  # small batches, so that a short source has many
OF_TEXT = ("--hook-points", RESID, "--dataset", "text", "--sequence-length", "100", "--sequence-count", "5")


@pytest.fixture(scope="module")
def servers():
    running = [Server(arguments=BATCH) for _ in range(2)]
    yield running
    for one in running:
        one.kill()


@pytest.fixture(scope="module")
def lines():
    random = np.random.default_rng(5)
    return [" ".join(map(str, random.integers(0, 256, random.integers(1, 120)))) for _ in range(500)]


@pytest.fixture
def ids(lines, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(lines))
    return str(path)


def addresses(servers):
    return ",".join(server.address for server in servers)


def rows_of(server, out, *arguments):
    code, _, errors = run(
        None,
        "capture",
        "--server",
        server,
        "--hook-points",
        POINTS,
        "--provenance",
        "-q",
        "--out",
        str(out),
        *arguments,
    )
    assert code == 0, errors
    return read_rows(out)


def read_rows(out):
    """Returns the tensors by name, for each hook point."""
    files = [read_safetensors(os.path.join(out, file)) for file in sorted(os.listdir(out)) if "safetensors" in file]
    return {metadata["hook_point"]: tensors for metadata, tensors in files}


def check_same(found, expected, exact=False):
    assert found.keys() == expected.keys() == {RESID, MLP}
    for name, tensors in expected.items():
        assert found[name].keys() == tensors.keys()
        for column, values in tensors.items():
            got = found[name][column]
            assert got.shape == values.shape and got.dtype == values.dtype
            if exact or column != name:
                np.testing.assert_array_equal(got, values)
            elif values.dtype == np.float32:  # batches, and so the last bits, differ
                np.testing.assert_allclose(got, values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-activations", "15001", "--max-activations-for", f"{MLP}=33"],
        ["--skip-first", "2", "--exclude-token=7", "--max-activations", "14999"],
        ["--dtype", "int8", "--top-k", "5", "--max-activations", "5000"],
    ],
)
def test_tokens_of_a_file_give_the_rows_of_one_server(servers, ids, tmp_path, arguments):
    arguments = ["--tokens", ids, *arguments]
    expected = rows_of(servers[0].address, tmp_path / "one", *arguments)
    check_same(rows_of(addresses(servers), tmp_path / "two", *arguments), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--first-sequence", "3", "--sequence-count", "30", "--epochs", "3", "--max-activations", "7001"],
        ["--shuffle-seed", "7", "--sequence-count", "40", "--epochs", "2", "--skip-first", "5"],
        ["--sequence-count", "60", "--exclude-token=32", "--prepend-token", "256"],
        ["--deterministic", "--sequence-count", "30", "--shuffle-seed", "1", "--epochs", "2", "--sample-rows", "9"],
    ],
)
def test_a_dataset_gives_the_rows_of_one_server(servers, tmp_path, arguments):
    arguments = ["--dataset", "text", "--sequence-length", "100", *arguments]
    expected = rows_of(servers[0].address, tmp_path / "one", *arguments)
    found = rows_of(addresses(servers), tmp_path / "two", *arguments)
    check_same(found, expected, exact="--deterministic" in arguments)


def test_a_deterministic_capture_writes_the_files_of_one_server_to_the_byte(servers, tmp_path):
    for name, server in (("one", servers[1].address), ("two", addresses(servers))):
        rows_of(
            server,
            tmp_path / name,
            "--dataset",
            "text",
            "--sequence-length",
            "64",
            "--sequence-count",
            "100",
            "--deterministic",
        )
    for file in sorted(os.listdir(tmp_path / "one")):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_a_server_that_goes_away_in_the_middle_costs_no_row_and_may_come_back(servers, lines, ids, tmp_path):
    expected = rows_of(servers[0].address, tmp_path / "one", "--tokens", ids)
    victim = Server(arguments=BATCH)
    both = f"{servers[0].address},{victim.address}"
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(
            None, "capture", "--server", both, "--hook-points", POINTS, "--provenance", "--tokens", "-",
            "--out", str(tmp_path / str(number)),
        )  # fmt: skip
        for index, line in enumerate(lines):
            if index == 400:
                process.stdin.flush()
                victim.process.send_signal(number)
            process.stdin.write(line + "\n")
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "begins without" not in errors, errors
        check_same(read_rows(tmp_path / str(number)), expected)
        victim.kill()
        if number == signal.SIGTERM:
            victim = Server(port=victim.port, arguments=BATCH)


def test_a_server_that_is_not_there_is_left_out_and_told(servers):
    code, _, errors = run(None, "capture", "--server", f"127.0.0.1:1,{servers[0].address}", *OF_TEXT)
    assert code == 0 and "begins without 127.0.0.1:1" in errors


def test_without_any_server_it_says_so(servers):
    code, _, errors = run(None, "capture", "--server", "127.0.0.1:1,127.0.0.1:2", *OF_TEXT)
    assert code == 3 and "no answer from 127.0.0.1:1,127.0.0.1:2" in errors


def test_servers_are_named_by_a_file_or_the_environment_too(servers, tmp_path, monkeypatch):
    path = tmp_path / "endpoints"
    path.write_text("# written by a job\n" + "\n".join(server.address for server in servers) + "\n")
    for server in (f"hookline://{path}", addresses(servers)):
        monkeypatch.setenv("HOOKLINE_SERVER", server)
        assert capture(None, *OF_TEXT, "--max-activations", "7")["hook_points"][0]["rows"] == 7
    path.write_text("nowhere\n")
    code, _, errors = run(None, "capture", "--server", f"hookline://{path}", *OF_TEXT)
    assert code == 2 and 'endpoints, line 1: "nowhere" has no port' in errors


def test_what_any_server_answers_is_asked_of_one_that_is_there(servers, tmp_path):
    some = f"127.0.0.1:1,{servers[1].address}"
    assert "demo" in run(None, "models", "--server", some)[1]
    assert RESID in run(None, "hooks", "--server", some)[1]
    assert run(None, "tokenize", "--server", some, "--ids", "The cat")[1].split()
    assert run(None, "score", "--server", some, "--text", "The cat")[0] == 0
    assert run(None, "stats", "--server", some, *OF_TEXT)[0] == 0
    rows = rows_of(some, tmp_path / "rows", "--text", "The cat sat")
    path = tmp_path / "texts"
    path.write_text("The cat sat\n" * 3)
    three = rows_of(some, tmp_path / "three", "--tokens", str(path), "--token-format", "utf8")
    assert len(three[RESID][RESID]) == 3 * len(rows[RESID][RESID])


@pytest.mark.parametrize(
    "arguments, why",
    [
        (["capture", *OF_TEXT, "--record-as", "x"], "record_as: a recording is written to one server's disk; give one"),
        (["capture", *OF_TEXT, "--feed", "f"], "feed: a feed is shared by captures on one server; give one server"),
        (["stats", *OF_TEXT, "--feed", "f"], "names 2 servers"),
        (["capture", "--hook-points", RESID, "--tokens", "-", "--sample-rows", "2"], "selection.sample_rows"),
        (["capture", *OF_TEXT, "--shuffle-seed", "1", "--exclude-token=3"], "selection.exclude_token_ids"),
        (["top", "--once"], "running captures and health belong to one server; give one"),
        (["recordings"], "names 2 servers"),
        (["health"], "names 2 servers"),
    ],
)
def test_what_needs_one_server_is_refused(servers, arguments, why):
    code, _, errors = run(None, *arguments, "--server", addresses(servers), input="1 2 3\n")
    assert code == 2 and why in errors


def test_a_server_that_is_named_twice_is_refused(servers):
    twice = f"{servers[0].address},{servers[0].address}"
    code, _, errors = run(None, "capture", "--server", twice, *OF_TEXT)
    assert code == 2 and "is named twice" in errors


def test_servers_that_hold_different_models_are_refused_by_both_fingerprints(servers):
    other = os.path.join(os.path.dirname(DEMO), "F-gqa")
    different = Server(model=False, arguments=["--model", f"demo={other}", "--device", "cpu", "--slab-count", "32"])
    both = f"{servers[0].address},{different.address}"
    try:
        code, _, errors = run(None, "capture", "--server", both, "--hook-points", "*", "--tokens", "-", input="1 2 3\n")
        assert code == 1 and errors.count("fingerprint") == 1
        assert servers[0].address in errors and different.address in errors
    finally:
        different.kill()


def test_an_error_in_the_tokens_is_named_by_its_line(servers, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(["1 " * 100] * 400 + ["1 999 2"] + ["1"] * 5) + "\n")
    code, _, errors = run(
        None, "capture", "--server", addresses(servers), "--hook-points", RESID, "--tokens", str(path)
    )
    assert code == 2 and "line 401" in errors and "999" in errors


def test_an_interrupt_leaves_no_file(servers, tmp_path):
    process = start(
        None, "capture", "--server", addresses(servers), "--hook-points", RESID, "--tokens", "-",
        "--out", str(tmp_path / "rows"), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process.stdin.write("1 2 3\n" * 20000)  # more than fits a pipe, so that the capture has begun when it is written
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert not os.path.exists(tmp_path / "rows") or os.listdir(tmp_path / "rows") == []
